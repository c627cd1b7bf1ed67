"""Random pieces of caches for the codec's tests: any geometry, any dtype, kind and unkind numbers."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st

from kvnet.codec.pack import TORCH_DTYPES
from kvnet.codec.piece import Piece
from kvnet.types import DType, Geometry, Rope

FILLS = ("normal", "zeros", "equal", "denormal", "large", "outlier")


def make_geometry(
    num_kv_heads: int = 2, head_dim: int = 8, dtype: DType = DType.FLOAT32, rope: Rope | None = None
) -> Geometry:
    """One layer."""
    return Geometry(1, num_kv_heads, head_dim, dtype, rope or Rope("default", 10000.0))


def make_piece(geometry: Geometry, num_tokens: int, *, start: int = 0, behind: int = 0) -> Piece:
    """A chunk of `num_tokens` from `start`, with `behind` more tokens after it."""
    return Piece(geometry, start, num_tokens, start + num_tokens + behind)


def fill(kind: str, piece: Piece, seed: int) -> torch.Tensor:
    """[num_kv_heads, n, head_dim] in the piece's dtype."""
    shape = (piece.num_kv_heads, piece.num_tokens, piece.head_dim)
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    dtype = TORCH_DTYPES[piece.dtype]
    if kind == "zeros":
        numbers.zero_()
    elif kind == "equal":
        numbers.fill_(-3.7)
    elif kind == "denormal":
        numbers *= torch.finfo(dtype).tiny / 8
    elif kind == "large":
        numbers = numbers.clamp(-3, 3) * 1000
    elif kind == "outlier":
        numbers[0, 0, 0] = 900.0
    return numbers.to(dtype)


@st.composite
def pieces(draw: st.DrawFn, *, max_tokens: int = 40) -> tuple[Piece, torch.Tensor]:
    """A piece and its numbers."""
    num_kv_heads, head_dim = draw(st.integers(1, 4)), draw(st.integers(1, 24))
    geometry = make_geometry(num_kv_heads, head_dim, draw(st.sampled_from(DType)), draw(ropes(head_dim)))
    num_tokens, start = draw(st.integers(1, max_tokens)), draw(st.integers(0, 5000))
    piece = make_piece(geometry, num_tokens, start=start, behind=draw(st.integers(0, 9)))
    return piece, fill(draw(st.sampled_from(FILLS)), piece, draw(st.integers(0, 2**32)))


@st.composite
def ropes(draw: st.DrawFn, head_dim: int) -> Rope:
    """Each scaling, one that is none, and models that rotate nothing, or a part of each head."""
    partial = draw(st.sampled_from((0.5, 1.0)))
    extra = rope_extras(int(head_dim * partial) // 2)
    rope_type = draw(st.sampled_from(("default", "of tomorrow", *extra)))
    theta = draw(st.sampled_from((0.0, 100.0, 10000.0)))
    return Rope(rope_type, theta, partial, extra.get(rope_type, {}))


def rope_extras(half: int, context: int = 64) -> dict[str, dict[str, Any]]:
    """`extra` for each scaling of transformers, by its type, where `half` pairs are turned."""
    old = {"original_max_position_embeddings": context}
    return {
        "linear": {"factor": 4.0},
        "dynamic": {"factor": 4.0, "max_position_embeddings": context},
        "yarn": {"factor": 16.0, **old},
        "longrope": {
            "factor": 16.0,
            "short_factor": [1.0 + 0.01 * i for i in range(half)],
            "long_factor": [1.0 + 2 * i for i in range(half)],
            **old,
        },
        "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **old},
        "proportional": {},
    }
