"""Texts in, memories out, and memories in again."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTJConfig

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.errors import (
    Cancelled,
    IncompatibleModel,
    MalformedChunk,
    RequestError,
    TextTooLong,
    UnknownBasis,
    UnsupportedModel,
)
from kvnet.format.attention import unpack_attention
from kvnet.model.cache import LayerKV, cache_seq_len, export_layers
from kvnet.model.generation import Generated
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import digest_tokens, encode_memory
from kvnet.model.sampling import Sampling
from kvnet.plan import MAX_CHUNK_RAW_NBYTES, count_chunks, plan_memory
from kvnet.types import (
    AttentionMetadata,
    DType,
    Geometry,
    KeySpace,
    Kind,
    RawMemory,
    Rope,
    chunk_digest,
    content_digest,
)

Checkpoint = Callable[..., Any]
LoadHost = Callable[..., ModelHost]


@pytest.fixture(scope="session")
def memory(host: ModelHost, texts: tuple[str, ...]) -> RawMemory:
    return host.capture(texts[0])


def changed(memory: RawMemory, **changes: Any) -> RawMemory:
    return replace(memory, header=replace(memory.header, **changes))


def reshaped(memory: RawMemory, **changes: Any) -> RawMemory:
    return changed(memory, geometry=replace(memory.header.geometry, **changes))


# Capture


def test_memory_says_what_it_holds(host: ModelHost, texts: tuple[str, ...], memory: RawMemory) -> None:
    token_ids = host.tokenize_context(texts[0])
    header = memory.header
    assert header.fingerprint == host.fingerprint
    assert header.geometry == host.geometry
    assert (header.seq_len, header.start_pos) == (len(token_ids), 0)
    assert header.key_space is KeySpace.ROTATED
    assert header.token_digest == digest_tokens(token_ids)
    digests = [chunk_digest(chunk) for chunk in memory.chunks]
    assert header.content_digest == content_digest(digests)
    assert sum(len(chunk) for chunk in memory.chunks) == header.raw_nbytes


def test_token_digest_is_over_little_endian_uint32() -> None:
    wanted = hashlib.sha256(bytes.fromhex("01000000" + "00010000")).hexdigest()
    assert digest_tokens([1, 256]) == "sha256:" + wanted


def test_same_text_gives_the_same_memory_id(host: ModelHost, texts: tuple[str, ...]) -> None:
    ids = {host.capture(text).header.id for text in (texts[0], texts[0], texts[1])}
    assert len(ids) == 2


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_empty_text_is_refused(host: ModelHost, text: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        host.capture(text)


def test_text_beyond_the_context_is_refused_with_both_lengths(host: ModelHost) -> None:
    with pytest.raises(TextTooLong, match=r"\d+ tokens, tiny holds 256"):
        host.capture("harbour " * 300)


def test_each_layer_is_shown_while_the_next_is_computed(host: ModelHost, texts: tuple[str, ...]) -> None:
    seen: list[LayerKV] = []
    memory = host.capture(texts[0], on_layer=seen.append)
    assert [layer.layer_idx for layer in seen] == [0, 1, 2]
    assert {layer.keys.shape[-2] for layer in seen} == {memory.header.seq_len}


def test_blockwise_capture_holds_the_same_and_shows_each_layer_once(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    seen: list[LayerKV] = []
    blockwise = host.capture(texts[0], on_layer=seen.append, token_block=5)
    assert [layer.layer_idx for layer in seen] == [0, 1, 2]
    assert blockwise.header.token_digest == memory.header.token_digest
    for one, other in zip(
        export_layers(host.inject(blockwise)), export_layers(host.inject(memory)), strict=True
    ):
        assert torch.allclose(one.keys, other.keys, atol=1e-5)
        assert torch.allclose(one.values, other.values, atol=1e-5)


def test_cancelled_capture_stops_between_layers(host: ModelHost, texts: tuple[str, ...]) -> None:
    seen: list[LayerKV] = []
    with pytest.raises(Cancelled):
        host.capture(texts[0], on_layer=seen.append, cancelled=lambda: bool(seen))
    assert len(seen) == 1


def test_long_memory_is_cut_into_chunks_and_joined_again(checkpoint: Checkpoint, cache_dir: Any) -> None:
    folder = checkpoint(
        "wide", num_hidden_layers=1, num_key_value_heads=4, head_dim=256, max_position_embeddings=1024
    )
    host = ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
    text = "When two nodes talk. " * 90
    memory = host.capture(text)
    assert len(memory.chunks) == count_chunks(memory.header) > 2
    assert max(len(chunk) for chunk in memory.chunks) <= MAX_CHUNK_RAW_NBYTES
    cache = host.new_cache()
    host.next_logits(host.tokenize_context(text), cache)
    (own,), (injected,) = export_layers(cache), export_layers(host.inject(memory))
    assert torch.equal(own.keys, injected.keys)
    assert torch.equal(own.values, injected.values)


# Inject


def test_injected_cache_holds_every_position_of_the_memory(host: ModelHost, memory: RawMemory) -> None:
    assert cache_seq_len(host.inject(memory)) == memory.header.seq_len


def test_memory_in_views_of_one_buffer_is_not_changed_by_its_use(host: ModelHost, memory: RawMemory) -> None:
    buffers = [bytearray(chunk) for chunk in memory.chunks]
    borrowed = replace(memory, chunks=tuple(memoryview(buffer) for buffer in buffers))
    for layer in export_layers(host.inject(borrowed)):
        layer.keys.zero_()
        layer.values.zero_()
    assert [bytes(buffer) for buffer in buffers] == list(memory.chunks)


@pytest.mark.parametrize(
    ("changes", "field", "got", "wanted"),
    [
        ({"num_layers": 22}, "num_layers", "22", "3"),
        ({"num_kv_heads": 4}, "num_kv_heads", "4", "2"),
        ({"head_dim": 64}, "head_dim", "64", "16"),
        ({"rope": Rope("default", 5e5)}, "rope.rope_theta", "500000.0", "10000.0"),
        ({"rope": Rope("llama3", 1e4, 1.0, {"factor": 8})}, "rope.extra", '{"factor":8}', "{}"),
    ],
)
def test_other_geometry_is_refused_field_by_field(
    host: ModelHost, memory: RawMemory, changes: dict[str, Any], field: str, got: str, wanted: str
) -> None:
    with pytest.raises(IncompatibleModel, match="this model needs") as caught:
        host.inject(reshaped(memory, **changes))
    assert caught.value.details[field] == [got, wanted]


def test_every_differing_field_is_named(host: ModelHost, memory: RawMemory) -> None:
    with pytest.raises(IncompatibleModel) as caught:
        host.inject(reshaped(memory, num_layers=2, head_dim=8))
    assert set(caught.value.details) == {"num_layers", "head_dim"}


def test_memory_that_does_not_begin_at_position_zero_is_refused(host: ModelHost, memory: RawMemory) -> None:
    with pytest.raises(IncompatibleModel) as caught:
        host.inject(changed(memory, start_pos=7))
    assert set(caught.value.details) == {"start_pos"}


def test_memory_of_another_dtype_is_converted(
    load_host: LoadHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    half = load_host(dtype="float16")
    cache = half.inject(memory)
    assert half.geometry.dtype is DType.FLOAT16
    assert {layer.keys.dtype for layer in export_layers(cache)} == {torch.float16}


def test_claimed_length_beyond_the_context_is_refused_before_the_chunks_are_read(
    host: ModelHost, memory: RawMemory
) -> None:
    with pytest.raises(TextTooLong):
        host.inject(changed(memory, seq_len=10**12))


@pytest.mark.parametrize("seq_len", [0, -1, 3, 200])
def test_claimed_length_that_the_chunks_do_not_have_is_refused(
    host: ModelHost, memory: RawMemory, seq_len: int
) -> None:
    with pytest.raises(MalformedChunk):
        host.inject(changed(memory, seq_len=seq_len))


def test_missing_chunk_is_refused(host: ModelHost, memory: RawMemory) -> None:
    with pytest.raises(MalformedChunk, match="5 chunks"):
        host.inject(replace(memory, chunks=memory.chunks[:-1]))


# Attention metadata


def described(memory: RawMemory) -> list[AttentionMetadata]:
    plan = zip(plan_memory(memory.header), memory.chunks, strict=True)
    return [
        unpack_attention(chunk, memory.header, key.layer_idx)
        for key, chunk in plan
        if key.kind is Kind.ATTENTION
    ]


def keys_and_values(memory: RawMemory) -> list[torch.Tensor]:
    plan = zip(plan_memory(memory.header), memory.chunks, strict=True)
    return [torch.frombuffer(bytearray(chunk), dtype=torch.float32) for key, chunk in plan if key.kind < 2]


def test_attention_metadata_is_in_the_memory_when_asked_for(host: ModelHost, texts: tuple[str, ...]) -> None:
    memory = host.capture(texts[0], attention=True)
    layers = described(memory)
    assert memory.header.attention_heads == 4
    assert [layer.layer_index for layer in layers] == [0, 1, 2]
    assert {len(layer.entropy_per_head) for layer in layers} == {4}
    assert {len(layer.important_token_indices) for layer in layers} == {16}


def test_capture_without_attention_is_the_same_before_and_after_one_with_it(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    assert host.capture(texts[0], attention=True).header.id != memory.header.id
    assert host.capture(texts[0]).header.id == memory.header.id
    assert memory.header.attention_heads == 0


def test_keys_and_values_are_those_of_a_plain_capture_but_for_rounding(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    recorded = keys_and_values(host.capture(texts[0], attention=True))
    for one, other in zip(recorded, keys_and_values(memory), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_blockwise_capture_describes_attention_as_a_whole_one_does(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    whole, blockwise = (
        described(host.capture(texts[0], attention=True, token_block=block)) for block in (None, 5)
    )
    for one, other in zip(whole, blockwise, strict=True):
        assert other.entropy_per_head == pytest.approx(one.entropy_per_head, abs=1e-5)
        assert other.average_attention_score == pytest.approx(one.average_attention_score, abs=1e-5)


def test_memory_with_attention_metadata_is_injected_like_any_other(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    memory = host.capture(texts[0], attention=True)
    assert cache_seq_len(host.inject(memory)) == memory.header.seq_len


def test_capture_cancelled_while_attention_is_recorded_leaves_the_model_as_it_was(
    host: ModelHost, texts: tuple[str, ...], memory: RawMemory
) -> None:
    seen: list[LayerKV] = []
    with pytest.raises(Cancelled):
        host.capture(texts[0], attention=True, on_layer=seen.append, cancelled=lambda: bool(seen))
    assert host.capture(texts[0]).header.id == memory.header.id


def test_model_that_cannot_be_recorded_is_refused_before_it_reads(
    tmp_path: Path, tiny_folder: Path, cache_dir: Path
) -> None:
    config = GPTJConfig(vocab_size=400, n_embd=32, n_layer=2, n_head=2, rotary_dim=8, n_positions=256)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_folder / name, tmp_path)
    host = ModelHost.load(ModelSpec(str(tmp_path), device="cpu"), cache_dir)
    seen: list[LayerKV] = []
    with pytest.raises(UnsupportedModel, match="capture without attention metadata"):
        host.capture("The harbour opens.", attention=True, on_layer=seen.append)
    assert not seen
    assert host.capture("The harbour opens.").header.attention_heads == 0


# Codings


def fine_basis(geometry: Geometry) -> Basis:
    """Steps of 1/8 in each channel, channels as they are."""
    channels = geometry.num_kv_heads * geometry.head_dim
    return Basis.of(
        {
            (index, kind): LayerBasis(torch.zeros(channels), torch.eye(channels) * 8, torch.eye(channels) / 8)
            for index in range(geometry.num_layers)
            for kind in (Kind.KEY, Kind.VALUE)
        }
    )


def test_transform_coded_memory_is_injected_with_its_basis_and_not_without(
    host: ModelHost, memory: RawMemory
) -> None:
    basis = fine_basis(host.geometry)
    coded = encode_memory(memory, "compact", basis=basis)
    with pytest.raises(UnknownBasis):
        host.inject(coded)
    injected = export_layers(host.inject(coded, basis=basis))
    for one, other in zip(injected, export_layers(host.inject(memory)), strict=True):
        assert torch.allclose(one.keys, other.keys, atol=0.2)
        assert torch.allclose(one.values, other.values, atol=0.2)


def test_answer_after_a_transform_coded_memory_takes_its_basis(host: ModelHost, memory: RawMemory) -> None:
    basis = fine_basis(host.geometry)
    coded = encode_memory(memory, "compact", basis=basis)
    *_, last = host.generate("Who?", memory=coded, basis=basis, sampling=Sampling(max_tokens=2))
    assert isinstance(last, Generated)
    assert last.reused_tokens == memory.header.seq_len


# Logits


def test_all_logits_are_those_of_each_prefix(host: ModelHost) -> None:
    token_ids = host.tokenize_context("The key is blue.")
    every = host.all_logits(token_ids, host.new_cache())
    cache = host.new_cache()
    for position, token_id in enumerate(token_ids):
        assert torch.allclose(host.next_logits([token_id], cache), every[position], atol=1e-4)


def test_mask_and_positions_cover_memory_and_prompt(
    host: ModelHost, memory: RawMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    forward = host._model.forward
    monkeypatch.setattr(host._model, "forward", lambda **kwargs: seen.append(kwargs) or forward(**kwargs))
    host.next_logits([5, 6, 7], host.inject(memory))
    past = memory.header.seq_len
    assert seen[0]["attention_mask"].shape == (1, past + 3)
    assert bool(seen[0]["attention_mask"].all())
    assert seen[0]["position_ids"].tolist() == [[past, past + 1, past + 2]]


def test_one_mask_short_changes_the_logits_without_an_error(host: ModelHost, memory: RawMemory) -> None:
    """Why the host passes every mask and position itself."""
    right = host.next_logits([5, 6, 7], host.inject(memory))
    short = torch.ones(1, memory.header.seq_len + 2, dtype=torch.long)
    with torch.no_grad():
        wrong = host._model(
            input_ids=torch.tensor([[5, 6, 7]]), past_key_values=host.inject(memory), attention_mask=short
        ).logits[0, -1]
    assert not torch.allclose(right, wrong, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none")
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_memory_moves_between_cuda_and_cpu(
    load_host: LoadHost, texts: tuple[str, ...], quantization: str
) -> None:
    cuda = load_host(device="cuda", dtype="float16", quantization=quantization)
    cpu = load_host(device="cpu", dtype="float16", quantization=quantization)
    memory = cuda.capture(texts[0])
    for host in (cuda, cpu):
        cache = host.inject(memory)
        assert export_layers(cache)[0].keys.device.type == host.device.type
        assert not torch.isnan(host.next_logits([5, 6, 7], cache)).any()
