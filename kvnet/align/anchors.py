"""Where a model's answers read a memory, and how they depend on it. Knows models; no senders, no maps.

Which layers matter is found by taking one away, which slots by the attention that answers pay there, and the
metric of a port by one backward pass an answer (the Fisher information of rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from kvnet.align.corpus import Lesson
from kvnet.align.exam import Asked, Exam, ask_behind, asked_of
from kvnet.align.reading import Reading
from kvnet.alignment import Intake
from kvnet.model.generation import never
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, to_layers

_MATTERS: Final = 0.1  # of the recall gap, that a layer's loss costs
_AS_BAD: Final = 2 / 3
PAID_ABOVE: Final = 0.3  # attention from which on a slot counts as read
_MOST_FOLLOWERS: Final = 2
_NEARLY: Final = 0.02  # of the recall gap
_NOISE: Final = 0.1  # standard deviations added to rows, without which certain answers have no gradient


def critical_layers(
    exam: Exam, readings: Sequence[Reading], *, cancelled: Callable[[], bool] = never
) -> tuple[int, ...]:
    """Layers whose memory, replaced by the average slot's, costs the most: two thirds of the worst or more.

    All layers where recall tells nothing, which no model that answers from its context does.
    Raises Cancelled.
    """
    none = exam.sit(lambda _: None, cancelled=cancelled)
    mean = torch.cat([reading.slots.rows for reading in readings]).mean(0)
    num_layers = exam.host.geometry.num_layers
    losses = []
    for layer_idx in range(num_layers):

        def without(lesson_idx: int, layer_idx: int = layer_idx) -> Slots:
            slots = readings[lesson_idx].slots
            rows = slots.rows.clone()
            width = rows.shape[1] // num_layers
            place = slice(layer_idx * width, (layer_idx + 1) * width)
            rows[:, place] = mean[place]
            return Slots(slots.geometry, rows, slots.positions, slots.span)

        losses.append(1 - exam.gap_recovered(exam.sit(without, cancelled=cancelled), none).value)
    worst = max(losses)
    if worst < _MATTERS:
        return tuple(range(num_layers))
    return tuple(layer_idx for layer_idx, loss in enumerate(losses) if loss >= _AS_BAD * worst)


def choose_followers(
    exam: Exam,
    readings: Sequence[Reading],
    layers: Sequence[int],
    *,
    cancelled: Callable[[], bool] = never,
) -> int:
    """How many slots behind each that is read a model needs to have, 0 to 2: the fewest that nearly do.

    A few slots alone draw attention, in layers where nothing is read, which a whole memory spreads; in some
    models a neighbour beside each takes it off. Judged on the model's own slots. Raises Cancelled.
    """
    none = exam.sit(lambda _: None, cancelled=cancelled)
    read = [
        attention_paid(exam.host, lesson, reading, layers) > PAID_ABOVE
        for lesson, reading in zip(exam.lessons, readings, strict=True)
    ]
    gaps = []
    for num_followers in range(_MOST_FOLLOWERS + 1):

        def kept(lesson_idx: int, num_followers: int = num_followers) -> Slots:
            slots, at = readings[lesson_idx].slots, with_followers(read[lesson_idx], num_followers)
            return Slots(slots.geometry, slots.rows[at], slots.positions[at], slots.span)

        gaps.append(exam.gap_recovered(exam.sit(kept, cancelled=cancelled), none).value)
    return next(count for count, gap in enumerate(gaps) if gap >= max(gaps) - _NEARLY)


def with_followers(read: torch.Tensor, num_followers: int) -> torch.Tensor:
    """bool [n] -> bool [n]: those, and so many behind each of them."""
    found = read.clone()
    for offset in range(1, num_followers + 1):
        found[offset:] |= read[: len(read) - offset]
    return found


def attention_paid(host: ModelHost, lesson: Lesson, reading: Reading, layers: Sequence[int]) -> torch.Tensor:
    """[num_slots]: the most attention that any answer's first token pays to each slot in these layers."""
    cache = host.inject_slots(reading.slots)
    paid = torch.zeros(reading.slots.num_slots)
    first, stop = host.num_sinks, host.num_sinks + reading.slots.num_slots
    for asked in asked_of(host, lesson, 0):
        with ask_behind(cache):
            _, watch = host.watched_logits(asked.token_ids, cache)
        for layer_idx in layers:
            weights = watch.weights[layer_idx][asked.first_scored, first:stop]  # [n]
            paid = torch.maximum(paid, weights.cpu())
    return paid


def sensitivity(
    host: ModelHost,
    lesson: Lesson,
    reading: Reading,
    intake: Intake,
    spread: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """[num_questions, num_slots, width]: d log p(answer) / d what is taken, for the answers of a lesson.

    `spread` [width] is the standard deviation of what is taken; a tenth of it is added to it as noise. Of a
    model through which no gradients flow it is one of zeros: every direction then counts by its variance.
    """
    taken = reading.taken(intake)
    if not host.is_graded:
        return taken.new_zeros(1, *taken.shape)
    taken = taken + torch.randn(taken.shape, generator=generator) * spread * _NOISE
    asked = asked_of(host, lesson, 0)
    found = [_gradient(host, reading.slots, intake, taken, question) for question in asked]
    return torch.stack(found) if found else taken.new_zeros(0, *taken.shape)


def _gradient(
    host: ModelHost, slots: Slots, intake: Intake, taken: torch.Tensor, asked: Asked
) -> torch.Tensor:
    with torch.enable_grad():
        leaf = taken.clone().requires_grad_()
        rows = host.rows_of(intake, leaf, graded=True)
        moved = Slots(slots.geometry, rows, slots.positions, slots.span)
        layers = to_layers(moved, num_sinks=host.num_sinks, dtype=torch.float32)
        logits = host.graded_logits(asked.token_ids, host.behind_sinks(layers))
        scores = logits[asked.first_scored :].float().log_softmax(-1)
        answer = torch.tensor(asked.answer_ids, device=scores.device)[:, None]
        (found,) = torch.autograd.grad(scores.gather(1, answer).sum(), [leaf])
    return found
