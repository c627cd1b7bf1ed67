"""A small memory file with a section of every kind and compression, and as it was made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from kvnet.format.awkg import AwkgHeader
from kvnet.identity.seal import seal_head
from kvnet.identity.signing import SignedMessage
from kvnet.types import Compression, RawMemory
from tests.format.memory_files import (
    WRITER,
    file_of,
    make_awkg_header,
    make_header_of_memory,
    make_raw_memory,
)


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A file on disk and its parts."""

    path: Path
    memory: RawMemory
    header: AwkgHeader
    sealed: SignedMessage
    wires: tuple[bytes, ...]
    data: bytes

    def replaced(self, data: bytes) -> Path:
        """The path, with other contents."""
        self.path.write_bytes(data)
        return self.path


@pytest.fixture
def small(tmp_path: Path) -> SmallFile:
    """Sections `none`, `split` and `none` in both layers."""
    memory = make_raw_memory(make_header_of_memory())
    header, wires = make_awkg_header(memory, Compression.SPLIT)
    sealed = seal_head(WRITER, header)
    data = file_of(sealed.body, wires)
    path = tmp_path / "small.awkg"
    path.write_bytes(data)
    return SmallFile(path, memory, header, sealed, tuple(wires), data)
