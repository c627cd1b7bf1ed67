"""A new map's verdict beside that of the map in use, both on the same readings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kvnet.align.standing import beside
from kvnet.alignment import GateResult
from tests.files.alignment_files import GATE

NAME = "map_in_use"
GOOD = replace(GATE, admitted=True, recall_text=0.95, recall_none=0.05, recall_mapped=0.9)
UNTAUGHT = replace(GOOD, recall_text=0.1, recall_none=0.05, recall_mapped=0.0, kl=0.2)


def verdict(new: dict[str, Any], standing: dict[str, Any], plain: GateResult = GOOD) -> GateResult:
    return beside(replace(plain, **new), replace(plain, **standing), NAME)


@pytest.mark.parametrize("recall", [0.9, 0.891, 0.95])
def test_equal_or_better_map_keeps_its_verdict(recall: float) -> None:
    assert verdict({"recall_mapped": recall}, {}) == replace(GOOD, recall_mapped=recall)


def test_map_that_recalls_a_point_less_is_not_admitted_and_keeps_its_figures() -> None:
    found = verdict({"recall_mapped": 0.88}, {})
    assert found == replace(GOOD, admitted=False, recall_mapped=0.88, reason=found.reason)
    assert found.reason == (
        "map_in_use, which is in use for this pair, recalls 90.0% from the same readings, this one 88.0%"
    )


def test_map_is_not_admitted_where_the_one_in_use_fails_on_the_same_readings() -> None:
    found = verdict({"recall_mapped": 0.95}, {"admitted": False, "reason": "it recalls nothing"})
    assert not found.admitted
    assert "map_in_use, which is in use for this pair, fails on the same readings" in found.reason
    assert "(it recalls nothing)" in found.reason


def test_kl_decides_where_recall_tells_nothing() -> None:
    assert verdict({"kl": 0.2}, {}, UNTAUGHT).admitted
    found = verdict({"kl": 0.21}, {}, UNTAUGHT)
    assert (found.admitted, "KL of 0.200 nats" in found.reason) == (False, True)


@pytest.mark.parametrize("name", ["recall_mapped", "kl"])
def test_figure_that_is_no_number_displaces_nothing(name: str) -> None:
    plain = GOOD if name == "recall_mapped" else UNTAUGHT
    assert not verdict({name: float("nan")}, {}, plain).admitted


def test_reason_of_a_map_that_failed_by_itself_stays() -> None:
    failed = replace(GOOD, admitted=False, reason="it recalls nothing")
    assert beside(failed, replace(GOOD, admitted=False), NAME) is failed
