"""Byte compression of chunks: never larger than raw, never a guess at the output size. Source: FORMAT.md §3.

Knows bytes and the width of an element; no keys, no tensors, no headers.
"""

from __future__ import annotations

import struct
import sys
from typing import Final

import lz4.block

from kvnet.errors import MalformedChunk
from kvnet.plan import MAX_CHUNK_RAW_NBYTES
from kvnet.types import Coding, Compression, Kind, Scheme

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DEFAULT_LEVELS: Final = {Compression.ZSTD: 3, Compression.SPLIT: 1}
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_ZSTD_BOUNDS: Final[dict[int, int]] = {zstd.DecompressionParameter.window_log_max: 23}  # 8 MiB
_MAX_FRAME_HEADER_NBYTES: Final = 18
_MAX_WINDOW_NBYTES: Final = 1 << 23
_PLANE_LENGTH: Final = struct.Struct("<I")
_ITEMSIZES: Final = (2, 4)
_LEVEL: Final[int] = zstd.CompressionParameter.compression_level
# Exponents repeat in chance runs of four to six bytes. Not looking for those makes bfloat16 planes nearly
# three times as fast and a little smaller; longer runs, of zeros above all, are found as before.
_PLANE_OPTIONS: Final[dict[int, int]] = {
    zstd.CompressionParameter.min_match: 7,
    zstd.CompressionParameter.hash_log: 10,
}


def compress(
    raw: bytes | memoryview, wanted: Compression, *, level: int = 0, itemsize: int = 0
) -> tuple[Compression, bytes | memoryview]:
    """Compress one chunk; returns NONE and the input itself where compression does not shrink it.

    `level` 0 means `DEFAULT_LEVELS`; LZ4 has none. SPLIT needs the `itemsize` of the elements, 2 or 4
    bytes, and is for raw-coded keys and values only: see `suited_compression`.
    """
    if wanted is Compression.NONE or not raw:
        return Compression.NONE, raw
    if wanted is Compression.LZ4:
        packed: bytes = lz4.block.compress(raw, store_size=False)
    elif wanted is Compression.ZSTD:
        packed = zstd.compress(raw, level=effective_level(wanted, level))
    else:
        packed = _split(raw, effective_level(wanted, level), itemsize)
    return (wanted, packed) if len(packed) < len(raw) else (Compression.NONE, raw)


def decompress(
    wire: bytes | memoryview, used: Compression, raw_nbytes: int, *, itemsize: int = 0
) -> bytes | memoryview:
    """Inverse of `compress`; the result has exactly `raw_nbytes` bytes or MalformedChunk is raised.

    Allocates `raw_nbytes` and the window of zstd (8 MiB) at most, whatever `wire` says.
    """
    if raw_nbytes > MAX_CHUNK_RAW_NBYTES:
        raise MalformedChunk(f"chunk: claims {raw_nbytes} raw bytes, at most {MAX_CHUNK_RAW_NBYTES}")
    if used is Compression.ZSTD:
        return _unpack_zstd(wire, raw_nbytes)
    if used is Compression.SPLIT:
        return _join(wire, raw_nbytes, itemsize)
    raw = _unpack_lz4(wire, raw_nbytes) if used is Compression.LZ4 else wire
    if len(raw) != raw_nbytes:
        raise MalformedChunk(f"chunk: decompressed to {len(raw)} bytes, the envelope says {raw_nbytes}")
    return raw


def suited_compression(wanted: Compression, coding: Coding, kind: Kind) -> Compression:
    """`wanted`, or ZSTD where SPLIT is wanted for something else than raw-coded keys and values."""
    splits = coding.scheme is Scheme.RAW and kind in (Kind.KEY, Kind.VALUE)
    return Compression.ZSTD if wanted is Compression.SPLIT and not splits else wanted


def effective_level(wanted: Compression, level: int = 0) -> int:
    """The level that `compress` takes for `level`; 0 where the compression has none."""
    if wanted not in DEFAULT_LEVELS:
        return 0
    return level or DEFAULT_LEVELS[wanted]


def _unpack_lz4(wire: bytes | memoryview, raw_nbytes: int) -> bytes:
    try:
        raw: bytes = lz4.block.decompress(wire, uncompressed_size=raw_nbytes)
    except lz4.block.LZ4BlockError as exc:
        raise MalformedChunk(f"chunk: lz4 data does not decompress to {raw_nbytes} bytes") from exc
    return raw


def _unpack_zstd(wire: bytes | memoryview, raw_nbytes: int) -> bytes:
    """One frame, whole, alone, without a dictionary, of `raw_nbytes` bytes."""
    if bytes(wire[:4]) != _ZSTD_MAGIC:  # a skippable frame would decompress to nothing and be done
        raise MalformedChunk("chunk: its zstd data does not start with a frame")
    _check_frame(bytes(wire[4:_MAX_FRAME_HEADER_NBYTES]), raw_nbytes)
    try:
        decompressor = zstd.ZstdDecompressor(options=_ZSTD_BOUNDS)
        raw = decompressor.decompress(wire, max_length=raw_nbytes + 1)
    except zstd.ZstdError as exc:
        raise MalformedChunk(f"chunk: zstd data does not decompress to {raw_nbytes} bytes ({exc})") from exc
    if not decompressor.eof or len(raw) != raw_nbytes:
        raise MalformedChunk(f"chunk: its zstd frame does not end after {raw_nbytes} bytes")
    if decompressor.unused_data:
        raise MalformedChunk(f"chunk: {len(decompressor.unused_data)} bytes behind its zstd frame")
    return raw


def _check_frame(header: bytes, raw_nbytes: int) -> None:
    """The frame's own claims: its length, its window, no dictionary. Source: RFC 8878, 3.1.1.1.

    libzstd lets a stated length pass for a window of any size, and takes 2**64 - 1 for no length at all.
    """
    if not header:
        raise MalformedChunk("chunk: its zstd data ends after the magic number")
    descriptor = header[0]
    is_single, dictionary_nbytes = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    size_nbytes = (is_single, 2, 4, 8)[descriptor >> 6]
    window_at, dictionary_at = 1, 2 - is_single
    size_at = dictionary_at + dictionary_nbytes
    if len(header) < size_at + size_nbytes:
        raise MalformedChunk("chunk: its zstd data ends within the frame's header")
    if any(header[dictionary_at:size_at]):
        raise MalformedChunk("chunk: its zstd frame wants a dictionary, none is used")
    stated = int.from_bytes(header[size_at : size_at + size_nbytes], "little") + 256 * (size_nbytes == 2)
    if size_nbytes and stated != raw_nbytes:
        raise MalformedChunk(f"chunk: its zstd frame states {stated} bytes, wanted {raw_nbytes}")
    exponent, mantissa = divmod(header[window_at], 8)
    window_nbytes = stated if is_single else (8 + mantissa) << (exponent + 7)
    if window_nbytes > _MAX_WINDOW_NBYTES:
        raise MalformedChunk(
            f"chunk: its zstd frame wants a window of {window_nbytes} bytes, at most {_MAX_WINDOW_NBYTES}"
        )


def _split(raw: bytes | memoryview, level: int, itemsize: int) -> bytes:
    if itemsize not in _ITEMSIZES or len(raw) % itemsize:
        raise ValueError(f"split: {len(raw)} bytes of itemsize {itemsize}, wanted whole elements of 2 or 4")
    data = bytes(raw)  # a memoryview is sliced nine times slower
    parts: list[bytes] = []
    for j in reversed(range(itemsize)):
        plane = data[j::itemsize]
        packed = zstd.compress(plane, options=_PLANE_OPTIONS | {_LEVEL: level})
        part = packed if len(packed) < len(plane) else plane
        parts += _PLANE_LENGTH.pack(len(part)), part
    return b"".join(parts)


def _join(wire: bytes | memoryview, raw_nbytes: int, itemsize: int) -> memoryview:
    if itemsize not in _ITEMSIZES or raw_nbytes % itemsize:
        raise MalformedChunk(f"chunk: split into planes, but {raw_nbytes} bytes of itemsize {itemsize}")
    plane_nbytes = raw_nbytes // itemsize
    parts = _plane_parts(wire, itemsize, plane_nbytes)
    raw = bytearray(raw_nbytes)
    for j, part in zip(reversed(range(itemsize)), parts, strict=True):
        raw[j::itemsize] = part if len(part) == plane_nbytes else _unpack_zstd(part, plane_nbytes)
    return memoryview(raw).toreadonly()


def _plane_parts(wire: bytes | memoryview, num_planes: int, plane_nbytes: int) -> list[memoryview]:
    """The stored planes, the most significant first, each at most `plane_nbytes` long, and nothing behind."""
    view = memoryview(wire)
    parts: list[memoryview] = []
    at = 0
    for _ in range(num_planes):
        if len(view) - at < _PLANE_LENGTH.size:
            raise MalformedChunk(f"chunk: {len(view)} bytes end before the last of its {num_planes} planes")
        (nbytes,) = _PLANE_LENGTH.unpack_from(view, at)
        at += _PLANE_LENGTH.size
        if nbytes > plane_nbytes or nbytes > len(view) - at:
            raise MalformedChunk(f"chunk: a plane of {nbytes} bytes, at most {plane_nbytes} and all there")
        parts.append(view[at : at + nbytes])
        at += nbytes
    if at != len(view):
        raise MalformedChunk(f"chunk: {len(view) - at} bytes behind its last plane")
    return parts
