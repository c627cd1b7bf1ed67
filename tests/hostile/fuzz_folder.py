"""Where the fuzz targets put what is read from a file: a folder in memory where there is one."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = "/dev/shm"  # noqa: S108 (only a faster place for the folder, whose name is random)
    return tempfile.TemporaryDirectory(prefix="kvnet-fuzz-", dir=memory if os.path.isdir(memory) else None)  # noqa: PTH112


def as_file(data: bytes, name: str) -> Path:
    """A file with these bytes, in the place of the last one of that name."""
    path = Path(_folder().name, name)
    path.write_bytes(data)
    return path
