"""Runs: every protocol closes its cells with every control, failures are rows, and a killed run goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvnet.align.arms import Arm
from kvnet.errors import MalformedRun, RecipeInvalid
from kvnet.experiments.folder import RunFolder, find_runs
from kvnet.experiments.job import Job
from kvnet.experiments.recipe import Recipe, shipped_names
from kvnet.experiments.record import Closed, Event, Failure, Finish
from kvnet.model.reference.words import CATEGORIES
from kvnet.protocols.cells import CellJob, measure_cell
from kvnet.protocols.pool import run_cells
from kvnet.protocols.protocol import CONTROLS, CellLog, Protocol, Setting
from kvnet.protocols.registry import PROTOCOLS, find_protocol
from kvnet.protocols.shapes import observe_shape, token_nbytes
from kvnet.protocols.structure import SEED_PROMPTS
from tests.protocols.conftest import Run, means

DEADLINE_S = 240.0


def test_every_protocol_has_a_recipe_that_asks_its_question_and_no_recipe_is_without() -> None:
    assert set(shipped_names()) == set(PROTOCOLS)
    for name, protocol in PROTOCOLS.items():
        recipe = Recipe.load(name)
        assert (recipe.protocol, recipe.version, recipe.question) == (
            name,
            protocol.version,
            protocol.question,
        )


def test_protocol_that_lacks_a_control_says_why() -> None:
    for protocol in PROTOCOLS.values():
        assert {*protocol.controls, *protocol.without} == {arm.value for arm in CONTROLS}
        assert all(reason for reason in protocol.without.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_quick_recipe_closes_its_cell_with_every_control(name: str, run_recipe: Run) -> None:
    status, folder = run_recipe(name)
    assert status == 0
    assert len(folder.done_cells()) == folder.manifest.total_cells == 1
    arms = means(folder)
    assert set(PROTOCOLS[name].controls) < set(arms)
    metrics = set(folder.manifest.metrics)
    assert all(set(values) <= metrics for values in arms.values())
    if "right" in arms.get("text", {}):
        assert arms["text"]["right"] > 0.8
        assert arms["text"]["kl"] == 0
        assert arms["own"]["kl"] < 1e-4
        assert arms["none"]["right"] < 0.2


def test_cell_without_a_control_does_not_close() -> None:
    protocol = find_protocol("same-model", 1)
    for missing in CONTROLS:
        log = CellLog(protocol, Setting("c", {}, 0))
        for arm in CONTROLS:
            if arm is not missing:
                log.values(arm, {"right": 1})
        with pytest.raises(MalformedRun, match=f"the control {missing} is missing"):
            log.close(0.0)
        log.values(missing, {"right": 1})
        assert isinstance(log.close(0.0), Closed)


def test_arm_of_few_teacher_forced_tokens_does_not_close(cache_dir: Path) -> None:
    parameters = {"model": "ref-a", "other": "auto", "task": "facts", "lessons": 2, "questions": 1}
    outcome = measure_cell(CellJob("same-model", 1, Setting("c", parameters, 0), cache_dir))
    assert isinstance(outcome.end, Failure)
    assert "at least 32 are needed" in outcome.end.reason
    assert not outcome.events


def test_bug_in_a_protocol_is_a_failure_of_its_cell(
    cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setitem(PROTOCOLS, "broken", Protocol("broken", 1, "?", broken))
    outcome = measure_cell(CellJob("broken", 1, Setting("c", {}, 0), cache_dir))
    assert outcome.end == Failure("c", "ZeroDivisionError: no")
    assert "Traceback" in capfd.readouterr().err


def test_structure_gives_the_figures_of_the_seed_and_their_corrections(run_recipe: Run) -> None:
    _, folder = run_recipe("structure")
    found = folder.summary()
    assert found is not None
    tinyllama = found.values["tinyllama"]
    expected = {"layers": 22, "kv_heads": 4, "head_dim": 64, "bytes_per_token": 22_528}
    assert {name: tinyllama[name] for name in expected} == expected
    assert round(26 * 22_528 / 1e6, 2) == 0.59
    wanted = {"llama-3-8b": 131_072, "llama-3-70b": 327_680, "mistral-large": 360_448}
    assert {name: found.values[name]["bytes_per_token"] for name in wanted} == wanted
    fit = found.values["fit"]
    assert (fit["bytes_per_token"], fit["intercept_nbytes"], fit["max_residual_nbytes"]) == (2048, 0, 0)


def test_model_code_at_the_geometry_of_tinyllama_keeps_what_the_seed_measured() -> None:
    geometry, limit = observe_shape("tinyllama")
    sizes = {name: round(count * token_nbytes(geometry) / 1e6, 2) for name, count in SEED_PROMPTS.items()}
    assert sizes == {"consciousness": 0.59, "identity": 0.65, "ai_communication": 0.61}
    assert limit == 2048  # so the seed's 8,192 tokens do not fit


@pytest.mark.slow
def test_drift_along_a_reply_claims_no_right_answers(run_recipe: Run) -> None:
    status, folder = run_recipe("drift", sweep={"task": ["length"]})
    assert status == 0
    arms = means(folder)
    assert not any("right" in values for values in arms.values())
    assert arms["text"]["top1"] == 1
    assert arms["none"]["kl"] > arms["recoded"]["kl"] > 0


def test_failing_cell_is_a_row_with_its_reason_and_the_others_go_on(run_recipe: Run) -> None:
    sweep = {"task": ["facts", "nowhere.jsonl"], "lessons": [4]}
    status, folder = run_recipe("same-model", sweep=sweep)
    assert status == 1
    bodies = list(folder.events())
    failures = [body for body in bodies if isinstance(body, Failure)]
    assert [failure.parameters["task"] for failure in failures] == ["nowhere.jsonl"]
    assert failures[0].reason.startswith("task nowhere.jsonl: cannot be read")
    assert len(folder.done_cells()) == 1
    assert bodies[-1] == Finish("failed", 1)


def test_failed_cell_that_is_mended_is_measured_by_the_resumed_run(run_recipe: Run, tmp_path: Path) -> None:
    task = tmp_path / "own.jsonl"
    status, folder = run_recipe("same-model", sweep={"task": [str(task)], "lessons": [12]})
    assert (status, folder.done_cells()) == (1, frozenset())
    pets = CATEGORIES["animal"][:12]
    prompts = ("Ada's pet is", "What is Ada's pet?")
    lines = [
        {"context": f"Ada's pet is {p}.", "question": q, "answer": f"{p}."} for p in pets for q in prompts
    ]
    task.write_text("\n".join(map(json.dumps, lines)))
    status, again = run_recipe("", resume=str(folder.path))
    assert (status, again.path, len(again.done_cells())) == (0, folder.path, 1)


def test_recipe_of_another_version_is_refused() -> None:
    with pytest.raises(RecipeInvalid, match="this kvnet measures version 1"):
        find_protocol("codec", 2)
    with pytest.raises(RecipeInvalid, match="no protocol 'nothing'"):
        find_protocol("nothing", 1)


def test_cells_are_named_by_the_weights_of_their_models(run_recipe: Run) -> None:
    _, first = run_recipe("same-model")
    _, again = run_recipe("same-model")
    assert first.done_cells() == again.done_cells()
    _, other = run_recipe("same-model", sweep={"model": ["ref-c"]})
    assert not other.done_cells() & first.done_cells()
    assert {model.name for model in first.manifest.models} == {"ref-a"}
    assert first.manifest.models[0].fingerprint.startswith("sha256:")


def start(job: Job, home: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-m", "kvnet.protocols.run_main"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "KVNET_HOME": str(home)},
    )
    assert process.stdin is not None
    process.stdin.write(job.to_json().encode())
    process.stdin.close()
    return process


@pytest.mark.slow
def test_run_that_was_killed_goes_on_with_the_cells_that_are_left(tmp_path: Path) -> None:
    job = Job("same-model", sweep={"lessons": [4, 5, 6, 7]}, runs_dir=str(tmp_path / "runs"), quick=True)
    process = start(job, tmp_path / "home")
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())  # one cell is on disk
    os.kill(process.pid, signal.SIGKILL)
    process.wait(DEADLINE_S)
    process.stdout.close()
    (path,) = find_runs(tmp_path / "runs")
    with (path / "events.jsonl").open("ab") as file:
        file.write(b'{"v": 1, "ts": "2026')  # as a write that was cut leaves it
    done = RunFolder.open(path).done_cells()
    assert first["cell"] in done
    assert len(done) < 4

    resumed = start(Job("", resume=str(path)), tmp_path / "home")
    assert resumed.stdout is not None
    answers = [json.loads(line) for line in resumed.stdout.read().splitlines()]
    assert resumed.wait(DEADLINE_S) == 0
    resumed.stdout.close()
    measured = {answer["cell"] for answer in answers if answer["event"] == "cell"}
    assert not measured & done
    folder = RunFolder.open(path)
    assert folder.done_cells() == measured | done
    assert len(folder.done_cells()) == 4
    lines = [(e.cell, e.arm, e.lesson, e.question) for e in folder.events() if isinstance(e, Event)]
    assert len(lines) == len(set(lines))


def test_process_tells_an_unreadable_job_in_one_sentence(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "kvnet.protocols.run_main"],
        input=b'{"recipe": "no-such"}',
        capture_output=True,
        check=False,
        env={**os.environ, "KVNET_HOME": str(tmp_path)},
        timeout=DEADLINE_S,
    )
    assert ended.returncode == 4
    error = json.loads(ended.stdout)["error"]
    assert error["code"] == "recipe_invalid"
    assert "none ships under this name" in error["message"]
    assert ended.stderr == b""


@pytest.mark.slow
def test_worker_that_dies_costs_its_own_cell_alone(tmp_path: Path) -> None:
    parameters = {"model": "ref-a", "other": "auto", "task": "facts", "lessons": 4, "questions": 4}
    jobs = [
        CellJob("same-model", 1, Setting("good", parameters, 0), tmp_path),
        CellJob("same-model", 1, Setting("bad", {**parameters, "task": Deadly()}, 0), tmp_path),
        CellJob("same-model", 1, Setting("good too", parameters, 1), tmp_path),
    ]
    ends = {outcome.end.cell: outcome.end for outcome in run_cells(jobs, 2)}
    assert isinstance(ends["good"], Closed)
    assert isinstance(ends["good too"], Closed)
    assert isinstance(ends["bad"], Failure)
    assert ends["bad"].code == "worker_lost"


class Deadly:
    """Kills the process that uses it."""

    def endswith(self, _: str) -> bool:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(DEADLINE_S)
        raise AssertionError

    def __hash__(self) -> int:
        return 1


def test_arms_of_controls_are_those_of_alignments() -> None:
    assert [arm.value for arm in CONTROLS] == ["none", "text", "own", "zeroed", "shuffled", "raw"]
    assert set(CONTROLS) < set(Arm)
