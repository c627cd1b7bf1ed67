"""The plan: every token in one chunk, and the bytes of every chunk bounded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.plan import (
    MAX_CHUNK_RAW_NBYTES,
    MAX_PORT_RANK,
    PORT_TOKENS_PER_CHUNK,
    check_coding,
    count_chunks,
    count_transfer_chunks,
    decoded_nbytes,
    plan_chunks,
    plan_memory,
    plan_transfer,
    raw_nbytes_range,
    transfer_room_nbytes,
)
from kvnet.types import Coding, DType, Geometry, Kind, MemoryHeader, Rope, Scheme
from tests.builders import INT8, RAW, make_basis, make_geometry, make_memory, make_port

ROPE = Rope("default", 10000.0)
MIB = 1 << 20
geometries = st.builds(
    Geometry,
    num_layers=st.integers(1, 4),
    num_kv_heads=st.integers(1, 256),
    head_dim=st.integers(1, 1024),
    dtype=st.sampled_from(DType),
    rope=st.just(ROPE),
)
basis_sizes = st.sampled_from([0, 1, MIB - 1, MIB, MIB + 1, 3 * MIB + 5])
TRANSFORM, _ = make_basis()
PORT, _ = make_port()
INT4 = replace(INT8, key_bits=4, value_bits=4)


def header_of(coding: Coding = RAW, *, seq_len: int = 5, heads: int = 0, **geometry: Any) -> MemoryHeader:
    """What a memory of this coding says it is."""
    return replace(
        make_memory().header,
        geometry=make_geometry(**geometry),
        seq_len=seq_len,
        coding=coding,
        attention_heads=heads,
    )


def sizes_of(header: MemoryHeader) -> list[tuple[int, int]]:
    """The bounds of every chunk of a transfer."""
    found = [raw_nbytes_range(header, key) for key in plan_transfer(header)]
    return [(allowed[0], allowed[-1]) for allowed in found]


@given(geometries, st.integers(1, 300), st.booleans())
def test_plan_covers_every_token_of_every_layer_once(
    geometry: Geometry, seq_len: int, attention: bool
) -> None:
    covered: dict[tuple[int, Kind], list[int]] = {}
    for key in plan_chunks(geometry, seq_len, attention=attention):
        covered.setdefault((key.layer_idx, key.kind), []).extend(range(key.start, key.stop))
    kinds = (Kind.KEY, Kind.VALUE, *([Kind.ATTENTION] if attention else []))
    assert list(covered) == [(layer, kind) for layer in range(geometry.num_layers) for kind in kinds]
    assert all(tokens == list(range(seq_len)) for tokens in covered.values())


@given(geometries, st.integers(1, 300))
def test_chunks_decode_to_a_mebibyte_at_most_and_add_up_to_the_memory(
    geometry: Geometry, seq_len: int
) -> None:
    plan = plan_chunks(geometry, seq_len)
    sizes = [decoded_nbytes(geometry, key) for key in plan]
    assert all(0 < size <= MAX_CHUNK_RAW_NBYTES for size in sizes)
    assert sum(sizes) == seq_len * geometry.token_nbytes
    assert [key.index for key in plan] == list(range(len(plan)))


@given(geometries, st.integers(1, 300), st.integers(0, 2), basis_sizes)
def test_counts_are_the_lengths_of_the_plans(
    geometry: Geometry, seq_len: int, heads: int, basis_nbytes: int
) -> None:
    coding = replace(TRANSFORM, basis_nbytes=basis_nbytes)
    header = replace(header_of(coding, seq_len=seq_len, heads=heads), geometry=geometry)
    assert count_chunks(header) == len(plan_memory(header))
    assert count_transfer_chunks(header) == len(plan_transfer(header))


@given(geometries, st.integers(1, 5000), basis_sizes)
def test_coordinates_cover_every_token_once_whatever_the_geometry(
    geometry: Geometry, seq_len: int, port_nbytes: int
) -> None:
    header = header_of(replace(PORT, basis_nbytes=port_nbytes), seq_len=seq_len)
    header = replace(header, geometry=geometry)
    plan = plan_memory(header)
    assert [(key.index, key.layer_idx, key.kind) for key in plan] == [
        (i, 0, Kind.COORDINATES) for i in range(len(plan))
    ]
    assert [token for key in plan for token in range(key.start, key.stop)] == list(range(seq_len))
    assert max(key.stop - key.start for key in plan) <= PORT_TOKENS_PER_CHUNK
    assert count_chunks(header) == len(plan)
    assert count_transfer_chunks(header) == len(plan_transfer(header))
    most = sum(raw_nbytes_range(header, key)[-1] for key in plan)
    assert transfer_room_nbytes(header) == most + port_nbytes


def test_port_follows_the_coordinates_as_a_basis_does() -> None:
    header = header_of(replace(PORT, basis_nbytes=MIB + 5), seq_len=PORT_TOKENS_PER_CHUNK + 1)
    assert [(k.index, k.kind, k.start, k.stop) for k in plan_transfer(header)] == [
        (0, Kind.COORDINATES, 0, PORT_TOKENS_PER_CHUNK),
        (1, Kind.COORDINATES, PORT_TOKENS_PER_CHUNK, PORT_TOKENS_PER_CHUNK + 1),
        (2, Kind.BASIS, 0, MIB),
        (3, Kind.BASIS, MIB, MIB + 5),
    ]


@pytest.mark.parametrize("bits", [4, 8])
def test_coordinates_have_a_bitmap_at_least_and_a_mebibyte_at_most(bits: int) -> None:
    for seq_len, bitmap in ((1, 1), (8, 1), (9, 2), (PORT_TOKENS_PER_CHUNK, 125)):
        header = header_of(make_port(bits=bits)[0], seq_len=seq_len)
        assert sizes_of(header)[0] == (bitmap, bitmap + seq_len * MAX_PORT_RANK)
        assert bitmap + seq_len * MAX_PORT_RANK <= MAX_CHUNK_RAW_NBYTES


def test_counts_take_absurd_claims() -> None:
    absurd = replace(
        header_of(replace(TRANSFORM, basis_nbytes=2**62), seq_len=2**62, heads=2**62),
        geometry=Geometry(2**62, 2**62, 2**62, DType.FLOAT32, ROPE),
    )
    assert count_chunks(absurd) == 2**62 * (2 * 2**62 + 1)
    assert count_transfer_chunks(absurd) == count_chunks(absurd) + 2**42
    assert count_chunks(replace(absurd, coding=PORT)) == -(-(2**62) // PORT_TOKENS_PER_CHUNK)


def test_attention_comes_last_in_its_layer_as_one_chunk() -> None:
    wide = make_geometry(num_kv_heads=256, head_dim=256)
    plan = plan_chunks(wide, 9, attention=True)
    one_layer = [(0, 4), (4, 8), (8, 9)]
    wanted = [(Kind.KEY, *part) for part in one_layer] + [(Kind.VALUE, *part) for part in one_layer]
    assert [(k.kind, k.start, k.stop) for k in plan if k.layer_idx == 1] == [*wanted, (Kind.ATTENTION, 0, 9)]


def test_basis_follows_the_memory_in_pieces_of_a_mebibyte() -> None:
    header = header_of(replace(TRANSFORM, basis_nbytes=2 * MIB + 5))
    plan = plan_transfer(header)
    assert plan[:6] == plan_memory(header)
    assert [(k.index, k.layer_idx, k.kind, k.start, k.stop) for k in plan[6:]] == [
        (6, 0, Kind.BASIS, 0, MIB),
        (7, 0, Kind.BASIS, MIB, 2 * MIB),
        (8, 0, Kind.BASIS, 2 * MIB, 2 * MIB + 5),
    ]
    assert sizes_of(header)[6:] == [(MIB, MIB), (MIB, MIB), (5, 5)]


def test_raw_chunk_has_its_decoded_bytes_whatever_its_key_space_or_pruned_heads() -> None:
    header = header_of(Coding(pruned_heads=((0, 1),)))
    assert set(sizes_of(header)) == {(5 * 32, 5 * 32)}


@pytest.mark.parametrize(
    ("coding", "seq_len", "key", "value"),
    [
        # 2 heads of 4: 8 channels. Codes, then 2 bytes a scale (8 bits) or 2 + 2 a minimum and a step (4).
        (INT8, 1, 8 + 8 * 2, 8 + 2),
        (INT8, 8, 64 + 8 * 2, 64 + 8 * 2),
        (INT8, 9, 72 + 2 * 8 * 2, 72 + 9 * 2),
        (replace(INT8, group_size=1024), 9, 72 + 8 * 2, 72 + 9 * 2),
        (INT4, 1, 4 + 8 * 4, 4 + 4),
        (INT4, 9, 36 + 2 * 8 * 4, 36 + 9 * 4),
        (replace(INT4, key_bits=8), 9, 72 + 2 * 8 * 2, 36 + 9 * 4),
    ],
)
def test_grouped_chunk_is_codes_and_parameters(coding: Coding, seq_len: int, key: int, value: int) -> None:
    header = header_of(coding, seq_len=seq_len)
    assert sizes_of(header) == [(key, key), (value, value)] * 3


def test_odd_number_of_nibbles_is_padded_to_a_byte() -> None:
    header = header_of(INT4, num_kv_heads=1, head_dim=3, seq_len=3)
    assert sizes_of(header)[0] == (5 + 3 * 4, 5 + 3 * 4)


@given(
    geometries.filter(lambda geometry: geometry.num_kv_heads * geometry.head_dim <= 1 << 17),
    st.integers(1, 300),
    st.sampled_from([4, 8]),
    st.sampled_from([4, 8]),
    st.integers(8, 1024),
)
def test_grouped_chunk_has_a_mebibyte_at_most(
    geometry: Geometry, seq_len: int, key_bits: int, value_bits: int, group_size: int
) -> None:
    coding = Coding(Scheme.GROUPED, key_bits, value_bits, group_size)
    header = replace(header_of(coding, seq_len=seq_len), geometry=geometry)
    assert check_coding(header) == ""
    assert max(most for _, most in sizes_of(header)) <= MAX_CHUNK_RAW_NBYTES


def test_chunk_of_many_exact_tokens_has_a_mebibyte_at_most_all_the_same() -> None:
    wide = header_of(
        replace(TRANSFORM, sink_tokens=64), seq_len=32, num_kv_heads=128, head_dim=128, dtype=DType.FLOAT16
    )
    assert sizes_of(wide)[0] == (4, MIB)  # 32 rows of 32 KiB, and no room for their indices


def test_transform_chunk_is_bounded_by_full_rank_and_its_spare_tokens() -> None:
    one_kept = 4 + 2 * 8  # an index and an exact row of 8 channels
    kept = TRANSFORM.sink_tokens + TRANSFORM.recent_tokens
    assert sizes_of(header_of(TRANSFORM, seq_len=2))[0] == (4, 4 + 2 * one_kept)
    assert sizes_of(header_of(TRANSFORM, seq_len=64))[0] == (
        4,
        4 + (kept + 8) * one_kept + (64 - kept - 8) * 8,
    )


def test_attention_chunk_has_16_bytes_and_4_a_head_and_important_token() -> None:
    assert sizes_of(header_of(heads=6, seq_len=3))[2] == (16 + 24 + 12, 16 + 24 + 12)
    assert sizes_of(header_of(heads=6, seq_len=300))[2] == (16 + 24 + 64, 16 + 24 + 64)
