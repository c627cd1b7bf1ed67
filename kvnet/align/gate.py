"""The gate: whether a map may be used, decided from what held-out facts said of it. Knows figures only.

Recall decides first, with memories of other texts as the control beside it. KL and the cosine of attention
outputs decide where a model recalls nothing that could be lost, and never tensor cosine or R2: both are high
for maps that carry nothing (notes of KV Ridge, arXiv 2608.03893, and our own in ARCHITECTURE.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from kvnet.alignment import GateResult, Interval

LEAST_QUESTIONS: Final = 200
LEAST_GAP: Final = 0.9  # recovered, at the lower end of its 95 % interval
MOST_SHUFFLED: Final = 0.05  # recovered from memories of other texts
LEAST_TAUGHT: Final = 0.3  # recall with the text over recall without: below, recall says nothing
MOST_KL: Final = 0.3  # nats
LEAST_COSINE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Figures:
    """What an exam measured of a map; shares are 0 to 1, `kl` is in nats."""

    num_questions: int
    num_facts: int
    recall_text: float
    recall_none: float
    recall_mapped: float
    gap_recovered: Interval
    gap_shuffled: float
    kl: float
    attention_cosine: float


def judge(figures: Figures) -> GateResult:
    """The decision, with the first reason that speaks against the map."""
    reason = _objection(figures)
    return GateResult(
        admitted=not reason,
        reason=reason or "held-out facts are recalled from mapped memories",
        num_questions=figures.num_questions,
        num_facts=figures.num_facts,
        recall_text=figures.recall_text,
        recall_none=figures.recall_none,
        recall_mapped=figures.recall_mapped,
        gap_recovered=figures.gap_recovered,
        gap_shuffled=figures.gap_shuffled,
        kl=figures.kl,
        attention_cosine=figures.attention_cosine,
    )


def _objection(figures: Figures) -> str:
    # Every bound is written as what must hold, so that a figure that is no number is objected to.
    if figures.num_questions < LEAST_QUESTIONS:
        return f"{figures.num_questions} questions were asked, a verdict needs {LEAST_QUESTIONS}"
    taught = figures.recall_text - figures.recall_none
    if taught >= LEAST_TAUGHT:
        return _recall_objection(figures)
    known = f"the text itself adds {taught:.1%} recall, so KL and attention decide"
    if not figures.kl <= MOST_KL:
        return f"{known}: KL {figures.kl:.3f} nats, at most {MOST_KL}"
    if not figures.attention_cosine >= LEAST_COSINE:
        return f"{known}: attention cosine {figures.attention_cosine:.3f}, at least {LEAST_COSINE}"
    return ""


def _recall_objection(figures: Figures) -> str:
    gap = figures.gap_recovered
    if not figures.gap_shuffled <= MOST_SHUFFLED:
        return (
            f"memories of other texts recover {figures.gap_shuffled:.1%} of the gap, "
            f"at most {MOST_SHUFFLED:.0%}: "
            "the questions can be guessed"
        )
    if not gap.low >= LEAST_GAP:
        return (
            f"{gap.value:.1%} of the recall gap is recovered "
            f"(95 % interval {gap.low:.1%} to {gap.high:.1%}), "
            f"at least {LEAST_GAP:.0%} are needed"
        )
    return ""
