"""Stages that change a head's numbers before they are quantized. Knows no codes, no bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from kvnet.codec.piece import Piece


@dataclass(frozen=True, slots=True)
class PruneHeads:
    """Set these KV heads to zero. Nothing brings them back; decoding leaves them as they are."""

    kv_heads: tuple[int, ...]

    def encode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """A copy of [num_kv_heads, b, head_dim] with those heads zero."""
        del start, piece
        pruned = block.clone()
        pruned[list(self.kv_heads)] = 0
        return pruned

    def decode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """The block itself."""
        del start, piece
        return block


@dataclass(frozen=True, slots=True)
class Hadamard:
    """Spread each head's outliers over its dimensions: blocks of m, times the Hadamard matrix / sqrt(m).

    m is the largest power of two that divides head_dim; the stage is its own inverse.
    Source: FORMAT.md §8.2.
    """

    def encode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """float32 [num_kv_heads, b, head_dim], mixed within each head."""
        del start, piece
        num_kv_heads, num_tokens, head_dim = block.shape
        matrix = _sylvester(head_dim & -head_dim, block.device)
        mixed = block.reshape(-1, matrix.shape[0]) @ matrix  # [H, b, D] -> [H*b*D/m, m]
        return mixed.reshape(num_kv_heads, num_tokens, head_dim)

    decode = encode


@lru_cache(maxsize=8)
def _sylvester(size: int, device: torch.device) -> torch.Tensor:
    """Sylvester's matrix of a power of two, over sqrt(size): float32 [size, size]."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.div(size**0.5).to(device)
