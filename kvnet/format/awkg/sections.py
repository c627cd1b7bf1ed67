"""One chunk of a memory to the wire bytes of its section, and back. Knows no files. Source: FORMAT.md §3."""

from __future__ import annotations

import hashlib

from kvnet.format.awkg.header import Section, SectionFacts
from kvnet.format.compress import compress, decompress, suited_compression
from kvnet.plan import ChunkKey
from kvnet.types import Compression, MemoryHeader


def pack_section(
    memory: MemoryHeader, key: ChunkKey, raw: bytes | memoryview, *, wanted: Compression, level: int
) -> tuple[SectionFacts, bytes | memoryview]:
    """Compress a chunk as `wanted`, as far as that suits it: what the table says, and the wire bytes."""
    suited = suited_compression(wanted, memory.coding, key.kind)
    used, wire = compress(raw, suited, level=level, itemsize=memory.geometry.dtype.itemsize)
    return SectionFacts(used, len(wire), len(raw), hashlib.sha256(wire).digest()), wire


def unpack_section(memory: MemoryHeader, section: Section, wire: bytes | memoryview) -> bytes | memoryview:
    """Inverse of `pack_section`: the raw bytes. Raises MalformedChunk."""
    itemsize = memory.geometry.dtype.itemsize
    return decompress(wire, section.compression, section.raw_nbytes, itemsize=itemsize)
