"""kvnet.model.slots: what a memory holds at its positions, moved, joined, thinned, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BloomConfig

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.errors import IncompatibleModel, MalformedChunk, RequestError, TextTooLong, UnsupportedModel
from kvnet.model.cache import Cache, LayerKV, build_cache, cache_seq_len, export_layers
from kvnet.model.generation import Generated
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import encode_memory, pack_memory, unpack_memory
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.model.sampling import Sampling
from kvnet.model.slots import Slots, join, rows_of_layers, slots_of, to_layers
from kvnet.types import DType, Geometry, Kind, RawMemory, Rope

Checkpoint = Callable[..., Path]
QUESTION = "Who keeps the key?"
GREEDY = Sampling(max_tokens=6)


@pytest.fixture(scope="module")
def memory(host: ModelHost, texts: tuple[str, ...]) -> RawMemory:
    return host.capture(texts[0])


@pytest.fixture(scope="module")
def slots(host: ModelHost, memory: RawMemory) -> Slots:
    return slots_of(memory, num_sinks=host.num_sinks)


@pytest.fixture
def host_without_bos(checkpoint: Checkpoint, cache_dir: Path) -> ModelHost:
    folder = checkpoint("plain")
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "post_processor": None}))
    return ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)


def pick(slots: Slots, kept: torch.Tensor) -> Slots:
    return replace(slots, rows=slots.rows[kept], positions=slots.positions[kept])


def native(host: ModelHost, token_ids: list[int], *, start: int = 0) -> tuple[LayerKV, ...]:
    """What transformers itself fills a cache with, reading from position `start` on."""
    cache = host.new_cache()
    positions = torch.arange(start, start + len(token_ids))[None]
    with torch.no_grad():
        host._model(input_ids=torch.tensor([token_ids]), position_ids=positions, past_key_values=cache)
    return export_layers(cache)


def assert_near(one: tuple[LayerKV, ...], other: tuple[LayerKV, ...], atol: float = 1e-4) -> None:
    for left, right in zip(one, other, strict=True):
        assert left.layer_idx == right.layer_idx
        assert torch.allclose(left.keys, right.keys, atol=atol)
        assert torch.allclose(left.values, right.values, atol=atol)


def behind(layers: tuple[LayerKV, ...], num_first: int) -> tuple[LayerKV, ...]:
    """The layers without their first slots."""
    return tuple(
        LayerKV(layer.layer_idx, layer.keys[:, :, num_first:], layer.values[:, :, num_first:])
        for layer in layers
    )


def question_ids(host: ModelHost, prompt: str = QUESTION) -> list[int]:
    return host.tokenize_question(prompt, after_memory=True)


def answer_logits(host: ModelHost, slots: Slots, prompt: str = QUESTION) -> torch.Tensor:
    cache = host.inject_slots(slots)
    return host.all_logits(question_ids(host, prompt), cache, num_gaps=slots.span - slots.num_slots)


# Rows


def test_row_is_each_layers_keys_without_rotation_and_then_its_values(
    host: ModelHost, memory: RawMemory
) -> None:
    found = slots_of(memory, num_sinks=0)
    layers, geometry = unpack_memory(memory), host.geometry
    half = geometry.num_kv_heads * geometry.head_dim
    assert found.rows.shape == (memory.header.seq_len, geometry.num_layers * 2 * half)
    for layer in layers:
        keys = found.rows[:, 2 * layer.layer_idx * half :][:, :half]
        values = found.rows[:, (2 * layer.layer_idx + 1) * half :][:, :half]
        assert torch.equal(values, layer.values[0].transpose(0, 1).flatten(1))
        assert torch.equal(keys[0], layer.keys[0, :, 0].flatten())  # position 0 is not turned
        assert torch.allclose(
            keys.norm(dim=1), layer.keys[0].transpose(0, 1).flatten(1).norm(dim=1), atol=1e-4
        )


def test_rows_do_not_depend_on_where_a_text_was_read(host: ModelHost) -> None:
    token_ids = host.tokenize_context("The harbour opens.")
    positions = torch.arange(len(token_ids))
    num_tokens = len(token_ids)
    here, there = (
        rows_of_layers(layers, host.geometry, positions + start, seq_len=start + num_tokens)
        for start in (0, 100)
        for layers in [native(host, token_ids, start=start)]
    )
    assert torch.allclose(here, there, atol=1e-4)


def fine_basis(geometry: Geometry) -> Basis:
    channels = geometry.num_kv_heads * geometry.head_dim
    layer = LayerBasis(torch.zeros(channels), torch.eye(channels) * 8, torch.eye(channels) / 8)
    layers = range(geometry.num_layers)
    return Basis.of({(index, kind): layer for index in layers for kind in (Kind.KEY, Kind.VALUE)})


@pytest.mark.parametrize("preset", ["exact", "int8", "k8v4", "int4", "int4-hadamard", "compact"])
@pytest.mark.parametrize("dtype", [None, DType.FLOAT16, DType.BFLOAT16])
@pytest.mark.parametrize("num_sinks", [0, 1, 3])
def test_memory_in_any_coding_becomes_slots_and_the_same_layers_again(
    host: ModelHost, memory: RawMemory, preset: str, dtype: DType | None, num_sinks: int
) -> None:
    basis = fine_basis(host.geometry) if preset == "compact" else None
    coded = encode_memory(memory, preset, basis=basis, dtype=dtype)
    found = slots_of(coded, num_sinks=num_sinks, basis=basis)
    assert found.span == found.num_slots == memory.header.seq_len - num_sinks
    assert found.positions.tolist() == list(range(found.span))
    layers = unpack_memory(coded, dtype=DType.FLOAT32, basis=basis)
    assert_near(to_layers(found, num_sinks=num_sinks, dtype=torch.float32), behind(layers, num_sinks))


def test_layers_are_of_the_dtype_asked_for_and_never_share_the_slots(slots: Slots) -> None:
    before = slots.rows.clone()
    for dtype in (torch.float16, torch.float32):
        for layer in to_layers(slots, num_sinks=1, dtype=dtype):
            assert layer.keys.dtype is layer.values.dtype is dtype
            layer.keys.zero_()
    assert torch.equal(slots.rows, before)


@pytest.mark.parametrize("surplus", [0, 1])
def test_memory_that_is_all_sinks_is_refused(host: ModelHost, memory: RawMemory, surplus: int) -> None:
    num_sinks = memory.header.seq_len + surplus
    with pytest.raises(
        MalformedChunk, match=rf"holds nothing behind its first {num_sinks}; send a longer one"
    ):
        slots_of(memory, num_sinks=num_sinks)


def test_memory_that_was_read_further_on_gives_the_same_slots(
    host: ModelHost, texts: tuple[str, ...], slots: Slots
) -> None:
    token_ids = host.tokenize_context(texts[0])
    there = pack_memory(
        native(host, token_ids, start=40),
        fingerprint=host.fingerprint,
        geometry=host.geometry,
        token_ids=token_ids,
    )
    found = slots_of(replace(there, header=replace(there.header, start_pos=40)), num_sinks=1)
    assert torch.allclose(found.rows, slots.rows, atol=1e-4)
    assert torch.equal(found.positions, slots.positions)
    assert found.span == slots.span


# Relocation


@pytest.mark.parametrize("shift", [1, 17, 150])
def test_relocated_slots_are_what_the_model_fills_in_reading_there(
    host: ModelHost, texts: tuple[str, ...], slots: Slots, shift: int
) -> None:
    moved = replace(slots, positions=slots.positions + shift, span=slots.span + shift)
    there = native(host, host.tokenize_context(texts[0]), start=shift)
    assert_near(to_layers(moved, num_sinks=1, dtype=torch.float32), behind(there, 1))


@pytest.mark.parametrize("name", sorted(REFERENCE_MODELS))
def test_relocation_holds_for_the_reference_models(name: str, cache_dir: Path) -> None:
    host = ModelHost.load(ModelSpec(name, device="cpu"), cache_dir)
    text = "Anna's key is blue. The boat of Tom is called Wind."
    slots = slots_of(host.capture(text), num_sinks=host.num_sinks)
    moved = replace(slots, positions=slots.positions + 1000, span=slots.span + 1000)
    there = native(host, host.tokenize_context(text), start=1000)
    layers = to_layers(moved, num_sinks=host.num_sinks, dtype=torch.float32)
    assert_near(layers, behind(there, host.num_sinks), atol=2e-3)
    injected = host.next_logits(question_ids(host, "What is Anna's key?"), host.inject_slots(slots))
    cache = host.new_cache()
    host.prefill(host.tokenize_context(text), cache)
    read = host.next_logits(question_ids(host, "What is Anna's key?"), cache)
    assert (injected - read).abs().max() < 1e-3


# Joining

lengths = st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=4)


@given(lengths)
def test_joined_memories_stand_one_behind_the_other(sizes: list[tuple[int, int]]) -> None:
    """Each of `num_slots` slots at every second position, and then some positions without."""
    geometry = Geometry(1, 1, 2, DType.FLOAT32, Rope("default", 1e4))
    parts, wanted, start = [], [], 0
    for number, (num_slots, rest) in enumerate(sizes):
        positions, span = torch.arange(num_slots) * 2, num_slots * 2 + rest
        parts.append(Slots(geometry, torch.full((num_slots, 4), float(number)), positions, span))
        wanted += [(number, start + 2 * i) for i in range(num_slots)]
        start += span
    joined = join(parts)
    assert joined.span == start
    assert list(zip(joined.rows[:, 0].tolist(), joined.positions.tolist(), strict=True)) == wanted
    assert parts[0].positions.tolist() == [2 * i for i in range(sizes[0][0])]


def test_memories_that_cannot_be_moved_are_not_joined() -> None:
    geometry = Geometry(1, 1, 2, DType.FLOAT32, Rope("none", 0.0))
    part = Slots(geometry, torch.zeros(2, 4), torch.arange(2), 2)
    assert join([part]).span == 2
    with pytest.raises(IncompatibleModel, match="one of them at a time"):
        join([part, part])


def test_joined_memories_answer_as_each_read_at_its_place(host: ModelHost, texts: tuple[str, ...]) -> None:
    parts = [slots_of(host.capture(text), num_sinks=1) for text in texts[:2]]
    first, second = (host.tokenize_context(text) for text in texts[:2])
    # The second text was read behind a first token of its own, which stands where the first text ends.
    place = len(first) - 1
    layers = tuple(
        LayerKV(one.layer_idx, torch.cat((one.keys, two.keys), 2), torch.cat((one.values, two.values), 2))
        for one, two in zip(native(host, first), behind(native(host, second, start=place), 1), strict=True)
    )
    expected = host.all_logits(question_ids(host), build_cache(layers, host._config))
    joined = answer_logits(host, join(parts))
    assert (joined - expected).abs().max() < 1e-3
    assert (answer_logits(host, join(parts[::-1])) - expected).abs().max() > 1e-2


def test_joining_one_memory_changes_nothing(slots: Slots) -> None:
    joined = join([slots])
    assert torch.equal(joined.rows, slots.rows)
    assert torch.equal(joined.positions, slots.positions)
    assert joined.span == slots.span


# Injection


def test_whole_memory_as_slots_gives_the_logits_of_reading_the_text(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    for text in texts:
        cache = host.new_cache()
        host.prefill(host.tokenize_context(text), cache)
        read = host.all_logits(question_ids(host), cache)
        found = answer_logits(host, slots_of(host.capture(text), num_sinks=1))
        assert (found - read).abs().max() < 1e-3


def test_model_without_a_bos_has_no_sink_and_answers_the_same(
    host_without_bos: ModelHost, texts: tuple[str, ...]
) -> None:
    host = host_without_bos
    assert host.num_sinks == 0
    slots = slots_of(host.capture(texts[0]), num_sinks=host.num_sinks)
    cache = host.new_cache()
    host.prefill(host.tokenize_context(texts[0]), cache)
    assert slots.num_slots == cache_seq_len(cache) == cache_seq_len(host.inject_slots(slots))
    read = host.all_logits(question_ids(host), cache)
    assert (answer_logits(host, slots) - read).abs().max() < 1e-3
    kept = torch.arange(1, slots.num_slots, 2)
    expected = masked_logits(host, texts[0], kept.tolist(), question_ids(host))
    assert (answer_logits(host, pick(slots, kept)) - expected).abs().max() < 1e-3


def read_masked(
    host: ModelHost, cache: Cache, token_ids: list[int], hidden: list[int], start: int
) -> torch.Tensor:
    """transformers itself: all slots are there, some are hidden by the mask; logits [tokens, vocab_size]."""
    mask = torch.ones(1, start + len(token_ids), dtype=torch.long)
    mask[0, hidden] = 0
    with torch.no_grad():
        output = host._model(
            input_ids=torch.tensor([token_ids]),
            attention_mask=mask,
            position_ids=torch.arange(start, start + len(token_ids))[None],
            past_key_values=cache,
        )
    return torch.as_tensor(output.logits[0])


def masked_logits(host: ModelHost, text: str, kept: list[int], token_ids: list[int]) -> torch.Tensor:
    """What follows a text that was read whole, of which then only the `kept` slots can be seen."""
    context = host.tokenize_context(text)
    cache = host.new_cache()
    host.prefill(context, cache)
    seen = set(range(host.num_sinks)) | {host.num_sinks + slot for slot in kept}
    return read_masked(host, cache, token_ids, sorted(set(range(len(context))) - seen), len(context))


@pytest.mark.parametrize("step", [2, 3, 7])
def test_question_behind_gaps_stands_where_it_would_behind_the_whole_memory(
    host: ModelHost, texts: tuple[str, ...], slots: Slots, step: int
) -> None:
    kept = torch.arange(step - 1, slots.num_slots, step)
    expected = masked_logits(host, texts[0], kept.tolist(), question_ids(host))
    picked = pick(slots, kept)
    assert cache_seq_len(host.inject_slots(picked)) == 1 + len(kept)
    assert (answer_logits(host, picked) - expected).abs().max() < 1e-3
    closed = replace(picked, positions=torch.arange(len(kept)), span=len(kept))
    assert (answer_logits(host, closed) - expected).abs().max() > 1e-2


def test_slots_left_out_at_the_end_are_gaps_too(
    host: ModelHost, texts: tuple[str, ...], slots: Slots
) -> None:
    kept = torch.arange(slots.num_slots // 2)
    expected = masked_logits(host, texts[0], kept.tolist(), question_ids(host))
    assert (answer_logits(host, pick(slots, kept)) - expected).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_layers": 2}, "num_layers 2"),
        ({"num_kv_heads": 4}, "num_kv_heads 4"),
        ({"head_dim": 8}, "head_dim 8"),
        ({"rope": Rope("default", 123.0)}, "rope.rope_theta 123.0"),
    ],
)
def test_slots_of_another_geometry_are_refused(
    host: ModelHost, slots: Slots, changes: dict[str, Any], told: str
) -> None:
    geometry = replace(slots.geometry, **changes)
    width = geometry.num_layers * 2 * geometry.num_kv_heads * geometry.head_dim
    other = replace(slots, geometry=geometry, rows=torch.zeros(slots.num_slots, width))
    with pytest.raises(IncompatibleModel, match=rf"taken apart has {told}, this model needs .*; map it"):
        host.inject_slots(other)


def test_slots_beyond_the_context_are_refused_by_their_span(host: ModelHost, slots: Slots) -> None:
    with pytest.raises(TextTooLong, match=r"the memory has 257 tokens, tiny holds 256"):
        host.inject_slots(replace(slots, span=256))


def test_model_that_takes_no_positions_takes_whole_memories_only(
    tmp_path: Path, tiny_folder: Path, cache_dir: Path
) -> None:
    config = BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tiny_folder / name).read_bytes())
    host = ModelHost.load(ModelSpec(str(tmp_path), device="cpu"), cache_dir)
    memory = host.capture("The harbour opens at seven.")
    slots = slots_of(memory, num_sinks=1)
    read = host.all_logits(question_ids(host), host.inject(memory))
    assert (answer_logits(host, slots) - read).abs().max() < 1e-3
    with pytest.raises(UnsupportedModel, match=r"takes no positions, and 1 of the memory's \d+ slots"):
        host.inject_slots(pick(slots, torch.arange(1, slots.num_slots)))


# Generation


def ask(host: ModelHost, **given: Any) -> Generated:
    *_, last = host.generate(QUESTION, sampling=GREEDY, **given)
    assert isinstance(last, Generated)
    return last


def test_reply_from_slots_is_that_of_the_memory_and_counts_the_sink_as_recomputed(
    host: ModelHost, memory: RawMemory, slots: Slots
) -> None:
    from_slots, from_memory = ask(host, slots=slots), ask(host, memory=memory)
    assert from_slots.token_ids == from_memory.token_ids
    assert from_slots.reused_tokens == slots.num_slots == memory.header.seq_len - 1
    assert from_slots.recomputed_tokens == len(question_ids(host)) + 1


def test_reply_behind_gaps_counts_the_slots_it_has_and_goes_on_at_the_right_positions(
    host: ModelHost, texts: tuple[str, ...], slots: Slots
) -> None:
    kept = torch.arange(0, slots.num_slots, 3)
    reply = ask(host, slots=pick(slots, kept))
    assert reply.reused_tokens == len(kept)
    assert reply.recomputed_tokens == len(question_ids(host)) + 1
    written = list(reply.token_ids)
    logits = masked_logits(host, texts[0], kept.tolist(), question_ids(host) + written)
    own = logits[len(question_ids(host)) - 1 : -1].argmax(-1).tolist()
    assert own == written


def test_model_without_a_bos_recomputes_the_question_alone(
    host_without_bos: ModelHost, texts: tuple[str, ...]
) -> None:
    slots = slots_of(host_without_bos.capture(texts[0]), num_sinks=0)
    reply = ask(host_without_bos, slots=slots)
    assert reply.reused_tokens == slots.num_slots
    assert reply.recomputed_tokens == len(question_ids(host_without_bos))


def test_slots_and_a_context_together_are_refused(host: ModelHost, slots: Slots) -> None:
    with pytest.raises(RequestError, match="both a memory and a context"):
        ask(host, slots=slots, context="The harbour.")


def test_room_for_the_reply_is_counted_from_the_span(host: ModelHost, slots: Slots) -> None:
    wide = replace(slots, span=host.max_seq_len - len(question_ids(host)) - GREEDY.max_tokens - 1)
    assert ask(host, slots=wide).reused_tokens == slots.num_slots
    with pytest.raises(TextTooLong):
        ask(host, slots=replace(wide, span=wide.span + 1))
