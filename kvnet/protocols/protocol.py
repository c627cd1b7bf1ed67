"""What a protocol is, and the log of one cell of it. Knows no models, no tasks, no folders.

A protocol measures arms side by side. Those of `CONTROLS` are what the others are read against; a protocol
that has one of them not says why in `without`, and a cell that lacks any other is not closed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from kvnet.align.arms import Arm
from kvnet.align.exam import Mark
from kvnet.errors import MalformedRun, RequestError
from kvnet.experiments.record import Closed, Event

if TYPE_CHECKING:
    from kvnet.protocols.settings import Lab

CONTROLS: Final = (Arm.NONE, Arm.TEXT, Arm.OWN, Arm.ZEROED, Arm.SHUFFLED, Arm.RAW)
_OWN_FIELDS: Final = ("model", "task")  # of an event, so not among its parameters
LEAST_TOKENS: Final = 32  # teacher-forced in an arm, below which agreement says nothing
MARK_METRICS: Final[Mapping[str, str]] = {
    "right": "share of whole answers that are exactly right",
    "kl": "nats, KL(text || arm), mean over the answer's tokens",
    "top1": "share of teacher-forced tokens whose most likely one is the text's",
    "nll_gap": "nats a token of the answer, above what the text gives",
    "tokens": "teacher-forced tokens that were scored",
}


@dataclass(frozen=True, slots=True)
class Protocol:
    """`measure(lab, setting, log)` fills the log of one cell. `metrics` are name -> unit or meaning."""

    name: str
    version: int
    question: str
    measure: Callable[[Lab, Setting, CellLog], None]
    metrics: Mapping[str, str] = field(default_factory=lambda: MARK_METRICS)
    without: Mapping[Arm, str] = field(default_factory=dict)  # control -> why it cannot exist here

    @property
    def controls(self) -> tuple[str, ...]:
        """Arms without which no cell is complete."""
        return tuple(arm.value for arm in CONTROLS if arm not in self.without)


@dataclass(frozen=True, slots=True)
class Setting:
    """A cell's parameters. `swept` names those that its recipe varies."""

    cell: str
    parameters: Mapping[str, Any]
    seed: int
    swept: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Any:
        """A parameter. Raises RequestError for one that the recipe lacks."""
        try:
            return self.parameters[name]
        except KeyError:
            known = ", ".join(self.parameters)
            raise RequestError(f"the protocol takes {name!r}, the recipe has {known}; add it") from None


class CellLog:
    """What one cell measured, held until the cell is closed."""

    def __init__(self, protocol: Protocol, setting: Setting, *, task: str = "", model: str = "") -> None:
        self.protocol = protocol
        self.setting = setting
        self.task = task
        self.model = model
        self.events: list[Event] = []
        self.summary: dict[str, Any] = {}
        self._tokens: dict[str, int] = {}

    def values(
        self,
        arm: str,
        values: Mapping[str, float],
        *,
        model: str = "",
        source: str = "",
        lesson: int | None = None,
        question: int | None = None,
        **parameters: Any,
    ) -> None:
        """One measurement; `parameters` are the arm's own, beside what the recipe sweeps."""
        setting = self.setting
        swept = {name: setting.parameters[name] for name in setting.swept if name not in _OWN_FIELDS}
        self.events.append(
            Event(
                setting.cell,
                self.protocol.name,
                str(arm),
                {name: float(value) for name, value in values.items()},
                task=self.task,
                model=model or self.model,
                source=source,
                parameters={**swept, **parameters},
                seed=setting.seed,
                lesson=lesson,
                question=question,
            )
        )

    def marks(
        self,
        arm: str,
        marks: Iterable[Mark],
        places: Iterable[tuple[int, int, Mapping[str, Any]]],
        *,
        source: str = "",
        more: Callable[[int], Mapping[str, float]] = lambda lesson: {},
        leave_out: frozenset[str] = frozenset(),
        **parameters: Any,
    ) -> None:
        """An arm's marks at their (lesson, question, parameters of the question); `more` is of a lesson,
        and `leave_out` are metrics that mean nothing here.
        """
        for mark, (lesson, question, asked) in zip(marks, places, strict=True):
            self._tokens[arm] = self._tokens.get(arm, 0) + mark.num_tokens
            values = {
                "right": mark.right,
                "kl": max(0.0, mark.kl),  # rounding may leave it below zero
                "top1": mark.top1,
                "nll_gap": mark.nll - mark.nll_text,
                "tokens": mark.num_tokens,
                **more(lesson),
            }
            values = {name: value for name, value in values.items() if name not in leave_out}
            self.values(
                arm, values, source=source, lesson=lesson, question=question, **{**parameters, **asked}
            )

    def close(self, seconds: float) -> Closed:
        """Raises MalformedRun for a missing control, or an arm in which too few tokens were scored."""
        missing = sorted(set(self.protocol.controls) - {event.arm for event in self.events})
        if missing:
            raise MalformedRun(
                f"a cell of {self.protocol.name}: the control {', '.join(missing)} is missing, so what the "
                "other arms got says nothing; run it too"
            )
        short = {arm: count for arm, count in self._tokens.items() if count < LEAST_TOKENS}
        if short:
            arm, count = next(iter(short.items()))
            raise MalformedRun(
                f"a cell of {self.protocol.name}: {count} tokens were scored in the arm {arm}, at least "
                f"{LEAST_TOKENS} are needed; give more lessons or longer answers"
            )
        return Closed(self.setting.cell, seconds, dict(self.setting.parameters), self.setting.seed)
