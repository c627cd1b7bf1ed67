"""The fit of a map: what it recovers, what it resumes from, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import pytest
import torch

from kvnet.align.anchors import PAID_ABOVE, attention_paid, critical_layers
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.fit import (
    Fit,
    pair_readings,
    pairing_of,
)
from kvnet.align.fit_state import FitPlan, FitState
from kvnet.align.own_port import learn_port_of
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.solve import LinearMap
from kvnet.align.window import stack_window
from kvnet.alignment import Intake, Pairing, row_width
from kvnet.errors import (
    Cancelled,
    IncompatibleModel,
    NotFinite,
    RequestError,
    SingularStatistics,
    StateCorrupt,
    TooFewSamples,
)
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.types import Fingerprint, Geometry

NUM_LESSONS = 34
LAMBDA = 1e-3


@dataclass(frozen=True, slots=True)
class DamagingReader:
    """A reader whose reading `damaged` (the count begins with 0 at each `read`) is spoiled."""

    reader: LocalReader
    damaged: int
    spoil: Callable[[Reading], Reading]

    @property
    def fingerprint(self) -> Fingerprint:
        return self.reader.fingerprint

    @property
    def geometry(self) -> Geometry:
        return self.reader.geometry

    @property
    def num_sinks(self) -> int:
        return self.reader.num_sinks

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        for place, reading in zip(count(), self.reader.read(texts), strict=False):
            yield self.spoil(reading) if place == self.damaged else reading


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelHost]:
    torch.set_num_threads(1)
    cache_dir = tmp_path_factory.mktemp("cache")
    return {name: ModelHost.load(ModelSpec(name), cache_dir) for name in REFERENCE_MODELS}


@pytest.fixture(scope="module")
def host(hosts: dict[str, ModelHost]) -> ModelHost:
    return hosts["ref-a"]


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return list(fact_lessons(NUM_LESSONS, seed=51, fact_counts=(4,), num_questions=2))


@pytest.fixture(scope="module")
def port(host: ModelHost, lessons: list[Lesson]) -> Port:
    """A port of a few coordinates."""
    return learn_port_of(host, lessons[:8], None, 8)[0]


@pytest.fixture(scope="module")
def critical(host: ModelHost, lessons: list[Lesson]) -> tuple[int, ...]:
    readings = list(LocalReader(host).read([lesson.text for lesson in lessons[:8]]))
    return critical_layers(Exam(host, lessons[:8]), readings)


def every_layer(host: ModelHost) -> tuple[int, ...]:
    return tuple(range(host.geometry.num_layers))


PLANS = {  # whoever needs critical layers is given them by `plan_of`
    "plain": FitPlan(source_layers=(1, 2), window=(-1, 1)),
    "anchors": FitPlan(source_layers=(1, 2), window=(-1, 1), critical_layers=(), num_labelled=9),
    "whole": FitPlan(
        source_layers=(1, 2),
        window=(0, 0),
        critical_layers=(),
        num_followers=1,
        num_labelled=9,
        far_window=(-4, -3),
        far_layers=(0,),
        closing=" So.",
    ),
}


def plan_of(name: str, critical: tuple[int, ...]) -> FitPlan:
    found = PLANS[name]
    return found if found.critical_layers is None else replace(found, critical_layers=critical)


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest, critical: tuple[int, ...]) -> FitPlan:
    return plan_of(request.param, critical)


def copied(state: FitState) -> dict[str, torch.Tensor]:
    """As a file would keep it."""
    return {name: tensor.clone() for name, tensor in state.to_tensors().items()}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


# What is fitted


def test_model_maps_to_itself_through_a_port_of_full_rank(host: ModelHost) -> None:
    lessons = list(fact_lessons(16, seed=52, fact_counts=(12,), num_questions=3))
    port, num_rows = learn_port_of(host, lessons, None, row_width(host.geometry))
    assert num_rows > port.rank == row_width(host.geometry)
    fit = Fit.begin(LocalReader(host), host, port, FitPlan(every_layer(host), window=(0, 0)))
    fit.run(lessons)
    found = fit.solve(1e-7)
    unseen = list(fact_lessons(12, seed=53, fact_counts=(6,), num_questions=3))
    exam = Exam(host, unseen)
    own = [reading.slots for reading in LocalReader(host).read([lesson.text for lesson in unseen])]
    mapped = [replace(slots, rows=port.to_taken(found.apply(slots.rows).float())) for slots in own]
    gap = exam.gap_recovered(exam.sit(mapped.__getitem__), exam.sit(lambda _: None))
    assert gap.value > 0.95


def test_map_is_that_of_least_squares_on_the_rows_of_nine_lessons_in_ten(
    host: ModelHost, lessons: list[Lesson], port: Port
) -> None:
    plan = FitPlan(source_layers=(0,), window=(0, 1))
    fit = Fit.begin(LocalReader(host), host, port, plan)
    fit.run(lessons)
    readings = list(LocalReader(host).read([lesson.text for lesson in lessons]))
    width = row_width(host.geometry) // host.geometry.num_layers
    kept = [reading.slots.rows for place, reading in enumerate(readings) if place % 10 != 9]
    x = torch.cat([stack_window(rows[:, :width], (0, 1)) for rows in kept]).double()
    y = torch.cat([port.to_coordinates(rows) for rows in kept]).double()
    spread = (LAMBDA * (x - x.mean(0)).square().sum(0).mean()).sqrt()
    # Ridge is least squares with a row more for each input, and a bias that centring takes care of.
    rows = torch.cat([x - x.mean(0), spread * torch.eye(x.shape[1], dtype=x.dtype)])
    wanted = torch.linalg.lstsq(
        rows, torch.cat([y - y.mean(0), torch.zeros(x.shape[1], y.shape[1])])
    ).solution
    found = fit.solve(LAMBDA)
    assert torch.allclose(found.weight, wanted, rtol=1e-6, atol=1e-9 * float(wanted.abs().max()))
    assert torch.allclose(found.bias, y.mean(0) - x.mean(0) @ wanted, rtol=1e-6, atol=1e-6)
    assert fit.state.num_rows == sum(reading.slots.num_slots for reading in readings)
    assert fit.state.sums.fit.num_rows == len(x)


def test_every_lambda_that_has_a_solution_is_a_candidate(
    host: ModelHost, lessons: list[Lesson], port: Port
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, FitPlan(every_layer(host), window=(0, 0)))
    fit.run([Lesson("Mira has a dog.", ())] * 16)  # rows that are all alike
    assert [found for found, _ in fit.candidates((0.0, 1e-2, 1.0))] == [1e-2, 1.0]
    with pytest.raises(SingularStatistics):
        fit.solve(0.0)


def test_anchors_send_what_their_labels_say(
    host: ModelHost, lessons: list[Lesson], port: Port, critical: tuple[int, ...]
) -> None:
    plan = FitPlan(every_layer(host), window=(0, 0), critical_layers=critical, num_labelled=NUM_LESSONS)
    fit = Fit.begin(LocalReader(host), host, port, plan)
    fit.run(lessons)
    assert fit.state.anchor is not None
    agree = total = 0
    for lesson, reading in zip(
        lessons, LocalReader(host).read([lesson.text for lesson in lessons]), strict=True
    ):
        read = attention_paid(host, lesson, reading, critical) > PAID_ABOVE
        sent = fit.state.anchor.apply(reading.slots.rows)[:, 0] > 0.5
        agree += int((read == sent).sum())
        total += len(read)
    assert agree > 0.95 * total
    assert 0 < fit.state.num_rows < 0.5 * total


def test_sums_that_are_too_large_are_refused(host: ModelHost, port: Port) -> None:
    with pytest.raises(RequestError, match="smaller window"):
        Fit.begin(LocalReader(host), host, port, FitPlan(every_layer(host), window=(-40, 40)))


# Interrupted


def test_interrupted_fit_ends_in_the_same_bits(
    host: ModelHost, lessons: list[Lesson], port: Port, plan: FitPlan
) -> None:
    whole = Fit.begin(LocalReader(host), host, port, plan)
    whole.run(lessons)
    saved: list[dict[str, torch.Tensor]] = []
    broken = Fit.begin(LocalReader(host), host, port, plan)
    with pytest.raises(Cancelled):
        broken.run(
            lessons,
            saved=lambda state: saved.append(copied(state)),
            cancelled=lambda: bool(saved) and int(saved[-1]["progress"][0]) >= 16,
        )
    num_done = [int(tensors["progress"][0]) for tensors in saved]
    assert num_done == sorted(num_done)
    assert 16 <= num_done[-1] < NUM_LESSONS
    resumed = Fit.begin(LocalReader(host), host, port, plan, FitState.from_tensors(saved[-1]))
    resumed.run(lessons)
    assert_same(resumed.state.to_tensors(), whole.state.to_tensors())


def test_what_was_learned_before_the_first_sum_is_not_learned_again(
    host: ModelHost,
    lessons: list[Lesson],
    port: Port,
    critical: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, saved = plan_of("whole", critical), list[dict[str, torch.Tensor]]()
    whole = Fit.begin(LocalReader(host), host, port, plan)
    whole.run(lessons[:18], saved=lambda state: saved.append(copied(state)))
    assert [tensors["progress"][0] for tensors in saved] == [0, 9, 16, 18]
    assert all("anchor.weight" in tensors for tensors in saved)
    monkeypatch.setattr("kvnet.align.fit.attention_paid", None)
    for tensors in saved[:2]:
        resumed = Fit.begin(LocalReader(host), host, port, plan, FitState.from_tensors(tensors))
        resumed.run(lessons[:18])
        assert_same(resumed.state.to_tensors(), whole.state.to_tensors())


def test_lesson_is_labelled_before_the_next_is_asked_for(
    host: ModelHost,
    lessons: list[Lesson],
    port: Port,
    critical: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acts: list[str] = []

    def paid(*asked: Any) -> torch.Tensor:
        acts.append("label")
        return attention_paid(*asked)

    def spoil(reading: Reading) -> Reading:
        acts.append("read")
        return reading

    monkeypatch.setattr("kvnet.align.fit.attention_paid", paid)
    reader = DamagingReader(LocalReader(host), 1, spoil)
    Fit.begin(reader, host, port, plan_of("anchors", critical)).run(lessons[:16])
    assert acts[:3] == ["label", "read", "label"]


def test_first_lessons_are_held_up_to_a_bound(
    host: ModelHost,
    lessons: list[Lesson],
    port: Port,
    critical: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (one,) = LocalReader(host).read([lessons[0].text])
    monkeypatch.setattr("kvnet.align.reading.MAX_HELD_NBYTES", 4 * one.slots.rows.nbytes)
    fit = Fit.begin(LocalReader(host), host, port, plan_of("anchors", critical))
    read: list[int] = []
    with pytest.raises(RequestError, match="are held; ask fewer questions"):
        fit.run(lessons, progress=lambda done, total: read.append(done))
    assert 1 < read[-1] < 9


def test_state_is_what_it_was_saved_as(
    host: ModelHost, lessons: list[Lesson], port: Port, plan: FitPlan
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, plan)
    assert_same(FitState.from_tensors(copied(fit.state)).to_tensors(), fit.state.to_tensors())
    fit.run(lessons[:16])
    assert (fit.state.anchor is None) == (plan.critical_layers is None)
    assert_same(FitState.from_tensors(copied(fit.state)).to_tensors(), fit.state.to_tensors())


def test_finished_fit_reads_nothing_again(
    host: ModelHost, lessons: list[Lesson], port: Port, critical: tuple[int, ...]
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, plan_of("whole", critical))
    fit.run(lessons[:16])
    before = copied(fit.state)
    fit.run(lessons[:16])
    assert_same(fit.state.to_tensors(), before)


def test_progress_counts_lessons(
    host: ModelHost, lessons: list[Lesson], port: Port, critical: tuple[int, ...]
) -> None:
    told: list[tuple[int, int]] = []
    fit = Fit.begin(LocalReader(host), host, port, plan_of("whole", critical))
    fit.run(lessons[:16], progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 16) for done in range(1, 17)]


@pytest.mark.parametrize("name", ["progress", "fit.mean_x", "anchor.bias", "held_out_every"])
def test_saved_state_without_a_part_is_refused(
    host: ModelHost, lessons: list[Lesson], port: Port, critical: tuple[int, ...], name: str
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, plan_of("whole", critical))
    fit.run(lessons[:16])
    tensors = copied(fit.state)
    del tensors[name]
    with pytest.raises(StateCorrupt, match="start the fit again"):
        FitState.from_tensors(tensors)


# Refused


def with_nan(reading: Reading) -> Reading:
    rows = reading.slots.rows.clone()
    rows[-2] = torch.nan
    return replace(reading, slots=replace(reading.slots, rows=rows))


@pytest.mark.parametrize("damaged", [3, 16])
def test_reading_with_nan_is_refused_and_the_sums_stay(
    host: ModelHost, lessons: list[Lesson], port: Port, plan: FitPlan, damaged: int
) -> None:
    reader = DamagingReader(LocalReader(host), damaged, with_nan)
    fit = Fit.begin(reader, host, port, plan)
    with pytest.raises(NotFinite):
        fit.run(lessons[:17])
    num_done = fit.state.num_done
    assert num_done <= damaged
    assert all(bool(tensor.isfinite().all()) for tensor in fit.state.to_tensors().values())
    whole = Fit.begin(LocalReader(host), host, port, plan)
    if num_done:
        # Nothing of the lesson was added: from here on it goes as if it had come undamaged.
        fit = Fit.begin(LocalReader(host), host, port, plan, FitState.from_tensors(copied(fit.state)))
        fit.run(lessons[:17])
        whole.run(lessons[:17])
    assert_same(fit.state.sums.to_tensors(), whole.state.sums.to_tensors())


def test_too_few_lessons_are_refused_before_any_is_read(
    host: ModelHost, lessons: list[Lesson], port: Port
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, PLANS["plain"])
    with pytest.raises(TooFewSamples, match="15 texts"):
        fit.run(lessons[:15])
    assert fit.state.num_done == 0


@pytest.mark.parametrize("where", [0, 16])
def test_caller_that_leaves_ends_the_fit(
    host: ModelHost, lessons: list[Lesson], port: Port, plan: FitPlan, where: int
) -> None:
    fit = Fit.begin(LocalReader(host), host, port, plan)
    with pytest.raises(Cancelled):
        fit.run(lessons, cancelled=lambda: fit.state.num_done >= where)
    assert fit.state.num_done == where


# Texts


def test_lessons_shorter_than_the_window_are_fitted(host: ModelHost, port: Port) -> None:
    short = [Lesson(f"{letter}.", ()) for letter in "abcdefghijklmnopqr"]
    num_slots = [reading.slots.num_slots for reading in LocalReader(host).read([one.text for one in short])]
    fit = Fit.begin(LocalReader(host), host, port, FitPlan((0,), window=(-4, 4)))
    assert max(num_slots) < 9
    fit.run(short)
    assert fit.state.num_rows == sum(num_slots)
    assert bool(fit.solve(1.0).weight.isfinite().all())


def test_source_reads_the_closing_behind_each_text(
    host: ModelHost, lessons: list[Lesson], port: Port
) -> None:
    reader = LocalReader(host)
    fit = Fit.begin(reader, host, port, replace(PLANS["plain"], closing=" So it is."))
    fit.run(lessons[:16])
    read = reader.read([f"{lesson.text} So it is." for lesson in lessons[:16]])
    assert fit.state.num_rows == sum(reading.slots.num_slots for reading in read)


# Two tokenizers


def test_other_tokenizers_are_paired_by_the_last_character(
    hosts: dict[str, ModelHost], lessons: list[Lesson]
) -> None:
    source, own = (hosts[name] for name in ("ref-a", "ref-c"))
    assert pairing_of(LocalReader(source), own) is Pairing.SPANS
    texts = ["The rivers of Zürich and São Paulo, extraordinarily, run on.", *(one.text for one in lessons)]
    for there, here in zip(LocalReader(source).read(texts), LocalReader(own).read(texts), strict=True):
        source_idx, own_idx = pair_readings(there, here)
        assert len(source_idx) == len(own_idx) > 0.5 * there.slots.num_slots
        assert bool((source_idx.diff() > 0).all())
        assert bool((own_idx.diff() >= 0).all())
        for slot, own_slot in zip(source_idx.tolist(), own_idx.tolist(), strict=True):
            start, stop = here.spans[own_slot]
            assert start < there.spans[slot][1] <= stop


def test_map_between_other_tokenizers_is_fitted_on_the_pairs(
    hosts: dict[str, ModelHost], lessons: list[Lesson]
) -> None:
    source, own = LocalReader(hosts["ref-a"]), LocalReader(hosts["ref-c"])
    texts = [lesson.text for lesson in lessons[:16]]
    pairs = [pair_readings(*pair) for pair in zip(source.read(texts), own.read(texts), strict=True)]
    fit = Fit.begin(source, own.host, Port.identity(Intake(own.geometry)), FitPlan((0,), window=(0, 0)))
    fit.run(lessons[:16])
    assert fit.state.num_rows == sum(len(source_idx) for source_idx, _ in pairs)
    assert fit.solve(LAMBDA).weight.shape[1] == row_width(own.geometry)


def test_one_tokenizer_is_paired_slot_for_slot(hosts: dict[str, ModelHost]) -> None:
    assert pairing_of(LocalReader(hosts["ref-a"]), hosts["ref-b"]) is Pairing.TOKENS


def test_tokenizer_that_tells_no_characters_is_refused(
    hosts: dict[str, ModelHost], lessons: list[Lesson]
) -> None:
    reader = DamagingReader(LocalReader(hosts["ref-a"]), 0, lambda reading: replace(reading, spans=()))
    own = hosts["ref-c"]
    fit = Fit.begin(reader, own, Port.identity(Intake(own.geometry)), FitPlan((0,), window=(0, 0)))
    with pytest.raises(IncompatibleModel, match="fast tokenizer"):
        fit.run(lessons)


# Ports and states


def test_fit_aims_at_the_states_of_its_port(host: ModelHost, lessons: list[Lesson]) -> None:
    """A model that maps to itself linearly does so into its states too: the fit reads them."""
    intake = host.intake((2,))
    fit = Fit.begin(LocalReader(host), host, Port.identity(intake), FitPlan(every_layer(host), window=(0, 0)))
    fit.run(lessons[:16])
    sums = fit.state.sums.fit
    sums.merge(fit.state.sums.held_out)
    readings = list(LocalReader(host, intake).read([lesson.text for lesson in lessons[:16]]))
    mean = torch.cat([reading.taken(intake) for reading in readings]).double().mean(0)
    assert sums.mean_y.shape == (intake.width,)
    assert torch.allclose(sums.mean_y, mean, atol=1e-5)


def test_state_begins_without_anchors(host: ModelHost, port: Port) -> None:
    state = Fit.begin(LocalReader(host), host, port, PLANS["whole"]).state
    assert (state.num_done, state.num_rows, state.anchor) == (0, 0, None)
    one = LinearMap(torch.ones(2, 1, dtype=torch.float64), torch.ones(1, dtype=torch.float64))
    state.anchor = one
    assert_same(FitState.from_tensors(copied(state)).to_tensors(), state.to_tensors())
