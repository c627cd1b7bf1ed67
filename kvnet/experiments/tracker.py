"""`init`, `log`, `finish`: a run folder of one's own, by the names that trackers use.

    import kvnet.experiments as experiments

    experiments.init("my-fit", config={"rank": 64})
    experiments.log({"loss": 0.31}, step=1)
    experiments.finish()

Knows no protocols: what is logged is numbers by name, and what they were compared with is up to the caller.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from kvnet.errors import RequestError
from kvnet.experiments.folder import RunFolder
from kvnet.experiments.record import Event, Manifest, Summary
from kvnet.version import VERSION

_PROTOCOL = "tracker"


def default_runs_dir() -> Path:
    """KVNET_RUNS, or `runs` where one works: a run is made to be shared, so it does not hide."""
    return Path(os.environ.get("KVNET_RUNS") or "runs")


class TrackedRun:
    """What `init` gives; also a context, which finishes it."""

    def __init__(self, folder: RunFolder, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self._config = config

    def log(
        self,
        values: Mapping[str, Any],
        *,
        step: int | None = None,
        arm: str = "",
    ) -> None:
        """One line. Numbers and booleans; nested names are joined by a slash. Raises RequestError.

        Arms are compared step by step: `step` is the line's `lesson`.
        """
        flat = {name: _number(name, value) for name, value in _flat(values)}
        self.folder.append(Event("", _PROTOCOL, arm, flat, parameters=self._config, lesson=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """What was found, in one's own fields."""
        self.folder.append(Summary(values))

    def finish(self, status: str = "finished") -> None:
        """End the run; nothing can be logged after it."""
        self.folder.finish(status)

    def __enter__(self) -> TrackedRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.finish("finished" if kind is None else "failed")


_current: TrackedRun | None = None


def init(
    name: str = "run",
    *,
    config: Mapping[str, Any] | None = None,
    runs_dir: Path | str | None = None,
    question: str = "",
) -> TrackedRun:
    """Begin a run, which `log` and `finish` mean from here on; one that was begun before is finished."""
    global _current
    if _current is not None:
        finish()
    manifest = Manifest(
        name=name,
        kind="tracker",
        protocol=_PROTOCOL,
        question=question,
        recipe=dict(config or {}),
        versions={"kvnet": VERSION, "python": sys.version.split()[0], **_installed("torch", "transformers")},
        command=" ".join(sys.argv),
    )
    folder = RunFolder.create(Path(runs_dir) if runs_dir else default_runs_dir(), manifest)
    _current = TrackedRun(folder, dict(config or {}))
    return _current


def log(values: Mapping[str, Any], *, step: int | None = None, arm: str = "") -> None:
    """One line of the run that `init` began. Raises RequestError before one was."""
    _begun().log(values, step=step, arm=arm)


def finish(status: str = "finished") -> None:
    """End the run that `init` began. Raises RequestError before one was."""
    global _current
    run, _current = _begun(), None
    run.finish(status)


def _begun() -> TrackedRun:
    if _current is None:
        raise RequestError("no run was begun here; call kvnet.experiments.init(name) first")
    return _current


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += (
            _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
        )
    return found


def _number(name: str, value: Any) -> float:
    try:
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError) as exc:
        raise RequestError(f"log: {name} is {value!r:.40}, wanted a number; words go into config") from exc


def _installed(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
