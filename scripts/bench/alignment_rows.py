"""Rows of the alignment bench: one cell each, with what is wanted of it. Knows figures; measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from alignment_setup import Pair, Trial

from kvnet.align.arms import Arm, ArmResult
from kvnet.align.exam import Marks

Row = dict[str, Any]

OTHER_TOKENIZER: Final = "ref-c"
MOST_CONTROL: Final = 0.05
_CONTROLS: Final = (Arm.NONE, Arm.ZEROED, Arm.SHUFFLED, Arm.RANDOM, Arm.RAW)
_WIRES: Final = {
    Arm.PORT8: (0.01, 20),
    Arm.PORT4: (0.02, 100),
}  # gap lost at most, fp16 bytes over wire bytes


def row_of(table: str, pair: Pair, result: ArmResult, *, goal: str = "", met: bool | None = None) -> Row:
    """A cell of a table; `met` is yes, no, or empty where nothing is asked of it."""
    gap = result.gap_recovered
    return {
        "table": table,
        "source": pair[0],
        "target": pair[1],
        "arm": result.arm,
        "recall": result.recall,
        "gap_recovered": gap.value,
        "low": gap.low,
        "high": gap.high,
        "kl": result.kl,
        "n": result.num_questions,
        "goal": goal,
        "met": verdict(met),
    }


def absent_row(table: str, pair: Pair, arm: str) -> Row:
    """A cell that this pair cannot have."""
    figures = dict.fromkeys(("recall", "gap_recovered", "low", "high", "kl"))
    return {"table": table, "source": pair[0], "target": pair[1], "arm": arm, **figures, "n": 0}


def result_of(trial: Trial, arm: str, marks: Marks) -> ArmResult:
    """The figures of an arm that was sat by hand."""
    gap = trial.exam.gap_recovered(marks, trial.none)
    return ArmResult(arm, marks.recall, gap, marks.mean_kl, len(trial.exam.asked))


def verdict(met: bool | None) -> str:
    """For the column `met`."""
    return "" if met is None else ("yes" if met else "no")


def pair_goal(pair: Pair) -> tuple[float, float]:
    """(gap recovered at least, nats at most): strangers, or strangers with another tokenizer too."""
    return (0.97, 0.3) if OTHER_TOKENIZER in pair else (0.98, 0.15)


def judged_arm(pair: Pair, result: ArmResult, mapped: ArmResult, fp16_over_wire: float) -> Row:
    """A row of the table of arms. A wire is held to the map, or to the goal of maps if that is more."""
    gap = result.gap_recovered.value
    least, most_kl = pair_goal(pair)
    if result.arm in _CONTROLS:
        return row_of("arms", pair, result, goal=f"gap<={MOST_CONTROL:g}", met=gap <= MOST_CONTROL)
    if result.arm == Arm.MAPPED:
        met = gap >= least and result.kl <= most_kl
        return row_of("arms", pair, result, goal=f"gap>={least:g} kl<={most_kl:g}", met=met)
    if result.arm in _WIRES:
        lost, least_ratio = _WIRES[Arm(result.arm)]
        met = gap >= max(mapped.gap_recovered.value, least) - lost and fp16_over_wire >= least_ratio
        goal = f"gap>=max(mapped,{least:g})-{lost:g} fp16/wire>={least_ratio}"
        return row_of("arms", pair, result, goal=goal, met=met)
    return row_of("arms", pair, result)


def for_people(rows: Sequence[Row], table: str) -> list[Row]:
    """The rows of one table as text, without the columns that none of them fills."""
    mine = [row for row in rows if row["table"] == table]
    filled = {name for row in mine for name, value in row.items() if value != "" and name != "table"}
    return [{name: _text(value) for name, value in row.items() if name in filled} for row in mine]


def _text(value: Any) -> str:
    if value is None:
        return "n/a"
    # Rounding a KL may leave it at -0.
    return f"{round(value, 3) + 0:.3f}" if isinstance(value, float) else str(value)
