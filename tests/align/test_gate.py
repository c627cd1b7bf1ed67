"""kvnet.align.gate: figures in, a verdict and its first reason out."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.gate import (
    LEAST_COSINE,
    LEAST_GAP,
    LEAST_QUESTIONS,
    LEAST_TAUGHT,
    MOST_KL,
    MOST_KL_SHARE,
    MOST_SHUFFLED,
    Figures,
    UseFigures,
    judge,
)
from kvnet.alignment import GateResult, Interval, Use

GOOD = Figures(
    num_questions=400,
    num_texts=50,
    recall_text=0.96,
    recall_none=0.01,
    recall_mapped=0.94,
    gap_recovered=Interval(0.97, 0.95, 0.99),
    gap_shuffled=0.01,
    kl=0.02,
    kl_shuffled=4.0,
    attention_cosine=0.99,
)
UNTAUGHT = replace(GOOD, recall_text=0.2, recall_none=0.1, gap_recovered=Interval(0.0, -1.0, 1.0))

numbers = st.floats(allow_nan=True, allow_infinity=True)
intervals = st.builds(Interval, numbers, numbers, numbers)
figures = st.builds(
    Figures,
    st.integers(0, 1000),
    st.integers(0, 1000),
    numbers,
    numbers,
    numbers,
    intervals,
    numbers,
    numbers,
    numbers,
    numbers,
)


def verdict_of(measured: Figures) -> GateResult:
    return judge(measured, {})


def test_map_that_recalls_is_admitted() -> None:
    verdict = verdict_of(GOOD)
    assert verdict.admitted
    assert verdict.reason == "held-out facts are recalled from mapped memories"


def test_verdict_repeats_the_figures() -> None:
    verdict = verdict_of(GOOD)
    assert {f.name: getattr(verdict, f.name) for f in fields(Figures)} == {
        f.name: getattr(GOOD, f.name) for f in fields(Figures)
    }


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_questions": 199}, "199 questions were asked, a verdict needs 200"),
        (
            {"gap_shuffled": 0.12},
            "memories of other texts recover 12.0% of the gap, at most 5%: the questions can be guessed",
        ),
        (
            {"gap_recovered": Interval(0.92, 0.88, 0.96)},
            "92.0% of the recall gap is recovered (95 % interval 88.0% to 96.0%), at least 90% are needed",
        ),
    ],
)
def test_recall_is_objected_to_in_a_sentence(changes: dict[str, Any], reason: str) -> None:
    verdict = verdict_of(replace(GOOD, **changes))
    assert not verdict.admitted
    assert verdict.reason == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kl": 0.4}, "KL 0.400 nats, at most 0.3"),
        ({"attention_cosine": 0.9}, "attention cosine 0.900, at least 0.95"),
    ],
)
def test_where_the_text_teaches_nothing_kl_and_attention_decide(changes: dict[str, Any], reason: str) -> None:
    assert verdict_of(UNTAUGHT).admitted
    verdict = verdict_of(replace(UNTAUGHT, **changes))
    assert not verdict.admitted
    assert verdict.reason == f"the text itself adds 10.0% recall, so KL and attention decide: {reason}"


def test_admission_by_kl_says_so_and_names_its_control() -> None:
    assert verdict_of(UNTAUGHT).reason == (
        "what is said behind mapped memories is what the text calls for: KL 0.020 nats, "
        "4.000 behind memories of other texts"
    )


@pytest.mark.parametrize("measured", [GOOD, UNTAUGHT])
def test_kl_that_memories_of_other_texts_have_too_is_objected_to(measured: Figures) -> None:
    """A model that says what it says whatever was read is near its text, and nothing was carried."""
    verdict = verdict_of(replace(measured, kl=0.2, kl_shuffled=0.21))
    assert not verdict.admitted
    assert verdict.reason.endswith(
        "KL 0.200 nats, 0.210 behind memories of other texts, at most 50% of that: "
        "it hardly matters which text the memory is of"
    )


def test_where_recall_speaks_attention_does_not() -> None:
    """A map that sends anchors alone is read otherwise than the text, and still answers as the text does."""
    assert verdict_of(replace(GOOD, attention_cosine=-1.0)).admitted


def test_too_few_questions_are_objected_to_first() -> None:
    worst = replace(GOOD, num_questions=3, gap_shuffled=1.0, gap_recovered=Interval(0, 0, 0), kl=9.0)
    assert verdict_of(worst).reason.startswith("3 questions")


def test_guessable_questions_are_objected_to_before_the_gap_they_spoil() -> None:
    assert "guessed" in verdict_of(replace(GOOD, gap_shuffled=0.9, gap_recovered=Interval(0, 0, 0))).reason


def test_every_bound_is_inclusive() -> None:
    assert verdict_of(replace(GOOD, num_questions=LEAST_QUESTIONS)).admitted
    assert verdict_of(replace(GOOD, gap_shuffled=MOST_SHUFFLED)).admitted
    assert verdict_of(replace(GOOD, gap_recovered=Interval(0.95, LEAST_GAP, 1.0))).admitted
    assert verdict_of(replace(UNTAUGHT, kl=MOST_KL, attention_cosine=LEAST_COSINE)).admitted
    assert verdict_of(replace(GOOD, kl=MOST_KL_SHARE * GOOD.kl_shuffled)).admitted
    # At the bound recall decides, and refuses this one.
    taught = replace(UNTAUGHT, recall_none=0.0, recall_text=LEAST_TAUGHT)
    assert "recall gap" in verdict_of(taught).reason


def test_value_of_the_gap_does_not_make_up_for_its_interval() -> None:
    assert not verdict_of(replace(GOOD, gap_recovered=Interval(1.0, LEAST_GAP - 0.01, 1.0))).admitted


@pytest.mark.parametrize(
    "broken",
    [
        replace(GOOD, gap_shuffled=math.nan),
        replace(GOOD, gap_recovered=Interval(math.nan, math.nan, math.nan)),
        replace(UNTAUGHT, kl=math.nan),
        replace(UNTAUGHT, attention_cosine=math.nan),
        replace(UNTAUGHT, kl_shuffled=math.nan),
        replace(GOOD, kl=math.nan),
    ],
)
def test_figure_that_is_no_number_is_never_admitted(broken: Figures) -> None:
    assert not verdict_of(broken).admitted


@given(figures)
def test_verdict_depends_on_the_figures_alone_and_always_has_a_reason(measured: Figures) -> None:
    before = repr(measured)
    verdict = verdict_of(measured)
    assert repr(verdict_of(measured)) == repr(verdict)
    assert repr(measured) == before
    assert isinstance(verdict, GateResult)
    assert verdict.reason
    if verdict.admitted:
        assert measured.num_questions >= LEAST_QUESTIONS
        gap, shuffled = measured.gap_recovered.low, measured.gap_shuffled
        assert measured.kl <= MOST_KL_SHARE * measured.kl_shuffled
        by_recall = gap >= LEAST_GAP and shuffled <= MOST_SHUFFLED
        assert by_recall or (measured.kl <= MOST_KL and measured.attention_cosine >= LEAST_COSINE)


# Further uses


def test_each_use_is_held_to_the_same_bounds_and_spoils_no_other() -> None:
    good = UseFigures(0.93, Interval(0.96, 0.94, 0.98), 0.03)
    bad = UseFigures(0.6, Interval(0.6, 0.5, 0.7), 0.03)
    verdict = judge(GOOD, {Use.UNCLOSED: bad, Use.PORT4: good})
    assert verdict.admitted
    assert [(one.use, one.admitted) for one in verdict.uses] == [(Use.PORT4, True), (Use.UNCLOSED, False)]
    assert verdict.uses[1].gap_recovered == bad.gap_recovered
    assert not judge(GOOD, {Use.PORT4: replace(good, kl=3.9)}).uses[0].admitted


def test_use_of_a_map_whose_questions_can_be_guessed_is_not_admitted() -> None:
    good = UseFigures(0.93, Interval(0.96, 0.94, 0.98), 0.03)
    assert not judge(replace(GOOD, gap_shuffled=0.9), {Use.PORT4: good}).uses[0].admitted
