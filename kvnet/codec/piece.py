"""The tokens that one chunk covers, and the blocks in which stages work through them. Knows no codings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch

from kvnet.errors import MalformedChunk
from kvnet.types import DType, Geometry

# Elements of a block: 384 KiB of float32, so that a block stays in a core's cache from stage to stage.
_BLOCK_ELEMENTS: Final = 3 << 15

# What a coder makes of a chunk: a bound of all absolute numbers, and (start, float32
# [num_kv_heads, b, head_dim]) for each block in turn.
Blocks = tuple[float, Iterator[tuple[int, torch.Tensor]]]
ReadBlock = Callable[[int, int], torch.Tensor]  # (start, stop) -> float32 [num_kv_heads, b, head_dim]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens start..start + num_tokens of a memory of seq_len tokens; its position 0 is start_pos."""

    geometry: Geometry
    start: int
    num_tokens: int
    seq_len: int
    start_pos: int = 0

    @property
    def num_kv_heads(self) -> int:
        """The geometry's."""
        return self.geometry.num_kv_heads

    @property
    def head_dim(self) -> int:
        """The geometry's."""
        return self.geometry.head_dim

    @property
    def num_channels(self) -> int:
        """Numbers of one token: all heads side by side."""
        return self.num_kv_heads * self.head_dim

    @property
    def token_shape(self) -> tuple[int, int, int]:
        """Token by token: the order of codes."""
        return (self.num_tokens, self.num_kv_heads, self.head_dim)

    @property
    def dtype(self) -> DType:
        """What the chunk decodes to."""
        return self.geometry.dtype

    def blocks(self, device: torch.device, *, multiple_of: int = 1) -> Iterator[tuple[int, int]]:
        """Ranges (start, stop) within the chunk, equally long multiples of `multiple_of` but for the last.

        A GPU takes the chunk as one block: there the launch of a kernel costs more than a cache miss.
        """
        num_blocks = 1
        if device.type == "cpu":
            num_blocks = max(1, round(self.num_tokens * self.num_channels / _BLOCK_ELEMENTS))
        step = -(-self.num_tokens // (num_blocks * multiple_of)) * multiple_of
        for start in range(0, self.num_tokens, step):
            yield start, min(self.num_tokens, start + step)


def byte_tensor(raw: bytes | memoryview, piece: Piece, allowed: range) -> torch.Tensor:
    """A chunk's bytes as uint8 [nbytes] on the CPU, copied.

    Raises MalformedChunk if there are not as many as `allowed`.
    """
    nbytes = memoryview(raw).nbytes
    if nbytes not in allowed or piece.num_tokens < 1:
        wanted = f"{allowed.start}" if len(allowed) == 1 else f"{allowed.start} to {allowed.stop - 1}"
        raise MalformedChunk(
            f"a chunk of {piece.num_tokens} tokens has {nbytes} bytes, its coding needs {wanted}; "
            "ask for it again"
        )
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).copy())
