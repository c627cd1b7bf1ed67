"""Where a model's answers read a memory: how they react to each slot's row. Knows models; no senders, no maps.

One backward pass for each question gives both what anchors are found by (how much an answer would change if the
slot's row were an average one) and the metric of a port (the Fisher information of rows).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from kvnet.align.corpus import Lesson
from kvnet.align.exam import Asked, asked_of
from kvnet.align.reading import Reading
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, to_layers


@dataclass(frozen=True, slots=True, eq=False)
class Reaction:
    """Of one reading: `gradients` [num_questions, num_slots, row_width] of the answers' log-probabilities by rows."""

    rows: torch.Tensor
    gradients: torch.Tensor

    def importance(self, mean: torch.Tensor) -> torch.Tensor:
        """[num_slots]: the most that any answer would change, to first order, if a row were `mean`; nats."""
        change = (self.gradients * (self.rows - mean)).sum(-1)  # [questions, n]
        return change.abs().amax(0)


def react(host: ModelHost, lesson: Lesson, reading: Reading, *, num_questions: int) -> Reaction:
    """How the answers to the first questions of a lesson depend on the slots of its reading."""
    asked = asked_of(host, lesson, 0)[:num_questions]
    gradients = [_gradient(host, reading.slots, question) for question in asked]
    return Reaction(reading.slots.rows, torch.stack(gradients))


def _gradient(host: ModelHost, slots: Slots, asked: Asked) -> torch.Tensor:
    """[num_slots, row_width]: d log p(answer) / d rows."""
    with torch.enable_grad():
        rows = slots.rows.clone().requires_grad_()
        leaf = Slots(slots.geometry, rows, slots.positions, slots.span)
        layers = to_layers(leaf, num_sinks=host.num_sinks, dtype=torch.float32)
        logits = host.graded_logits(asked.token_ids, host.behind_sinks(layers))
        scores = logits[asked.first_scored :].float().log_softmax(-1)
        answer = torch.tensor(asked.answer_ids, device=scores.device)[:, None]
        (found,) = torch.autograd.grad(scores.gather(1, answer).sum(), [rows])
    return found


def mean_row(readings: Iterable[Reading]) -> torch.Tensor:
    """[row_width]: the average slot."""
    total, count = torch.zeros(()), 0
    for reading in readings:
        total = total + reading.slots.rows.sum(0)
        count += reading.slots.num_slots
    return total / max(1, count)
