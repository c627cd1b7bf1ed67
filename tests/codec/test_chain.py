"""The chain: its order, its dtypes, what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.codec.chain import PackChain, QuantizeChain, chain_for, piece_of
from kvnet.codec.grouped import Along, GroupQuantize
from kvnet.codec.mixing import Hadamard, PruneHeads
from kvnet.codec.pack import TORCH_DTYPES
from kvnet.codec.piece import Piece
from kvnet.codec.presets import PRESETS, with_basis
from kvnet.codec.rope import RopeStrip
from kvnet.codec.transform import Transform
from kvnet.errors import MalformedChunk, NotFinite, RequestError, UnknownBasis
from kvnet.plan import ChunkKey, raw_nbytes_range
from kvnet.types import Coding, DType, Geometry, KeySpace, Kind, MemoryHeader, Scheme
from tests.builders import make_fingerprint
from tests.codec.strategies import fill, make_geometry, make_piece, pieces

STRIP = RopeStrip((1.0, 0.1, 0.01, 0.001))
GROUPS = GroupQuantize(Along.TOKENS, 8, 16)
PRUNE = PruneHeads((0,))


def basis_for(geometry: Geometry) -> Basis:
    """An identity with steps of 1/16."""
    channels = geometry.num_kv_heads * geometry.head_dim
    eye = torch.eye(channels)
    layer = LayerBasis(torch.zeros(channels), eye * 16, eye / 16)
    return Basis.of({(0, kind): layer for kind in (Kind.KEY, Kind.VALUE)})


def header_of(geometry: Geometry, seq_len: int, coding: Coding, key_space: KeySpace) -> MemoryHeader:
    return MemoryHeader(make_fingerprint(), geometry, seq_len, 0, key_space, "", "", coding=coding)


@pytest.mark.parametrize(
    "stages", [(STRIP, PRUNE), (Hadamard(), STRIP), (Hadamard(), PRUNE), (STRIP, STRIP), (PRUNE, GROUPS)]
)
def test_stages_in_another_order_are_refused(stages: tuple[Any, ...]) -> None:
    with pytest.raises(ValueError, match="order"):
        QuantizeChain(stages, GROUPS)


def test_transform_takes_no_hadamard() -> None:
    layer = basis_for(make_geometry()).layers[0, Kind.KEY]
    with pytest.raises(ValueError, match="Hadamard"):
        QuantizeChain((Hadamard(),), Transform(layer, 0, 0))


@given(pieces(), st.sampled_from(tuple(PRESETS)), st.sampled_from((Kind.KEY, Kind.VALUE)))
def test_every_preset_keeps_shape_dtype_and_size(
    made: tuple[Piece, torch.Tensor], name: str, kind: Kind
) -> None:
    piece, tensor = made
    coding, basis = PRESETS[name].coding, None
    if PRESETS[name].needs_basis:
        basis = basis_for(piece.geometry)
        coding = with_basis(coding, basis.digest, len(basis.raw))
    strips = coding.scheme is not Scheme.RAW and piece.geometry.rope.rope_theta > 0
    key_space = KeySpace.CONTENT if strips else KeySpace.ROTATED
    header = header_of(piece.geometry, piece.seq_len, coding, key_space)
    chain = chain_for(header, 0, kind, basis)
    stop = piece.start + piece.num_tokens
    raw = chain.encode(tensor, piece_of(header, piece.start, stop))
    assert len(raw) in raw_nbytes_range(header, ChunkKey(0, 0, kind, piece.start, stop))
    decoded = chain.decode(raw, piece)
    assert (decoded.shape, decoded.dtype) == (tensor.shape, tensor.dtype)
    if name == "exact":
        assert torch.equal(decoded, tensor)
    elif name in ("int8", "k8v4", "int4"):
        peak = float(tensor.float().abs().max())
        assert float((decoded.float() - tensor.float()).abs().max()) <= 0.3 * peak + 2.0**-110


@pytest.mark.parametrize("dtype", list(DType))
def test_raw_is_bit_for_bit_and_slices_of_a_cache_are_coded_like_their_copies(dtype: DType) -> None:
    geometry = make_geometry(3, 5, dtype)
    cache = fill("normal", make_piece(geometry, 20), 0)
    piece = make_piece(geometry, 6, start=4, behind=10)
    part = cache[:, 4:10]
    assert PackChain().encode(part, piece) == PackChain().encode(part.clone(), piece)
    assert torch.equal(PackChain().decode(PackChain().encode(part, piece), piece), part)
    chain = QuantizeChain((), GROUPS)
    assert chain.encode(part, piece) == chain.encode(part.clone(), piece)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_raw_chunk_with_nan_or_infinity_is_refused_at_both_ends(bad: float) -> None:
    piece = make_piece(make_geometry(1, 2), 2)
    tensor = torch.tensor([[[1.0, 2.0], [bad, 0.0]]])
    with pytest.raises(NotFinite):
        PackChain().encode(tensor, piece)
    with pytest.raises(NotFinite):
        PackChain().decode(tensor.numpy().tobytes(), piece)


@pytest.mark.parametrize("dtype", list(DType))
@pytest.mark.parametrize("bits", [4, 8])
def test_numbers_near_the_end_of_a_dtype_are_coded_only_if_they_decode(dtype: DType, bits: int) -> None:
    piece = make_piece(make_geometry(2, 8, dtype), 16)
    most = torch.finfo(TORCH_DTYPES[dtype]).max
    tensor = torch.full((2, 16, 8), most, dtype=TORCH_DTYPES[dtype])
    tensor[:, ::2] = -most
    chain = QuantizeChain((STRIP,), GroupQuantize(Along.TOKENS, bits, 16))
    with pytest.raises((RequestError, NotFinite)):
        chain.encode(tensor, piece)
    quarter = tensor / 4
    assert chain.decode(chain.encode(quarter, piece), piece).isfinite().all()


def test_scales_that_overflow_the_dtype_are_refused() -> None:
    piece = make_piece(make_geometry(1, 8, DType.FLOAT16), 1)
    raw = b"\x80\x44" + b"\x7f" * 8  # scale 1024, codes 127
    with pytest.raises(NotFinite):
        QuantizeChain((), GroupQuantize(Along.CHANNELS, 8, 8)).decode(raw, piece)


def test_pruned_heads_are_about_zero_after_every_coding() -> None:
    geometry = make_geometry(3, 8)
    for coding in (Coding(pruned_heads=((0, 1),)), Coding(Scheme.GROUPED, 8, 4, 16, pruned_heads=((0, 1),))):
        header = header_of(geometry, 5, coding, KeySpace.ROTATED)
        piece = piece_of(header, 0, 5)
        for kind in (Kind.KEY, Kind.VALUE):
            chain = chain_for(header, 0, kind)
            decoded = chain.decode(chain.encode(fill("normal", piece, 1), piece), piece)
            assert float(decoded[1].abs().max()) < 0.1  # a minimum of 4 bits and its steps only come close
            assert float(decoded[[0, 2]].abs().max()) > 1


def test_transform_without_its_own_basis_is_refused() -> None:
    geometry = make_geometry()
    basis = basis_for(geometry)
    coding = with_basis(PRESETS["compact"].coding, basis.digest, len(basis.raw))
    header = header_of(geometry, 5, coding, KeySpace.CONTENT)
    for wrong in (None, basis.scaled(2.0)):
        with pytest.raises(UnknownBasis, match=basis.digest[:19]):
            chain_for(header, 0, Kind.KEY, wrong)


def test_empty_and_short_chunks_are_refused_by_every_coder() -> None:
    geometry = make_geometry()
    piece = make_piece(geometry, 3)
    chains = (
        PackChain(),
        QuantizeChain((STRIP,), GROUPS),
        QuantizeChain((), Transform(basis_for(geometry).layers[0, Kind.KEY], 1, 2)),
    )
    for chain in chains:
        for raw in (b"", b"\x00", bytes(10_000)):
            with pytest.raises(MalformedChunk):
                chain.decode(raw, piece)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none")
def test_both_devices_write_the_same_bytes() -> None:
    piece = make_piece(make_geometry(4, 64, DType.FLOAT16), 200)
    tensor = fill("normal", piece, 0)
    for coder in (GROUPS, GroupQuantize(Along.CHANNELS, 4, 64)):
        chain = QuantizeChain((), coder)
        raw = chain.encode(tensor, piece)
        assert chain.encode(tensor.cuda(), piece) == raw
        assert torch.equal(chain.decode(raw, piece, "cuda").cpu(), chain.decode(raw, piece))
