"""A map's examination from its exam to the gate's verdict, in every use that it may have.

What is used must have been judged: with the closing read behind a memory and without, and by the bits of a
coordinate. Knows maps, readings and exams; the bounds are kvnet.align.gate's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from kvnet.align.exam import Marks
from kvnet.align.examine import Sitting, figures_of
from kvnet.align.gate import UseFigures, judge
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import Reader, Reading, hold
from kvnet.alignment import GateResult, Use, uses_of
from kvnet.model.generation import never
from kvnet.types import DType


def verdict_on(
    reader: Reader,
    sitting: Sitting,
    alignment: AlignmentMap,
    port: Port | None,
    *,
    layers: Iterable[int] | None = None,
    cancelled: Callable[[], bool] = never,
) -> GateResult:
    """What the gate says of a map, whose closing is in the sitting's readings, and of its further uses.

    For uses without the closing `reader` reads the texts once more. Raises Cancelled, and as the reader.
    """
    figures = figures_of(sitting, alignment, port, layers=layers, cancelled=cancelled)
    uses = uses_of(alignment.manifest)
    if not uses:
        return judge(figures, {})
    none = sitting.exam.sit(lambda _: None, cancelled=cancelled)
    unclosed = _without_closing(reader, sitting, cancelled) if Use.UNCLOSED in uses else sitting
    found: dict[Use, UseFigures] = {}
    for use in uses:
        read = sitting if use is Use.PORT4 else unclosed
        # What is not quantised at all, or goes in 8 bits, is judged at 8: the coarser of the two.
        slots = read.mapped(alignment, port, bits=8 if use is Use.UNCLOSED else 4)
        marks = sitting.exam.sit(read.admitted(alignment, slots), cancelled=cancelled)
        found[use] = _figures(sitting, marks, none)
    return judge(figures, found)


def _figures(sitting: Sitting, marks: Marks, none: Marks) -> UseFigures:
    return UseFigures(marks.recall, sitting.exam.gap_recovered(marks, none), marks.mean_kl)


def _without_closing(reader: Reader, sitting: Sitting, cancelled: Callable[[], bool]) -> Sitting:
    """The same exam with what the source read of the texts alone, as it is sent to be mapped."""
    readings = hold(reader.read([lesson.text for lesson in sitting.exam.lessons]), cancelled=cancelled)
    if reader.geometry.dtype is DType.FLOAT32:
        readings = tuple(map(_in_halves, readings))
    return replace(sitting, source=readings)


def _in_halves(reading: Reading) -> Reading:
    """Numbers of float32 travel as float16 to where they are mapped."""
    return replace(reading, slots=replace(reading.slots, rows=reading.slots.rows.half().float()))
