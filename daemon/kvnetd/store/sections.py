"""The bytes behind a section table: read one, check it, undo its compression. No folders, no records."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

from kvnet.errors import StateCorrupt
from kvnet.format.awkg import Section, SectionFacts, make_sections
from kvnet.format.awkg.sections import pack_section, unpack_section
from kvnet.plan import plan_memory
from kvnet.types import Compression, MemoryHeader, content_digest

_COPY_NBYTES = 1 << 20


def read_section(sections: BinaryIO, section: Section) -> bytes:
    """One section's wire bytes, checked against its digest. Raises StateCorrupt."""
    try:
        data = os.pread(sections.fileno(), section.wire_nbytes, section.offset)
    except OSError as exc:
        raise StateCorrupt(f"{sections.name}: cannot be read ({exc.strerror})") from exc
    if hashlib.sha256(data).digest() != section.wire_digest:
        raise StateCorrupt(
            f"{sections.name}: not what was stored at {section.offset}; "
            "forget the memory and have it made or sent again"
        )
    return data


class Contents:
    """What all sections of a memory say together, as they go by in plan order, none of them kept."""

    def __init__(self, memory: MemoryHeader) -> None:
        self._memory = memory
        self._checksum = hashlib.sha256()
        self._raw_digests: list[bytes] = []

    def add(self, section: Section, wire: bytes) -> None:
        """The next section, its digest already checked. Raises MalformedChunk."""
        self._checksum.update(wire)
        if section.compression is Compression.NONE:
            self._raw_digests.append(section.wire_digest)  # raw and wire bytes are the same
        else:
            self._raw_digests.append(hashlib.sha256(unpack_section(self._memory, section, wire)).digest())

    @property
    def checksum(self) -> str:
        """Of the wire bytes, to be compared with the head's."""
        return f"sha256:{self._checksum.hexdigest()}"

    @property
    def content_digest(self) -> str:
        """Of the raw bytes, to be compared with the memory's."""
        return content_digest(self._raw_digests)


def write_sections(
    path: Path,
    memory: MemoryHeader,
    chunks: Iterable[bytes | memoryview],
    *,
    wanted: Compression,
    level: int,
) -> tuple[tuple[Section, ...], str]:
    """Compress chunks in plan order into a file, durably; returns the table and the checksum."""
    facts: list[SectionFacts] = []
    checksum = hashlib.sha256()
    with path.open("wb") as out:
        for key, raw in zip(plan_memory(memory), chunks, strict=True):
            told, wire = pack_section(memory, key, raw, wanted=wanted, level=level)
            out.write(wire)
            checksum.update(wire)
            facts.append(told)
        out.flush()
        os.fsync(out.fileno())
    return make_sections(memory, facts), f"sha256:{checksum.hexdigest()}"


def copy_bytes(source: BinaryIO, start: int, nbytes: int, out: BinaryIO) -> None:
    """Append a range of a file to another, a MiB at a time."""
    end = start + nbytes
    while start < end:
        data = os.pread(source.fileno(), min(_COPY_NBYTES, end - start), start)
        if not data:
            raise StateCorrupt(f"{source.name}: ends at {start}, {end} was expected")
        out.write(data)
        start += len(data)
