"""align train: a map that carries next to nothing is trained, kept if it won, left and taken up again."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from kvnetd.actions import align
from kvnetd.actions import train as action
from kvnetd.actions.train import TrainRequest
from kvnetd.services import Services

from kvnet.align import choose, recipe, train
from kvnet.align.artefacts import sign_alignment
from kvnet.align.residual import Residual
from kvnet.alignment import Method
from kvnet.api import CurvePoint, TrainProgress, TrainReport
from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    MissingExtra,
    RequestError,
    TooFewSamples,
    UnknownAlignment,
    UnknownPeer,
)
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.host import ModelHost
from tests.builders import RECEIVER
from tests.kvnetd.aligned import keep, loaded, map_of, port_of
from tests.kvnetd.hosting import hosting, load_host
from tests.kvnetd.nodes import events, services_of

QUICK: dict[Any, dict[str, Any]] = {
    recipe: {"_PROBE_LESSONS": 2, "_GATE_LESSONS": 3, "_GATE_QUESTIONS": 2},
    train: {
        "JUDGED_EVERY": 2,
        "_PROBE_LESSONS": 1,
        "_LESSONS_PER_STEP": 2,
        "_QUESTIONS_PER_LESSON": 2,
        "_CONTEST_LESSONS": 3,
        "_CONTEST_QUESTIONS": 2,
    },
}
LESSONS = 20


@pytest.fixture(scope="module")
def b(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return load_host("ref-b", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def port(b: ModelHost) -> VerifiedAlignment:
    return port_of(b)


@pytest.fixture(scope="module")
def closed_form(
    b: ModelHost, port: VerifiedAlignment, tmp_path_factory: pytest.TempPathFactory
) -> VerifiedAlignment:
    return map_of(load_host("ref-a", tmp_path_factory.mktemp("cache")), b, port, admitted=False)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """Fewer texts and questions at every step."""
    with pytest.MonkeyPatch.context() as patch:
        for module, changes in QUICK.items():
            for name, value in changes.items():
                patch.setattr(module, name, value)
        yield


@pytest.fixture
async def bob(
    tmp_path: Path, b: ModelHost, port: VerifiedAlignment, closed_form: VerifiedAlignment
) -> AsyncIterator[Services]:
    """He hosts ref-b and has a poor map to it."""
    async with services_of(tmp_path / "bob", RECEIVER, name="bob") as plain:
        services = hosting(plain, b)
        keep(services, port, closed_form)
        yield services


def request_of(closed_form: VerifiedAlignment, **changes: Any) -> TrainRequest:
    asked = {"source": "ref-a", "lessons": LESSONS, "steps": 2, **changes}
    return TrainRequest(closed_form.manifest.id, **asked)


async def trained(services: Services, request: TrainRequest) -> tuple[list[TrainProgress], TrainReport]:
    """What a training told, and what it came to."""
    async with aclosing(action.train(services, request)) as steps:
        *told, report = [step async for step in steps]
    assert isinstance(report, TrainReport)
    return [step for step in told if isinstance(step, TrainProgress)], report


def is_png(path: str) -> bool:
    return Path(path).read_bytes().startswith(b"\x89PNG")


async def test_map_that_wins_is_signed_and_kept_beside_its_closed_form(
    bob: Services, closed_form: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(choose, "LEAST_TAUGHT", 2.0)  # KL decides, and any less of it wins
    monkeypatch.setattr(choose, "MOST_KL_LEFT", 1.0)
    before = len(bob.alignments.all())
    told, report = await trained(bob, request_of(closed_form, steps=6, plots=str(tmp_path / "new" / "plots")))
    assert report.trained is not None
    assert (report.trained.method, report.trained.signed_by) == ("trained", RECEIVER.node_id)
    assert report.trained == align.show(bob, report.trained.id)
    assert len(bob.alignments.all()) == before + 1
    assert report.closed_form == closed_form.manifest.id
    assert [point.step for point in report.curve] == [0, 2, 4, 6]
    assert (told[-1].done, told[-1].total, told[-1].point) == (6, 6, report.curve[-1])
    assert Path(report.plot).parent == tmp_path / "new" / "plots"
    assert is_png(report.plot)
    last = events(bob, "alignment")[-1]
    assert report.trained.gate is not None
    assert {
        name: last[name] for name in ("event", "source", "receiver", "map", "lessons", "count", "admitted")
    } == {
        "event": "alignment.completed",
        "source": "ref-a",
        "receiver": "ref-b",
        "map": report.trained.id,
        "lessons": LESSONS,
        "count": 6,
        "admitted": report.trained.gate.admitted,
    }


async def test_training_that_gains_nothing_signs_nothing(
    bob: Services, closed_form: VerifiedAlignment
) -> None:
    before = bob.alignments.all()
    _, report = await trained(bob, request_of(closed_form, steps=1))
    assert (report.trained, report.plot) == (None, "")
    assert [point.step for point in report.curve] == [0, 1]
    assert bob.alignments.all() == before
    last = events(bob, "alignment")[-1]
    assert (last["event"], last["map"], last["count"]) == ("alignment.completed", closed_form.manifest.id, 1)
    assert "admitted" not in last


async def test_training_that_is_left_goes_on_where_it_was(
    bob: Services, closed_form: VerifiedAlignment
) -> None:
    request = request_of(closed_form, steps=5)
    async with aclosing(action.train(bob, request)) as steps:
        async for step in steps:
            if isinstance(step, TrainProgress) and step.done >= 3:
                break
    await bob.runner.run(lambda: None)  # behind the training, which ends within a step
    (left,) = (bob.config.home.root / "trainings").iterdir()
    assert events(bob, "alignment")[-1]["error"] == "cancelled"
    told, resumed = await trained(bob, request)
    assert told[0].done > 3
    assert isinstance(told[0].point, CurvePoint)  # of the earlier call, where this one has judged nothing yet
    assert not left.exists()
    _, whole = await trained(bob, request)
    assert resumed.curve == whole.curve


async def test_state_of_a_training_that_diverged_is_not_gone_on_with(
    bob: Services, closed_form: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(action, "train_map", _diverging(action.train_map))
    with pytest.raises(RequestError, match="no finite gradient"):
        await trained(bob, request_of(closed_form, steps=9))
    assert list((bob.config.home.root / "trainings").glob("*")) == []


def _diverging(train_map: Any) -> Any:
    """The same, whose first steps go astray."""

    def act(*positional: Any, saved: Any, **named: Any) -> Any:
        def spoilt(state: Any) -> None:
            saved(state)
            with torch.no_grad():
                state.residual.inner.fill_(torch.inf)

        return train_map(*positional, saved=spoilt, **named)

    return act


async def test_missing_matplotlib_is_told_before_anything_is_read(
    bob: Services, closed_form: VerifiedAlignment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install matplotlib"):
        await trained(bob, request_of(closed_form, source="no/such", plots=str(tmp_path / "plots")))


async def test_picture_that_cannot_be_written_costs_only_the_picture(
    bob: Services, closed_form: VerifiedAlignment, tmp_path: Path
) -> None:
    (tmp_path / f"training_{closed_form.manifest.id[:16]}.png").mkdir()
    _, report = await trained(bob, request_of(closed_form, steps=1, plots=str(tmp_path)))
    assert (report.plot, len(report.curve)) == ("", 2)


BAD_REQUESTS: dict[str, tuple[dict[str, Any], type[KvnetError], str]] = {
    "nobody reads": ({"source": ""}, RequestError, "name who reads"),
    "two read": ({"peer": "alice"}, RequestError, "name who reads"),
    "unknown peer": ({"source": "", "peer": "carol"}, UnknownPeer, "carol"),
    "another source": ({"source": "ref-c"}, IncompatibleModel, r"maps memories of ref-a .*, not of ref-c"),
    "too many steps": ({"steps": 100_001}, RequestError, "100001 steps"),
    "too many lessons": ({"lessons": 10_001}, RequestError, "10001 lessons"),
    "too few lessons": ({"lessons": 15}, TooFewSamples, "15 texts"),
    "too few to hold some out": ({"lessons": 17}, TooFewSamples, "15 texts with a question"),
    "no corpus": ({"corpus": "/no/such"}, RequestError, "cannot be read"),
    "plots nowhere": ({"plots": "such"}, RequestError, "absolute path"),
    "plots in a file": ({"plots": "/dev/null/such"}, RequestError, "no such folder"),
}


@pytest.mark.parametrize(("changes", "wanted", "why"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_request_that_cannot_be_is_refused_in_a_sentence(
    bob: Services, closed_form: VerifiedAlignment, changes: dict[str, Any], wanted: type[KvnetError], why: str
) -> None:
    before = bob.alignments.all()
    with pytest.raises(wanted, match=why):
        await trained(bob, request_of(closed_form, **changes))
    assert bob.alignments.all() == before
    assert events(bob, "alignment")[-1]["event"] == "alignment.failed"


async def test_only_a_closed_form_to_this_model_is_trained(
    bob: Services, port: VerifiedAlignment, closed_form: VerifiedAlignment
) -> None:
    with pytest.raises(RequestError, match="is a port; name a map"):
        await trained(bob, TrainRequest(port.manifest.id, source="ref-a"))
    with pytest.raises(UnknownAlignment):
        await trained(bob, TrainRequest("map_unknown", source="ref-a"))
    plain, _ = loaded(closed_form, port)
    residual = Residual.begin(*plain.encoder.shape, seed=0)
    done = replace(
        plain, manifest=replace(plain.manifest, method=Method.TRAINED, tensors_digest=""), residual=residual
    )
    verified = sign_alignment(done.manifest, done.to_tensors(), RECEIVER)
    keep(bob, verified)
    with pytest.raises(RequestError, match="was trained already"):
        await trained(bob, TrainRequest(verified.manifest.id, source="ref-a"))
