"""The table of a map beside all it must be compared with: text, nothing, and memories that carry nothing.

Knows exams and maps; decides nothing (kvnet.align.gate does), and prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import torch

from kvnet.align.exam import Marks, SlotsFor
from kvnet.align.examine import Sitting
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.alignment import Interval, row_width
from kvnet.model.generation import never, refuse_cancelled
from kvnet.model.slots import Slots


class Arm(StrEnum):
    """What the receiver is asked behind."""

    TEXT = "text"  # the text itself, read by the receiver: the ceiling
    NONE = "none"  # nothing: the floor
    OWN = "own"  # what the receiver holds of the text, exported and injected again
    MAPPED = "mapped"  # the source's memory through the map, as it is computed
    PORT8 = "port8"  # the same, in the port's coordinates of 8 bits as on the wire
    PORT4 = "port4"
    SHUFFLED = "shuffled"  # the mapped memory of another text
    ZEROED = "zeroed"  # the mapped slots, all keys and values zero
    RANDOM = "random"  # a random map whose outputs have the same mean and spread
    RAW = "raw"  # the source's rows as they are


EVERY_ARM = tuple(Arm)


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One row of the table. `recall` is 0 to 1, `kl` in nats to the answers after the text itself."""

    arm: str
    recall: float
    gap_recovered: Interval
    kl: float
    num_questions: int


def measure_arms(
    sitting: Sitting,
    alignment: AlignmentMap,
    port: Port | None,
    arms: Sequence[Arm] = EVERY_ARM,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    cancelled: Callable[[], bool] = never,
) -> list[ArmResult]:
    """The arms in the order given, without those that this pair has not.

    A map that ends in rows has no PORT8 and PORT4, and RAW there is only where rows of both models are
    equally wide. Gaps are measured against NONE, which is therefore always sat. Raises Cancelled.
    """
    exam = sitting.exam
    found = memories_of(sitting, alignment, port, seed)
    wanted = [arm for arm in arms if arm in (Arm.TEXT, Arm.NONE) or arm in found]
    none = exam.sit(lambda _: None, cancelled=cancelled)
    results = []
    for done, arm in enumerate(wanted):
        progress(done, len(wanted))
        refuse_cancelled(cancelled)
        marks = _marks(sitting, arm, none, found, cancelled)
        gap = exam.gap_recovered(marks, none, seed=seed)
        results.append(ArmResult(arm.value, marks.recall, gap, marks.mean_kl, len(exam.asked)))
    progress(len(wanted), len(wanted))
    return results


def _marks(
    sitting: Sitting,
    arm: Arm,
    none: Marks,
    found: Mapping[Arm, Callable[[], SlotsFor]],
    cancelled: Callable[[], bool],
) -> Marks:
    if arm is Arm.TEXT:
        return sitting.exam.text
    if arm is Arm.NONE:
        return none
    return sitting.exam.sit(found[arm](), cancelled=cancelled)


def memories_of(
    sitting: Sitting, alignment: AlignmentMap, port: Port | None, seed: int
) -> dict[Arm, Callable[[], SlotsFor]]:
    """How the memories of each arm are made; none is made before its turn."""

    def mapped(bits: int | None = None) -> list[Slots]:
        return sitting.mapped(alignment, port, bits=bits)

    found: dict[Arm, Callable[[], SlotsFor]] = {
        Arm.OWN: lambda: lambda lesson_idx: sitting.own[lesson_idx].slots,
        Arm.MAPPED: lambda: mapped().__getitem__,
        Arm.SHUFFLED: lambda: sitting.shuffled(mapped()),
        Arm.ZEROED: lambda: [replace(slots, rows=slots.rows * 0) for slots in mapped()].__getitem__,
        Arm.RANDOM: lambda: sitting.mapped(_random_map(sitting, alignment, seed), port).__getitem__,
    }
    if port is not None:
        found |= {Arm.PORT8: lambda: mapped(8).__getitem__, Arm.PORT4: lambda: mapped(4).__getitem__}
    receiver = alignment.manifest.receiver_geometry
    if row_width(alignment.manifest.source_geometry) == row_width(receiver):
        raw = [replace(reading.slots, geometry=receiver) for reading in sitting.source]
        found[Arm.RAW] = lambda: raw.__getitem__
    return found


def _random_map(sitting: Sitting, alignment: AlignmentMap, seed: int) -> AlignmentMap:
    """Random weights in place of the encoder's: numbers of the same size that say nothing."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(alignment.encoder.shape, generator=generator)
    plain = replace(
        alignment, encoder=weights, bias=torch.zeros_like(alignment.bias), residual=None, familiar=None
    )
    wanted, made = (_encoded(sitting, one) for one in (alignment, plain))
    scale = wanted.std(0) / made.std(0).clamp_min(1e-12)  # [rank]
    return replace(plain, encoder=weights * scale, bias=wanted.mean(0) - made.mean(0) * scale)


def _encoded(sitting: Sitting, alignment: AlignmentMap) -> torch.Tensor:
    """[m, rank]: what a map makes of all of the lessons' slots."""
    return torch.cat([alignment.encode(reading.slots)[0] for reading in sitting.source])
