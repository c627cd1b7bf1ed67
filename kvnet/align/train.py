"""The training of a map's residual, for pairs whose closed form fails the gate. Knows models; no files.

Only the residual learns; the receiver stays as it is, and its own answers, having read the text, are the
teacher. Loss: KL(text || memory) + 0.5 cross-entropy of the answers, means over the answers' tokens.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import torch

from kvnet.align.choose import WIRE_BITS, better_of
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Asked, Exam, ask_behind, asked_of
from kvnet.align.examine import Sitting
from kvnet.align.fit import Progress
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import Reader, Reading, hold
from kvnet.align.recipe import Standing, gated, reaching
from kvnet.align.residual import Residual, Scales
from kvnet.align.train_state import StepReport, TrainState
from kvnet.alignment import Method
from kvnet.errors import Cancelled, RequestError, StateCorrupt, TooFewSamples
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost
from kvnet.model.slots import to_layers

NUM_STEPS: Final = 150
LEARNING_RATE: Final = 1e-3  # 3e-3 does damage
JUDGED_EVERY: Final = 20  # steps
_LEAST_LESSONS: Final = 16
_HELD_OUT_EVERY: Final = 8
_PROBE_LESSONS: Final = 8  # of those that are trained on, that tell the curve's train_kl
_SCALE_LESSONS: Final = 64
_LESSONS_PER_STEP: Final = 4
_QUESTIONS_PER_LESSON: Final = 8
_CROSS_ENTROPY: Final = 0.5
_LONGEST_GRADIENT: Final = 1.0
_CONTEST_LESSONS: Final = 40
_CONTEST_QUESTIONS: Final = 8
_CONTEST_SEED: Final = 16  # of texts that no fit, no training and no gate ever sees


@dataclass(frozen=True, slots=True, eq=False)
class TrainResult:
    """The closed form with the residual of the curve's best point; the state to go on from; the curve.

    The map's gate still has the closed form's figures and admits nothing: examine it.
    """

    alignment: AlignmentMap
    state: TrainState
    curve: tuple[StepReport, ...]


def train_residual(
    lessons: Sequence[Lesson],
    readings: Sequence[Reading],
    host: ModelHost,
    closed_form: AlignmentMap,
    port: Port | None,
    *,
    num_steps: int = NUM_STEPS,
    learning_rate: float = LEARNING_RATE,
    seed: int = 0,
    state: TrainState | None = None,
    report: Callable[[StepReport], None] = lambda point: None,
    progress: Progress = lambda done, total: None,
    saved: Callable[[TrainState], None] = lambda state: None,
    cancelled: Callable[[], bool] = never,
) -> TrainResult:
    """Train a residual on `closed_form`, which ends in `port` (None: in rows), up to step `num_steps`.

    `readings` are the source's, of each lesson's text and the map's closing. Every eighth lesson is held out.
    On those the residual is judged before the first step, every 20 steps and at the end: `report` is told,
    and `saved` is given the state then and before Cancelled is raised.
    Raises TooFewSamples, Cancelled, StateCorrupt for a state of another map, and RequestError for a map that
    was trained already or a training that diverges.
    """
    course = _Course.of(lessons, readings, host, closed_form, port, cancelled)
    state = state or TrainState.begin(course.new_residual(seed))
    course.refuse_other(state)
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate
    try:
        while True:
            is_last = state.num_done >= num_steps
            if is_last or state.num_done % JUDGED_EVERY == 0:
                _judge(course, state, report, cancelled)
                saved(state)
            if is_last:
                break
            refuse_cancelled(cancelled)
            course.step(state, random.Random(f"training {seed} {state.num_done}"))
            progress(state.num_done, num_steps)
    except Cancelled:
        saved(state)
        raise
    return TrainResult(course.trained(state.best), state, tuple(state.curve))


def train_map(
    reader: Reader,
    host: ModelHost,
    closed_form: AlignmentMap,
    port: Port | None,
    critical: tuple[int, ...],
    lessons: Sequence[Lesson],
    *,
    created_at: str,
    standing: Standing | None = None,
    num_steps: int = NUM_STEPS,
    seed: int = 0,
    state: TrainState | None = None,
    report: Callable[[StepReport], None] = lambda point: None,
    progress: Progress = lambda done, total: None,
    saved: Callable[[TrainState], None] = lambda state: None,
    cancelled: Callable[[], bool] = never,
) -> tuple[AlignmentMap, tuple[StepReport, ...]]:
    """`train_residual` from what `reader` reads, then `better_of`, then the gate: (map to use, curve).

    The map is `closed_form` itself where training did not beat it; `standing` is as for `gated`. Raises what
    `train_residual` and `reader` raise, and RequestError for more lessons than may be held.
    """
    closing = closed_form.manifest.closing
    readings = hold(reader.read([lesson.text + closing for lesson in lessons]), cancelled=cancelled)
    result = train_residual(
        lessons,
        readings,
        host,
        closed_form,
        port,
        num_steps=num_steps,
        seed=seed,
        state=state,
        report=report,
        progress=progress,
        saved=saved,
        cancelled=cancelled,
    )
    manifest = replace(result.alignment.manifest, created_at=created_at)
    trained = replace(result.alignment, manifest=manifest)
    unseen = list(fact_lessons(_CONTEST_LESSONS, seed=_CONTEST_SEED, num_questions=_CONTEST_QUESTIONS))
    exam = Exam(host, unseen, cancelled=cancelled)
    sitting = Sitting.of(reader, exam, closing=closing, cancelled=cancelled)
    if better_of(closed_form, trained, sitting, port, cancelled=cancelled) is closed_form:
        return closed_form, result.curve
    trained = reaching(trained, sitting, port)  # what training moved, its bound has to follow
    made = gated(reader, host, trained, port, critical, standing=standing, cancelled=cancelled)
    return made, result.curve


@dataclass(frozen=True, slots=True, eq=False)
class _Course:
    """What is learned from, and who is taught."""

    host: ModelHost
    closed_form: AlignmentMap
    port: Port | None
    lessons: Sequence[Lesson]
    readings: Sequence[Reading]
    asked: tuple[tuple[Asked, ...], ...]  # of each lesson
    taught: tuple[int, ...]  # lessons that are trained on: not held out, with a question
    scales: Scales
    probe: Sitting
    held_out: Sitting

    @classmethod
    def of(
        cls,
        lessons: Sequence[Lesson],
        readings: Sequence[Reading],
        host: ModelHost,
        closed_form: AlignmentMap,
        port: Port | None,
        cancelled: Callable[[], bool],
    ) -> _Course:
        if closed_form.residual is not None:
            raise RequestError(f"{closed_form.manifest.id} was trained already; train the map it came from")
        asked = tuple(tuple(asked_of(host, lesson, idx)) for idx, lesson in enumerate(lessons))
        held_out = range(_HELD_OUT_EVERY - 1, len(lessons), _HELD_OUT_EVERY)
        taught = tuple(idx for idx in range(len(lessons)) if asked[idx] and idx not in held_out)
        if len(taught) < _LEAST_LESSONS:
            raise TooFewSamples(
                f"{len(taught)} texts with a question to train on, at least {_LEAST_LESSONS}; give more"
            )
        scales = _scales_of(closed_form, [readings[idx] for idx in taught[:_SCALE_LESSONS]])
        probe, judged = (
            Sitting(
                Exam(host, [lessons[idx] for idx in part], cancelled=cancelled),
                tuple(readings[idx] for idx in part),
                (),
            )
            for part in (taught[:_PROBE_LESSONS], held_out)
        )
        return cls(host, closed_form, port, lessons, readings, asked, taught, scales, probe, judged)

    def new_residual(self, seed: int) -> Residual:
        return Residual.begin(*self.closed_form.encoder.shape, seed=seed)

    def refuse_other(self, state: TrainState) -> None:
        width, rank = self.closed_form.encoder.shape
        found = (state.residual.inner.shape[0], state.residual.outer.shape[1])
        if found != (width, rank):
            raise StateCorrupt(
                f"a saved training of a map from {found[0]} to {found[1]} numbers, this one is from {width} "
                f"to {rank}; start the training again"
            )

    def trained(self, residual: Residual) -> AlignmentMap:
        """The map with a residual that is in the measures of the scales."""
        manifest = self.closed_form.manifest
        gate = replace(manifest.gate, admitted=False, reason="trained since it was examined")
        manifest = replace(manifest, method=Method.TRAINED, tensors_digest="", gate=gate)
        return replace(self.closed_form, manifest=manifest, residual=self.scales.fold(residual))

    def step(self, state: TrainState, rng: random.Random) -> None:
        """One step of the optimizer, on a few lessons and a few of their questions each."""
        leaves = list(state.residual.to_tensors().values())
        state.optimizer.zero_grad()
        batch = rng.sample(self.taught, _LESSONS_PER_STEP)
        for lesson_idx in batch:
            asked = self.asked[lesson_idx]
            questions = rng.sample(asked, min(_QUESTIONS_PER_LESSON, len(asked)))
            with torch.enable_grad():
                loss = self._loss(self.trained(state.residual), lesson_idx, questions) / len(batch)
                loss.backward(inputs=leaves)  # type: ignore[no-untyped-call]
        if not bool(torch.nn.utils.clip_grad_norm_(leaves, _LONGEST_GRADIENT).isfinite()):
            raise RequestError(
                f"the training has no finite gradient at step {state.num_done + 1}; use a lower learning rate"
            )
        state.optimizer.step()
        state.num_done += 1

    def _loss(self, alignment: AlignmentMap, lesson_idx: int, questions: Sequence[Asked]) -> torch.Tensor:
        """Mean over the questions, in nats."""
        heard = self._heard(lesson_idx, questions)
        slots = alignment.apply(
            self.readings[lesson_idx].slots, self.port, rows_of=partial(self.host.rows_of, graded=True)
        )
        layers = to_layers(slots, num_sinks=self.host.num_sinks, dtype=torch.float32)
        layers = self.host.behind_sinks(layers)
        num_gaps = slots.span - slots.num_slots
        losses = []
        for asked, teacher in zip(questions, heard, strict=True):
            logits = self.host.graded_logits(asked.token_ids, layers, num_gaps=num_gaps)
            said = logits[asked.first_scored :].float().log_softmax(-1)  # [answer length, vocab_size]
            kl = (teacher.exp() * (teacher - said)).sum(-1).mean()
            answer = torch.tensor(asked.answer_ids, device=said.device)[:, None]
            losses.append(kl - _CROSS_ENTROPY * said.gather(1, answer).mean())
        return torch.stack(losses).mean()

    def _heard(self, lesson_idx: int, questions: Sequence[Asked]) -> list[torch.Tensor]:
        """Log-probabilities [answer length, vocab_size] of each answer, after the text itself."""
        cache = self.host.new_cache()
        self.host.prefill(self.host.tokenize_context(self.lessons[lesson_idx].text), cache)
        heard = []
        for asked in questions:
            with ask_behind(cache):
                logits = self.host.all_logits(asked.token_ids, cache)
            heard.append(logits[asked.first_scored :].float().log_softmax(-1))
        return heard


def _judge(
    course: _Course,
    state: TrainState,
    report: Callable[[StepReport], None],
    cancelled: Callable[[], bool],
) -> None:
    """Add a point to the curve, unless it is there, and keep the residual if it is the best."""
    if state.curve and state.curve[-1].step == state.num_done:
        return
    residual = state.residual.changed(lambda tensor: tensor.detach().clone())
    alignment = course.trained(residual)
    probe, held_out = (
        sitting.exam.sit(
            sitting.mapped(alignment, course.port, bits=WIRE_BITS).__getitem__, cancelled=cancelled
        )
        for sitting in (course.probe, course.held_out)
    )
    point = StepReport(state.num_done, probe.mean_kl, held_out.recall, held_out.mean_kl)
    if all(_rank(point) > _rank(earlier) for earlier in state.curve):
        state.best = residual
    state.curve.append(point)
    report(point)


def _rank(point: StepReport) -> tuple[float, float]:
    return point.held_out_recall, -point.held_out_kl


def _scales_of(closed_form: AlignmentMap, readings: Sequence[Reading]) -> Scales:
    features = torch.cat([closed_form.features_of(reading.slots)[0] for reading in readings])
    return Scales.of(features, closed_form.closed_form(features))
