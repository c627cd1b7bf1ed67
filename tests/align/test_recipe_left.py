"""A map in the making: whose readings may displace a map in use, and that a caller may leave at any time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from kvnet.align import recipe
from kvnet.align.corpus import Lesson
from kvnet.align.fit_state import FitState
from kvnet.align.map import AlignmentMap
from kvnet.align.reading import LocalReader, Reader, Reading
from kvnet.align.recipe import MapOptions, Standing, find_critical_layers, fit_lessons, gated, make_map
from kvnet.errors import Cancelled
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.types import Fingerprint, Geometry

NUM_LESSONS = 18
PLAIN = MapOptions(
    anchors=False,
    window=(0, 0),
    far_window=None,
    far_layers=(),
    closing="",
    relative_lambdas=(1e-7,),
)
FEWER = {"_PROBE_LESSONS": 6, "_TUNE_LESSONS": 3, "_GATE_LESSONS": 2}
FOR_A_VERDICT = 25  # texts of eight questions: a verdict needs 200
UNIT = 2 * 8 + 2  # a text read by both models, and its questions, each asked once or twice


@dataclass(frozen=True, slots=True)
class Bench:
    """A model that is its own source, and what its answers need."""

    host: ModelHost
    critical: tuple[int, ...]
    lessons: list[Lesson]

    def make(self, reader: Reader | None = None, options: MapOptions = PLAIN, **more: Any) -> AlignmentMap:
        """A map to the model's own rows."""
        return make_map(
            reader or LocalReader(self.host),
            self.host,
            self.lessons,
            created_at="2028-01-01T00:00:00Z",
            port=None,
            port_id="",
            critical=self.critical,
            options=options,
            **more,
        )


@dataclass(frozen=True, slots=True)
class Liar:
    """A reader by another model than it names: its rows are turned around, and say as much."""

    reader: LocalReader

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
        for reading in self.reader.read(texts):
            yield replace(reading, slots=replace(reading.slots, rows=-reading.slots.rows.flip(1)))


class Counter:
    """How many texts and questions models have read, and when the caller leaves."""

    def __init__(self, patch: pytest.MonkeyPatch, leaves_at: float) -> None:
        self.num_read = 0
        self._leaves_at = leaves_at
        for name in ("prefill", "all_logits", "watched_logits"):
            patch.setattr(ModelHost, name, self._counting(getattr(ModelHost, name)))

    def cancelled(self) -> bool:
        return self.num_read >= self._leaves_at

    def _counting(self, act: Any) -> Any:
        def counted(*positional: Any, **named: Any) -> Any:
            self.num_read += 1
            return act(*positional, **named)

        return counted


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
    return Bench(host, find_critical_layers(host), fit_lessons(NUM_LESSONS))


@pytest.fixture(scope="module")
def good(bench: Bench) -> AlignmentMap:
    """The map in use."""
    with reading(_GATE_LESSONS=FOR_A_VERDICT):
        return bench.make()


# A peer's readings


def test_map_of_a_peer_that_lies_about_its_model_does_not_displace_a_good_one(
    bench: Bench, good: AlignmentMap
) -> None:
    liar = Liar(LocalReader(bench.host))
    with reading(_GATE_LESSONS=FOR_A_VERDICT):
        alone, beside = (
            bench.make(liar, standing=standing).manifest.gate for standing in (None, Standing(good, None))
        )
    assert alone.admitted
    assert not beside.admitted
    assert f"{good.manifest.id}, which is in use for this pair, fails on the same readings" in beside.reason


@pytest.mark.parametrize("closing", ["", " So."])
def test_map_as_good_as_the_one_in_use_is_admitted_beside_it(
    bench: Bench, good: AlignmentMap, closing: str
) -> None:
    known = replace(good, manifest=replace(good.manifest, closing=closing))
    with reading(_GATE_LESSONS=FOR_A_VERDICT):
        found = gated(
            LocalReader(bench.host), bench.host, good, None, bench.critical, standing=Standing(known, None)
        )
    assert found.manifest.gate.admitted, found.manifest.gate.reason


# Left


def left_everywhere(act: Callable[[Callable[[], bool]], object]) -> None:
    """Whenever the caller leaves, `act(cancelled)` ends within a text and what is asked of it."""
    with pytest.MonkeyPatch.context() as patch:
        whole = Counter(patch, float("inf"))
        act(whole.cancelled)
    for leaves_at in range(0, whole.num_read - UNIT, whole.num_read // 8):
        with pytest.MonkeyPatch.context() as patch:
            counter = Counter(patch, leaves_at)
            with pytest.raises(Cancelled):
                act(counter.cancelled)
        assert counter.num_read <= leaves_at + UNIT, leaves_at


def test_caller_that_leaves_ends_the_search_for_critical_layers(bench: Bench) -> None:
    left_everywhere(lambda cancelled: find_critical_layers(bench.host, cancelled=cancelled))


def test_caller_that_leaves_ends_the_tuning_and_the_gate(bench: Bench) -> None:
    options = replace(PLAIN, closing=" So.", relative_lambdas=(1e-7, 1e-5))
    states: list[FitState] = []
    bench.make(options=options, saved=states.append)  # from here on all sums are there
    left_everywhere(lambda cancelled: bench.make(options=options, state=states[-1], cancelled=cancelled))


def test_caller_that_leaves_ends_a_fit_before_its_first_sum(bench: Bench) -> None:
    options = replace(PLAIN, anchors=True)
    read: list[int] = []
    with pytest.raises(Cancelled):
        bench.make(
            options=options,
            progress=lambda done, total: read.append(done),
            cancelled=lambda: len(read) > 3,
        )
    assert read == [0, 1, 2, 3]


def test_progress_counts_every_text_up_to_the_verdict(bench: Bench) -> None:
    told: list[tuple[int, int]] = []
    bench.make(progress=lambda done, total: told.append((done, total)))
    total = NUM_LESSONS + recipe._TUNE_LESSONS + recipe._GATE_LESSONS
    assert told == [(done, total) for done in range(total + 1)]
