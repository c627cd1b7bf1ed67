"""Keys without their rotary rotation, and back. Knows angles; no quantization, no bytes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from kvnet.codec.piece import Piece
from kvnet.errors import IncompatibleModel
from kvnet.rotary import attention_factor_of, check_rope, frequencies_of
from kvnet.types import Rope


@dataclass(frozen=True, slots=True)
class RopeStrip:
    """Turn keys back by their positions' angles: rotated to content space.

    `frequencies` are radians per position, one for each pair (i, i + len(frequencies)) of dimensions; the
    model multiplied those dimensions by `attention_factor`. Source: FORMAT.md §8, Content space.
    """

    frequencies: tuple[float, ...]
    attention_factor: float = 1.0

    def encode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """float32 [num_kv_heads, b, head_dim] of the chunk's tokens start.. to content space, in place."""
        return self._turn(block, start, piece, forward=False)

    def decode(self, block: torch.Tensor, start: int, piece: Piece) -> torch.Tensor:
        """Inverse of `encode`, in place."""
        return self._turn(block, start, piece, forward=True)

    def _turn(self, block: torch.Tensor, start: int, piece: Piece, *, forward: bool) -> torch.Tensor:
        stop = start + block.shape[1]
        first = piece.start_pos + piece.start
        cos, sin = _range_table(self, first, first + piece.num_tokens, block.device, forward=forward)
        return _turn_pairs(block, cos[start:stop], sin[start:stop])


def rope_strip(rope: Rope, head_dim: int, seq_len: int | None) -> RopeStrip | None:
    """The stage for a model's keys, or None for a model that rotates nothing.

    `seq_len` is how many positions, counted from 0, had been read when the keys were made (of a memory:
    start_pos + seq_len); None is any number within the model's original context. Only `dynamic` and
    `longrope` ask. The rope has passed `kvnet.rotary.check_rope`.
    """
    frequencies = frequencies_of(rope, head_dim, seq_len)
    return RopeStrip(frequencies, attention_factor_of(rope)) if frequencies else None


def turn_keys(
    keys: torch.Tensor,
    positions: torch.Tensor,
    rope: Rope,
    head_dim: int,
    *,
    forward: bool,
    seq_len: int | None,
) -> torch.Tensor:
    """A copy of float32 keys [num_kv_heads, n, head_dim], turned from content space to int64 `positions` [n].

    Not `forward`: the inverse, from those positions to content space. `seq_len` as for `rope_strip`.
    Raises IncompatibleModel for a rope by which keys cannot be turned.
    """
    turned = keys.clone()
    if rope.rope_type == "none":
        return turned
    if problem := check_rope(rope, head_dim):
        raise IncompatibleModel(f"keys cannot be moved to other positions: {problem}; use the text instead")
    strip = rope_strip(rope, head_dim, seq_len)
    if strip is None:
        return turned
    cos, sin = _table(strip, positions, forward=forward)
    return _turn_pairs(turned, cos.to(keys.device), sin.to(keys.device))


def _turn_pairs(block: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """[num_kv_heads, b, head_dim] by tables [b, 2 * pairs], in place; dimensions beyond the pairs stay."""
    rotated = cos.shape[1]
    pairs = block[..., :rotated]
    partner = pairs.roll(rotated // 2, -1)  # pair (a, b) meets (b, a)
    pairs.mul_(cos).addcmul_(partner, sin)
    return block


@lru_cache(maxsize=16)  # every layer of a memory asks for the same few token ranges
def _range_table(
    strip: RopeStrip, first: int, stop: int, device: torch.device, *, forward: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    cos, sin = _table(strip, torch.arange(first, stop), forward=forward)
    return cos.to(device), sin.to(device)


def _table(strip: RopeStrip, positions: torch.Tensor, *, forward: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """cos, and the signed sin that turns ahead or back, each float32 [n, 2 * pairs]; scaled as keys are."""
    frequencies = torch.tensor(strip.frequencies, dtype=torch.float64)
    turns = positions.cpu().double()[:, None] * (frequencies / (2 * math.pi))  # [n, pairs]
    # Whole turns go in float64, where position 2**31 still has all its digits behind the point.
    angles = ((turns - turns.round()) * (2 * math.pi)).float()
    scale = strip.attention_factor if forward else 1 / strip.attention_factor
    cos, sin = angles.cos() * scale, angles.sin() * scale
    ahead = torch.cat((-sin, sin), -1)
    return torch.cat((cos, cos), -1), ahead if forward else -ahead
