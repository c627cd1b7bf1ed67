"""`kvnet align port|fit|eval` as people read them: the table, and what reaches the daemon."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from kvnetd.actions import examine, fit
from kvnetd.services import Services

from kvnet.alignment import Interval
from kvnet.api import ArmReport, Evaluation, Progress
from kvnet.errors import RequestError
from tests.cli.outcomes import Kvnet, json_of, refused
from tests.kvnetd.control_node import control_node

GAP = Interval(0.98, 0.96, 0.99)
FOUND = Evaluation("map_x", "from", "to", (ArmReport("mapped", 0.5, GAP, 0.125, 320),), ("raw",), 1.5)


@pytest.fixture
def services() -> Iterator[Services]:
    """A node without a model."""
    with control_node() as found:
        yield found


@pytest.fixture
def kvnet(kvnet: Kvnet, services: Services, monkeypatch: pytest.MonkeyPatch) -> Kvnet:
    """`kvnet` on that node."""
    monkeypatch.setenv("KVNET_HOME", str(services.config.home.root))
    return kvnet


def test_table_has_a_line_for_every_arm(kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def evaluate(services: Services, request: examine.EvaluateRequest) -> Any:
        assert request == examine.EvaluateRequest("map_x", "alice", "", 40)
        yield Progress(1, 2)
        yield FOUND

    monkeypatch.setattr(examine, "evaluate", evaluate)
    asked = ("align", "eval", "map_x", "--peer", "alice", "--questions", "40")
    said = kvnet(*asked)
    assert said.out.splitlines()[0] == "map_x: from -> to"
    assert "mapped  0.500   0.980" in said.out
    assert "0.960 to 0.990" in said.out
    assert "raw     n/a" in said.out
    row = json_of(kvnet(*asked, "--json"))["arms"][0]
    assert (row["arm"], row["gap_recovered"]) == ("mapped", {"value": 0.98, "low": 0.96, "high": 0.99})


def test_every_option_of_a_fit_reaches_the_daemon(kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[fit.FitRequest] = []

    async def hear(services: Services, request: fit.FitRequest) -> Any:
        heard.append(request)
        raise RequestError("that is enough")
        yield

    monkeypatch.setattr(fit, "fit", hear)
    options = ("--source", "ref-a", "--corpus", "/a/b", "--lessons", "20", "--no-anchors", "--rows")
    refused(kvnet("align", "fit", *options), "request_invalid", 4)
    refused(kvnet("align", "fit", "--peer", "alice"), "request_invalid", 4)
    assert heard == [
        fit.FitRequest("", "ref-a", "/a/b", 20, no_anchors=True, rows=True),
        fit.FitRequest("alice"),
    ]


def test_who_reads_must_be_named(kvnet: Kvnet) -> None:
    refused(kvnet("align", "fit"), "request_invalid", 4)
    refused(kvnet("align", "fit", "--peer", "nobody"), "unknown_peer", 4)
    refused(kvnet("align", "eval", "map_nothing"), "unknown_alignment", 4)
    refused(kvnet("align", "port", "--rank", "5000"), "request_invalid", 4)
