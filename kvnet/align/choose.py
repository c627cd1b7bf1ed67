"""Which of two maps of one pair ships: the closed form, or that with a residual. Knows no training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from kvnet.align.exam import Marks
from kvnet.align.examine import Sitting
from kvnet.align.gate import LEAST_TAUGHT
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.model.generation import never

LEAST_GAIN: Final = 0.01  # of recall, that a trained map must have over its closed form
MOST_KL_LEFT: Final = 0.9  # of the closed form's, where recall says nothing
WIRE_BITS: Final = 8  # of a port's coordinates as they will travel


def better_of(
    closed_form: AlignmentMap,
    trained: AlignmentMap,
    sitting: Sitting,
    port: Port | None,
    *,
    cancelled: Callable[[], bool] = never,
) -> AlignmentMap:
    """The trained map if it `beats` the closed form, both quantised as on the wire.

    The sitting's lessons must be others than those that either was made from or chosen on.
    """
    exam = sitting.exam
    of_trained, of_closed_form = (
        exam.sit(sitting.mapped(alignment, port, bits=WIRE_BITS).__getitem__, cancelled=cancelled)
        for alignment in (trained, closed_form)
    )
    taught = exam.text.recall - exam.sit(lambda _: None, cancelled=cancelled).recall
    return trained if beats(of_trained, of_closed_form, taught=taught) else closed_form


def beats(trained: Marks, closed_form: Marks, *, taught: float) -> bool:
    """Whether a trained map ships: it recalls a point more, and two standard errors of the paired gain.

    So a good closed form stays: a residual costs such pairs 0.3 to 1.5 points (KV Ridge, arXiv 2608.03893).
    Where the text adds less recall (`taught`) than the gate can judge, it must leave at most 0.9 of the KL.
    """
    if taught < LEAST_TAUGHT:
        return trained.mean_kl <= MOST_KL_LEFT * closed_form.mean_kl
    gains = trained.right - closed_form.right
    standard_error = float(gains.std(correction=0)) / len(gains) ** 0.5
    return bool(gains.mean() >= max(LEAST_GAIN, 2 * standard_error))
