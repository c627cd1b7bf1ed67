"""What a run says of itself (`Manifest`) and what a line of its log may be, strictly parsed.

The published form is `schema/manifest.v1.json` and `schema/event.v1.json`. Knows no folders, clocks, models.
A log has five kinds of lines: `Event` (a measurement), `Closed` (a cell is complete), `Failure` (a cell
failed), `Summary` (what a protocol found, in its own fields) and `Finish` (the run ended).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, TypeAlias

from kvnet.errors import MalformedMessage, MalformedRun
from kvnet.format import strict_json

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """A model that a run used. `rope` and `dtype` in words; `device` as torch names it."""

    name: str
    fingerprint: str
    tokenizer: str  # digest
    dtype: str = ""
    quantization: str = "none"
    rope: str = ""
    device: str = "cpu"


@dataclass(frozen=True, slots=True)
class Margin:
    """What counts as not worse: at most `at_most` below (for KL and the like: above) the arm `against`.

    Set before a run, in its recipe. `lower_is_better` says which way `metric` counts.
    """

    metric: str
    at_most: float
    against: str = "text"
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Manifest:
    """Written once, when a run begins. `run` and `created` are filled in by `RunFolder.create`.

    `recipe` is the recipe as plain data with every parameter, `sweep` what varies, so that a resumed run
    needs nothing else. `kind` is recipe, tracker or joined.
    """

    name: str
    kind: str = "recipe"
    protocol: str = ""
    protocol_version: int = 0
    question: str = ""
    controls: tuple[str, ...] = ()  # arms without which no cell is complete
    metrics: Mapping[str, str] = field(default_factory=dict)  # name -> unit or meaning, in a few words
    margins: tuple[Margin, ...] = ()
    models: tuple[ModelRecord, ...] = ()
    maps: tuple[str, ...] = ()
    codec: str = ""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    total_cells: int = 0
    versions: Mapping[str, str] = field(default_factory=dict)  # package -> version
    git: str = ""  # revision, "" outside a checkout
    nodes: tuple[str, ...] = ()  # node ids
    command: str = ""  # what made the run, as typed
    run: str = ""
    created: str = ""  # UTC, ISO 8601
    v: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Event:
    """One measurement: what one arm got, usually at one question of one lesson.

    `values` are finite numbers by metric: `right` (0 or 1, exact match), `kl` (nats), `top1` (share),
    `nll_gap` (nats a token), or the protocol's own with the unit in the name (`map_s`, `wire_nbytes`).
    `lesson` is the unit that intervals are drawn over and arms are paired by (None: every line is one of its
    own). `model` answers, `source` made the memory. `cell` is "" outside any sweep, as in a tracker's run.
    """

    kind: ClassVar[str] = "measurement"
    cell: str
    protocol: str
    arm: str
    values: Mapping[str, float]
    task: str = ""
    model: str = ""
    source: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    lesson: int | None = None
    question: int | None = None


@dataclass(frozen=True, slots=True)
class Closed:
    """A cell is complete: every control is there. Its measurements count from here on."""

    kind: ClassVar[str] = "cell"
    cell: str
    seconds: float
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Failure:
    """A cell failed; the run goes on without it. `reason` is one sentence, `code` that of kvnet.errors."""

    kind: ClassVar[str] = "failure"
    cell: str
    reason: str
    code: str = "internal"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Summary:
    """What a protocol found, in its own fields; of several, the last counts."""

    kind: ClassVar[str] = "summary"
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finish:
    """The process that wrote the run ended on its own. `status` is finished or failed."""

    kind: ClassVar[str] = "finish"
    status: str
    failed_cells: int = 0


Body: TypeAlias = Event | Closed | Failure | Summary | Finish
_KINDS: dict[str, type[Body]] = {cls.kind: cls for cls in (Event, Closed, Failure, Summary, Finish)}
_ENVELOPE = ("v", "ts", "run", "session", "kind")


@dataclass(frozen=True, slots=True)
class Line:
    """A body with what every line carries. `session` counts the processes that have written to the run.

    A measurement of a cell counts only if the same session closed the cell, so what a killed process left
    of a cell is not mixed with what the next one measured.
    """

    ts: str
    run: str
    session: int
    body: Body

    def to_json(self) -> str:
        """One line, without its newline. Raises ValueError for a number that is not finite."""
        head = {"v": SCHEMA_VERSION, "ts": self.ts, "run": self.run, "session": self.session}
        plain = {**head, "kind": self.body.kind, **asdict(self.body)}
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, default=dict)


def parse_line(data: bytes, *, what: str) -> Line:
    """One line of a log. Raises MalformedRun; `what` names the line in the message."""
    try:
        line = _line_of(strict_json.loads(data, what=what), what)
    except MalformedMessage as exc:
        raise MalformedRun(exc.message) from exc
    if isinstance(line.body, Event):
        check_values(line.body.values, what)
    return line


def _line_of(plain: Any, what: str) -> Line:
    if not isinstance(plain, dict):
        raise MalformedRun(f"{what}: expected an object, got {type(plain).__name__}")
    _check_version(plain.get("v"), what)
    head = strict_json.from_plain(_Envelope, {k: plain[k] for k in _ENVELOPE if k in plain}, what=what)
    if head.kind not in _KINDS:
        raise MalformedRun(f"{what}: kind {head.kind!r:.40} is none of {', '.join(_KINDS)}")
    rest = {key: value for key, value in plain.items() if key not in _ENVELOPE}
    return Line(head.ts, head.run, head.session, strict_json.from_plain(_KINDS[head.kind], rest, what=what))


def check_values(values: Mapping[str, Any], what: str) -> None:
    """Raise MalformedRun unless every value is a finite number."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise MalformedRun(f"{what}: value {name} is {value!r:.40}, wanted a finite number")


def manifest_to_json(manifest: Manifest) -> str:
    """The document `manifest.json`."""
    return json.dumps(asdict(manifest), indent=1, allow_nan=False, ensure_ascii=False, default=dict) + "\n"


def parse_manifest(data: bytes, *, what: str) -> Manifest:
    """The document `manifest.json`, strictly. Raises MalformedRun."""
    try:
        plain = strict_json.loads(data, what=what)
        if isinstance(plain, dict):
            _check_version(plain.get("v"), what)
        return strict_json.from_plain(Manifest, plain, what=what)
    except MalformedMessage as exc:
        raise MalformedRun(exc.message) from exc


def _check_version(version: Any, what: str) -> None:
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise MalformedRun(
            f"{what}: schema version {version!r:.20}, this kvnet reads {SCHEMA_VERSION}; "
            "read it with the kvnet that wrote it"
        )


@dataclass(frozen=True, slots=True)
class _Envelope:
    v: int
    ts: str
    run: str
    session: int
    kind: str
