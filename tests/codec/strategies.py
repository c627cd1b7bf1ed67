"""Random pieces of caches for the codec's tests: any geometry, any dtype, kind and unkind numbers."""

from __future__ import annotations

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
    geometry = make_geometry(
        draw(st.integers(1, 4)), draw(st.integers(1, 24)), draw(st.sampled_from(DType)), draw(ropes())
    )
    num_tokens, start = draw(st.integers(1, max_tokens)), draw(st.integers(0, 5000))
    piece = make_piece(geometry, num_tokens, start=start, behind=draw(st.integers(0, 9)))
    return piece, fill(draw(st.sampled_from(FILLS)), piece, draw(st.integers(0, 2**32)))


@st.composite
def ropes(draw: st.DrawFn) -> Rope:
    """Each scaling that changes frequencies, and one that does not."""
    rope_type = draw(st.sampled_from(("default", "linear", "llama3", "yarn")))
    extra = {
        "linear": {"factor": 4.0},
        "llama3": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    }.get(rope_type, {})
    return Rope(
        rope_type, draw(st.sampled_from((0.0, 100.0, 10000.0))), draw(st.sampled_from((0.5, 1.0))), extra
    )
