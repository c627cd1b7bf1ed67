"""A map before its gate: what held-out facts say of it, with the controls beside it.

Knows maps, readings and exams; decides nothing (kvnet.align.gate does).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from kvnet.align.exam import Exam, Marks, ask_behind
from kvnet.align.gate import Figures
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reader, Reading, hold
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.slots import Slots

_COSINE_QUESTIONS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Sitting:
    """An exam of the receiver with the same lessons as the source read them and as it read them itself."""

    exam: Exam
    source: tuple[Reading, ...]
    own: tuple[Reading, ...]

    @classmethod
    def of(
        cls,
        reader: Reader,
        exam: Exam,
        *,
        closing: str = "",
        progress: Callable[[int], None] = lambda done: None,
        cancelled: Callable[[], bool] = never,
    ) -> Sitting:
        """Let both read the exam's lessons; `progress` is told how many the source has read.

        Raises RequestError for more than may be held, Cancelled, and as the reader.
        """
        texts = [lesson.text + closing for lesson in exam.lessons]
        source = hold(reader.read(texts), progress=progress, cancelled=cancelled)
        return cls(exam, source, hold(LocalReader(exam.host).read(texts), cancelled=cancelled))

    def mapped(self, alignment: AlignmentMap, port: Port | None, *, bits: int | None = None) -> list[Slots]:
        """The lessons' memories through a map, quantised as on the wire if `bits` says so."""
        rows_of = self.exam.host.rows_of
        return [alignment.apply(one.slots, port, rows_of=rows_of, bits=bits) for one in self.source]

    def admitted(self, alignment: AlignmentMap, slots: Sequence[Slots]) -> Callable[[int], Slots | None]:
        """Each lesson's slots; none of a text that a node would refuse, as the map was not fitted on such."""
        strange = [alignment.strangeness(alignment.encode(one.slots)[0]) > 1 for one in self.source]
        return lambda lesson_idx: None if strange[lesson_idx] else slots[lesson_idx]

    def shuffled(self, slots: Sequence[Slots]) -> Callable[[int], Slots]:
        """Each lesson asked behind the memory of the next one."""
        return lambda lesson_idx: slots[(lesson_idx + 1) % len(slots)]


def figures_of(
    sitting: Sitting,
    alignment: AlignmentMap,
    port: Port | None,
    *,
    bits: int | None = 8,
    layers: Iterable[int] | None = None,
    cancelled: Callable[[], bool] = never,
) -> Figures:
    """What the gate decides on. `layers` are those whose attention is compared (default: all)."""
    exam = sitting.exam
    slots = sitting.mapped(alignment, port, bits=bits)
    none = exam.sit(lambda _: None, cancelled=cancelled)
    mapped = exam.sit(sitting.admitted(alignment, slots), cancelled=cancelled)
    shuffled = exam.sit(sitting.shuffled(slots), cancelled=cancelled)
    return Figures(
        num_questions=len(exam.asked),
        num_texts=len(exam.lessons),
        recall_text=exam.text.recall,
        recall_none=none.recall,
        recall_mapped=mapped.recall,
        gap_recovered=exam.gap_recovered(mapped, none),
        gap_shuffled=exam.gap_recovered(shuffled, none).value,
        kl=mapped.mean_kl,
        kl_shuffled=shuffled.mean_kl,
        attention_cosine=attention_cosine(sitting, slots, layers, cancelled=cancelled),
    )


def attention_cosine(
    sitting: Sitting,
    slots: Sequence[Slots],
    layers: Iterable[int] | None = None,
    *,
    cancelled: Callable[[], bool] = never,
) -> float:
    """Mean cosine of attention outputs where answers are predicted: behind `slots`, and behind own ones."""
    exam = sitting.exam
    wanted = tuple(layers) if layers is not None else tuple(range(exam.host.geometry.num_layers))
    cosines = []
    for asked in exam.asked[:_COSINE_QUESTIONS]:
        refuse_cancelled(cancelled)
        outputs = []
        for given in (slots[asked.lesson_idx], sitting.own[asked.lesson_idx].slots):
            cache = exam.host.inject_slots(given)
            with ask_behind(cache):
                num_gaps = given.span - given.num_slots
                _, watch = exam.host.watched_logits(asked.token_ids, cache, num_gaps=num_gaps)
            outputs.append(torch.stack([watch.outputs[i][asked.first_scored :] for i in wanted]))
        behind, native = outputs
        cosines.append(torch.cosine_similarity(behind, native, dim=-1).mean())
    return float(torch.stack(cosines).mean())


def best_of(
    sitting: Sitting,
    candidates: Iterable[AlignmentMap],
    port: Port | None,
    *,
    cancelled: Callable[[], bool] = never,
) -> tuple[AlignmentMap, Marks]:
    """The map whose memories recall most, as they will travel: quantised to 8 bits where there is a port.

    Among equals within a point it is the one with the least KL.
    """
    found = []
    for alignment in candidates:
        refuse_cancelled(cancelled)
        slots = sitting.mapped(alignment, port, bits=8)
        found.append((alignment, sitting.exam.sit(slots.__getitem__, cancelled=cancelled)))
    most = max(marks.recall for _, marks in found)
    return min((one for one in found if one[1].recall >= most - 0.01), key=lambda one: one[1].mean_kl)
