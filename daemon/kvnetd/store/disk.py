"""Small disk habits: room left and taken, ENOSPC as StoreFull."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvnet.errors import StoreFull


@dataclass(slots=True)
class _Reserve:
    """What is left free of every disk that this process stores on: set once, before anything is stored."""

    nbytes: int = 1 << 30
    percent: int = 10


_reserve = _Reserve()


def keep_free(*, nbytes: int, percent: int) -> None:
    """Leave so much of a disk free from now on: whichever is less."""
    _reserve.nbytes, _reserve.percent = nbytes, percent


def free_nbytes(folder: Path) -> int:
    """Bytes that may still be stored: free space less the reserve, 1 GiB or 10 % unless set otherwise."""
    usage = shutil.disk_usage(folder)
    reserve = min(_reserve.nbytes, usage.total * _reserve.percent // 100)
    return max(0, usage.free - reserve)


def files_nbytes(folder: Path) -> int:
    """Bytes of the files in a folder; 0 where it is gone meanwhile."""
    try:
        with os.scandir(folder) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:
        return 0


def require_room(folder: Path, nbytes: int, *, what: str) -> None:
    """Raise StoreFull where `nbytes` more would eat into the reserve."""
    free = free_nbytes(folder)
    if nbytes > free:
        raise StoreFull(
            f"{what}: needs {nbytes} bytes, the store has room for {free}; "
            "forget some memories or free the disk"
        )


@contextmanager
def full_disk_refused(what: str) -> Iterator[None]:
    """Turn ENOSPC and EDQUOT into StoreFull."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFull(f"{what}: the disk is full; free some space and try again") from exc
        raise
