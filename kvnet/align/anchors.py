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
from kvnet.model.generation import never
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, to_layers

_MATTERS: Final = 0.1  # of the recall gap, that a layer's loss costs
_AS_BAD: Final = 2 / 3
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
    host: ModelHost, lesson: Lesson, reading: Reading, spread: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """[num_questions, num_slots, row_width]: d log p(answer) / d rows, for the answers of a lesson.

    `spread` [row_width] is the rows' standard deviation; a tenth of it is added to them as noise.
    """
    noise = torch.randn(reading.slots.rows.shape, generator=generator) * spread * _NOISE
    rows = reading.slots.rows + noise
    asked = asked_of(host, lesson, 0)
    found = [_gradient(host, reading.slots, rows, question) for question in asked]
    return torch.stack(found) if found else rows.new_zeros(0, *rows.shape)


def _gradient(host: ModelHost, slots: Slots, rows: torch.Tensor, asked: Asked) -> torch.Tensor:
    with torch.enable_grad():
        leaf = rows.clone().requires_grad_()
        moved = Slots(slots.geometry, leaf, slots.positions, slots.span)
        layers = to_layers(moved, num_sinks=host.num_sinks, dtype=torch.float32)
        logits = host.graded_logits(asked.token_ids, host.behind_sinks(layers))
        scores = logits[asked.first_scored :].float().log_softmax(-1)
        answer = torch.tensor(asked.answer_ids, device=scores.device)[:, None]
        (found,) = torch.autograd.grad(scores.gather(1, answer).sum(), [leaf])
    return found
