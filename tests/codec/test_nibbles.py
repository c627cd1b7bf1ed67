"""Codes of four bits."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.nibbles import pack_nibbles, unpack_nibbles


@given(st.lists(st.integers(0, 15), max_size=33))
def test_codes_survive(codes: list[int]) -> None:
    packed = pack_nibbles(torch.tensor(codes, dtype=torch.uint8))
    assert packed.numel() == -(-len(codes) // 2)
    assert unpack_nibbles(packed, len(codes)).tolist() == codes


def test_first_code_is_in_the_low_half_and_the_end_is_padded_with_zero() -> None:
    assert pack_nibbles(torch.tensor([0xA, 0xB, 0xC], dtype=torch.uint8)).tolist() == [0xBA, 0x0C]
