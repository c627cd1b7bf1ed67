"""A port and a map from the first text to the verdict, of a model to itself on a handful of lessons."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from kvnet.align import recipe
from kvnet.align.artefacts import load_map, load_port, sign_alignment
from kvnet.align.corpus import Lesson, digest_lessons
from kvnet.align.fit_state import FitState
from kvnet.align.map import AlignmentMap
from kvnet.align.reading import LocalReader
from kvnet.align.recipe import (
    MadePort,
    MapOptions,
    find_critical_layers,
    fit_lessons,
    gated,
    make_map,
    make_port,
)
from kvnet.alignment import Intake, LayerStrategy, Method, Pairing, feature_width, intake_of, row_width
from kvnet.errors import Cancelled, RequestError
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import reference_path
from tests.builders import RECEIVER

WHEN = "2028-01-01T00:00:00Z"
NUM_LESSONS = 18
PLAIN = MapOptions(anchors=False, window=(0, 0), far_window=None, far_layers=(), closing="")
FEWER = {  # texts than the recipe reads, so that a test is done in seconds
    "_PORT_LESSONS": 16,
    "_PROBE_LESSONS": 6,
    "_TUNE_LESSONS": 3,
    "_GATE_LESSONS": 2,
}
FOR_A_VERDICT = 25  # texts of eight questions: a verdict needs 200


@dataclass(frozen=True, slots=True)
class Bench:
    """A model that is its own source, and its port."""

    host: ModelHost
    port: MadePort
    lessons: list[Lesson]

    def make(self, options: MapOptions, *, state: FitState | None = None) -> AlignmentMap:
        """A map to the model's own rows."""
        return make_map(
            LocalReader(self.host),
            self.host,
            self.lessons,
            created_at=WHEN,
            port=None,
            port_id="",
            critical=self.port.critical_layers,
            options=options,
            state=state,
        )


@contextmanager
def reading(**counts: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, count in counts.items():
            patch.setattr(recipe, name, count)
        yield


@pytest.fixture(scope="module", autouse=True)
def few_texts() -> Iterator[None]:
    with reading(**FEWER):
        yield


@pytest.fixture(scope="module")
def bench(few_texts: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    torch.set_num_threads(1)
    host = ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))
    return Bench(host, make_port(host, created_at=WHEN, rank=16), fit_lessons(NUM_LESSONS))


@pytest.fixture(scope="module")
def good(bench: Bench) -> AlignmentMap:
    """A map that has every row to go by."""
    with reading(_GATE_LESSONS=FOR_A_VERDICT):
        return bench.make(replace(PLAIN, relative_lambdas=(1e-7, 1e5)))


@pytest.fixture(scope="module")
def in_port(bench: Bench) -> AlignmentMap:
    """A map into the port, of anchors and windows."""
    options = MapOptions(window=(-1, 0), far_window=(-3, -2), far_layers=(0,), closing=" So.")
    signed = sign_alignment(bench.port.manifest, bench.port.port.to_tensors(), RECEIVER)
    return make_map(
        LocalReader(bench.host),
        bench.host,
        bench.lessons,
        created_at=WHEN,
        port=load_port(signed),
        port_id=signed.manifest.id,
        critical=bench.port.critical_layers,
        options=replace(options, relative_lambdas=(1e-2,)),
    )


# Ports


def test_port_says_what_it_was_learned_from(bench: Bench) -> None:
    made = bench.port
    assert made.port.rank == made.manifest.rank == 16
    assert (made.manifest.receiver, made.manifest.geometry) == (bench.host.fingerprint, bench.host.geometry)
    assert made.manifest.created_at == WHEN
    assert made.manifest.num_rows > made.port.rank
    assert made.critical_layers == find_critical_layers(bench.host)
    signed = sign_alignment(made.manifest, made.port.to_tensors(), RECEIVER)
    assert load_port(signed).basis.shape == (16, made.port.intake.width)


def test_port_and_map_end_in_states_of_the_layers_that_answers_need(
    bench: Bench, good: AlignmentMap, in_port: AlignmentMap
) -> None:
    intake = bench.host.intake(bench.port.critical_layers)
    assert intake.state_layers == bench.port.critical_layers
    assert intake_of(bench.port.manifest) == bench.port.port.intake == intake
    assert intake_of(good.manifest) == intake
    assert (in_port.manifest.state_layers, in_port.manifest.hidden_size) == ((), 0)  # its port has them


def test_map_into_states_gives_the_receivers_rows(bench: Bench, good: AlignmentMap) -> None:
    (read,) = LocalReader(bench.host).read([bench.lessons[0].text])
    mapped = good.apply(read.slots, rows_of=bench.host.rows_of)
    assert mapped.rows.shape == (read.slots.num_slots, row_width(bench.host.geometry))
    assert float((mapped.rows - read.slots.rows).norm()) < 0.05 * float(read.slots.rows.norm())


def test_caller_that_leaves_ends_a_port(bench: Bench) -> None:
    with pytest.raises(Cancelled):
        make_port(bench.host, created_at=WHEN, rank=16, cancelled=lambda: True)


# Maps


def test_map_of_a_model_to_itself_is_admitted(good: AlignmentMap) -> None:
    gate = good.manifest.gate
    assert gate.admitted, gate.reason
    assert gate.num_questions >= 200
    assert gate.gap_recovered.low > 0.9
    assert abs(gate.gap_shuffled) < 0.05
    assert gate.kl < 0.01
    assert gate.attention_cosine > 0.99


def test_lambda_is_the_one_that_recalls_on_other_lessons(good: AlignmentMap) -> None:
    assert good.manifest.relative_lambda == 1e-7


def test_map_that_recalls_nothing_is_not_admitted(bench: Bench) -> None:
    with reading(_GATE_LESSONS=FOR_A_VERDICT, _TUNE_LESSONS=1):
        made = bench.make(replace(PLAIN, relative_lambdas=(1e5,)))
    gate = made.manifest.gate
    assert (gate.admitted, made.manifest.relative_lambda) == (False, 1e5)
    assert gate.recall_mapped < 0.1 < 0.9 < gate.recall_text
    assert "recall gap" in gate.reason


def test_manifest_says_what_was_done(bench: Bench, good: AlignmentMap) -> None:
    manifest, host = good.manifest, bench.host
    assert (manifest.source, manifest.receiver) == (host.fingerprint, host.fingerprint)
    assert (manifest.source_geometry, manifest.receiver_geometry) == (host.geometry, host.geometry)
    assert (manifest.method, manifest.pairing, manifest.port) == (Method.RIDGE, Pairing.TOKENS, "")
    assert manifest.source_layers == tuple(range(host.geometry.num_layers))
    assert (manifest.window, manifest.far_window, manifest.far_layers) == ((0, 0), None, ())
    assert (manifest.num_sinks, manifest.closing) == (host.num_sinks, "")
    assert (manifest.num_contexts, manifest.created_at) == (NUM_LESSONS, WHEN)
    assert manifest.corpus_digest == digest_lessons(bench.lessons)
    read = LocalReader(host).read([lesson.text for lesson in bench.lessons])
    assert manifest.num_rows == sum(one.slots.num_slots for one in read)
    assert good.encoder.shape == (feature_width(manifest), intake_of(manifest).width)


def test_map_into_a_port_has_all_that_was_asked_for(bench: Bench, in_port: AlignmentMap) -> None:
    manifest = in_port.manifest
    assert manifest.port.startswith("port_")
    assert (manifest.window, manifest.far_window, manifest.far_layers) == ((-1, 0), (-3, -2), (0,))
    assert (manifest.closing, manifest.relative_lambda) == (" So.", 1e-2)
    assert in_port.encoder.shape == (feature_width(manifest), bench.port.port.rank)
    assert in_port.anchor is not None
    assert in_port.familiar is not None
    assert in_port.familiar.mean.shape == (bench.port.port.rank,)
    read = LocalReader(bench.host).read([lesson.text + " So." for lesson in bench.lessons])
    assert 0 < manifest.num_rows < sum(one.slots.num_slots for one in read)


def test_map_that_was_asked_too_little_is_not_admitted(in_port: AlignmentMap) -> None:
    gate = in_port.manifest.gate
    assert (gate.admitted, gate.num_questions) == (False, 16)
    assert "a verdict needs" in gate.reason


def test_signed_map_does_as_the_made_one(bench: Bench, in_port: AlignmentMap) -> None:
    signed = sign_alignment(in_port.manifest, in_port.to_tensors(), RECEIVER)
    loaded = load_map(signed, bench.port.port)
    assert loaded.manifest.gate == in_port.manifest.gate
    (read,) = LocalReader(bench.host).read([bench.lessons[0].text])
    (there, there_at), (here, here_at) = (one.encode(read.slots) for one in (in_port, loaded))
    assert torch.equal(there_at, here_at)
    assert float((there - here).norm()) < 0.02 * float(there.norm())  # halves


def test_map_is_gone_on_with_in_the_same_bits(bench: Bench, good: AlignmentMap) -> None:
    saved: list[dict[str, torch.Tensor]] = []

    def keep(state: FitState) -> None:
        saved.append({name: tensor.clone() for name, tensor in state.to_tensors().items()})

    with pytest.raises(Cancelled):
        make_map(
            LocalReader(bench.host),
            bench.host,
            bench.lessons,
            created_at=WHEN,
            port=None,
            port_id="",
            critical=bench.port.critical_layers,
            options=PLAIN,
            saved=keep,
            cancelled=lambda: bool(saved) and int(saved[-1]["progress"][0]) >= 16,
        )
    options = replace(PLAIN, relative_lambdas=(1e-7,))
    resumed = bench.make(options, state=FitState.from_tensors(saved[-1]))
    assert torch.equal(resumed.encoder, good.encoder)
    assert torch.equal(resumed.bias, good.bias)
    assert resumed.manifest == replace(good.manifest, gate=resumed.manifest.gate)


def test_gate_replaces_a_verdict_and_nothing_else(bench: Bench, good: AlignmentMap) -> None:
    blank = replace(good, encoder=torch.zeros_like(good.encoder))
    found = gated(LocalReader(bench.host), bench.host, blank, None, bench.port.critical_layers)
    assert not found.manifest.gate.admitted
    assert replace(found.manifest, gate=good.manifest.gate) == good.manifest
    assert found.encoder is blank.encoder


# Options


@pytest.mark.parametrize("strategy", LayerStrategy)
def test_every_layer_strategy_makes_a_map_that_says_so(bench: Bench, strategy: LayerStrategy) -> None:
    made = bench.make(replace(PLAIN, strategy=strategy, relative_lambdas=(1e-7,)))
    assert made.manifest.layer_strategy is strategy
    assert made.manifest.source_layers == tuple(range(bench.host.geometry.num_layers))
    assert made.manifest.gate.recall_mapped == made.manifest.gate.recall_text


def test_head_local_map_recalls_and_ends_in_rows(bench: Bench) -> None:
    made = bench.make(replace(PLAIN, head_local=True, relative_lambdas=(1e-7,)))
    assert (made.manifest.state_layers, made.manifest.hidden_size) == ((), 0)  # a state is of all heads
    geometry = bench.host.geometry
    heads = made.encoder.view(-1, geometry.num_kv_heads, geometry.head_dim, made.encoder.shape[1])
    to_first = heads[..., : geometry.head_dim]  # the first layer's keys of head 0
    assert to_first[:, 0].any()
    assert not to_first[:, 1:].any()
    assert made.manifest.gate.recall_mapped == made.manifest.gate.recall_text
    with pytest.raises(RequestError, match="add --rows"):
        make_map(
            LocalReader(bench.host),
            bench.host,
            bench.lessons,
            created_at=WHEN,
            port=bench.port.port,
            port_id="port_x",
            critical=(0,),
            options=replace(PLAIN, head_local=True),
        )


def test_few_rows_make_a_map_of_low_rank_that_says_so(bench: Bench) -> None:
    made = bench.make(replace(PLAIN, window=(-7, 0)))
    assert made.manifest.num_rows < 0.5 * feature_width(made.manifest)
    assert made.manifest.method is Method.LOW_RANK
    assert made.manifest.relative_lambda >= 1e-2
    rank = int(torch.linalg.matrix_rank(made.encoder.double(), rtol=1e-3))
    assert rank <= made.encoder.shape[1] // 4


# Other receivers


def test_receiver_without_states_is_given_keys_and_values(bench: Bench, tmp_path: Path) -> None:
    folder = reference_path("ref-a")
    assert folder is not None
    config = Olmo2Config(  # its norms of keys are across heads
        vocab_size=bench.host.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for path in folder.glob("tokenizer*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    receiver = ModelHost.load(ModelSpec(str(tmp_path)), tmp_path / "cache")
    made = make_map(
        LocalReader(bench.host),
        receiver,
        bench.lessons,
        created_at=WHEN,
        port=None,
        port_id="",
        critical=(0, 1),
        options=replace(PLAIN, relative_lambdas=(1e-5,)),
    )
    assert intake_of(made.manifest) == Intake(receiver.geometry)
    assert made.encoder.shape == (feature_width(made.manifest), row_width(receiver.geometry))
    (read,) = LocalReader(bench.host).read([bench.lessons[0].text])
    assert torch.equal(made.apply(read.slots, rows_of=receiver.rows_of).rows, made.apply(read.slots).rows)
