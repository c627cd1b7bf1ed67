"""Attention metadata has one length and no number that is not one."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import KvnetError, MalformedChunk, NotFinite
from kvnet.format.attention import pack_attention, unpack_attention
from kvnet.plan import plan_memory, raw_nbytes_range
from kvnet.types import AttentionMetadata, Kind, MemoryHeader
from tests.format.memory_files import make_attention, make_header_of_memory

MEMORY = make_header_of_memory()
METADATA = make_attention(MEMORY, 1)
PACKED = pack_attention(METADATA)
SCORE, ENTROPIES, TOKENS = 4, 16, 32  # offsets of the fields, with the four heads of MEMORY


def with_bytes(offset: int, layout: str, *values: float) -> bytes:
    """PACKED with some of its bytes replaced."""
    data = bytearray(PACKED)
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


@st.composite
def described(draw: st.DrawFn) -> tuple[MemoryHeader, AttentionMetadata]:
    """A memory and metadata of one of its layers, in numbers that float32 has."""
    seq_len, heads = draw(st.integers(1, 40)), draw(st.integers(1, 8))
    entropy = st.floats(0, 1e6, width=32)
    tokens = draw(st.permutations(range(seq_len)))[:16]
    metadata = AttentionMetadata(
        draw(st.integers(0, 511)),
        draw(st.floats(0, 1, width=32)),
        tuple(draw(st.lists(entropy, min_size=heads, max_size=heads))),
        tuple(tokens),
    )
    return make_header_of_memory(seq_len=seq_len, attention_heads=heads), metadata


@given(described())
def test_unpack_attention_is_the_inverse_of_pack_attention(
    made: tuple[MemoryHeader, AttentionMetadata],
) -> None:
    memory, metadata = made
    packed = pack_attention(metadata)
    assert unpack_attention(packed, memory, metadata.layer_index) == metadata
    assert unpack_attention(memoryview(packed), memory, metadata.layer_index) == metadata


@given(described())
def test_packed_length_is_that_of_the_plan(made: tuple[MemoryHeader, AttentionMetadata]) -> None:
    memory, metadata = made
    key = next(key for key in plan_memory(memory) if key.kind is Kind.ATTENTION)
    assert len(pack_attention(metadata)) in raw_nbytes_range(memory, key)


def test_packed_bytes_are_those_of_the_format() -> None:
    small = AttentionMetadata(3, 0.5, (1.0, 2.0), (4, 0))
    assert pack_attention(small) == struct.pack("<IfIIffII", 3, 0.5, 2, 2, 1.0, 2.0, 4, 0)


@pytest.mark.parametrize("nbytes", range(len(PACKED) + 2))
def test_any_other_length_is_refused(nbytes: int) -> None:
    if nbytes != len(PACKED):
        with pytest.raises(MalformedChunk, match=f"{nbytes} bytes"):
            unpack_attention((PACKED * 2)[:nbytes], MEMORY, 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("offset", [SCORE, ENTROPIES, TOKENS - 4])
def test_nan_and_infinity_are_not_finite(offset: int, bad: float) -> None:
    with pytest.raises(NotFinite):
        unpack_attention(with_bytes(offset, "<f", bad), MEMORY, 1)


HOSTILE = {
    "another layer": with_bytes(0, "<I", 0),
    "three heads": with_bytes(8, "<I", 3),
    "four thousand million heads": with_bytes(8, "<I", 2**32 - 1),
    "four tokens": with_bytes(12, "<I", 4),
    "score below 0": with_bytes(SCORE, "<f", -0.01),
    "score above 1": with_bytes(SCORE, "<f", 1.01),
    "negative entropy": with_bytes(ENTROPIES, "<f", -0.01),
    "token beyond the text": with_bytes(TOKENS, "<I", 5),
    "token twice": with_bytes(TOKENS, "<II", 1, 1),
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_metadata_that_does_not_fit_is_refused(raw: bytes) -> None:
    with pytest.raises(MalformedChunk):
        unpack_attention(raw, MEMORY, 1)


def test_metadata_of_another_memory_is_refused() -> None:
    with pytest.raises(MalformedChunk):
        unpack_attention(PACKED, MEMORY, 0)
    with pytest.raises(MalformedChunk):
        unpack_attention(PACKED, replace(MEMORY, seq_len=4), 1)
    with pytest.raises(MalformedChunk):
        unpack_attention(PACKED, replace(MEMORY, attention_heads=5), 1)


@given(st.binary(min_size=len(PACKED), max_size=len(PACKED)))
def test_noise_is_refused(raw: bytes) -> None:
    with pytest.raises(KvnetError):
        unpack_attention(raw, MEMORY, 1)
