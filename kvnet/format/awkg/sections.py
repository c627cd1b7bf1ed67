"""One chunk of a memory to the wire bytes of its section, and back. Knows no files. Source: FORMAT.md §3."""

from __future__ import annotations

from typing import Protocol

from kvnet.format.awkg.header import SectionFacts
from kvnet.format.compress import compress, decompress, suited_compression
from kvnet.plan import ChunkKey
from kvnet.types import Compression, MemoryHeader, chunk_digest


class Packed(Protocol):
    """What a section's table, its facts and a chunk's envelope all say of wire bytes."""

    @property
    def compression(self) -> Compression: ...

    @property
    def raw_nbytes(self) -> int: ...

    @property
    def wire_digest(self) -> bytes: ...


def pack_section(
    memory: MemoryHeader, key: ChunkKey, raw: bytes | memoryview, *, wanted: Compression, level: int
) -> tuple[SectionFacts, bytes | memoryview]:
    """Compress a chunk as `wanted`, as far as that suits it: what the table says, and the wire bytes."""
    suited = suited_compression(wanted, memory.coding, key.kind)
    used, wire = compress(raw, suited, level=level, itemsize=memory.geometry.dtype.itemsize)
    return SectionFacts(used, len(wire), len(raw), chunk_digest(wire)), wire


def raw_digest(section: Packed, raw: bytes | memoryview) -> bytes:
    """The `chunk_digest` of a section's raw bytes; of one that is not compressed it is known already."""
    return section.wire_digest if section.compression is Compression.NONE else chunk_digest(raw)


def unpack_section(memory: MemoryHeader, section: Packed, wire: bytes | memoryview) -> bytes | memoryview:
    """Inverse of `pack_section`: the raw bytes. Raises MalformedChunk."""
    itemsize = memory.geometry.dtype.itemsize
    return decompress(wire, section.compression, section.raw_nbytes, itemsize=itemsize)
