"""One exam of one model with the memories that its controls are made of. Knows exams and slots; no tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from kvnet.align.arms import Arm
from kvnet.align.exam import Exam, Mark, Say
from kvnet.align.reading import Reading
from kvnet.model.cache import Cache
from kvnet.model.slots import Slots
from kvnet.protocols.protocol import CONTROLS, CellLog
from kvnet.types import Geometry, RawMemory


@dataclass(slots=True, eq=False)
class Trial:
    """`own` and `stranger` are the exam's texts as its model and as another one hold them."""

    task: str
    exam: Exam
    own: tuple[Reading, ...]
    stranger: tuple[Reading, ...]
    stranger_name: str
    parameters_of: Callable[[int], Mapping[str, Any]] = lambda _: {}  # of a question by its index
    leave_out: frozenset[str] = frozenset()  # metrics that mean nothing here
    _marks: dict[Arm, list[Mark]] = field(default_factory=dict)  # of controls, which do not change

    def places(self) -> list[tuple[int, int, Mapping[str, Any]]]:
        """(lesson, question, parameters of the question) in the order of the exam's marks."""
        return [(asked.lesson_idx, i, self.parameters_of(i)) for i, asked in enumerate(self.exam.asked)]

    def behind(self, slots_for: Callable[[int], Slots | None]) -> Say:
        """How answers sound behind slots, or behind nothing."""

        def begin(lesson_idx: int) -> tuple[Cache, int]:
            slots = slots_for(lesson_idx)
            if slots is None or not slots.num_slots:
                return self.exam.host.sink_cache(), 0
            return self.exam.host.inject_slots(slots), slots.span - slots.num_slots

        return self.exam.behind(begin)

    def behind_memories(self, memory_for: Callable[[int], RawMemory], **options: Any) -> Say:
        """How answers sound behind whole memories, as a node injects them."""
        return self.exam.behind(lambda i: (self.exam.host.inject(memory_for(i), **options), 0))

    def log_arm(
        self,
        log: CellLog,
        arm: str,
        say: Say,
        *,
        source: str = "",
        more: Callable[[int], Mapping[str, float]] = lambda lesson: {},
        **parameters: Any,
    ) -> None:
        """Sit the exam once more, and log it; the memory is the model's own if no `source` is named."""
        source = source or self.exam.host.name
        marks, places = self.exam.mark(say), self.places()
        log.marks(arm, marks, places, source=source, more=more, leave_out=self.leave_out, **parameters)

    def log_controls(self, log: CellLog, made: Sequence[Slots] | None = None, *, source: str = "") -> None:
        """The controls. Where memories were `made` otherwise, zeroed and shuffled ones are of those."""
        host = self.exam.host
        log.task, log.model = self.task, host.name
        for arm in CONTROLS:
            if arm.value not in log.protocol.controls:
                continue
            is_of_made = made is not None and arm in (Arm.ZEROED, Arm.SHUFFLED)
            if is_of_made or arm not in self._marks:
                marks = list(self.exam.mark(self._control(arm, made)))
                if not is_of_made:
                    self._marks[arm] = marks
            else:
                marks = self._marks[arm]
            maker = {Arm.NONE: "", Arm.RAW: self.stranger_name}.get(arm, source if is_of_made else host.name)
            log.marks(arm.value, marks, self.places(), source=maker, leave_out=self.leave_out)

    def _control(self, arm: Arm, made: Sequence[Slots] | None) -> Say | None:
        geometry = self.exam.host.geometry
        slots = [reading.slots for reading in self.own]
        used = slots if made is None else made
        if arm is Arm.TEXT:
            return None
        slots_for: dict[Arm, Callable[[int], Slots | None]] = {
            Arm.NONE: lambda _: None,
            Arm.OWN: lambda i: slots[i],
            Arm.ZEROED: lambda i: replace(used[i], rows=used[i].rows * 0),
            Arm.SHUFFLED: lambda i: used[(i + 1) % len(used)],
            Arm.RAW: lambda i: recast(self.stranger[i].slots, geometry),
        }
        return self.behind(slots_for[arm])


def recast(slots: Slots, geometry: Geometry) -> Slots:
    """Slots of one model as if they were another's: layers, heads and channels cut, or padded with zeros."""
    old = slots.geometry
    whole = slots.rows.view(slots.num_slots, old.num_layers, 2, old.num_kv_heads, old.head_dim)
    made = torch.zeros(slots.num_slots, geometry.num_layers, 2, geometry.num_kv_heads, geometry.head_dim)
    num_layers = min(old.num_layers, geometry.num_layers)
    num_heads = min(old.num_kv_heads, geometry.num_kv_heads)
    width = min(old.head_dim, geometry.head_dim)
    made[:, :num_layers, :, :num_heads, :width] = whole[:, :num_layers, :, :num_heads, :width]
    return replace(slots, geometry=geometry, rows=made.flatten(1))
