"""A home whose cache every test of this folder shares, and runs of recipes in this process."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from kvnet.experiments.folder import RunFolder
from kvnet.experiments.job import Job
from kvnet.experiments.record import Event
from kvnet.protocols.run_main import run

Run = Callable[..., tuple[int, RunFolder]]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run_recipe(tmp_path: Path, cache_dir: Path) -> Iterator[Run]:
    """`run_recipe(name, **job)`: its exit status and its folder, for reading."""
    threads = torch.get_num_threads()

    def do(recipe: str, **job: Any) -> tuple[int, RunFolder]:
        out = io.StringIO()
        wanted = Job(recipe, **{"runs_dir": str(tmp_path / "runs"), "quick": True, **job})
        status = run(wanted, out, cache_dir=cache_dir)
        last = json.loads(out.getvalue().splitlines()[-1])
        return status, RunFolder.open(Path(last["run"]))

    yield do
    torch.set_num_threads(threads)


def means(folder: RunFolder) -> Mapping[str, Mapping[str, float]]:
    """By arm, each metric's mean over all lines."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in folder.events():
        if isinstance(event, Event):
            for name, value in event.values.items():
                values[event.arm][name].append(value)
    return {arm: {name: sum(v) / len(v) for name, v in of.items()} for arm, of in values.items()}
