"""A residual is trained on a closed form that fails: a model's own rows, blurred."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvnet.align.artefacts import sign_alignment
from kvnet.align.choose import better_of
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.train import TrainResult, train_map, train_residual
from kvnet.align.train_state import StepReport, TrainState, plot_curve
from kvnet.alignment import Intake, MapManifest, Method, row_width
from kvnet.errors import Cancelled, RequestError, StateCorrupt, TooFewSamples
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from tests.builders import SENDER
from tests.files.alignment_files import make_map

LEARNING_RATE = 1e-3
NUM_STEPS = 20


@dataclass(frozen=True, slots=True)
class Course:
    """A receiver, what is taught, and the closed form to improve."""

    host: ModelHost
    lessons: list[Lesson]
    readings: list[Reading]
    closed_form: AlignmentMap

    def train(self, **changes: Any) -> TrainResult:
        """`train_residual` of it all."""
        asked = {"num_steps": 2, "learning_rate": LEARNING_RATE, **changes}
        return train_residual(self.lessons, self.readings, self.host, self.closed_form, None, **asked)


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    host = ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))
    lessons = list(fact_lessons(64, seed=11, fact_counts=(3,), num_questions=3))
    readings = list(LocalReader(host).read([lesson.text for lesson in lessons]))
    return Course(host, lessons, readings, noisy_identity(host, readings))


def noisy_identity(host: ModelHost, readings: list[Reading]) -> AlignmentMap:
    """From a model to itself, but each row is blurred by a random matrix, so that recall is nearly lost."""
    width = row_width(host.geometry)
    generator = torch.Generator().manual_seed(0)
    blur = torch.randn(width, width, generator=generator) / width**0.5
    manifest = manifest_of(host)
    mean = torch.cat([reading.slots.rows for reading in readings]).mean(0)
    encoder = torch.eye(width) + blur
    return AlignmentMap(manifest, encoder, -mean @ blur)


def manifest_of(host: ModelHost) -> MapManifest:
    return make_map(
        source=host.fingerprint,
        source_geometry=host.geometry,
        receiver=host.fingerprint,
        receiver_geometry=host.geometry,
        source_layers=tuple(range(host.geometry.num_layers)),
        window=(0, 0),
        closing="",
    )


def sitting_of(course: Course) -> Sitting:
    """Facts that no training has seen."""
    lessons = list(fact_lessons(16, seed=12, fact_counts=(3,), num_questions=2))
    return Sitting.of(LocalReader(course.host), Exam(course.host, lessons))


@pytest.fixture(scope="module")
def trained(course: Course) -> TrainResult:
    return course.train(num_steps=NUM_STEPS)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


def copied(state: TrainState) -> dict[str, torch.Tensor]:
    """As a file would keep it."""
    return {name: tensor.clone() for name, tensor in state.to_tensors().items()}


# What is learned


def test_training_lowers_kl_on_lessons_it_never_saw(trained: TrainResult) -> None:
    first, last = trained.curve[0], trained.curve[-1]
    assert last.held_out_kl < 0.7 * first.held_out_kl
    assert last.train_kl < first.train_kl


def test_curve_has_a_point_before_the_first_step_and_after_the_last(trained: TrainResult) -> None:
    assert [point.step for point in trained.curve] == [0, NUM_STEPS]


def test_training_begins_at_the_closed_form(course: Course) -> None:
    point = course.train(num_steps=0).curve[0]
    lessons, readings = course.lessons[7::8], course.readings[7::8]
    exam = Exam(course.host, lessons)
    slots = Sitting(exam, tuple(readings), ()).mapped(course.closed_form, None)
    marks = exam.sit(slots.__getitem__)
    assert (point.held_out_recall, point.held_out_kl) == (marks.recall, marks.mean_kl)


def test_trained_map_is_that_of_the_best_point(course: Course, trained: TrainResult) -> None:
    best = max(trained.curve, key=lambda point: (point.held_out_recall, -point.held_out_kl))
    exam = Exam(course.host, course.lessons[7::8])
    slots = Sitting(exam, tuple(course.readings[7::8]), ()).mapped(trained.alignment, None)
    assert exam.sit(slots.__getitem__).mean_kl == best.held_out_kl


def test_trained_map_says_so_and_is_admitted_by_no_gate_yet(trained: TrainResult) -> None:
    manifest = trained.alignment.manifest
    assert (manifest.method, manifest.gate.admitted) == (Method.TRAINED, False)
    signed = sign_alignment(manifest, trained.alignment.to_tensors(), SENDER)
    assert signed.manifest.id != manifest.id  # its digest is that of the new tensors


def test_receiver_stays_as_it_was(course: Course) -> None:
    parameters = list(course.host._model.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    course.train()
    assert all(torch.equal(parameter, old) for parameter, old in zip(parameters, before, strict=True))
    assert all(parameter.grad is None for parameter in parameters)


def test_training_through_a_port_moves_its_coordinates(course: Course) -> None:
    rows = torch.cat([reading.slots.rows for reading in course.readings])
    directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:16]
    steps = {bits: torch.full((16,), 0.05) for bits in (4, 8)}
    port = Port(Intake(course.host.geometry), directions.T, directions, rows.mean(0), steps)
    encoder = course.closed_form.encoder @ directions.T
    closed_form = AlignmentMap(course.closed_form.manifest, encoder, torch.zeros(16))
    result = train_residual(
        course.lessons,
        course.readings,
        course.host,
        closed_form,
        port,
        num_steps=2,
        learning_rate=LEARNING_RATE,
    )
    assert result.curve[-1].train_kl != result.curve[0].train_kl


# Interrupted


def test_cancelled_training_is_gone_on_with_in_the_same_bits(course: Course) -> None:
    saved: list[dict[str, torch.Tensor]] = []
    done: list[int] = []
    with pytest.raises(Cancelled):
        course.train(
            num_steps=4,
            progress=lambda num_done, total: done.append(num_done),
            saved=lambda state: saved.append(copied(state)),
            cancelled=lambda: len(done) >= 2,
        )
    assert (done, int(saved[-1]["num_done"])) == ([1, 2], 2)
    resumed = course.train(num_steps=4, state=TrainState.from_tensors(saved[-1]))
    whole = course.train(num_steps=4)
    assert_same(resumed.state.to_tensors(), whole.state.to_tensors())
    assert resumed.curve == whole.curve


def test_state_is_what_it_was_saved_as(trained: TrainResult) -> None:
    tensors = trained.state.to_tensors()
    assert_same(TrainState.from_tensors(tensors).to_tensors(), tensors)


def without(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def with_nan(tensors: dict[str, torch.Tensor]) -> None:
    tensors["residual_in"][0, 0] = torch.nan


def with_other_shape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["best.residual_out"] = torch.zeros(3)


@pytest.mark.parametrize(
    "damage",
    [
        without("num_done"),
        without("best.residual_in"),
        without("adam.exp_avg.residual_out"),
        with_nan,
        with_other_shape,
    ],
)
def test_damaged_state_is_refused(
    trained: TrainResult, damage: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    tensors = copied(trained.state)
    damage(tensors)
    with pytest.raises(StateCorrupt, match="start the training again"):
        TrainState.from_tensors(tensors)


def test_state_of_another_map_is_refused(course: Course, trained: TrainResult) -> None:
    other = replace(course.closed_form, encoder=course.closed_form.encoder[:, :8], bias=torch.zeros(8))
    with pytest.raises(StateCorrupt, match="this one is from"):
        replace(course, closed_form=other).train(state=trained.state)


# Refused


def test_map_that_was_trained_is_not_trained_again(course: Course, trained: TrainResult) -> None:
    with pytest.raises(RequestError, match="trained already"):
        replace(course, closed_form=trained.alignment).train()


def test_too_few_lessons_are_refused(course: Course) -> None:
    few = replace(course, lessons=course.lessons[:12], readings=course.readings[:12])
    with pytest.raises(TooFewSamples, match="at least"):
        few.train()


def test_training_that_diverges_is_stopped(course: Course) -> None:
    with pytest.raises(RequestError, match="lower learning rate"):
        course.train(num_steps=9, learning_rate=1e30)


# What ships


def test_closed_form_that_recalls_is_kept(course: Course) -> None:
    width = row_width(course.host.geometry)
    good = AlignmentMap(course.closed_form.manifest, torch.eye(width), torch.zeros(width))
    assert better_of(good, course.closed_form, sitting_of(course), None) is good


def test_trained_map_replaces_a_closed_form_that_recalls_nothing(course: Course) -> None:
    width = row_width(course.host.geometry)
    good = AlignmentMap(course.closed_form.manifest, torch.eye(width), torch.zeros(width))
    assert better_of(course.closed_form, good, sitting_of(course), None) is good


@pytest.mark.slow
def test_closed_form_comes_back_where_training_gains_nothing(course: Course) -> None:
    found, curve = made_from(course, num_steps=0)
    assert found is course.closed_form
    assert len(curve) == 1


@pytest.mark.slow
def test_trained_map_that_wins_is_judged_by_the_gate(course: Course) -> None:
    found, _ = made_from(course, num_steps=NUM_STEPS)
    assert (found.manifest.method, found.manifest.created_at) == (Method.TRAINED, "2028-01-01T00:00:00Z")
    assert found.manifest.gate.num_questions >= 200
    assert found.manifest.gate != course.closed_form.manifest.gate


def made_from(course: Course, *, num_steps: int) -> tuple[AlignmentMap, tuple[StepReport, ...]]:
    return train_map(
        LocalReader(course.host),
        course.host,
        course.closed_form,
        None,
        (0,),
        course.lessons,
        created_at="2028-01-01T00:00:00Z",
        num_steps=num_steps,
    )


# Shown


def test_plot_of_a_curve_is_a_png(tmp_path: Path) -> None:
    curve = [StepReport(0, 2.0, 0.1, 2.1), StepReport(20, 1.0, 0.5, 1.3)]
    plot_curve(curve, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
