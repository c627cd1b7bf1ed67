"""The gate: whether a map may be used, decided from what held-out facts said of it. Knows figures only.

Recall decides, and KL must not contradict it; where a model recalls nothing that could be lost, KL and the
cosine of attention outputs decide. Memories of other texts are the control beside both. Tensor cosine and R2
never decide: both are high for maps that carry nothing (KV Ridge, arXiv 2608.03893; ARCHITECTURE.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from kvnet.alignment import GateResult, Interval, Use, UseResult

LEAST_QUESTIONS: Final = 200
LEAST_GAP: Final = 0.9  # recovered, at the lower end of its 95 % interval
MOST_SHUFFLED: Final = 0.05  # recovered from memories of other texts
LEAST_TAUGHT: Final = 0.3  # recall with the text over recall without: below, recall says nothing
MOST_KL: Final = 0.3  # nats, where KL decides
MOST_KL_SHARE: Final = 0.5  # of the KL behind memories of other texts, everywhere
LEAST_COSINE: Final = 0.95


@dataclass(frozen=True, slots=True)
class Figures:
    """What an exam measured of a map; shares are 0 to 1, `kl` is in nats."""

    num_questions: int
    num_texts: int
    recall_text: float
    recall_none: float
    recall_mapped: float
    gap_recovered: Interval
    gap_shuffled: float
    kl: float
    kl_shuffled: float
    attention_cosine: float


@dataclass(frozen=True, slots=True)
class UseFigures:
    """What the same exam measured of a map in another use."""

    recall_mapped: float
    gap_recovered: Interval
    kl: float


def judge(figures: Figures, uses: Mapping[Use, UseFigures]) -> GateResult:
    """The decision, with the first reason that speaks against the map, and that on each further use.

    A use is held to the same bounds; what the exam itself is worth, its controls, is known from `figures`.
    """
    reason = _objection(figures)
    return GateResult(
        admitted=not reason,
        reason=reason or _merit(figures),
        num_questions=figures.num_questions,
        num_texts=figures.num_texts,
        recall_text=figures.recall_text,
        recall_none=figures.recall_none,
        recall_mapped=figures.recall_mapped,
        gap_recovered=figures.gap_recovered,
        gap_shuffled=figures.gap_shuffled,
        kl=figures.kl,
        kl_shuffled=figures.kl_shuffled,
        attention_cosine=figures.attention_cosine,
        uses=tuple(_judge_use(use, uses[use], figures) for use in Use if use in uses),
    )


def _judge_use(use: Use, found: UseFigures, figures: Figures) -> UseResult:
    recall_mapped, gap_recovered, kl = found.recall_mapped, found.gap_recovered, found.kl
    as_used = replace(figures, recall_mapped=recall_mapped, gap_recovered=gap_recovered, kl=kl)
    return UseResult(use, not _objection(as_used), recall_mapped, gap_recovered, kl)


def _merit(figures: Figures) -> str:
    if _is_taught(figures):
        return "held-out facts are recalled from mapped memories"
    return (
        f"what is said behind mapped memories is what the text calls for: KL {figures.kl:.3f} nats, "
        f"{figures.kl_shuffled:.3f} behind memories of other texts"
    )


def _is_taught(figures: Figures) -> bool:
    return figures.recall_text - figures.recall_none >= LEAST_TAUGHT


def _objection(figures: Figures) -> str:
    # Every bound is written as what must hold, so that a figure that is no number is objected to.
    if figures.num_questions < LEAST_QUESTIONS:
        return f"{figures.num_questions} questions were asked, a verdict needs {LEAST_QUESTIONS}"
    if _is_taught(figures):
        return _recall_objection(figures) or _control_objection(figures)
    taught = figures.recall_text - figures.recall_none
    known = f"the text itself adds {taught:.1%} recall, so KL and attention decide"
    if not figures.kl <= MOST_KL:
        return f"{known}: KL {figures.kl:.3f} nats, at most {MOST_KL}"
    if not figures.attention_cosine >= LEAST_COSINE:
        return f"{known}: attention cosine {figures.attention_cosine:.3f}, at least {LEAST_COSINE}"
    control = _control_objection(figures)
    return f"{known}: {control}" if control else ""


def _control_objection(figures: Figures) -> str:
    most = MOST_KL_SHARE * figures.kl_shuffled
    if not figures.kl <= most:
        return (
            f"KL {figures.kl:.3f} nats, {figures.kl_shuffled:.3f} behind memories of other texts, at most "
            f"{MOST_KL_SHARE:.0%} of that: it hardly matters which text the memory is of"
        )
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
