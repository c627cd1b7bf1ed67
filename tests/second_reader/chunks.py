"""From wire bytes to numbers: decompression (FORMAT.md §3) and the three codings and attention metadata (§8).

Imports nothing of kvnet. Knows no headers and no signatures: geometry and coding come as the header's plain
values.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import lz4.block
import numpy as np
from backports import zstd
from numpy.typing import NDArray

from tests.second_reader.strict import Refused

Floats = NDArray[np.float32]

ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}
MAX_WINDOW_NBYTES = 8 << 20
MAX_IMPORTANT = 16
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class Attention:
    """One layer's attention metadata (§8.4)."""

    layer: int
    average_score: float
    entropy_per_head: tuple[float, ...]
    important: tuple[int, ...]


def decompress(wire: bytes, codec: str, raw_nbytes: int, itemsize: int) -> bytes:
    """The raw bytes of a section: exactly `raw_nbytes`, or refused as `malformed_chunk`."""
    if codec == "none":
        raw = wire
    elif codec == "lz4":
        try:
            raw = lz4.block.decompress(wire, uncompressed_size=raw_nbytes)
        except lz4.block.LZ4BlockError as exc:
            raise Refused("malformed_chunk", "not an lz4 block of the raw length") from exc
    elif codec == "zstd":
        raw = _unzstd(wire, raw_nbytes)
    else:
        raw = _unsplit(wire, raw_nbytes, itemsize)
    if len(raw) != raw_nbytes:
        raise Refused("malformed_chunk", f"decompresses to {len(raw)} bytes instead of {raw_nbytes}")
    return raw


def _unzstd(wire: bytes, raw_nbytes: int) -> bytes:
    """One whole frame without dictionary; the output is bounded before it is made."""
    _check_frame_header(wire, raw_nbytes)
    try:
        frame = zstd.ZstdDecompressor()
        raw = frame.decompress(wire, max_length=raw_nbytes + 1)
    except (zstd.ZstdError, EOFError) as exc:
        raise Refused("malformed_chunk", "a broken zstd frame") from exc
    if not frame.eof or frame.unused_data:
        raise Refused("malformed_chunk", "a zstd frame that ends early, is longer, or has bytes behind it")
    return raw


def _check_frame_header(wire: bytes, raw_nbytes: int) -> None:
    """Magic, descriptor, window, dictionary id and content size, by hand (RFC 8878 §3.1.1.1).

    Libraries skip the window of a frame that declares its length, and take a length of 2^64 - 1 for none.
    """
    if len(wire) < 6 or wire[:4] != _ZSTD_MAGIC:
        raise Refused("malformed_chunk", "not a zstd frame")
    descriptor, at = wire[4], 5
    single, size_flag = bool(descriptor & 0x20), descriptor >> 6
    window = raw_nbytes
    if not single:
        base = 1 << (10 + (wire[at] >> 3))
        window, at = base + base // 8 * (wire[at] & 7), at + 1
    at += (0, 1, 2, 4)[descriptor & 3]
    size_nbytes = (1 if single else 0, 2, 4, 8)[size_flag]
    declared = int.from_bytes(wire[at : at + size_nbytes], "little") + (256 if size_flag == 1 else 0)
    if window > MAX_WINDOW_NBYTES or descriptor & 3 or (size_nbytes and declared != raw_nbytes):
        raise Refused(
            "malformed_chunk", "a zstd frame with a huge window, a dictionary or another raw length"
        )


def _unsplit(wire: bytes, raw_nbytes: int, itemsize: int) -> bytes:
    """Byte planes, the most significant first, back in their places."""
    plane_nbytes = raw_nbytes // itemsize
    raw = np.empty((plane_nbytes, itemsize), np.uint8)
    at = 0
    for plane in reversed(range(itemsize)):
        if at + 4 > len(wire):
            raise Refused("malformed_chunk", "a plane has no length")
        (nbytes,) = struct.unpack_from("<I", wire, at)
        at += 4
        if nbytes > plane_nbytes or at + nbytes > len(wire):
            raise Refused("malformed_chunk", "a plane is longer than it can be")
        packed = wire[at : at + nbytes]
        at += nbytes
        whole = packed if nbytes == plane_nbytes else decompress(packed, "zstd", plane_nbytes, 1)
        raw[:, plane] = np.frombuffer(whole, np.uint8)
    if at != len(wire):
        raise Refused("malformed_chunk", "bytes behind the last plane")
    return raw.tobytes()


def bfloat16(data: bytes) -> Floats:
    """Flat bfloat16 bytes as float32."""
    return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)


def round_to(x: Floats, dtype: str) -> Floats:
    """To the nearest value of `dtype`, ties to even, as float32; what is not finite there is refused."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype == "float16":
            x = x.astype(np.float16).astype(np.float32)
        elif dtype == "bfloat16":
            bits = np.ascontiguousarray(x).view(np.uint32).astype(np.int64)
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
            x = np.where(np.isnan(x), x, rounded.astype(np.uint32).view(np.float32))
    return _finite(x)


def _finite(x: Floats) -> Floats:
    if not np.isfinite(x).all():
        raise Refused("not_finite", "NaN or infinity")
    return x


def decode_raw(raw: bytes, heads: int, dim: int, dtype: str) -> Floats:
    """[num_kv_heads, n, head_dim] (§8.1)."""
    if dtype == "bfloat16":
        flat = bfloat16(raw)
    else:
        flat = np.frombuffer(raw, "<f4" if dtype == "float32" else "<f2").astype(np.float32)
    return _finite(flat.reshape(heads, -1, dim))


def grouped_nbytes(kind: str, n: int, heads: int, dim: int, coding: dict[str, Any]) -> int:
    """Raw length of a grouped chunk (§8.2)."""
    bits, group = coding["keyBits" if kind == "key" else "valueBits"], coding["groupSize"]
    channels = heads * dim
    params = channels * -(-n // group) if kind == "key" else n * -(-channels // group)
    return int(params * (2 if bits == 8 else 4) + (n * channels * bits + 7) // 8)


def decode_grouped(raw: bytes, kind: str, heads: int, dim: int, n: int, coding: dict[str, Any]) -> Floats:
    """[num_kv_heads, n, head_dim] (§8.2), the Hadamard turn undone, keys still where `key_space` has them."""
    bits, group = coding["keyBits" if kind == "key" else "valueBits"], coding["groupSize"]
    channels = heads * dim
    shape = (-(-n // group), channels) if kind == "key" else (n, -(-channels // group))
    num_params = shape[0] * shape[1]

    def spread(params: Floats) -> Floats:
        return np.repeat(params.reshape(shape), group, axis=0 if kind == "key" else 1)[:n, :channels]

    if bits == 8:
        scale = _steps(bfloat16(raw[: 2 * num_params]))
        codes = np.frombuffer(raw, np.int8, offset=2 * num_params).reshape(n, channels)
        if (codes == -128).any():
            raise Refused("malformed_chunk", "a code of -128")
        with np.errstate(over="ignore"):
            x = codes.astype(np.float32) * spread(scale)
    else:
        minima = _finite(bfloat16(raw[: 2 * num_params]))
        steps = _steps(bfloat16(raw[2 * num_params : 4 * num_params]))
        halves = _nibbles(raw[4 * num_params :], n * channels).reshape(n, channels)
        with np.errstate(over="ignore"):
            x = spread(minima) + halves.astype(np.float32) * spread(steps)
    x = x.reshape(n, heads, dim).transpose(1, 0, 2)  # [num_kv_heads, n, head_dim]
    return _unhadamard(x) if coding["hadamard"] else x


def _steps(params: Floats) -> Floats:
    if (_finite(params) < 0).any():
        raise Refused("malformed_chunk", "a negative scale or step")
    return params


def _nibbles(data: bytes, num_codes: int) -> NDArray[np.uint8]:
    packed = np.frombuffer(data, np.uint8)
    codes = np.stack([packed & 15, packed >> 4], axis=1).reshape(-1)
    if codes[num_codes:].any():
        raise Refused("malformed_chunk", "the last half byte is not zero")
    return codes[:num_codes]


def _unhadamard(x: Floats) -> Floats:
    dim = x.shape[-1]
    block = dim & -dim  # the largest power of two that divides head_dim
    turn = np.ones((1, 1), np.float32)
    while len(turn) < block:
        turn = np.block([[turn, turn], [turn, -turn]])
    turned: Floats = (x.reshape(-1, block) @ turn) / np.float32(math.sqrt(block))
    return turned.reshape(x.shape)


def decode_transform(
    raw: bytes, header: dict[str, Any], start: int, stop: int, mean: Floats, backward: Floats
) -> Floats:
    """[num_kv_heads, stop - start, head_dim] (§8.3), keys still in content space."""
    coding, dtype, seq_len = header["coding"], header["dtype"], header["sequenceLength"]
    heads, dim, n = header["numKvHeads"], header["headDim"], stop - start
    channels, rank = heads * dim, len(backward)
    (num_exact,) = struct.unpack_from("<I", raw)
    if num_exact > min(n, coding["sinkTokens"] + coding["recentTokens"] + n // 8):
        raise Refused("malformed_chunk", f"{num_exact} exact tokens of {n}")
    rows_at = 4 + 4 * num_exact
    codes_at = rows_at + 2 * num_exact * channels
    if len(raw) != codes_at + rank * (n - num_exact):
        raise Refused("malformed_chunk", "another length than its parts have")
    tokens = np.frombuffer(raw, "<u4", num_exact, 4).astype(np.int64)
    if (np.diff(tokens) <= 0).any() or (tokens >= n).any():
        raise Refused("malformed_chunk", "exact tokens are not ascending, or beyond the chunk")
    positions = start + np.arange(n)
    kept = (positions < coding["sinkTokens"]) | (positions >= seq_len - coding["recentTokens"])
    if set(np.flatnonzero(kept)) - set(tokens):
        raise Refused("malformed_chunk", "first or last tokens are not exact")
    exact = raw[rows_at:codes_at]
    rows = bfloat16(exact) if dtype == "bfloat16" else np.frombuffer(exact, "<f2").astype(np.float32)
    codes = np.frombuffer(raw, np.int8, offset=codes_at).reshape(rank, n - num_exact)
    if (codes == -128).any():
        raise Refused("malformed_chunk", "a code of -128")
    x = np.empty((n, channels), np.float32)
    x[tokens] = _finite(rows).reshape(num_exact, channels)
    rest = np.setdiff1d(np.arange(n), tokens)
    with np.errstate(over="ignore", invalid="ignore"):
        x[rest] = mean + codes.T.astype(np.float32) @ backward
    return x.reshape(n, heads, dim).transpose(1, 0, 2)  # [num_kv_heads, n, head_dim]


def decode_attention(raw: bytes, layer: int, heads: int, seq_len: int) -> Attention:
    """One layer's attention metadata (§8.4)."""
    k = min(MAX_IMPORTANT, seq_len)
    found_layer, score, found_heads, found_k = struct.unpack_from("<IfII", raw)
    if (found_layer, found_heads, found_k) != (layer, heads, k):
        raise Refused("malformed_chunk", "attention metadata of another layer, head count or length")
    entropies = struct.unpack_from(f"<{heads}f", raw, 16)
    important = struct.unpack_from(f"<{k}I", raw, 16 + 4 * heads)
    if not all(map(math.isfinite, (score, *entropies))):
        raise Refused("not_finite", "NaN or infinity in attention metadata")
    if not 0 <= score <= 1 or min(entropies) < 0:
        raise Refused("malformed_chunk", "a score beyond 0..1 or a negative entropy")
    if len(set(important)) != k or max(important) >= seq_len:
        raise Refused("malformed_chunk", "important tokens repeat, or are beyond the text")
    return Attention(layer, score, entropies, important)
