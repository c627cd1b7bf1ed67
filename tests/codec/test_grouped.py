"""Group quantization: its bytes against a plain reader of FORMAT.md §8.2, its error against half a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.grouped import Along, GroupQuantize
from kvnet.codec.piece import Piece
from kvnet.errors import MalformedChunk, NotFinite
from kvnet.plan import ChunkKey, raw_nbytes_range
from kvnet.types import Coding, KeySpace, Kind, MemoryHeader, Scheme
from tests.builders import make_fingerprint
from tests.codec.strategies import fill, make_geometry, make_piece, pieces

CPU = torch.device("cpu")
coders = st.builds(
    GroupQuantize, st.sampled_from(Along), st.sampled_from((4, 8)), st.sampled_from((8, 9, 16, 64))
)


def encode(coder: GroupQuantize, tensor: torch.Tensor, piece: Piece) -> bytes:
    raw, bound = coder.encode(lambda a, b: tensor[:, a:b].float().clone(), piece, CPU)
    assert float(tensor.float().abs().max()) <= bound
    return raw


def decode(coder: GroupQuantize, raw: bytes, piece: Piece) -> torch.Tensor:
    """float32 [num_kv_heads, n, head_dim]."""
    return torch.cat([block for _, block in coder.decode(raw, piece, CPU)[1]], 1)


def read_by_the_format(raw: bytes, coder: GroupQuantize, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """(numbers, steps), each [n, num_kv_heads, head_dim], by FORMAT.md §8.2 and nothing else."""
    n, heads, dim = piece.token_shape
    per_token = heads * dim
    g = coder.group_size
    shape = (-(-n // g), heads, dim) if coder.along is Along.TOKENS else (n, -(-per_token // g))
    count = int(np.prod(shape))
    num_parameters = 1 if coder.bits == 8 else 2
    halves = np.frombuffer(raw, "<u2", count * num_parameters).astype(np.uint32) << 16
    parameters = halves.view(np.float32).reshape(num_parameters, *shape)
    body = raw[2 * count * num_parameters :]
    if coder.bits == 8:
        codes = np.frombuffer(body, np.int8).astype(np.float32)
    else:
        packed = np.frombuffer(body, np.uint8)
        codes = np.stack((packed & 15, packed >> 4), 1).ravel()[: n * per_token].astype(np.float32)
    numbers, steps = np.empty((n, heads, dim), np.float32), np.empty((n, heads, dim), np.float32)
    for i, code in enumerate(codes):
        token, channel = divmod(i, per_token)
        head, j = divmod(channel, dim)
        group = (token // g, head, j) if coder.along is Along.TOKENS else (token, channel // g)
        steps[token, head, j] = parameters[-1][group]
        least = parameters[0][group] if coder.bits == 4 else 0
        numbers[token, head, j] = least + code * steps[token, head, j]
    return numbers, steps


def header_for(coder: GroupQuantize, piece: Piece) -> tuple[MemoryHeader, ChunkKey]:
    coding = Coding(Scheme.GROUPED, coder.bits, coder.bits, coder.group_size)
    header = MemoryHeader(
        make_fingerprint(), piece.geometry, piece.seq_len, 0, KeySpace.CONTENT, "", "", coding=coding
    )
    kind = Kind.KEY if coder.along is Along.TOKENS else Kind.VALUE
    return header, ChunkKey(0, 0, kind, piece.start, piece.start + piece.num_tokens)


@given(coders, pieces())
def test_error_is_at_most_half_a_step(coder: GroupQuantize, made: tuple[Piece, torch.Tensor]) -> None:
    piece, tensor = made
    raw = encode(coder, tensor, piece)
    assert len(raw) in raw_nbytes_range(*header_for(coder, piece))
    decoded = decode(coder, raw, piece).permute(1, 0, 2).numpy()  # -> [n, H, D]
    numbers, steps = read_by_the_format(raw, coder, piece)
    wanted = tensor.float().permute(1, 0, 2).numpy()
    rounding = np.abs(wanted).max() * 1e-6 + 127 * 2.0**-120  # float32; steps below 2**-120 are not made
    assert np.abs(decoded - numbers).max() <= rounding
    assert (np.abs(wanted - numbers) <= steps / 2 + rounding).all()


@pytest.mark.parametrize("along", list(Along))
@pytest.mark.parametrize("bits", [4, 8])
def test_chunk_of_several_blocks_is_coded_like_a_small_one(along: Along, bits: int) -> None:
    geometry = make_geometry(5, 63)
    piece = make_piece(geometry, 1001)
    tensor = fill("normal", piece, 3)
    coder = GroupQuantize(along, bits, 31)
    assert len(list(piece.blocks(CPU, multiple_of=62))) > 1
    raw = encode(coder, tensor, piece)
    decoded = decode(coder, raw, piece).permute(1, 0, 2).numpy()
    assert np.allclose(decoded, read_by_the_format(raw, coder, piece)[0], atol=1e-6)


def test_zeros_stay_zero() -> None:
    piece = make_piece(make_geometry(), 9)
    for along in Along:
        for bits in (4, 8):
            coder = GroupQuantize(along, bits, 8)
            assert decode(coder, encode(coder, fill("zeros", piece, 0), piece), piece).count_nonzero() == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("bits", [4, 8])
def test_cache_with_nan_or_infinity_is_not_coded(bad: float, bits: int) -> None:
    piece = make_piece(make_geometry(), 9)
    tensor = fill("normal", piece, 0)
    tensor[1, 4, 2] = bad
    for along in Along:
        with pytest.raises(NotFinite):
            encode(GroupQuantize(along, bits, 8), tensor, piece)


def hostile(bits: int, at: int, value: bytes) -> bytes:
    """A chunk of one token with a few of its bytes replaced."""
    piece = make_piece(make_geometry(), 1)
    raw = bytearray(encode(GroupQuantize(Along.CHANNELS, bits, 16), fill("normal", piece, 0), piece))
    raw[at : at + len(value)] = value
    return bytes(raw)


@pytest.mark.parametrize(
    ("bits", "at", "value", "error"),
    [
        (8, 0, b"\xc0\x7f", NotFinite),  # NaN scale
        (8, 0, b"\x80\x7f", NotFinite),  # infinite scale
        (8, 0, b"\x80\xbf", MalformedChunk),  # -1
        (8, 2, b"\x80", MalformedChunk),  # code -128
        (4, 0, b"\x80\xff", NotFinite),  # minimum -inf
        (4, 2, b"\xff\x7f", NotFinite),  # NaN step
        (4, 2, b"\x80\xbf", MalformedChunk),  # -1
    ],
)
def test_hostile_parameters_and_codes_are_refused(
    bits: int, at: int, value: bytes, error: type[Exception]
) -> None:
    piece = make_piece(make_geometry(), 1)
    with pytest.raises(error):
        decode(GroupQuantize(Along.CHANNELS, bits, 16), hostile(bits, at, value), piece)


@given(coders, pieces(max_tokens=12), st.sampled_from((-2, -1, 1, 7)))
def test_chunk_of_another_length_is_refused(
    coder: GroupQuantize, made: tuple[Piece, torch.Tensor], change: int
) -> None:
    piece, tensor = made
    raw = encode(coder, tensor, piece)
    wrong = raw[:change] if change < 0 else raw + bytes(change)
    with pytest.raises(MalformedChunk, match=str(len(raw))):
        coder.decode(wrong, piece, CPU)


@pytest.mark.parametrize(("bits", "group_size"), [(3, 64), (16, 64), (8, 0)])
def test_groups_that_the_format_lacks_are_refused(bits: int, group_size: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        GroupQuantize(Along.TOKENS, bits, group_size)
