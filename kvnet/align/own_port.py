"""A model's port, learned from its own reading of texts. Knows models; no senders, no maps, no sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from kvnet.align.anchors import PAID_ABOVE, attention_paid, sensitivity, with_followers
from kvnet.align.corpus import Lesson
from kvnet.align.port import Port, learn_port
from kvnet.align.reading import LocalReader, hold
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.host import ModelHost


def learn_port_of(
    host: ModelHost,
    lessons: Sequence[Lesson],
    critical_layers: tuple[int, ...] | None,
    rank: int,
    *,
    closing: str = "",
    num_followers: int = 0,
    cancelled: Callable[[], bool] = never,
) -> tuple[Port, int]:
    """A model's port from its own reading of the lessons, and from how many rows.

    With `critical_layers` only slots that answers read count, and `num_followers` behind each. Raises
    TooFewSamples.
    """
    intake = host.intake(critical_layers or ())
    texts = [lesson.text + closing for lesson in lessons]
    readings = hold(LocalReader(host, intake).read(texts), cancelled=cancelled)
    spread = torch.cat([reading.taken(intake) for reading in readings]).std(0)
    generator = torch.Generator().manual_seed(0)
    taken, gradients = [], []
    for lesson, reading in zip(lessons, readings, strict=True):
        refuse_cancelled(cancelled)
        read = torch.ones(reading.slots.num_slots, dtype=torch.bool)
        if critical_layers is not None:
            paid = attention_paid(host, lesson, reading, critical_layers)
            read = with_followers(paid > PAID_ABOVE, num_followers)
        taken.append(reading.taken(intake)[read])
        found = sensitivity(host, lesson, reading, intake, spread, generator)[:, read]  # [questions, n, W]
        gradients.append(found.flatten(0, 1))
    every = torch.cat(taken)
    return learn_port(every, _strongest(torch.cat(gradients)), rank, intake), len(every)


def _strongest(gradients: torch.Tensor) -> torch.Tensor:
    """Rows of [m, W] that are not nothing: most answers ignore most slots."""
    size = gradients.square().sum(1)
    return gradients[size.argsort(descending=True)[: max(1, len(size) // 4)]]
