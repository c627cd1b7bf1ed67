"""Transform coding: which tokens are exact, what a code says, and hostile chunks."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.basis import LayerBasis
from kvnet.codec.piece import Piece
from kvnet.codec.transform import Transform
from kvnet.errors import MalformedChunk, NotFinite
from kvnet.types import DType
from tests.codec.strategies import fill, make_geometry, make_piece

CPU = torch.device("cpu")
STEP = 0.05


def orthogonal(channels: int, rank: int | None = None) -> LayerBasis:
    """A rotation with one step for all components, the first `rank` of them kept."""
    matrix, _ = torch.linalg.qr(torch.randn(channels, channels, generator=torch.Generator().manual_seed(0)))
    kept = matrix[:, : rank or channels]
    return LayerBasis(torch.full((channels,), 0.25), kept / STEP, kept.T * STEP)


def encode(coder: Transform, tensor: torch.Tensor, piece: Piece) -> bytes:
    return coder.encode(lambda a, b: tensor[:, a:b].float().clone(), piece, CPU)[0]


def decode(coder: Transform, raw: bytes, piece: Piece) -> torch.Tensor:
    """float32 [num_kv_heads, n, head_dim]."""
    return torch.cat([block for _, block in coder.decode(raw, piece, CPU)[1]], 1)


def exact_tokens(raw: bytes) -> tuple[int, ...]:
    (count,) = struct.unpack_from("<I", raw)
    return struct.unpack_from(f"<{count}I", raw, 4)


@given(
    st.integers(1, 4), st.integers(1, 9), st.integers(1, 40), st.integers(0, 5), st.integers(0, 5), st.data()
)
def test_coded_tokens_are_within_half_a_step_in_each_component(
    heads: int, dim: int, num_tokens: int, sinks: int, recent: int, data: st.DataObject
) -> None:
    piece = make_piece(make_geometry(heads, dim), num_tokens, start=data.draw(st.integers(0, 8)))
    tensor = fill("normal", piece, data.draw(st.integers(0, 99)))
    channels = heads * dim
    coder = Transform(orthogonal(channels), sinks, recent)
    raw = encode(coder, tensor, piece)
    exact = exact_tokens(raw)
    assert len(raw) == 4 + len(exact) * (4 + 2 * channels) + (num_tokens - len(exact)) * channels
    error = (decode(coder, raw, piece) - tensor).permute(1, 0, 2).flatten(1)  # [n, C]
    components = error @ coder.basis.forward
    coded = [token for token in range(num_tokens) if token not in exact]
    assert (components[coded].abs() <= 0.5 + 1e-3).all()
    if exact:
        assert error[list(exact)].abs().max() <= 3e-3  # float16


@pytest.mark.parametrize(
    ("start", "num_tokens", "behind", "wanted"),
    [(0, 9, 0, (0, 1, 6, 7, 8)), (0, 9, 2, (0, 1, 8)), (1, 9, 50, (0,)), (20, 9, 50, ()), (0, 2, 0, (0, 1))],
)
def test_first_and_last_tokens_of_the_memory_are_exact(
    start: int, num_tokens: int, behind: int, wanted: tuple[int, ...]
) -> None:
    piece = make_piece(make_geometry(), num_tokens, start=start, behind=behind)
    tensor = fill("normal", piece, 0) / 4
    assert exact_tokens(encode(Transform(orthogonal(16), 2, 3), tensor, piece)) == wanted


def test_outliers_are_kept_exact_up_to_an_eighth_and_then_saturate() -> None:
    piece = make_piece(make_geometry(1, 8), 16, behind=9)
    tensor = fill("normal", piece, 0)
    tensor[0, 3], tensor[0, 9], tensor[0, 5] = 100.0, -200.0, 50.0  # codes far beyond 127
    coder = Transform(orthogonal(8), 0, 0)
    raw = encode(coder, tensor, piece)
    assert exact_tokens(raw) == (3, 9)
    decoded = decode(coder, raw, piece)
    assert torch.equal(decoded[0, [3, 9]], tensor[0, [3, 9]])
    assert float(decoded[0, 5].abs().max()) < 50
    assert torch.allclose(decoded[0, 4], tensor[0, 4], atol=STEP * 8)


def test_dropped_components_decode_to_the_mean() -> None:
    piece = make_piece(make_geometry(1, 8), 5, behind=9)
    coder = Transform(orthogonal(8, rank=3), 0, 0)
    raw = encode(coder, fill("normal", piece, 0), piece)
    assert len(raw) == 4 + 5 * 3
    assert torch.allclose(decode(coder, raw[:4] + bytes(15), piece), torch.tensor(0.25))


@pytest.mark.parametrize(
    ("dtype", "bits"), [(DType.FLOAT16, "003c"), (DType.BFLOAT16, "803f"), (DType.FLOAT32, "003c")]
)
def test_exact_rows_are_bfloat16_only_in_a_bfloat16_memory(dtype: DType, bits: str) -> None:
    piece = make_piece(make_geometry(1, 1, dtype), 1)
    raw = encode(Transform(orthogonal(1), 1, 0), torch.ones(1, 1, 1), piece)
    assert raw.hex() == "01000000" + "00000000" + bits


PIECE = make_piece(make_geometry(1, 8), 16, behind=4)
CODER = Transform(orthogonal(8), 2, 2)


def chunk(
    exact: list[int], *, row: bytes = b"\x00\x3c", code: bytes = b"\x01", count: int | None = None
) -> bytes:
    """A chunk of 16 tokens, 8 channels, as anyone may write it."""
    return (
        struct.pack(f"<{1 + len(exact)}I", len(exact) if count is None else count, *exact)
        + row * 8 * len(exact)
        + code * 8 * (16 - len(exact))
    )


def test_chunk_made_by_hand_is_read() -> None:
    decoded = decode(CODER, chunk([0, 1, 7]), PIECE)
    assert torch.equal(decoded[0, [0, 1, 7]], torch.ones(3, 8))
    assert torch.allclose(decoded[0, 2], 0.25 + CODER.basis.backward.sum(0), atol=1e-6)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", MalformedChunk),
        (b"\x00\x00\x00", MalformedChunk),
        (chunk([0, 1])[:-1], MalformedChunk),
        (chunk([0, 1]) + b"\x00", MalformedChunk),
        (chunk([0, 1], count=3), MalformedChunk),
        (chunk([0, 1], count=2**32 - 1), MalformedChunk),
        (chunk([0, 1, 2, 3, 4, 5, 6]), MalformedChunk),  # 2 + 2 + 16 / 8 = 6 at most
        (chunk([1, 0]), MalformedChunk),
        (chunk([0, 0]), MalformedChunk),
        (chunk([0, 1, 16]), MalformedChunk),
        (chunk([0, 1, 2**31]), MalformedChunk),
        (chunk([0]), MalformedChunk),  # token 1 is a first one too
        (chunk([0, 1], code=b"\x80"), MalformedChunk),
        (chunk([0, 1], row=b"\x00\x7c"), NotFinite),
        (chunk([0, 1], row=b"\x01\x7e"), NotFinite),
    ],
)
def test_hostile_chunks_are_refused(raw: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        decode(CODER, raw, PIECE)


def test_exact_token_beyond_float16_is_not_coded() -> None:
    tensor = torch.zeros(1, 16, 8)
    tensor[0, 0, 0] = 70000.0
    with pytest.raises(NotFinite, match="exact token"):
        encode(CODER, tensor, PIECE)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_cache_with_nan_or_infinity_is_not_coded(bad: float) -> None:
    tensor = torch.zeros(1, 16, 8)
    tensor[0, 8, 3] = bad
    with pytest.raises(NotFinite):
        encode(CODER, tensor, replace(PIECE, seq_len=30))
