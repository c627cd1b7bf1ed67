"""Keys without their rotary rotation, and back. Knows angles; no quantization, no bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from kvnet.codec.piece import Piece
from kvnet.types import Rope


@dataclass(frozen=True, slots=True)
class RopeStrip:
    """Turn keys back by their positions' angles: rotated to content space.

    `frequencies` are radians per position, one for each pair (i, i + len(frequencies)) of dimensions.
    Source: FORMAT.md §8, Content space.
    """

    frequencies: tuple[float, ...]

    def encode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """float32 [num_kv_heads, b, head_dim] of the chunk's tokens start.. to content space, in place."""
        return self._turn(block, start, piece, forward=False)

    def decode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """Inverse of `encode`, in place."""
        return self._turn(block, start, piece, forward=True)

    def _turn(self, block: torch.Tensor, start: int, piece: Piece, *, forward: bool) -> torch.Tensor:
        stop = start + block.shape[1]
        first = piece.start_pos + piece.start
        cos, back, ahead = _table(self.frequencies, first, first + piece.num_tokens, block.device)
        sin = ahead if forward else back
        rotated = 2 * len(self.frequencies)
        pairs = block[..., :rotated]
        partner = pairs.roll(rotated // 2, -1)  # pair (a, b) meets (b, a)
        pairs.mul_(cos[start:stop]).addcmul_(partner, sin[start:stop])
        return block


def rope_strip(rope: Rope, head_dim: int) -> RopeStrip | None:
    """The stage for a model's keys, or None for a model that rotates nothing."""
    half = int(head_dim * rope.partial_rotary_factor) // 2
    if rope.rope_theta <= 0 or half == 0:
        return None
    plain = [rope.rope_theta ** (-i / half) for i in range(half)]
    return RopeStrip(tuple(_scaled(f, rope.rope_type, rope.extra) for f in plain))


def _scaled(frequency: float, rope_type: str, extra: Mapping[str, Any]) -> float:
    """Frequency after the rope's scaling, as transformers computes it (FORMAT.md §8)."""
    if rope_type == "linear":
        return frequency / float(extra["factor"])
    if rope_type != "llama3":
        return frequency
    factor, context = float(extra["factor"]), float(extra["original_max_position_embeddings"])
    low, high = float(extra["low_freq_factor"]), float(extra["high_freq_factor"])
    wavelength = 2 * math.pi / frequency
    if wavelength < context / high:
        return frequency
    if wavelength > context / low:
        return frequency / factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


@lru_cache(maxsize=16)  # every layer of a memory asks for the same few token ranges
def _table(
    frequencies: tuple[float, ...], first: int, stop: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """cos, and the signed sin that turns back or ahead, each float32 [stop - first, 2 * pairs]."""
    positions = torch.arange(first, stop, dtype=torch.float64)[:, None]  # [T, 1]
    turns = positions * (torch.tensor(frequencies, dtype=torch.float64) / (2 * math.pi))  # [T, pairs]
    # Whole turns go in float64, where position 2**31 still has all its digits behind the point.
    angles = ((turns - turns.round()) * (2 * math.pi)).float()
    cos, sin = angles.cos(), angles.sin()
    tables = torch.cat((cos, cos), -1), torch.cat((sin, -sin), -1), torch.cat((-sin, sin), -1)
    return tables[0].to(device), tables[1].to(device), tables[2].to(device)
