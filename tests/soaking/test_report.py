"""The figures of a soak's report."""

from __future__ import annotations

import json

import pytest

from scripts.soaking.checker import Message
from scripts.soaking.plan import make_plan
from scripts.soaking.record import Findings
from scripts.soaking.report import growth_per_h, percentile


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([], 0.5) is None


def test_growth_is_a_slope_per_hour_after_warm_up() -> None:
    warming = [(float(t), 100.0 + t) for t in range(300)]
    flat = [(float(t), 400.0 + t / 3600) for t in range(300, 1000)]
    assert growth_per_h(warming + flat) == pytest.approx(1.0)


def test_growth_of_a_short_time_is_not_told() -> None:
    assert growth_per_h([(float(t), float(t)) for t in range(60)]) is None


def test_a_report_counts_what_was_accepted_and_is_json() -> None:
    found = Findings(make_plan(2, 1), seed=1, skipped={"disk_full": "needs root"})
    found.done += found.plan
    found.messages = [Message("1", "mem_a", 100, 8, accepted=True), Message("2", "mem_b", 50, 8)]
    found.verdict.lost, found.verdict.problems = 1, ["1: was accepted and did not arrive"]
    report = json.loads(json.dumps(found.report()))
    assert (report["faults"], report["transfers"], report["bytes_acked"]) == (2, 1, 100)
    assert (report["lost"], report["problems"]) == (1, found.verdict.problems)
    assert report["skipped"] == {"disk_full": "needs root"}
    assert found.num_broken == 1
