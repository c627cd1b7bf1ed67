"""kvnet.model.spotcheck: what a model made of a text agrees in every coding, what was changed is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS
from kvnet.errors import IncompatibleModel
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import digest_chunks, encode_memory
from kvnet.model.reference.catalog import reference_basis
from kvnet.model.spotcheck import SpotCheck, chance_to_find, check_text
from kvnet.plan import plan_memory
from kvnet.types import Kind, RawMemory

TEXT = "Anna's key is blue. Note: the boat of Tom is called Wind. We know that the code of Mia is 2367. " * 4
OTHER = "Petra's drink is tea. We know that Omar lives in Rome. Note: the dog of Lea is called Max. " * 4


@pytest.fixture(scope="module")
def ref_a(cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), cache_dir)


@pytest.fixture(scope="module")
def basis(ref_a: ModelHost) -> Basis:
    path = reference_basis("ref-a")
    assert path is not None
    return Basis.from_bytes(path.read_bytes(), ref_a.geometry)


@pytest.fixture(scope="module")
def memory(ref_a: ModelHost) -> RawMemory:
    return ref_a.capture(TEXT)


def check(
    host: ModelHost, memory: RawMemory, basis: Basis, *, text: str = TEXT, samples: int = 0, seed: int = 1
) -> SpotCheck:
    return check_text(host, memory, text, samples=samples, seed=seed, basis=basis)


def forged(memory: RawMemory, change: Callable[[torch.Tensor], None], *, layer: int, kind: Kind) -> RawMemory:
    """A memory with a change to what one layer holds: float32 [num_kv_heads, tokens, head_dim]."""
    geometry, chunks = memory.header.geometry, list(memory.chunks)
    for index, key in enumerate(plan_memory(memory.header)):
        if (key.layer_idx, key.kind) == (layer, kind):
            numbers = torch.frombuffer(bytearray(chunks[index]), dtype=torch.float32)
            rows = numbers.view(geometry.num_kv_heads, key.stop - key.start, geometry.head_dim)
            change(rows)
            chunks[index] = rows.numpy().tobytes()
            break
    return RawMemory(replace(memory.header, content_digest=digest_chunks(chunks)), tuple(chunks))


def flip_row(at: int) -> Callable[[torch.Tensor], None]:
    def change(rows: torch.Tensor) -> None:
        rows[:, at] *= -1

    return change


def nudge(rows: torch.Tensor) -> None:
    """A direction added to every position: what steers a model."""
    rows += rows.std() / 4


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_honest_memory_agrees_in_every_coding_and_any_forgery_before_it_does_not(
    ref_a: ModelHost, memory: RawMemory, basis: Basis, preset: str
) -> None:
    found = check(ref_a, encode_memory(memory, preset, basis=basis), basis)
    assert found.agrees, found
    assert found.samples == found.slots == memory.header.seq_len * memory.header.geometry.num_layers
    for layer, kind in ((0, Kind.VALUE), (ref_a.geometry.num_layers - 1, Kind.KEY)):
        lied = encode_memory(forged(memory, flip_row(9), layer=layer, kind=kind), preset, basis=basis)
        one = check(ref_a, lied, basis)
        assert not one.agrees
        assert math.isclose(one.agreement, 1 - 1 / one.slots), one


@pytest.mark.parametrize("preset", ["exact", "int8"])
def test_direction_added_to_one_layer_is_found_by_a_few_samples(
    ref_a: ModelHost, memory: RawMemory, basis: Basis, preset: str
) -> None:
    lied = encode_memory(forged(memory, nudge, layer=1, kind=Kind.VALUE), preset)
    found = check(ref_a, lied, basis, samples=40)
    assert not found.agrees
    assert found.samples == 40


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_memory_of_another_text_under_this_ones_tokens_is_found_in_every_coding(
    ref_a: ModelHost, memory: RawMemory, basis: Basis, preset: str
) -> None:
    length = min(len(ref_a.tokenize_context(TEXT)), len(ref_a.tokenize_context(OTHER)))
    short = [str(ref_a.tokenizer.decode(ref_a.tokenize_context(t)[1:length])) for t in (TEXT, OTHER)]
    mine, other = (ref_a.capture(text) for text in short)
    assert mine.header.seq_len == other.header.seq_len
    header = replace(other.header, token_digest=mine.header.token_digest)
    lied = encode_memory(RawMemory(header, other.chunks), preset, basis=basis)
    found = check(ref_a, lied, basis, text=short[0])
    assert found.is_same_text
    assert found.agreement < 0.2


def test_text_of_other_tokens_is_told_and_not_read(ref_a: ModelHost, memory: RawMemory, basis: Basis) -> None:
    found = check(ref_a, memory, basis, text=OTHER)
    assert (found.is_same_text, found.agrees, found.samples) == (False, False, 0)


def test_heads_set_to_zero_are_a_change(ref_a: ModelHost, memory: RawMemory, basis: Basis) -> None:
    assert not check(ref_a, encode_memory(memory, "exact", pruned_heads=[(1, 0)]), basis).agrees


def test_numbers_that_are_none_do_not_agree(ref_a: ModelHost, memory: RawMemory, basis: Basis) -> None:
    def spoil(rows: torch.Tensor) -> None:
        rows[0, 3] = 1e38

    assert not check(ref_a, forged(memory, spoil, layer=0, kind=Kind.KEY), basis).agrees


def test_memory_read_with_other_arithmetic_agrees(ref_a: ModelHost, basis: Basis) -> None:
    others = (ref_a.capture(TEXT, token_block=7), ref_a.capture(TEXT, attention=True))
    for memory in others:
        found = check(ref_a, memory, basis)
        assert found.agrees, found
        assert found.worst_error < found.tolerance / 10


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize(
    "choice", [{"dtype": "float16"}, {"dtype": "bfloat16"}, {"quantization": "int8"}], ids=lambda c: str(c)
)
def test_same_model_in_another_precision_agrees_and_another_text_does_not(
    ref_a: ModelHost, cache_dir: Path, basis: Basis, preset: str, choice: dict[str, str]
) -> None:
    elsewhere = ModelHost.load(ModelSpec("ref-a", device="cpu", **choice), cache_dir)  # type: ignore[arg-type]
    coded = encode_memory(elsewhere.capture(TEXT), preset, basis=basis)
    found = check(ref_a, coded, basis)
    assert found.agrees, found
    theirs = elsewhere.capture(OTHER)
    assert check(ref_a, encode_memory(theirs, preset, basis=basis), basis).is_same_text is False


def test_share_of_changed_slots_is_found_as_often_as_is_said(
    ref_a: ModelHost, memory: RawMemory, basis: Basis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A twentieth of the slots and 20 samples: 1 - 0.95^20 = 64 %, over 200 choices."""
    tokens = memory.header.seq_len

    def change(rows: torch.Tensor) -> None:
        rows[:, : tokens // 5] *= -1  # of one layer of four

    lied = forged(memory, change, layer=2, kind=Kind.VALUE)
    share = 1 - check(ref_a, lied, basis).agreement
    assert 0.04 < share < 0.051
    monkeypatch.setattr(ref_a, "capture", lambda *_, **__: memory)  # it would read the same 200 times
    found = [not check(ref_a, lied, basis, samples=20, seed=seed).agrees for seed in range(200)]
    expected = chance_to_find(share, 20)
    assert abs(sum(found) / 200 - expected) < 4 * math.sqrt(expected * (1 - expected) / 200)


def test_same_seed_looks_at_the_same_slots(ref_a: ModelHost, memory: RawMemory, basis: Basis) -> None:
    lied = forged(memory, flip_row(5), layer=0, kind=Kind.KEY)
    assert check(ref_a, lied, basis, samples=30, seed=7) == check(ref_a, lied, basis, samples=30, seed=7)


def test_memory_of_another_geometry_is_refused(host: ModelHost, memory: RawMemory) -> None:
    with pytest.raises(IncompatibleModel):
        check_text(host, memory, TEXT, samples=0, seed=1)
