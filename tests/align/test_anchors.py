"""Where answers read: the layers they fall without, the slots they attend to, and the gradient of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.anchors import (
    PAID_ABOVE,
    attention_paid,
    choose_followers,
    critical_layers,
    sensitivity,
    with_followers,
)
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Asked, Exam, asked_of
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.window import RowShape
from kvnet.alignment import Intake
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.model.slots import Slots

NEAR = 3  # slots between a value and where a model binds it


class Learned:
    """A model, what it read, and where it reads answers."""

    def __init__(self, host: ModelHost, lessons: Sequence[Lesson]) -> None:
        self.host = host
        self.lessons = lessons
        self.exam = Exam(host, lessons)
        self.readings = list(LocalReader(host).read([lesson.text for lesson in lessons]))
        self.layers = critical_layers(self.exam, self.readings)

    @property
    def mean(self) -> torch.Tensor:
        return torch.cat([reading.slots.rows for reading in self.readings]).mean(0)

    def gap_without(self, layers: Sequence[int]) -> float:
        """Of the recall gap, what is left where these layers hold the average slot."""
        geometry = self.host.geometry
        shape = RowShape(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim)
        columns = shape.columns()[0, list(layers)].flatten()

        def spoiled(lesson_idx: int) -> Slots:
            slots = self.readings[lesson_idx].slots
            rows = slots.rows.clone()
            rows[:, columns] = self.mean[columns]
            return replace(slots, rows=rows)

        none = self.exam.sit(lambda _: None)
        return self.exam.gap_recovered(self.exam.sit(spoiled), none).value


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module", params=REFERENCE_MODELS)
def learned(request: pytest.FixtureRequest, cache_dir: Path) -> Learned:
    host = ModelHost.load(ModelSpec(request.param), cache_dir)
    return Learned(host, list(fact_lessons(12, seed=41, fact_counts=(6,), num_questions=3)))


# Layers


def test_recall_falls_without_the_critical_layers(learned: Learned) -> None:
    assert 0 < len(learned.layers) < learned.host.geometry.num_layers
    assert learned.layers == tuple(sorted(set(learned.layers)))
    assert learned.gap_without(learned.layers) < 0.5


def test_recall_falls_less_without_any_other_layer(learned: Learned) -> None:
    num_layers = learned.host.geometry.num_layers
    losses = [1 - learned.gap_without([layer_idx]) for layer_idx in range(num_layers)]
    kept = [loss for layer_idx, loss in enumerate(losses) if layer_idx not in learned.layers]
    assert max(kept) < min(losses[layer_idx] for layer_idx in learned.layers)


def test_every_layer_counts_where_recall_tells_nothing(learned: Learned) -> None:
    asked = [
        replace(lesson, questions=(replace(lesson.questions[0], expected="quicksilver and tin."),))
        for lesson in learned.lessons[:2]
    ]
    exam = Exam(learned.host, asked)
    assert critical_layers(exam, learned.readings[:2]) == tuple(range(learned.host.geometry.num_layers))


# Slots


def slots_of_value(reading: Reading, lesson: Lesson, value: str) -> list[int]:
    """The slots that cover a value, wherever the text has it."""
    starts = [at for at in range(len(lesson.text)) if lesson.text.startswith(value, at)]
    return [
        slot
        for slot, (start, stop) in enumerate(reading.spans)
        if any(start < at + len(value) and at < stop for at in starts)
    ]


def test_attention_is_highest_near_the_value_that_is_asked_for(learned: Learned) -> None:
    distances = []
    for lesson, reading in zip(learned.lessons, learned.readings, strict=True):
        for question in lesson.questions:
            alone = replace(lesson, questions=(question,))
            highest = int(attention_paid(learned.host, alone, reading, learned.layers).argmax())
            value = slots_of_value(reading, lesson, question.expected.removesuffix("."))
            distances.append(min(abs(highest - slot) for slot in value))
    assert sum(distance <= NEAR for distance in distances) > 0.8 * len(distances)


def test_attention_of_a_lesson_is_the_most_that_any_question_pays(learned: Learned) -> None:
    lesson, reading = learned.lessons[0], learned.readings[0]
    paid = attention_paid(learned.host, lesson, reading, learned.layers)
    alone = [
        attention_paid(learned.host, replace(lesson, questions=(question,)), reading, [layer_idx])
        for question in lesson.questions
        for layer_idx in learned.layers
    ]
    assert paid.shape == (reading.slots.num_slots,)
    assert torch.allclose(paid, torch.stack(alone).amax(0))
    assert float(paid.min()) >= 0
    assert float(paid.max()) <= 1


def test_lesson_without_questions_reads_nothing(learned: Learned) -> None:
    lesson, reading = replace(learned.lessons[0], questions=()), learned.readings[0]
    assert not attention_paid(learned.host, lesson, reading, learned.layers).any()
    found = sensitivity(
        learned.host,
        lesson,
        reading,
        Intake(learned.host.geometry),
        torch.zeros_like(learned.mean),
        torch.Generator().manual_seed(0),
    )
    assert found.shape == (0, *reading.slots.rows.shape)


# Followers


@given(read=st.lists(st.booleans(), max_size=12), num_followers=st.integers(0, 3))
def test_followers_are_the_slots_behind_each_that_is_read(read: list[bool], num_followers: int) -> None:
    before = torch.tensor(read, dtype=torch.bool)
    found = with_followers(before, num_followers)
    assert found.dtype == torch.bool
    assert found.tolist() == [any(read[max(0, slot - num_followers) : slot + 1]) for slot in range(len(read))]
    assert before.tolist() == read


def test_model_that_answers_from_what_is_read_alone_needs_no_followers(cache_dir: Path) -> None:
    learned = Learned(
        ModelHost.load(ModelSpec("ref-a"), cache_dir),
        list(fact_lessons(12, seed=41, fact_counts=(6,), num_questions=3)),
    )
    assert choose_followers(learned.exam, learned.readings, learned.layers) == 0


def test_followers_are_the_fewest_that_recall_nearly_as_well_as_any(learned: Learned) -> None:
    """And what is counted is the recall behind those slots alone."""
    read = [
        attention_paid(learned.host, lesson, reading, learned.layers) > PAID_ABOVE
        for lesson, reading in zip(learned.lessons, learned.readings, strict=True)
    ]
    none = learned.exam.sit(lambda _: None)
    gaps = []
    for num_followers in range(3):

        def kept(lesson_idx: int, num_followers: int = num_followers) -> Slots:
            slots, sent = learned.readings[lesson_idx].slots, with_followers(read[lesson_idx], num_followers)
            return replace(slots, rows=slots.rows[sent], positions=slots.positions[sent])

        gaps.append(learned.exam.gap_recovered(learned.exam.sit(kept), none).value)
    found = choose_followers(learned.exam, learned.readings, learned.layers)
    assert gaps[found] >= max(gaps) - 0.02
    assert all(gap < max(gaps) - 0.02 for gap in gaps[:found])


# Gradients


def score(host: ModelHost, slots: Slots, asked: Asked) -> float:
    """log p(answer) behind slots."""
    logits = host.all_logits(asked.token_ids, host.inject_slots(slots))[asked.first_scored :]
    return float(logits.double().log_softmax(-1).gather(1, torch.tensor(asked.answer_ids)[:, None]).sum())


def test_sensitivity_is_the_slope_of_the_answers_log_probability(learned: Learned) -> None:
    generator = torch.Generator().manual_seed(1)
    reading, lesson = learned.readings[0], learned.lessons[0]
    blur = torch.randn(reading.slots.rows.shape, generator=generator) * reading.slots.rows.std(0) * 0.3
    slots = replace(reading.slots, rows=reading.slots.rows + blur)  # where no answer is certain
    blurred = Reading(slots, reading.spans)
    intake = Intake(learned.host.geometry)
    found = sensitivity(learned.host, lesson, blurred, intake, torch.zeros_like(learned.mean), generator)
    questions = asked_of(learned.host, lesson, 0)
    assert found.shape == (len(questions), *slots.rows.shape)
    for asked, gradient in zip(questions, found, strict=True):
        steepest = gradient.abs().flatten().argsort(descending=True)[:3].tolist()
        for place in (*steepest, gradient.numel() // 2):
            at, step = divmod(place, gradient.shape[1]), 1e-2
            moved = []
            for sign in (1, -1):
                rows = slots.rows.clone()
                rows[at] += sign * step
                moved.append(score(learned.host, replace(slots, rows=rows), asked))
            slope = (moved[0] - moved[1]) / (2 * step)
            assert float(gradient[at]) == pytest.approx(slope, rel=0.02, abs=2e-3)


def test_sensitivity_flows_to_states(learned: Learned) -> None:
    """Of a state too it is the slope of the answers' log-probability."""
    host, lesson, generator = learned.host, learned.lessons[0], torch.Generator().manual_seed(1)
    intake = host.intake(learned.layers)
    assert intake.state_layers == tuple(layer_idx for layer_idx in learned.layers if layer_idx > 0) != ()
    (reading,) = LocalReader(host, intake).read([lesson.text])
    taken = reading.taken(intake)
    blur = torch.randn(taken.shape, generator=generator) * taken.std(0) * 0.3
    blurred = taken + blur  # where no answer is certain
    parts = dict(enumerate(torch.split(blurred, list(intake.widths), 1)))
    states = {layer_idx: parts[layer_idx] for layer_idx in intake.state_layers}
    rows = host.rows_of(intake, blurred)
    moved_reading = replace(reading, slots=replace(reading.slots, rows=rows), states=states)
    found = sensitivity(host, lesson, moved_reading, intake, torch.zeros(intake.width), generator)
    questions = asked_of(host, lesson, 0)
    assert found.shape == (len(questions), *taken.shape)
    layer_idx = intake.state_layers[-1]
    first = sum(intake.widths[:layer_idx])
    of_state = slice(first, first + intake.hidden_size)
    for asked, gradient in zip(questions, found, strict=True):
        direction = torch.zeros_like(taken)
        direction[:, of_state] = gradient[:, of_state]
        size = float(direction.norm())
        direction *= 1e-2 / size
        scores = [
            score(host, replace(reading.slots, rows=host.rows_of(intake, blurred + sign * direction)), asked)
            for sign in (1, -1)
        ]
        assert size > 0
        assert (scores[0] - scores[1]) / 2e-2 == pytest.approx(size, rel=0.02)


def test_noise_is_that_of_the_generator_and_changes_no_reading(learned: Learned) -> None:
    lesson, reading = learned.lessons[0], learned.readings[0]
    before = reading.slots.rows.clone()
    spread, intake = (
        torch.cat([one.slots.rows for one in learned.readings]).std(0),
        Intake(learned.host.geometry),
    )
    found = [
        sensitivity(learned.host, lesson, reading, intake, spread, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(reading.slots.rows, before)
