"""What held-out facts say of a map: all of a good one, none of its controls, and which is best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
import torch

from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting, attention_cosine, best_of, figures_of
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.alignment import Intake, MapManifest, row_width
from kvnet.errors import Cancelled
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.slots import Slots
from tests.files.alignment_files import make_map

NUM_LESSONS = 8
NUM_QUESTIONS = 3


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return list(fact_lessons(NUM_LESSONS, seed=61, fact_counts=(5,), num_questions=NUM_QUESTIONS))


@pytest.fixture(scope="module")
def sitting(host: ModelHost, lessons: list[Lesson]) -> Sitting:
    """A model that is its own source."""
    return Sitting.of(LocalReader(host), Exam(host, lessons))


@pytest.fixture(scope="module")
def identity(host: ModelHost) -> AlignmentMap:
    """The map that changes nothing."""
    width = row_width(host.geometry)
    return AlignmentMap(manifest_of(host), torch.eye(width), torch.zeros(width))


@pytest.fixture(scope="module")
def fine_port(sitting: Sitting) -> Port:
    """Rows as coordinates, in steps that 8 bits reach over and 4 bits do badly."""
    port = Port.identity(Intake(sitting.exam.host.geometry))
    reach = torch.cat([reading.slots.rows for reading in sitting.own]).abs().amax(0).clamp_min(1e-6)
    return replace(port, steps={8: reach / 127, 4: reach / 7})


def manifest_of(host: ModelHost, **changes: Any) -> MapManifest:
    plain = {
        "source": host.fingerprint,
        "receiver": host.fingerprint,
        "source_geometry": host.geometry,
        "receiver_geometry": host.geometry,
        "source_layers": tuple(range(host.geometry.num_layers)),
        "window": (0, 0),
        "closing": "",
    }
    return make_map(**plain | changes)


def blurred(identity: AlignmentMap, amount: float) -> AlignmentMap:
    """The identity with a random matrix on top."""
    width = len(identity.encoder)
    blur = torch.randn(width, width, generator=torch.Generator().manual_seed(0)) / width**0.5
    return replace(identity, encoder=identity.encoder + amount * blur)


def own_slots(sitting: Sitting) -> list[Slots]:
    return [reading.slots for reading in sitting.own]


# Figures


def test_map_that_changes_nothing_is_measured_as_the_text(sitting: Sitting, identity: AlignmentMap) -> None:
    found = figures_of(sitting, identity, None)
    assert found.num_questions == len(sitting.exam.asked) == NUM_LESSONS * NUM_QUESTIONS
    assert found.num_texts == NUM_LESSONS
    assert found.kl_shuffled > 1
    assert found.recall_text == found.recall_mapped == sitting.exam.text.recall > 0.8
    assert found.recall_none < 0.2
    assert found.gap_recovered.value == 1
    assert abs(found.gap_shuffled) < 0.1
    assert found.kl == pytest.approx(0, abs=1e-4)
    assert found.attention_cosine == pytest.approx(1, abs=1e-4)


def test_map_to_nothing_recovers_nothing(sitting: Sitting, identity: AlignmentMap) -> None:
    found = figures_of(sitting, replace(identity, encoder=torch.zeros_like(identity.encoder)), None)
    assert abs(found.gap_recovered.value) < 0.1
    assert found.kl > 1
    assert found.attention_cosine < 0.9


def test_figures_are_of_coordinates_as_on_the_wire(
    sitting: Sitting, identity: AlignmentMap, fine_port: Port
) -> None:
    unquantised, eight, four = (
        figures_of(sitting, identity, fine_port, bits=bits).kl for bits in (None, 8, 4)
    )
    assert unquantised < eight < four
    assert figures_of(sitting, identity, fine_port).kl == eight


def test_caller_that_leaves_ends_the_figures(sitting: Sitting, identity: AlignmentMap) -> None:
    with pytest.raises(Cancelled):
        figures_of(sitting, identity, None, cancelled=lambda: True)


# Controls


def test_shuffled_gives_each_lesson_the_memory_of_the_next(sitting: Sitting) -> None:
    slots = own_slots(sitting)
    found = [sitting.shuffled(slots)(lesson_idx) for lesson_idx in range(NUM_LESSONS)]
    assert all(one is other for one, other in zip(found, slots[1:] + slots[:1], strict=True))


# Attention


def test_attention_behind_own_slots_is_that_of_the_model(sitting: Sitting) -> None:
    assert attention_cosine(sitting, own_slots(sitting)) == pytest.approx(1, abs=1e-5)


def test_attention_behind_other_memories_differs_in_the_layers_that_are_asked_for(sitting: Sitting) -> None:
    slots = own_slots(sitting)
    others = slots[1:] + slots[:1]
    num_layers = sitting.exam.host.geometry.num_layers
    by_layer = [attention_cosine(sitting, others, [layer_idx]) for layer_idx in range(num_layers)]
    every = attention_cosine(sitting, others)
    assert min(by_layer) < every < 0.95
    assert every == pytest.approx(sum(by_layer) / num_layers, abs=1e-4)


def test_attention_behind_gaps_is_compared_at_the_same_positions(sitting: Sitting) -> None:
    """Leaving out every fourth slot moves attention less than closing the gaps up as well."""

    def some(slots: Slots, *, closed_up: bool) -> Slots:
        kept = (torch.arange(slots.num_slots) % 4 != 1).nonzero()[:, 0]
        positions, span = slots.positions[kept], slots.span
        if closed_up:
            positions, span = torch.arange(len(kept)), len(kept)
        return Slots(slots.geometry, slots.rows[kept], positions, span)

    with_gaps, closed = (
        attention_cosine(sitting, [some(slots, closed_up=closed_up) for slots in own_slots(sitting)])
        for closed_up in (False, True)
    )
    assert closed < with_gaps < 1


# Mapped memories


def test_mapped_slots_stand_where_the_sources_stood(sitting: Sitting, identity: AlignmentMap) -> None:
    rows = torch.cat([reading.slots.rows for reading in sitting.source])
    anchor = torch.zeros(rows.shape[1])
    anchor[0] = 1.0
    some = replace(identity, anchor=anchor, anchor_bias=0.5 - rows[:, 0].median())
    for mapped, reading in zip(sitting.mapped(some, None), sitting.source, strict=True):
        at = (reading.slots.rows[:, 0] > rows[:, 0].median()).nonzero()[:, 0]
        assert 0 < len(at) < reading.slots.num_slots
        assert torch.equal(mapped.positions, reading.slots.positions[at])
        assert torch.allclose(mapped.rows, reading.slots.rows[at], atol=1e-5)
        assert mapped.span == reading.slots.span


def test_closing_is_read_behind_each_text_and_not_by_the_text_itself(
    host: ModelHost, lessons: list[Lesson]
) -> None:
    exam = Exam(host, lessons[:2])
    plain, closed = (Sitting.of(LocalReader(host), exam, closing=closing) for closing in ("", " So."))
    for before, after in zip(plain.source, closed.source, strict=True):
        assert after.slots.num_slots > before.slots.num_slots
        assert torch.allclose(after.slots.rows[: before.slots.num_slots], before.slots.rows, atol=1e-4)


# The best of several


def best(sitting: Sitting, maps: Sequence[AlignmentMap]) -> set[int]:
    """Which of the maps is best, in any order of asking."""
    found = (best_of(sitting, order, None)[0] for order in permutations(maps))
    return {next(place for place, one in enumerate(maps) if one is chosen) for chosen in found}


def test_best_recalls_most_and_then_has_the_least_kl(sitting: Sitting, identity: AlignmentMap) -> None:
    slightly, badly = blurred(identity, 0.03), blurred(identity, 3.0)
    recalls = [sitting.exam.sit(sitting.mapped(one, None).__getitem__).recall for one in (identity, slightly)]
    assert recalls[0] == recalls[1]
    assert best(sitting, [slightly, badly]) == {0}
    assert best(sitting, [slightly, identity]) == {1}
    assert best_of(sitting, [badly, slightly, identity], None)[1].recall == recalls[0]


def test_best_is_the_best_of_what_travels(sitting: Sitting, identity: AlignmentMap, fine_port: Port) -> None:
    coarse = replace(fine_port, steps={bits: step * 40 for bits, step in fine_port.steps.items()})
    chosen, marks = best_of(sitting, [identity], coarse)
    assert marks.mean_kl > 0.1
    quantised = sitting.mapped(chosen, coarse, bits=8)
    assert marks.mean_kl == sitting.exam.sit(quantised.__getitem__).mean_kl


def test_more_recall_is_better_than_less_kl(sitting: Sitting, identity: AlignmentMap) -> None:
    """The receiver is made to have said after the text what it says behind a bad memory: KL favours that."""
    badly, exam = blurred(identity, 3.0), Exam(sitting.exam.host, sitting.exam.lessons)
    slots = sitting.mapped(badly, None)
    exam._heard = [
        exam.host.all_logits(asked.token_ids, exam.host.inject_slots(slots[asked.lesson_idx]))[
            asked.first_scored :
        ].log_softmax(-1)
        for asked in exam.asked
    ]
    marks = {one: exam.sit(sitting.mapped(one, None).__getitem__) for one in (identity, badly)}
    assert marks[badly].mean_kl < 1e-4 < marks[identity].mean_kl
    assert best(replace(sitting, exam=exam), [badly, identity]) == {1}
