"""Cells on Ray, where it is installed: the same as here, and one whose worker is lost fails alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvnet.experiments.record import Closed, Failure
from kvnet.protocols.cells import CellJob
from kvnet.protocols.on_ray import run_on_ray
from kvnet.protocols.pool import run_cells
from kvnet.protocols.protocol import Setting

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
