"""kvnet.model.recover: whoever holds a cache holds its text, and no guess is passed off as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.errors import IncompatibleModel, RequestError, UnknownAlignment
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import digest_tokens, encode_memory
from kvnet.model.recover import recover_text
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.types import Geometry, KeySpace, Kind, RawMemory
from tests.builders import make_port

Checkpoint = Callable[..., Path]
LoadHost = Callable[..., ModelHost]
FACTS = "Anna's key is blue. Note: the boat of Tom is called Wind. We know that the code of Mia is 2367."


@pytest.fixture(scope="module")
def memory(host: ModelHost, texts: tuple[str, ...]) -> RawMemory:
    return host.capture(texts[0])


@pytest.mark.parametrize("name", sorted(REFERENCE_MODELS))
@pytest.mark.parametrize("preset", ["exact", "int8", "k8v4", "int4"])
def test_text_of_a_reference_models_memory_comes_back(name: str, preset: str, cache_dir: Path) -> None:
    host = ModelHost.load(ModelSpec(name, device="cpu"), cache_dir)
    assert recover_text(host, encode_memory(host.capture(FACTS), preset)) == FACTS


def test_every_text_comes_back_unicode_included(host: ModelHost, texts: tuple[str, ...]) -> None:
    for text in texts:
        assert recover_text(host, host.capture(text)) == text


def test_vocabulary_larger_than_the_context_is_no_obstacle(checkpoint: Checkpoint, cache_dir: Path) -> None:
    folder = checkpoint("short", max_position_embeddings=24)
    host = ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
    assert host.vocab_size > 10 * host.max_seq_len
    assert recover_text(host, host.capture("Anna keeps the key.")) == "Anna keeps the key."


def test_text_of_a_model_without_a_bos_comes_back_from_its_first_token_on(
    checkpoint: Checkpoint, cache_dir: Path
) -> None:
    folder = checkpoint("plain")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    host = ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
    assert host.num_sinks == 0
    assert recover_text(host, host.capture("Anna keeps the key.")) == "Anna keeps the key."


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_text_comes_back_from_a_model_of_16_bits(
    load_host: LoadHost, texts: tuple[str, ...], dtype: str
) -> None:
    half = load_host(dtype=dtype)
    assert recover_text(half, half.capture(texts[1])) == texts[1]


def test_text_comes_back_from_a_transform_with_its_basis(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    basis = fine_basis(host.geometry)
    coded = encode_memory(memory, "compact", basis=basis)
    assert recover_text(host, coded, basis=basis) == texts[0]


def fine_basis(geometry: Geometry) -> Basis:
    channels = geometry.num_kv_heads * geometry.head_dim
    layer = LayerBasis(torch.zeros(channels), torch.eye(channels) * 8, torch.eye(channels) / 8)
    layers = range(geometry.num_layers)
    return Basis.of({(index, kind): layer for index in layers for kind in (Kind.KEY, Kind.VALUE)})


def test_recovery_leaves_memory_and_model_as_they_were(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    chunks = [bytes(chunk) for chunk in memory.chunks]
    recover_text(host, memory)
    assert [bytes(chunk) for chunk in memory.chunks] == chunks
    assert host.capture(texts[0]).header.id == memory.header.id


def test_memory_of_other_tokens_than_its_digest_says_is_refused_in_one_sentence(
    host: ModelHost, memory: RawMemory
) -> None:
    other = replace(memory, header=replace(memory.header, token_digest=digest_tokens([1, 2, 3])))
    with pytest.raises(RequestError) as caught:
        recover_text(host, other)
    assert caught.value.message == (
        f"the text of memory {other.header.id[:12]}… cannot be told from its numbers for certain; "
        "remember it again with its text kept"
    )


def test_memory_of_the_same_geometry_but_another_model_is_refused(
    checkpoint: Checkpoint, cache_dir: Path, host: ModelHost, texts: tuple[str, ...]
) -> None:
    stranger = ModelHost.load(ModelSpec(str(checkpoint("stranger", seed=5)), device="cpu"), cache_dir)
    with pytest.raises(RequestError, match="cannot be told from its numbers"):
        recover_text(host, stranger.capture(texts[0]))


def test_memory_whose_first_layer_was_pruned_is_refused(host: ModelHost, memory: RawMemory) -> None:
    pruned = [(0, head) for head in range(host.geometry.num_kv_heads)]
    with pytest.raises(RequestError, match="cannot be told from its numbers"):
        recover_text(host, encode_memory(memory, "exact", pruned_heads=pruned))


def test_memory_of_another_geometry_is_refused(
    checkpoint: Checkpoint, cache_dir: Path, host: ModelHost, texts: tuple[str, ...]
) -> None:
    folder = checkpoint("wide", num_key_value_heads=4)
    wide = ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
    with pytest.raises(IncompatibleModel, match="num_kv_heads 4, this model needs 2"):
        recover_text(host, wide.capture(texts[0]))


def test_coordinates_of_a_port_hold_no_text_to_recover(host: ModelHost, memory: RawMemory) -> None:
    coding, _ = make_port()
    header = replace(memory.header, coding=coding, key_space=KeySpace.CONTENT)
    with pytest.raises(UnknownAlignment, match="coordinates of the port"):
        recover_text(host, RawMemory(header, (b"\0\0",)))
