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
    MOST_SHUFFLED,
    Figures,
    judge,
)
from kvnet.alignment import GateResult, Interval

GOOD = Figures(
    num_questions=400,
    num_facts=100,
    recall_text=0.96,
    recall_none=0.01,
    recall_mapped=0.94,
    gap_recovered=Interval(0.97, 0.95, 0.99),
    gap_shuffled=0.01,
    kl=0.02,
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
)


def test_map_that_recalls_is_admitted() -> None:
    verdict = judge(GOOD)
    assert verdict.admitted
    assert verdict.reason == "held-out facts are recalled from mapped memories"


def test_verdict_repeats_the_figures() -> None:
    verdict = judge(GOOD)
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
    verdict = judge(replace(GOOD, **changes))
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
    assert judge(UNTAUGHT).admitted
    verdict = judge(replace(UNTAUGHT, **changes))
    assert not verdict.admitted
    assert verdict.reason == f"the text itself adds 10.0% recall, so KL and attention decide: {reason}"


@pytest.mark.parametrize("changes", [{"kl": 9.0}, {"attention_cosine": -1.0}])
def test_where_recall_speaks_kl_and_attention_do_not(changes: dict[str, Any]) -> None:
    assert judge(replace(GOOD, **changes)).admitted


def test_too_few_questions_are_objected_to_first() -> None:
    worst = replace(GOOD, num_questions=3, gap_shuffled=1.0, gap_recovered=Interval(0, 0, 0), kl=9.0)
    assert judge(worst).reason.startswith("3 questions")


def test_guessable_questions_are_objected_to_before_the_gap_they_spoil() -> None:
    assert "guessed" in judge(replace(GOOD, gap_shuffled=0.9, gap_recovered=Interval(0, 0, 0))).reason


def test_every_bound_is_inclusive() -> None:
    assert judge(replace(GOOD, num_questions=LEAST_QUESTIONS)).admitted
    assert judge(replace(GOOD, gap_shuffled=MOST_SHUFFLED)).admitted
    assert judge(replace(GOOD, gap_recovered=Interval(0.95, LEAST_GAP, 1.0))).admitted
    assert judge(replace(UNTAUGHT, kl=MOST_KL, attention_cosine=LEAST_COSINE)).admitted
    # At the bound recall decides, and refuses this one.
    taught = replace(UNTAUGHT, recall_none=0.0, recall_text=LEAST_TAUGHT)
    assert "recall gap" in judge(taught).reason


def test_value_of_the_gap_does_not_make_up_for_its_interval() -> None:
    assert not judge(replace(GOOD, gap_recovered=Interval(1.0, LEAST_GAP - 0.01, 1.0))).admitted


@pytest.mark.parametrize(
    "broken",
    [
        replace(GOOD, gap_shuffled=math.nan),
        replace(GOOD, gap_recovered=Interval(math.nan, math.nan, math.nan)),
        replace(UNTAUGHT, kl=math.nan),
        replace(UNTAUGHT, attention_cosine=math.nan),
    ],
)
def test_figure_that_is_no_number_is_never_admitted(broken: Figures) -> None:
    assert not judge(broken).admitted


@given(figures)
def test_verdict_depends_on_the_figures_alone_and_always_has_a_reason(measured: Figures) -> None:
    before = repr(measured)
    verdict = judge(measured)
    assert repr(judge(measured)) == repr(verdict)
    assert repr(measured) == before
    assert isinstance(verdict, GateResult)
    assert verdict.reason
    if verdict.admitted:
        assert measured.num_questions >= LEAST_QUESTIONS
        gap, shuffled = measured.gap_recovered.low, measured.gap_shuffled
        by_recall = gap >= LEAST_GAP and shuffled <= MOST_SHUFFLED
        assert by_recall or (measured.kl <= MOST_KL and measured.attention_cosine >= LEAST_COSINE)
