"""Which chunks a memory has, in which order, and how many raw bytes each may hold. Source: FORMAT.md §3, §8.

Both ends compute the plan from the header, so no plan travels. Knows no tensors and no bytes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from kvnet.rotary import check_rope
from kvnet.types import Coding, Geometry, KeySpace, Kind, MemoryHeader, Scheme

MAX_CHUNK_RAW_NBYTES: Final = 1 << 20
MAX_IMPORTANT_TOKENS: Final = 16
MAX_ATTENTION_HEADS: Final = 4096
MAX_GROUPED_CHANNELS: Final = 1 << 17  # beyond, two tokens would not fit a chunk
MAX_TRANSFORM_CHANNELS: Final = 1 << 14
MAX_BASIS_NBYTES: Final = 1 << 30
_BASIS_HEADER_NBYTES: Final = 1 << 16  # room in a basis beside its numbers,
_TENSOR_HEADER_NBYTES: Final = 512  # and more for the name and shape of each tensor
MAX_SINK_TOKENS: Final = 64
MAX_RECENT_TOKENS: Final = 1024
PORT_TOKENS_PER_CHUNK: Final = 1000
MAX_PORT_RANK: Final = 1024  # 1,000 tokens of so many codes, and their bitmap, are within a chunk
SPARE_EXACT_SHARE: Final = 8  # of a transform-coded chunk, one token in eight may be kept exact
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SCALE_NBYTES: Final = 2  # bfloat16
_EXACT_ITEMSIZE: Final = 2


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """Which part of a memory: one layer, one kind, tokens start..stop (stop exclusive).

    Of a basis, which has no layers and no tokens, start..stop are bytes.
    """

    index: int
    layer_idx: int
    kind: Kind
    start: int
    stop: int


def plan_chunks(geometry: Geometry, seq_len: int, *, attention: bool = False) -> tuple[ChunkKey, ...]:
    """Cut a memory into chunks that decode to at most 1 MiB, in the order they are sent and stored."""
    step = _tokens_per_chunk(geometry)
    keys: list[ChunkKey] = []
    for layer_idx in range(geometry.num_layers):
        for kind in (Kind.KEY, Kind.VALUE):
            for start in range(0, seq_len, step):
                stop = min(seq_len, start + step)
                keys.append(ChunkKey(len(keys), layer_idx, kind, start, stop))
        if attention:
            keys.append(ChunkKey(len(keys), layer_idx, Kind.ATTENTION, 0, seq_len))
    return tuple(keys)


def plan_memory(header: MemoryHeader) -> tuple[ChunkKey, ...]:
    """The chunks of this memory: what its file holds, and its content digest covers."""
    if header.coding.scheme is Scheme.PORT:
        starts = range(0, header.seq_len, PORT_TOKENS_PER_CHUNK)
        return tuple(
            ChunkKey(i, 0, Kind.COORDINATES, start, min(header.seq_len, start + PORT_TOKENS_PER_CHUNK))
            for i, start in enumerate(starts)
        )
    return plan_chunks(header.geometry, header.seq_len, attention=header.attention_heads > 0)


def plan_transfer(header: MemoryHeader) -> tuple[ChunkKey, ...]:
    """The memory's chunks and then those of its basis, if it has one."""
    plan = plan_memory(header)
    nbytes = header.coding.basis_nbytes
    starts = range(0, nbytes, MAX_CHUNK_RAW_NBYTES)
    basis = (
        ChunkKey(len(plan) + i, 0, Kind.BASIS, start, min(nbytes, start + MAX_CHUNK_RAW_NBYTES))
        for i, start in enumerate(starts)
    )
    return (*plan, *basis)


def count_chunks(header: MemoryHeader) -> int:
    """`len(plan_memory(header))` without building it: safe on a claim from a stranger."""
    if header.coding.scheme is Scheme.PORT:
        return -(-header.seq_len // PORT_TOKENS_PER_CHUNK)
    geometry = header.geometry
    parts = 2 * -(-header.seq_len // _tokens_per_chunk(geometry))
    return geometry.num_layers * (parts + (header.attention_heads > 0))


def count_transfer_chunks(header: MemoryHeader) -> int:
    """`len(plan_transfer(header))` without building it."""
    return count_chunks(header) + -(-header.coding.basis_nbytes // MAX_CHUNK_RAW_NBYTES)


def transfer_room_nbytes(header: MemoryHeader) -> int:
    """The room a transfer needs: keys and values as they decode, or the most coordinates; and the basis."""
    if header.coding.scheme is Scheme.PORT:
        return _coordinates_bounds(header.seq_len)[1] + header.coding.basis_nbytes
    return header.raw_nbytes + header.coding.basis_nbytes


def decoded_nbytes(geometry: Geometry, key: ChunkKey) -> int:
    """Bytes of [num_kv_heads, stop - start, head_dim] in the geometry's dtype."""
    return (key.stop - key.start) * geometry.layer_token_nbytes


def raw_nbytes_range(header: MemoryHeader, key: ChunkKey) -> range:
    """How many raw bytes a chunk may have: one number, but for transform- and port-coded chunks."""
    least, most = _bounds(header, key)
    return range(least, min(most, MAX_CHUNK_RAW_NBYTES) + 1)


def check_coding(header: MemoryHeader) -> str:
    """What is wrong with a header's coding by FORMAT.md §8, or ""."""
    check = {
        Scheme.RAW: _check_raw,
        Scheme.GROUPED: _check_grouped,
        Scheme.TRANSFORM: _check_transform,
        Scheme.PORT: _check_port,
    }
    coding, geometry = header.coding, header.geometry
    if coding.scheme is Scheme.PORT and (header.key_space is KeySpace.ROTATED or header.attention_heads):
        return "coordinates of a port with rotated keys or attention metadata, which they cannot hold"
    return (
        check[coding.scheme](coding, geometry)
        or _check_pruned(coding, geometry)
        or _check_rotation(header.key_space, coding, geometry)
    )


def _check_raw(coding: Coding, _: Geometry) -> str:
    return "" if replace(coding, pruned_heads=()) == Coding() else "a raw coding has parameters"


def _check_grouped(coding: Coding, geometry: Geometry) -> str:
    if coding.key_bits not in (4, 8) or coding.value_bits not in (4, 8):
        return f"{coding.key_bits} and {coding.value_bits} bits, grouped codings have 4 or 8"
    channels = geometry.num_kv_heads * geometry.head_dim
    if channels > MAX_GROUPED_CHANNELS:
        return f"{channels} channels, a grouped coding has at most {MAX_GROUPED_CHANNELS}"
    if not 8 <= coding.group_size <= 1024:
        return f"groups of {coding.group_size}, allowed are 8 to 1024"
    if coding.sink_tokens or coding.recent_tokens or coding.basis or coding.basis_nbytes:
        return "a grouped coding has parameters of a transform"
    return ""


def _check_transform(coding: Coding, geometry: Geometry) -> str:
    channels = geometry.num_kv_heads * geometry.head_dim
    if channels > MAX_TRANSFORM_CHANNELS:
        return f"{channels} channels, a transform has at most {MAX_TRANSFORM_CHANNELS}"
    if coding.key_bits or coding.value_bits or coding.group_size or coding.hadamard:
        return "a transform coding has parameters of a grouped one"
    most = min(MAX_BASIS_NBYTES, _full_basis_nbytes(geometry))
    if not _DIGEST.fullmatch(coding.basis) or not 1 <= coding.basis_nbytes <= most:
        return f"a basis of {coding.basis_nbytes} bytes, allowed are 1 to {most}"
    if coding.sink_tokens > MAX_SINK_TOKENS or coding.recent_tokens > MAX_RECENT_TOKENS:
        kept = f"{coding.sink_tokens} first and {coding.recent_tokens} last tokens kept"
        return f"{kept}, at most {MAX_SINK_TOKENS} and {MAX_RECENT_TOKENS}"
    return ""


def _check_port(coding: Coding, _: Geometry) -> str:
    bits = coding.key_bits
    plain = Coding(Scheme.PORT, bits, bits, basis=coding.basis, basis_nbytes=coding.basis_nbytes)
    if coding != plain or bits not in (4, 8):
        return "a port coding has 4 or 8 bits, for keys and values alike, its port, and no other parameters"
    if not _DIGEST.fullmatch(coding.basis) or not 1 <= coding.basis_nbytes <= MAX_BASIS_NBYTES:
        return f"a port of {coding.basis_nbytes} bytes, allowed are 1 to {MAX_BASIS_NBYTES}"
    return ""


def _full_basis_nbytes(geometry: Geometry) -> int:
    """No calibration of this geometry is larger: every component kept, and room for names and shapes."""
    channels = geometry.num_kv_heads * geometry.head_dim
    numbers = 2 * geometry.num_layers * (channels + 2 * channels * channels)  # mean, forward, backward
    tensors = 2 * geometry.num_layers * 3
    return 4 * numbers + _BASIS_HEADER_NBYTES + _TENSOR_HEADER_NBYTES * tensors


def _check_rotation(key_space: KeySpace, coding: Coding, geometry: Geometry) -> str:
    rope = geometry.rope
    if not 0 < rope.partial_rotary_factor <= 1:
        return f"a partial_rotary_factor of {rope.partial_rotary_factor}, allowed is more than 0 up to 1"
    if key_space is KeySpace.ROTATED or coding.scheme is Scheme.PORT:  # a port turns by its own model's rope
        return ""
    if coding.scheme is Scheme.RAW:
        return "keys of content space, which a raw coding does not hold"
    return check_rope(rope, geometry.head_dim)


def _check_pruned(coding: Coding, geometry: Geometry) -> str:
    pairs = coding.pruned_heads
    if list(pairs) != sorted(set(pairs)):
        return "pruned heads are not ascending, or repeat"
    for pair in pairs:
        if len(pair) != 2 or pair[0] >= geometry.num_layers or pair[1] >= geometry.num_kv_heads:
            return f"{list(pair)[:4]} is no head of this memory"
    return ""


def _bounds(header: MemoryHeader, key: ChunkKey) -> tuple[int, int]:
    coding, geometry = header.coding, header.geometry
    num_tokens = key.stop - key.start
    if key.kind is Kind.BASIS:
        return num_tokens, num_tokens
    if key.kind is Kind.ATTENTION:
        nbytes = 16 + 4 * header.attention_heads + 4 * min(MAX_IMPORTANT_TOKENS, header.seq_len)
        return nbytes, nbytes
    if key.kind is Kind.COORDINATES:
        return _coordinates_bounds(num_tokens)
    if coding.scheme is Scheme.RAW:
        nbytes = decoded_nbytes(geometry, key)
        return nbytes, nbytes
    channels = geometry.num_kv_heads * geometry.head_dim
    if coding.scheme is Scheme.GROUPED:
        nbytes = _grouped_nbytes(coding, key.kind, num_tokens, channels)
        return nbytes, nbytes
    num_exact = min(num_tokens, coding.sink_tokens + coding.recent_tokens + num_tokens // SPARE_EXACT_SHARE)
    exact = num_exact * (4 + _EXACT_ITEMSIZE * channels)
    return 4, 4 + exact + (num_tokens - num_exact) * channels


def _coordinates_bounds(num_tokens: int) -> tuple[int, int]:
    bitmap_nbytes = -(-num_tokens // 8)
    return bitmap_nbytes, bitmap_nbytes + num_tokens * MAX_PORT_RANK


def _grouped_nbytes(coding: Coding, kind: Kind, num_tokens: int, channels: int) -> int:
    if kind is Kind.KEY:
        num_groups, bits = channels * -(-num_tokens // coding.group_size), coding.key_bits
    else:
        num_groups, bits = num_tokens * -(-channels // coding.group_size), coding.value_bits
    scales = _SCALE_NBYTES if bits == 8 else 2 * _SCALE_NBYTES  # 4 bits: a minimum and a step
    return num_groups * scales + -(-num_tokens * channels * bits // 8)


def _tokens_per_chunk(geometry: Geometry) -> int:
    return max(1, MAX_CHUNK_RAW_NBYTES // geometry.layer_token_nbytes)
