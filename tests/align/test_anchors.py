"""Where answers read: the layers they fall without, the slots they attend to, and the gradient of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvnet.align.anchors import attention_paid, critical_layers, sensitivity
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Asked, Exam, asked_of
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.window import RowShape
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
        learned.host, lesson, reading, torch.zeros_like(learned.mean), torch.Generator().manual_seed(0)
    )
    assert found.shape == (0, *reading.slots.rows.shape)


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
    found = sensitivity(learned.host, lesson, blurred, torch.zeros_like(learned.mean), generator)
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


def test_noise_is_that_of_the_generator_and_changes_no_reading(learned: Learned) -> None:
    lesson, reading = learned.lessons[0], learned.readings[0]
    before = reading.slots.rows.clone()
    spread = torch.cat([one.slots.rows for one in learned.readings]).std(0)
    found = [
        sensitivity(learned.host, lesson, reading, spread, torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert torch.equal(reading.slots.rows, before)
