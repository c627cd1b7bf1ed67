"""Bases learned from a model: deterministic, and better than plain quantization at equal bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS, Preset
from kvnet.errors import RequestError
from kvnet.model.calibration import calibrate, calibrate_on
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.memory import encode_memory
from kvnet.model.passages import Continuation, Passage, cut_texts, world_passage
from kvnet.model.quality import measure_presets
from kvnet.model.reference.catalog import reference_basis
from kvnet.types import Compression


@pytest.fixture(scope="session")
def ref_a(cache_dir: Path) -> ModelHost:
    return ModelHost.load(ModelSpec("ref-a", device="cpu"), cache_dir)


def random_passages(host: ModelHost, count: int, seed: int = 0) -> list[Passage]:
    rng = random.Random(seed)
    return [
        Passage(
            tuple(rng.randrange(3, 400) for _ in range(60)),
            (Continuation(tuple(rng.randrange(3, 400) for _ in range(8)), 2),),
        )
        for _ in range(count)
    ]


def test_same_passages_and_seed_give_the_same_basis(host: ModelHost) -> None:
    passages = random_passages(host, 4)
    first, second = (calibrate_on(host, passages, seed=1) for _ in range(2))
    assert first.weighted
    assert first.num_tokens == 240
    assert first.basis.digest == second.basis.digest
    assert calibrate_on(host, passages, seed=2).basis.digest != first.basis.digest


def test_basis_of_a_model_codes_its_memories(host: ModelHost) -> None:
    basis = calibrate_on(host, random_passages(host, 6), kl=1e-4).basis
    read = Basis.from_bytes(basis.to_bytes(), host.geometry)
    (passage,) = random_passages(host, 1, seed=9)
    (found,) = measure_presets(host, [PRESETS["compact"]], [passage], basis=read)
    assert found.quality.kl < 0.02
    coarse = basis.scaled(30.0)
    (worse,) = measure_presets(host, [PRESETS["compact"]], [passage], basis=coarse)
    assert worse.quality.kl > found.quality.kl
    assert worse.wire_nbytes < found.wire_nbytes


def test_larger_budget_makes_larger_steps(host: ModelHost) -> None:
    passages = random_passages(host, 4)
    fine, coarse = (calibrate_on(host, passages, kl=kl).basis for kl in (1e-5, 10.0))
    assert fine.num_components > coarse.num_components


def test_codes_of_the_calibration_text_fit_a_byte(host: ModelHost) -> None:
    basis = calibrate_on(host, random_passages(host, 4), kl=1e-12).basis  # steps far too small for a byte
    memory = host.capture("The harbour opens at seven. Anna keeps the key in the blue tin.")
    coded = encode_memory(memory, "compact", basis=basis)
    assert (
        max(int.from_bytes(chunk[:4], "little") for chunk in coded.chunks) <= 3 + memory.header.seq_len // 8
    )


def test_too_little_text_is_refused(host: ModelHost) -> None:
    with pytest.raises(RequestError, match="more text"):
        calibrate(host, ["The harbour opens at seven."])


def test_model_without_gradients_is_calibrated_without_them(
    host: ModelHost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise NotImplementedError("derivative for aten::packed_matmul is not implemented")

    monkeypatch.setattr(torch.autograd, "grad", refuse)
    made = calibrate_on(host, random_passages(host, 4))
    assert not made.weighted
    assert "calibration.unweighted" in caplog.text
    (passage,) = random_passages(host, 1, seed=9)
    (found,) = measure_presets(host, [PRESETS["compact"]], [passage], basis=made.basis)
    assert 0 < found.quality.kl < 2


def test_long_texts_are_cut_into_windows_with_a_bos_each(host: ModelHost) -> None:
    text = "A memory of the sea: salt, rope, and the colour of rust. " * 40
    passages = cut_texts(host, [text, "short"])
    assert len(passages) > 2
    bos = host.tokenizer.bos_token_id
    assert all(passage.context_ids[0] == bos for passage in passages)
    joined = [
        token
        for passage in passages
        for token in (*passage.context_ids[1:], *passage.continuations[0].token_ids)
    ]
    assert joined == host.tokenize_context(text)[1 : 1 + len(joined)]
    assert all(len(p.context_ids) + len(p.continuations[0].token_ids) <= host.max_seq_len for p in passages)


def test_compact_beats_plain_quantization_at_equal_bytes_on_ref_a(ref_a: ModelHost) -> None:
    path = reference_basis("ref-a")
    assert path is not None
    basis = Basis.from_bytes(path.read_bytes(), ref_a.geometry)
    rng = random.Random(3)
    passages = [world_passage(ref_a, rng, 12, 4)[0] for _ in range(6)]
    int4 = replace(PRESETS["int4"], compression=Compression.ZSTD, level=19)
    compact = Preset("compact", PRESETS["compact"].coding, Compression.ZSTD, 3)
    plain, learned = measure_presets(ref_a, [int4, compact], passages, basis=basis)
    assert learned.wire_nbytes * 2 < plain.wire_nbytes
    fine = basis.scaled(0.25)  # still far fewer bytes than 4 bits a number
    (finer,) = measure_presets(ref_a, [compact], passages, basis=fine)
    assert finer.wire_nbytes < plain.wire_nbytes
    assert min(learned.quality.kl, finer.quality.kl) < plain.quality.kl
