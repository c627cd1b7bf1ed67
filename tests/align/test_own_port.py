"""kvnet.align.own_port: a port is of the slots that answers read, and of the states that they need."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from kvnet.align.anchors import PAID_ABOVE, attention_paid, critical_layers, with_followers
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.own_port import learn_port_of
from kvnet.align.reading import LocalReader
from kvnet.alignment import Intake
from kvnet.errors import Cancelled, TooFewSamples
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return list(fact_lessons(12, seed=51, fact_counts=(4,), num_questions=2))


@pytest.fixture(scope="module")
def critical(host: ModelHost, lessons: list[Lesson]) -> tuple[int, ...]:
    readings = list(LocalReader(host).read([lesson.text for lesson in lessons[:8]]))
    return critical_layers(Exam(host, lessons[:8]), readings)


def rows_that_answers_read(
    host: ModelHost, lessons: Sequence[Lesson], layers: Sequence[int], num_followers: int = 0
) -> int:
    readings = LocalReader(host).read([lesson.text for lesson in lessons])
    return sum(
        int(with_followers(attention_paid(host, lesson, reading, layers) > PAID_ABOVE, num_followers).sum())
        for lesson, reading in zip(lessons, readings, strict=True)
    )


def test_port_is_learned_from_the_slots_that_answers_read(
    host: ModelHost, lessons: list[Lesson], critical: tuple[int, ...]
) -> None:
    port, num_rows = learn_port_of(host, lessons, critical, 4)
    assert num_rows == rows_that_answers_read(host, lessons, critical)
    assert (port.rank, port.mean.shape) == (4, (port.intake.width,))
    with_behind = learn_port_of(host, lessons, critical, 4, num_followers=1)[1]
    assert with_behind == rows_that_answers_read(host, lessons, critical, 1) > num_rows
    with pytest.raises(TooFewSamples, match="coordinates"):
        learn_port_of(host, lessons, critical, num_rows)


def test_port_takes_states_in_the_layers_that_answers_read(
    host: ModelHost, lessons: list[Lesson], critical: tuple[int, ...]
) -> None:
    port, _ = learn_port_of(host, lessons[:8], None, 8)
    assert port.intake == Intake(host.geometry)
    into_states, _ = learn_port_of(host, lessons, critical, 4)
    assert into_states.intake == host.intake(critical)
    assert into_states.intake.state_layers == critical


def test_port_is_the_same_each_time_it_is_learned(host: ModelHost, lessons: list[Lesson]) -> None:
    one, again = (learn_port_of(host, lessons[:8], None, 8)[0].to_tensors() for _ in range(2))
    assert one.keys() == again.keys()
    assert all(torch.equal(one[name], again[name]) for name in one)


def test_caller_that_leaves_ends_the_learning(host: ModelHost, lessons: list[Lesson]) -> None:
    with pytest.raises(Cancelled):
        learn_port_of(host, lessons, None, 8, cancelled=lambda: True)
