"""Cells and fits on Ray, where it is installed: as here, and a worker that is lost costs its cell alone."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from kvnet.align.corpus import fact_lessons
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.own_port import learn_port_of
from kvnet.align.reading import LocalReader
from kvnet.experiments.record import Closed, Failure
from kvnet.protocols.cells import CellJob
from kvnet.protocols.fit_on_ray import run_fit_on_ray
from kvnet.protocols.on_ray import run_on_ray
from kvnet.protocols.pool import run_cells
from kvnet.protocols.protocol import Setting
from kvnet.protocols.settings import Lab

pytest.importorskip("ray", reason="the extra [ray] is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_cells_on_ray_measure_what_they_measure_here(tmp_path: Path) -> None:
    parameters = {"model": "ref-a", "other": "auto", "task": "facts", "lessons": 4, "questions": 4}
    wrong = {**parameters, "task": "nowhere.jsonl"}
    jobs = [
        CellJob("same-model", 1, Setting("good", parameters, 0), tmp_path),
        CellJob("same-model", 1, Setting("wrong", wrong, 0), tmp_path),
    ]
    there = {outcome.end.cell: outcome for outcome in run_on_ray(jobs)}
    (here,) = run_cells(jobs[:1], 1)
    assert isinstance(there["good"].end, Closed)
    assert there["good"].events == here.events
    assert isinstance(there["wrong"].end, Failure)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_killed_worker_costs_its_own_cell_alone(tmp_path: Path) -> None:
    class Deadly:  # in here, so that Ray sends the class along
        def endswith(self, _: str) -> bool:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    parameters = {"model": "ref-a", "other": "auto", "task": "facts", "lessons": 4, "questions": 4}
    jobs = [
        CellJob("same-model", 1, Setting("bad", {**parameters, "task": Deadly()}, 0), tmp_path),
        CellJob("same-model", 1, Setting("good", parameters, 0), tmp_path),
    ]
    ends = {outcome.end.cell: outcome.end for outcome in run_on_ray(jobs)}
    assert isinstance(ends["good"], Closed)
    assert isinstance(ends["bad"], Failure)
    assert ends["bad"].code == "worker_lost"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("critical", [None, (1, 2)], ids=["every slot", "anchors"])
def test_sums_of_a_fit_on_ray_are_those_of_a_fit_here(
    tmp_path: Path, critical: tuple[int, ...] | None
) -> None:
    lab = Lab(tmp_path)
    source, receiver = lab.host("ref-b"), lab.host("ref-a")
    lessons = list(fact_lessons(40, seed=51, fact_counts=(4,), num_questions=2))
    port = learn_port_of(receiver, lessons[:8], None, 8)[0]
    plan = FitPlan(source_layers=(1, 2), window=(-1, 1), critical_layers=critical, num_labelled=9)
    here, there = (Fit.begin(LocalReader(source), receiver, port, plan) for _ in range(2))
    here.run(lessons)
    run_fit_on_ray(there, lessons, source="ref-b", cache_dir=tmp_path, shares=3)
    assert (there.state.num_done, there.state.num_rows) == (here.state.num_done, here.state.num_rows)
    for half in ("fit", "held_out"):
        ours, theirs = (getattr(fit.state.sums, half) for fit in (here, there))
        assert ours.num_rows == theirs.num_rows > 0
        for name in ("xx", "xy", "yy", "mean_x", "mean_y"):
            torch.testing.assert_close(getattr(theirs, name), getattr(ours, name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(there.solve(1e-3).weight, here.solve(1e-3).weight, rtol=1e-6, atol=1e-6)
