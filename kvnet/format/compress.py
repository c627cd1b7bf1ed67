"""Byte compression of chunks: none or lz4, never larger than raw, never a guess at the output size."""

from __future__ import annotations

import lz4.block

from kvnet.errors import MalformedChunk
from kvnet.types import MAX_CHUNK_RAW_NBYTES, Compression


def compress(raw: bytes | memoryview, wanted: Compression) -> tuple[Compression, bytes | memoryview]:
    """Compress one chunk; returns NONE and the input itself where compression does not shrink it."""
    if wanted is Compression.LZ4:
        packed: bytes = lz4.block.compress(raw, store_size=False)
        if len(packed) < len(raw):
            return Compression.LZ4, packed
    return Compression.NONE, raw


def decompress(wire: bytes | memoryview, used: Compression, raw_nbytes: int) -> bytes | memoryview:
    """Inverse of `compress`; the result has exactly `raw_nbytes` bytes or MalformedChunk is raised."""
    if raw_nbytes > MAX_CHUNK_RAW_NBYTES:
        raise MalformedChunk(f"chunk: claims {raw_nbytes} raw bytes, at most {MAX_CHUNK_RAW_NBYTES}")
    if used is Compression.NONE:
        raw: bytes | memoryview = wire
    else:
        try:
            raw = lz4.block.decompress(wire, uncompressed_size=raw_nbytes)
        except lz4.block.LZ4BlockError as exc:
            raise MalformedChunk(f"chunk: lz4 data does not decompress to {raw_nbytes} bytes") from exc
    if len(raw) != raw_nbytes:
        raise MalformedChunk(f"chunk: decompressed to {len(raw)} bytes, the envelope says {raw_nbytes}")
    return raw
