"""Random raw bytes of a chunk in each coding, and a random basis. Source: FORMAT.md §8.

Codes, scales and exact rows are drawn, not computed from keys and values: every valid chunk may come up,
those that no encoder would choose too. Imports nothing of kvnet.
"""

from __future__ import annotations

import random
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.second_reader.basis import read_basis, write_basis
from tests.second_reader.chunks import MAX_IMPORTANT

Part = tuple[int, str, int, int]  # layer, kind, start, stop


def random_chunk(rng: random.Random, header: dict[str, Any], part: Part, basis: bytes | None) -> bytes:
    """The raw bytes of one section."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    scheme = header["coding"].get("scheme", "raw")
    if part[1] == "attention":
        return _attention(numbers, header, part[0])
    if scheme == "grouped":
        return _grouped(numbers, header, part)
    if scheme == "transform":
        return _transform(numbers, header, part, basis or b"")
    return _raw(numbers, header, part)


def to_dtype(x: NDArray[np.float32], dtype: str) -> bytes:
    """Little-endian bytes of numbers that need no rounding care."""
    if dtype == "bfloat16":
        return (np.ascontiguousarray(x, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return x.astype("<f4" if dtype == "float32" else "<f2").tobytes()


def random_basis(rng: random.Random, header: dict[str, Any]) -> bytes:
    """Some rank for each layer and kind, at most 8."""
    numbers = np.random.default_rng(rng.getrandbits(32))
    channels = header["numKvHeads"] * header["headDim"]
    tensors = {}
    for layer in range(header["numLayers"]):
        for kind in ("key", "value"):
            rank = int(numbers.integers(1, min(channels, 8) + 1))
            for name, shape in (
                ("mean", (channels,)),
                ("forward", (channels, rank)),
                ("backward", (rank, channels)),
            ):
                tensors[f"{layer}.{kind}.{name}"] = (0.05 * numbers.standard_normal(shape)).astype(np.float32)
    return write_basis(tensors)


def _raw(numbers: np.random.Generator, header: dict[str, Any], part: Part) -> bytes:
    shape = (header["numKvHeads"], part[3] - part[2], header["headDim"])
    x = numbers.standard_normal(shape).astype(np.float32)
    x[x < -1.5] = -0.0
    x[x > 2.5] = 1e-7  # less than the smallest normal float16
    if part[2] or numbers.random() < 0.5:
        x[:] = x[0, 0, 0]
    return to_dtype(x, header["dtype"])


def _grouped(numbers: np.random.Generator, header: dict[str, Any], part: Part) -> bytes:
    coding, n = header["coding"], part[3] - part[2]
    bits, group = coding["keyBits" if part[1] == "key" else "valueBits"], coding["groupSize"]
    channels = header["numKvHeads"] * header["headDim"]
    num_params = channels * -(-n // group) if part[1] == "key" else n * -(-channels // group)
    steps = to_dtype(np.abs(numbers.standard_normal(num_params)).astype(np.float32), "bfloat16")
    if bits == 8:
        return steps + bytes(numbers.integers(-127, 128, n * channels).astype(np.int8))
    minima = to_dtype(numbers.standard_normal(num_params).astype(np.float32), "bfloat16")
    codes = numbers.integers(0, 16, n * channels).astype(np.uint8)
    codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8)).reshape(-1, 2)
    return minima + steps + bytes((codes[:, 0] | codes[:, 1] << 4).astype(np.uint8))


def _transform(numbers: np.random.Generator, header: dict[str, Any], part: Part, basis: bytes) -> bytes:
    layer, kind, start, stop = part
    coding, seq_len, n = header["coding"], header["sequenceLength"], stop - start
    channels = header["numKvHeads"] * header["headDim"]
    rank = len(read_basis(basis, header["numLayers"], channels).backwards[layer, kind])
    first_recent = seq_len - coding["recentTokens"]
    exact = {t - start for t in range(start, stop) if t < coding["sinkTokens"] or t >= first_recent}
    exact |= set(numbers.permutation(n)[: int(numbers.integers(0, n // 8 + 1))].tolist())
    rows = numbers.standard_normal((len(exact), channels)).astype(np.float32)
    codes = numbers.integers(-127, 128, rank * (n - len(exact))).astype(np.int8)
    tokens = struct.pack(f"<I{len(exact)}I", len(exact), *sorted(exact))
    exact_rows = to_dtype(rows, "bfloat16" if header["dtype"] == "bfloat16" else "float16")
    return tokens + exact_rows + bytes(codes)


def _attention(numbers: np.random.Generator, header: dict[str, Any], layer: int) -> bytes:
    heads, seq_len = header["attentionHeads"], header["sequenceLength"]
    k = min(MAX_IMPORTANT, seq_len)
    head = struct.pack("<IfII", layer, float(numbers.random()), heads, k)
    entropies = bytes(numbers.random(heads).astype("<f4"))
    return head + entropies + bytes(numbers.permutation(seq_len)[:k].astype("<u4"))
