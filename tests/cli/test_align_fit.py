"""`kvnet align port|fit|train|eval` as people read them: the table, and what reaches the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from kvnetd.actions import align, examine, fit, train
from kvnetd.services import Services

from kvnet.alignment import Interval
from kvnet.api import ArmReport, CurvePoint, Evaluation, Progress, TrainProgress, TrainReport
from kvnet.errors import RequestError
from kvnet.files.alignments import read_alignment
from tests.cli.outcomes import Kvnet, json_of, refused
from tests.files.alignment_files import make_map_file
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
    options += ("--layers", "learned", "--head-local")
    refused(kvnet("align", "fit", *options), "request_invalid", 4)
    refused(kvnet("align", "fit", "--peer", "alice"), "request_invalid", 4)
    assert heard == [
        fit.FitRequest(
            "", "ref-a", "/a/b", 20, no_anchors=True, rows=True, layers="learned", head_local=True
        ),
        fit.FitRequest("alice"),
    ]


CURVE = (CurvePoint(0, 2.0, 0.1, 2.5), CurvePoint(20, 1.0, 0.5, 1.25))


def training(heard: list[train.TrainRequest], *, wins: bool) -> Any:
    """A training that ends at once."""

    async def act(services: Services, request: train.TrainRequest) -> Any:
        heard.append(request)
        for done, point in ((0, None), (0, CURVE[0]), (1, CURVE[0]), (20, CURVE[1])):
            yield TrainProgress(done, 20, point)
        record = services.alignments.put(read_alignment(make_map_file())) if wins else None
        made = align.describe(services, record) if record else None
        yield TrainReport("map_x", made, CURVE, f"{request.plots}/curve.png" if request.plots else "", 1.5)

    return act


def test_training_tells_each_point_of_the_curve_once_and_what_it_came_to(
    kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[train.TrainRequest] = []
    monkeypatch.setattr(train, "train", training(heard, wins=True))
    options = ("--source", "ref-a", "--corpus", "/a/b", "--lessons", "20", "--steps", "20", "--plots", "/p")
    said = kvnet("align", "train", "map_x", *options)
    assert heard == [train.TrainRequest("map_x", "", "ref-a", "/a/b", 20, 20, "/p")]
    assert said.err.splitlines() == [
        "step 0: held-out recall 0.100, KL 2.5000 nats",
        "step 20: held-out recall 0.500, KL 1.2500 nats",
    ]
    assert said.out.startswith("map_")
    assert said.out.endswith("curve in /p/curve.png\n")


def test_training_that_gained_nothing_says_so_and_has_its_curve_in_json(
    kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[train.TrainRequest] = []
    monkeypatch.setattr(train, "train", training(heard, wins=False))
    said = kvnet("align", "train", "map_x", "--peer", "alice")
    assert "did not beat the closed form map_x, which stays; nothing was signed" in said.out
    report = json_of(kvnet("align", "train", "map_x", "--peer", "alice", "--json"))
    assert report["trained"] is None
    assert report["curve"][1] == {"step": 20, "train_kl": 1.0, "held_out_recall": 0.5, "held_out_kl": 1.25}
    assert heard == [train.TrainRequest("map_x", "alice")] * 2


def test_broken_off_training_says_how_to_go_on(kvnet: Kvnet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(services: Services, request: train.TrainRequest) -> Any:
        yield TrainProgress(0, 20, CURVE[0])
        await asyncio.Event().wait()

    def interrupt(step: TrainProgress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", wait)
    monkeypatch.setattr("kvnet.cli.align._curve_teller", lambda: interrupt)
    said = kvnet("align", "train", "map_x", "--source", "ref-a")
    assert (said.status, said.err) == (130, "broken off; the same command goes on from there\n")


def test_who_reads_must_be_named(kvnet: Kvnet) -> None:
    refused(kvnet("align", "fit"), "request_invalid", 4)
    refused(kvnet("align", "fit", "--peer", "nobody"), "unknown_peer", 4)
    refused(kvnet("align", "eval", "map_nothing"), "unknown_alignment", 4)
    refused(kvnet("align", "train", "map_nothing"), "unknown_alignment", 4)
    refused(kvnet("align", "port", "--rank", "5000"), "request_invalid", 4)
