"""Memories in other codings: derived, decoded, and refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS
from kvnet.errors import IncompatibleModel, MalformedChunk, NotFinite, RequestError, UnknownBasis
from kvnet.format.attention import pack_attention
from kvnet.model.cache import LayerKV
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import encode_memory, pack_memory, refuse_incompatible, unpack_memory
from kvnet.model.quality import count_wire_nbytes, probe_of, read_tokens
from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_basis
from kvnet.plan import plan_memory, raw_nbytes_range
from kvnet.types import (
    AttentionMetadata,
    DType,
    KeySpace,
    Kind,
    RawMemory,
    Rope,
    chunk_digest,
    content_digest,
)
from tests.builders import make_fingerprint, make_geometry

GROUPED = ("int8", "k8v4", "int4", "int4-hadamard")


def make_layers(num_tokens: int, *, scale: float = 1.0) -> list[LayerKV]:
    generator = torch.Generator().manual_seed(num_tokens)

    def half() -> torch.Tensor:
        return torch.randn(1, 2, num_tokens, 16, generator=generator) * scale

    return [LayerKV(layer_idx, half(), half()) for layer_idx in range(3)]


def make_attention(num_tokens: int) -> list[bytes]:
    tokens = tuple(range(min(16, num_tokens)))
    return [pack_attention(AttentionMetadata(i, 0.5, (0.25, 1.0, 0.5, 2.0), tokens)) for i in range(3)]


def make_plain(num_tokens: int = 40, *, attention: bool = False, rope: Rope | None = None) -> RawMemory:
    geometry = make_geometry(head_dim=16, rope=rope or Rope("default", 10000.0))
    return pack_memory(
        make_layers(num_tokens),
        fingerprint=make_fingerprint(),
        geometry=geometry,
        token_ids=range(num_tokens),
        attention=make_attention(num_tokens) if attention else (),
    )


def largest_error(coded: RawMemory, plain: RawMemory, basis: Basis | None = None) -> float:
    pairs = zip(unpack_memory(coded, basis=basis), unpack_memory(plain), strict=True)
    return max(
        float((half - whole).abs().max())
        for a, b in pairs
        for half, whole in ((a.keys.float(), b.keys), (a.values.float(), b.values))
    )


@pytest.fixture(scope="session")
def ref_a(cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), cache_dir)


@pytest.fixture(scope="session")
def ref_basis(ref_a: ModelHost) -> Basis:
    path = reference_basis("ref-a")
    assert path is not None
    return Basis.from_bytes(path.read_bytes(), ref_a.geometry)


@pytest.mark.parametrize("name", GROUPED)
def test_derived_memory_says_what_it_is(name: str) -> None:
    plain = make_plain()
    coded = encode_memory(plain, name)
    assert coded.header.coding == PRESETS[name].coding
    assert coded.header.key_space is KeySpace.CONTENT
    assert coded.header.derived_from == plain.header.id != coded.header.id
    assert coded.header.token_digest == plain.header.token_digest
    digests = [chunk_digest(chunk) for chunk in coded.chunks]
    assert coded.header.content_digest == content_digest(digests)
    for key, chunk in zip(plan_memory(coded.header), coded.chunks, strict=True):
        assert len(chunk) in raw_nbytes_range(coded.header, key)


@pytest.mark.parametrize(
    ("name", "bound"), [("int8", 0.05), ("k8v4", 0.4), ("int4", 0.6), ("int4-hadamard", 1.2)]
)
def test_decoded_memory_is_close(name: str, bound: float) -> None:
    plain = make_plain(200)
    assert 0 < largest_error(encode_memory(plain, name), plain) < bound


def test_model_that_rotates_nothing_keeps_its_keys_in_rotated_space() -> None:
    plain = make_plain(rope=Rope("none", 0.0))
    coded = encode_memory(plain, "int8")
    assert coded.header.key_space is KeySpace.ROTATED
    assert largest_error(coded, plain) < 0.05


def test_memory_already_in_the_coding_is_returned_as_it_is() -> None:
    plain = make_plain()
    assert encode_memory(plain, "exact") is plain
    coded = encode_memory(plain, "int8")
    assert encode_memory(coded, "int8") is coded


def test_exact_after_int8_holds_what_int8_decodes_to() -> None:
    plain = make_plain()
    coded = encode_memory(plain, "int8")
    again = encode_memory(coded, "exact")
    assert again.header.derived_from == coded.header.id
    assert again.header.key_space is KeySpace.ROTATED
    assert largest_error(again, plain) == largest_error(coded, plain)


def test_cast_memory_is_cut_into_the_chunks_of_its_new_dtype() -> None:
    plain = make_plain(9000)  # more than a chunk of float32, one chunk of float16
    assert len(plain.chunks) > 6
    for dtype in (DType.FLOAT16, DType.BFLOAT16):
        cast = encode_memory(plain, "exact", dtype=dtype)
        assert len(cast.chunks) == 6
        keys = unpack_memory(plain)[1].keys
        wanted = keys.to(getattr(torch, dtype.value))
        assert torch.equal(unpack_memory(cast)[1].keys, wanted)


def test_cast_that_overflows_is_refused() -> None:
    layers = make_layers(4, scale=1e6)
    memory = pack_memory(
        layers, fingerprint=make_fingerprint(), geometry=make_geometry(head_dim=16), token_ids=range(4)
    )
    with pytest.raises(NotFinite, match="float16"):
        encode_memory(memory, "exact", dtype=DType.FLOAT16)
    with pytest.raises(NotFinite, match="float16"):
        unpack_memory(memory, dtype=DType.FLOAT16)


@pytest.mark.parametrize("name", ["exact", "int4"])
def test_attention_metadata_passes_through(name: str) -> None:
    plain = make_plain(attention=True)
    coded = encode_memory(plain, name, dtype=DType.FLOAT16)
    assert coded.header.attention_heads == 4
    found = [
        bytes(chunk)
        for key, chunk in zip(plan_memory(coded.header), coded.chunks, strict=True)
        if key.kind is Kind.ATTENTION
    ]
    assert found == make_attention(40)
    assert largest_error(coded, plain) < 0.6


@pytest.mark.parametrize("name", ["exact", "int8"])
def test_pruned_heads_are_named_and_zero(name: str) -> None:
    plain = make_plain()
    pruned = encode_memory(plain, name, pruned_heads=[(2, 1), (0, 0)])
    assert pruned.header.coding.pruned_heads == ((0, 0), (2, 1))
    assert pruned.header.id != plain.header.id
    layers = unpack_memory(pruned)
    assert layers[0].keys[0, 0].count_nonzero() == layers[2].values[0, 1].count_nonzero() == 0
    assert layers[1].keys.count_nonzero() == layers[1].keys.numel()


def test_head_that_does_not_exist_cannot_be_pruned() -> None:
    with pytest.raises(RequestError, match="no head"):
        encode_memory(make_plain(), "exact", pruned_heads=[(3, 0)])


def test_unknown_preset_is_refused() -> None:
    with pytest.raises(RequestError, match="int3"):
        encode_memory(make_plain(), "int3")


def test_compact_needs_a_basis_at_both_ends(ref_a: ModelHost, ref_basis: Basis) -> None:
    plain = ref_a.capture("Anna's harbour is called Zor.")
    with pytest.raises(UnknownBasis, match="ref-a"):
        encode_memory(plain, "compact")
    coded = encode_memory(plain, "compact", basis=ref_basis)
    assert (coded.header.coding.basis, coded.header.coding.basis_nbytes) == (
        ref_basis.digest,
        len(ref_basis.raw),
    )
    for wrong in (None, ref_basis.scaled(2.0)):
        with pytest.raises(UnknownBasis):
            unpack_memory(coded, basis=wrong)
    again = encode_memory(coded, "int8", source_basis=ref_basis)
    assert largest_error(again, encode_memory(coded, "exact", source_basis=ref_basis)) < 0.2


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_shipped_basis_fits_its_model_and_codes_to_a_tenth_of_float16(name: str, cache_dir: Path) -> None:
    host = ModelHost.load(ModelSpec(name, device="cpu"), cache_dir)
    path = reference_basis(name)
    assert path is not None
    basis = Basis.from_bytes(path.read_bytes(), host.geometry)
    plain = read_tokens(host, probe_of(host)[1].context_ids)
    coded = encode_memory(plain, "compact", basis=basis, dtype=DType.FLOAT16)
    assert count_wire_nbytes(coded, PRESETS["compact"]) < plain.header.raw_nbytes / 2 / 10


def test_content_keys_of_the_first_layer_depend_on_the_token_alone(ref_a: ModelHost) -> None:
    text = "seven seven seven seven seven seven"
    plain = ref_a.capture(text)
    token_ids = ref_a.tokenize_context(text)
    places = [place for place, token_id in enumerate(token_ids) if token_id == token_ids[-1]]
    assert len(places) > 3
    coded = encode_memory(plain, "int8")
    unturned = replace(coded.header, key_space=KeySpace.ROTATED)  # decodes without turning back
    content = unpack_memory(replace(coded, header=unturned))[0].keys[0, :, places]
    assert float((content - content[:, :1]).abs().max()) < 0.05 * float(content.abs().max())
    rotated = unpack_memory(plain)[0].keys[0, :, places]
    assert float((rotated - rotated[:, :1]).abs().max()) > 0.5 * float(rotated.abs().max())


def test_content_space_is_no_obstacle_but_another_start_is() -> None:
    coded = encode_memory(make_plain(), "int8")
    refuse_incompatible(coded.header, coded.header.geometry)
    with pytest.raises(IncompatibleModel, match="start_pos 5"):
        refuse_incompatible(replace(coded.header, start_pos=5), coded.header.geometry)


def test_memory_of_before_a_rope_stated_its_limit_still_fits() -> None:
    rope = Rope("dynamic", 10000.0, extra={"factor": 2.0})
    old = replace(make_plain().header.geometry, rope=rope)
    limits = [replace(rope, extra={**rope.extra, "max_position_embeddings": n}) for n in (64, 65)]
    stated, other = (replace(old, rope=limit) for limit in limits)
    header = make_plain().header
    for found, needed in ((old, stated), (stated, old)):
        refuse_incompatible(replace(header, geometry=found), needed)
    with pytest.raises(IncompatibleModel, match=r"rope\.extra"):
        refuse_incompatible(replace(header, geometry=other), stated)


@pytest.mark.parametrize("name", ["exact", "int8"])
def test_chunks_that_contradict_their_header_are_refused(name: str) -> None:
    coded = encode_memory(make_plain(), name, dtype=DType.FLOAT16)
    for chunks in (coded.chunks[:-1], (*coded.chunks, b"x"), (*coded.chunks[:-1], coded.chunks[-1][:-1])):
        with pytest.raises(MalformedChunk):
            unpack_memory(RawMemory(coded.header, tuple(chunks)))


def test_coding_that_the_format_lacks_is_refused() -> None:
    coded = encode_memory(make_plain(), "int8")
    header = replace(coded.header, coding=replace(coded.header.coding, key_bits=5))
    with pytest.raises(MalformedChunk, match="5 and 8 bits"):
        unpack_memory(RawMemory(header, coded.chunks))
