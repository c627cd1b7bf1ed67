"""Compression never grows a chunk; decompression never exceeds what the envelope says."""

from __future__ import annotations

import tracemalloc

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedChunk
from kvnet.format.compress import compress, decompress
from kvnet.types import MAX_CHUNK_RAW_NBYTES, Compression


@given(st.binary(max_size=300) | st.builds(bytes, st.integers(0, 4096)), st.sampled_from(Compression))
def test_decompress_is_the_inverse_of_compress(raw: bytes, wanted: Compression) -> None:
    used, wire = compress(raw, wanted)
    assert len(wire) <= len(raw)
    assert bytes(decompress(wire, used, len(raw))) == raw
    assert bytes(decompress(memoryview(wire), used, len(raw))) == raw


def test_zeros_shrink_and_noise_stays_as_it_is() -> None:
    used, wire = compress(bytes(10_000), Compression.LZ4)
    assert used is Compression.LZ4
    assert len(wire) < 100
    noise = bytes(range(256))
    used, wire = compress(noise, Compression.LZ4)
    assert used is Compression.NONE
    assert wire is noise


def test_none_leaves_even_zeros_alone() -> None:
    zeros = bytes(100)
    assert compress(zeros, Compression.NONE) == (Compression.NONE, zeros)


def test_bomb_never_allocates_beyond_what_the_envelope_says() -> None:
    bomb = lz4.block.compress(bytes(64 << 20), store_size=False)
    tracemalloc.start()
    try:
        with pytest.raises(MalformedChunk, match="does not decompress to 4096"):
            decompress(bomb, Compression.LZ4, 4096)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


def test_claim_beyond_a_mebibyte_is_refused_before_the_payload_is_read() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedChunk, match="claims"):
            decompress(b"anything", Compression.LZ4, MAX_CHUNK_RAW_NBYTES + 1)
        with pytest.raises(MalformedChunk, match="claims"):
            decompress(b"anything", Compression.NONE, 2**32 - 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_truncated_payload_is_refused(cut: int) -> None:
    raw = b"to be or not to be, " * 50
    _, wire = compress(raw, Compression.LZ4)
    with pytest.raises(MalformedChunk):
        decompress(bytes(wire)[:cut], Compression.LZ4, len(raw))


@pytest.mark.parametrize("used", Compression)
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_any_other_size_than_the_envelopes_is_refused(used: Compression, change: int) -> None:
    raw = b"to be or not to be, " * 50
    wire = raw if used is Compression.NONE else bytes(compress(raw, used)[1])
    with pytest.raises(MalformedChunk):
        decompress(wire, used, len(raw) + change)


@given(st.binary(max_size=100), st.integers(0, 5000))
def test_noise_has_the_right_size_or_is_refused(wire: bytes, raw_nbytes: int) -> None:
    try:
        raw = decompress(wire, Compression.LZ4, raw_nbytes)
    except MalformedChunk:
        return
    assert len(raw) == raw_nbytes
