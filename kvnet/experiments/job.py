"""What `kvnet exp run` asks of the process that measures, and what that one says on the way.

The job is one JSON document on the process's stdin; the answers are JSON lines on its stdout, of which
`{"error": {"code", "message"}}` says that nothing more comes. Its stderr is what libraries print. It exits
with 0, with 1 if cells failed, or as kvnet.errors says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from kvnet.errors import MalformedMessage, RecipeInvalid
from kvnet.format import strict_json


@dataclass(frozen=True, slots=True)
class Job:
    """`recipe` is a name or a path; with `resume`, a run folder's path, its manifest says the rest."""

    recipe: str
    sweep: Mapping[str, Any] = field(default_factory=dict)  # parameter -> list of values
    seeds: tuple[int, ...] | None = None  # None: the recipe's
    runs_dir: str = ""
    resume: str = ""
    on: str = "processes"  # or ray
    workers: int = 1
    quick: bool = False
    command: str = ""  # as typed, for the manifest

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self), default=dict)

    @classmethod
    def parse(cls, data: bytes) -> Job:
        """Raises RecipeInvalid."""
        try:
            return strict_json.decode(cls, data, what="job")
        except MalformedMessage as exc:
            raise RecipeInvalid(exc.message) from exc


@dataclass(frozen=True, slots=True)
class CellDone:
    """A cell ended, well or not."""

    done: int
    total: int
    cell: str
    seconds: float

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"event": "cell", **asdict(self)})


@dataclass(frozen=True, slots=True)
class RunDone:
    """The last line. `run` is the folder's path."""

    run: str
    failed: int

    def to_json(self) -> str:
        """One line."""
        return json.dumps({"event": "done", **asdict(self)})


def parse_error(line: str) -> tuple[str, str] | None:
    """(code, message) of a line that says why nothing more comes."""
    try:
        error = json.loads(line)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        return None


def parse_answer(line: str) -> CellDone | RunDone | None:
    """A line of the process; None for one that is neither, such as what a library prints."""
    try:
        plain = json.loads(line)
        event = plain.pop("event")
    except (ValueError, AttributeError, KeyError, TypeError):
        return None
    try:
        if event == "cell":
            return CellDone(**plain)
        return RunDone(**plain) if event == "done" else None
    except TypeError:
        return None
