"""Measured quality, and what `auto` makes of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import encode_memory
from kvnet.model.passages import Continuation
from kvnet.model.quality import (
    Candidate,
    Quality,
    choose_preset,
    compare,
    decide,
    digest_probe,
    measure_quality,
    probe_of,
    read_tokens,
)
from kvnet.model.reference.catalog import reference_basis
from kvnet.types import RawMemory


@pytest.fixture(scope="session")
def ref_a(cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), cache_dir)


@pytest.fixture(scope="session")
def basis(ref_a: ModelHost) -> Basis:
    path = reference_basis("ref-a")
    assert path is not None
    return Basis.from_bytes(path.read_bytes(), ref_a.geometry)


def candidate(name: str, wire_nbytes: int, kl: float) -> Candidate:
    return Candidate(name, wire_nbytes, Quality(kl, 1.0, 9, "sha256:"))


def measured(host: ModelHost, coded: RawMemory, plain: RawMemory) -> Quality:
    """`measure_quality` where there is room to measure."""
    found = measure_quality(host, coded, plain)
    assert found is not None
    return found


MEASURED = (
    candidate("exact", 100, 0.0),
    candidate("int8", 50, 0.0001),
    candidate("int4", 25, 0.02),
    candidate("compact", 10, 0.005),
)


@pytest.mark.parametrize(
    ("bound", "wanted"), [(0.01, "compact"), (0.001, "int8"), (0.00001, "exact"), (1.0, "compact")]
)
def test_cheapest_preset_within_the_bound_is_chosen(bound: float, wanted: str) -> None:
    assert decide(MEASURED, bound) == wanted
    assert decide(reversed(MEASURED), bound) == wanted


def test_nothing_good_enough_means_exact() -> None:
    assert decide([candidate("int4", 25, 0.5)], 0.01) == "exact"
    assert decide([candidate("int4", 25, math.nan)], 0.01) == "exact"


@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 2**32))
def test_kl_is_that_of_the_distributions(positions: int, vocab_size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain, coded = (torch.randn(positions, vocab_size, generator=generator).log_softmax(-1) for _ in range(2))
    wanted = torch.nn.functional.kl_div(coded, plain, log_target=True, reduction="batchmean")
    found = compare(plain, coded, "sha256:x")
    assert found.kl == pytest.approx(max(0.0, wanted.item()), abs=1e-5)
    assert found.tokens_checked == positions
    assert compare(plain, plain, "sha256:x") == Quality(0.0, 1.0, positions, "sha256:x")


def test_memory_against_itself_loses_nothing_and_coarser_codings_lose_more(ref_a: ModelHost) -> None:
    plain = ref_a.capture("Anna's harbour is called Zor. The key of Ben is 71. Ben's color is blue.")
    same = measured(ref_a, plain, plain)
    assert (same.kl, same.top1) == (0.0, 1.0)
    assert same.tokens_checked > 100
    int8, int4 = (measured(ref_a, encode_memory(plain, name), plain) for name in ("int8", "int4"))
    assert 0 < int8.kl < int4.kl
    assert int8.probe_digest == int4.probe_digest == same.probe_digest


def test_quality_of_a_memory_that_nearly_fills_the_context_checks_what_still_fits(host: ModelHost) -> None:
    text = "A memory of the sea: salt, rope, and the colour of rust. " * 40
    token_ids = host.tokenize_context(text)[: host.max_seq_len - 5]
    memory = host.capture(host.tokenizer.decode(token_ids[1:]))
    room = host.max_seq_len - memory.header.seq_len
    assert 0 < room < 40
    assert measured(host, encode_memory(memory, "int8"), memory).tokens_checked == room


def test_nothing_is_measured_of_a_memory_that_fills_the_context(host: ModelHost) -> None:
    token_ids = host.tokenize_context("A memory of the sea: salt, rope, and the colour of rust. " * 40)
    memory = read_tokens(host, token_ids[: host.max_seq_len])
    assert memory.header.seq_len == host.max_seq_len
    assert measure_quality(host, encode_memory(memory, "int8"), memory) is None


def test_auto_on_ref_a_keeps_its_bound_and_says_what_it_measured(ref_a: ModelHost, basis: Basis) -> None:
    choice = choose_preset(ref_a, basis=basis)
    by_name = {found.preset: found for found in choice.candidates}
    assert set(by_name) == set(PRESETS)
    chosen = by_name[choice.preset]
    assert chosen.quality.kl <= choice.bound == 0.01
    cheaper = [found for found in choice.candidates if found.wire_nbytes < chosen.wire_nbytes]
    assert all(found.quality.kl > choice.bound for found in cheaper)
    assert by_name["exact"].quality.kl == 0.0
    assert by_name["compact"].wire_nbytes < by_name["int4"].wire_nbytes < by_name["int8"].wire_nbytes
    assert json.loads(json.dumps(asdict(choice)))["preset"] == choice.preset


def test_auto_without_a_basis_leaves_compact_out(host: ModelHost) -> None:
    choice = choose_preset(host)
    assert "compact" not in {found.preset for found in choice.candidates}


def test_probe_fits_the_context_and_is_named_by_its_tokens(host: ModelHost, ref_a: ModelHost) -> None:
    (english,) = probe_of(host)
    assert len(english.context_ids) + len(english.continuations[0].token_ids) <= host.max_seq_len
    assert len(probe_of(ref_a)) == 2
    one, other = (Continuation((1, 2, 3), first) for first in (0, 1))
    assert digest_probe([one]) == digest_probe([Continuation((1, 2, 3))]) != digest_probe([other])
