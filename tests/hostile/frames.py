"""zstd frames, LZ4 blocks and deflate streams by hand: well-formed, or wrong in one place.

The same bytes with every version of the libraries. Sources: RFC 8878, the LZ4 block format, RFC 1951.
"""

from __future__ import annotations

import struct

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
RAW, RLE, COMPRESSED, RESERVED = range(4)
MAX_BLOCK_NBYTES = 128 << 10
_FCS_FLAGS = {0: 0, 2: 1, 4: 2, 8: 3}


def block(kind: int, size: int, content: bytes, *, last: bool) -> bytes:
    """Three bytes of header, and the content."""
    return struct.pack("<I", last | kind << 1 | size << 3)[:3] + content


def zero_blocks(nbytes: int, *, finished: bool = True) -> bytes:
    """So many zeros in RLE blocks."""
    parts = []
    while nbytes > 0:
        size = min(nbytes, MAX_BLOCK_NBYTES)
        nbytes -= size
        parts.append(block(RLE, size, b"\0", last=finished and nbytes == 0))
    return b"".join(parts)


def zstd_frame(
    blocks: bytes,
    *,
    declared: int | None = None,
    declared_nbytes: int = 4,
    window_log: int | None = 20,
    dictionary: bytes = b"",
    flags: int = 0,
    tail: bytes = b"",
) -> bytes:
    """A frame of these blocks. Without `window_log` it is a single segment, whose window is its content."""
    width = declared_nbytes if declared is not None else 0
    descriptor = _FCS_FLAGS[width] << 6 | flags | {0: 0, 1: 1, 2: 2, 4: 3}[len(dictionary)]
    window = b"" if window_log is None else bytes([(window_log - 10) << 3])
    if window_log is None:
        descriptor |= 1 << 5
    size = b"" if declared is None else declared.to_bytes(8, "little")[:width]
    return ZSTD_MAGIC + bytes([descriptor]) + window + dictionary + size + blocks + tail


def zstd_zeros(nbytes: int, declared: int | None = None) -> bytes:
    """A valid frame of zeros, which declares its length unless told another."""
    return zstd_frame(zero_blocks(nbytes), declared=nbytes if declared is None else declared)


def skippable(content: bytes) -> bytes:
    """A frame that decoders are meant to skip."""
    return struct.pack("<II", 0x184D2A50, len(content)) + content


def lz4_zeros(nbytes: int) -> bytes:
    """A valid LZ4 block of zeros: one literal, a match as long as needed, five literals."""
    match = nbytes - 6 - 4 - 15
    return b"\x1f\x00\x01\x00" + b"\xff" * (match // 255) + bytes([match % 255]) + b"\x50" + bytes(5)


def deflate_zeros(nbytes: int) -> bytes:
    """A deflate stream of zeros: a literal and matches of 258 at distance 1, in fixed Huffman codes."""
    matches, literals = divmod(nbytes - 1, 258)
    bits = "110" + "00110000" + ("11000101" + "00000") * matches + "00110000" * literals + "0000000"
    bits += "0" * (-len(bits) % 8)
    return bytes(int(bits[at : at + 8][::-1], 2) for at in range(0, len(bits), 8))
