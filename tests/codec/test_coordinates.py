"""Coordinates of a port as raw bytes: what goes in comes out, and every other byte string is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.coordinates import MAX_CODES, pack_coordinates, unpack_coordinates
from kvnet.errors import MalformedChunk
from kvnet.plan import MAX_CHUNK_RAW_NBYTES, MAX_PORT_RANK, PORT_TOKENS_PER_CHUNK

NOTHING_SENT = torch.zeros(9, dtype=torch.bool)


def codes_of(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.int8)


@st.composite
def coordinates(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(codes, sent, bits) of any chunk."""
    bits, rank = draw(st.sampled_from((4, 8))), draw(st.integers(1, 9))
    sent = draw(st.lists(st.booleans(), min_size=1, max_size=40))
    one = st.integers(-MAX_CODES[bits], MAX_CODES[bits])
    rows = draw(st.lists(st.lists(one, min_size=rank, max_size=rank), min_size=sum(sent), max_size=sum(sent)))
    return torch.tensor(rows, dtype=torch.int8).view(sum(sent), rank), torch.tensor(sent), bits


@given(coordinates())
def test_coordinates_survive(made: tuple[torch.Tensor, torch.Tensor, int]) -> None:
    codes, sent, bits = made
    raw = pack_coordinates(codes, sent, bits)
    read, where = unpack_coordinates(raw, len(sent), codes.shape[1], bits)
    assert (read.dtype, where.dtype) == (torch.int8, torch.bool)
    assert torch.equal(read, codes)
    assert torch.equal(where, sent)
    assert torch.equal(unpack_coordinates(memoryview(raw), len(sent), codes.shape[1], bits)[0], codes)


@given(coordinates(), st.integers(0, 7))
def test_what_is_read_is_what_would_be_written(
    made: tuple[torch.Tensor, torch.Tensor, int], flipped: int
) -> None:
    codes, sent, bits = made
    raw = bytearray(pack_coordinates(codes, sent, bits))
    raw[-1] ^= 1 << flipped
    try:
        read, where = unpack_coordinates(bytes(raw), len(sent), codes.shape[1], bits)
    except MalformedChunk:
        return
    assert pack_coordinates(read, where, bits) == raw


def test_bitmap_and_codes_lie_low_end_first() -> None:
    sent = NOTHING_SENT.clone()
    sent[[0, 1, 8]] = True
    rows = codes_of([1, -1, 7], [0, 0, -7], [-2, 3, 4])
    assert pack_coordinates(rows, sent, 8).hex() == "0301" + "01ff07" + "0000f9" + "fe0304"
    assert pack_coordinates(rows, sent, 4).hex() == "0301" + "f107" + "0009" + "3e04"


@pytest.mark.parametrize("bits", [4, 8])
def test_chunk_without_a_sent_slot_is_its_bitmap(bits: int) -> None:
    raw = pack_coordinates(torch.empty(0, 5, dtype=torch.int8), NOTHING_SENT, bits)
    assert raw == bytes(2)
    codes, sent = unpack_coordinates(raw, 9, 5, bits)
    assert codes.shape == (0, 5)
    assert not sent.any()


def test_largest_chunk_is_within_a_mebibyte() -> None:
    sent = torch.ones(PORT_TOKENS_PER_CHUNK, dtype=torch.bool)
    raw = pack_coordinates(torch.zeros(len(sent), MAX_PORT_RANK, dtype=torch.int8), sent, 8)
    assert len(raw) <= MAX_CHUNK_RAW_NBYTES


@pytest.mark.parametrize(
    ("raw", "bits", "message"),
    [
        ("", 8, "has 0 bytes, 3 codes of 8 bits each need 2"),
        ("01", 8, "has 1 bytes, 3 codes of 8 bits each need 5"),
        ("0100", 8, "1 of them sent, has 2 bytes, 3 codes of 8 bits each need 5"),
        ("010001020300", 8, "has 6 bytes, 3 codes of 8 bits each need 5"),
        ("0100010203", 4, "has 5 bytes, 3 codes of 4 bits each need 4"),
        ("0002010203", 8, "a chunk of 9 slots marks one beyond them"),
        ("0080010203", 8, "a chunk of 9 slots marks one beyond them"),
        ("0100010280", 8, "holds the code -128, wanted -127 to 127"),
        ("01008000", 4, "holds the code -8, wanted -7 to 7"),
        ("01000008", 4, "holds the code -8, wanted -7 to 7"),
        ("01000010", 4, "half a byte that is not zero"),
    ],
)
def test_chunk_that_breaks_a_rule_is_refused(raw: str, bits: int, message: str) -> None:
    with pytest.raises(MalformedChunk, match=message):
        unpack_coordinates(bytes.fromhex(raw), 9, 3, bits)


@pytest.mark.parametrize(
    ("codes", "bits"),
    [
        (codes_of([1, 2]), 8),
        (codes_of([-128]), 8),
        (codes_of([8]), 4),
        (codes_of([-8]), 4),
        (codes_of([1]), 3),
        (torch.ones(1, 1), 8),
        (torch.ones(1, dtype=torch.int8), 8),
        (torch.empty(1, 0, dtype=torch.int8), 8),
        (torch.zeros(1, MAX_PORT_RANK + 1, dtype=torch.int8), 8),
    ],
)
def test_what_is_no_coordinates_is_not_packed(codes: torch.Tensor, bits: int) -> None:
    sent = torch.tensor([True] * (2 if codes.shape[-1] == 2 else 1))
    with pytest.raises(ValueError, match=r"codes|code|coordinates"):
        pack_coordinates(codes, sent, bits)
