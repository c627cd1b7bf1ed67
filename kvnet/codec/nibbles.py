"""Two codes of 4 bits in a byte, the first in the low half, and back. Source: FORMAT.md §8.2."""

from __future__ import annotations

import torch


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [n] of 0..15 to uint8 [ceil(n / 2)]; an odd end is padded with zero."""
    if codes.numel() % 2:
        codes = torch.cat((codes, codes.new_zeros(1)))
    pairs = codes.view(torch.int16)  # 0x0B0A for codes A, B: every machine torch runs on is little-endian
    return (pairs >> 4).bitwise_or_(pairs).to(torch.uint8)  # keeps the lower byte, 0xBA


def unpack_nibbles(packed: torch.Tensor, count: int) -> torch.Tensor:
    """Inverse of `pack_nibbles`: uint8 [count]. The padding is not looked at."""
    pairs = packed.to(torch.int16)
    return (pairs << 4).bitwise_or_(pairs).bitwise_and_(0x0F0F).view(torch.uint8)[:count]
