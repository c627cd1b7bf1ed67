"""A new map beside the one in use for the same pair. Knows verdicts only.

Who fits over the wire has the source's readings from a peer, and whose they are by that peer's word alone.
The map in use says more: what its own source reads, it maps well. So a peer that reads with another model
than it names cannot put its map in the place of a good one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from kvnet.align.gate import LEAST_TAUGHT
from kvnet.alignment import GateResult

MOST_LOST: Final = 0.01  # of recall, that a new map may fall behind: within it, maps are equals


def beside(new: GateResult, standing: GateResult, name: str) -> GateResult:
    """The verdict on a new map, given that on the one in use, which is called `name`, on the same readings.

    The new one is admitted only if that one is, and does no better.
    """
    reason = _objection(new, standing, name) if new.admitted else ""
    return replace(new, admitted=False, reason=reason) if reason else new


def _objection(new: GateResult, standing: GateResult, name: str) -> str:
    if not standing.admitted:
        return (
            f"{name}, which is in use for this pair, fails on the same readings ({standing.reason}): they "
            f"may not be those of its source; fit from a model on this machine (--source), or remove {name}"
        )
    if standing.recall_text - standing.recall_none >= LEAST_TAUGHT:
        if not new.recall_mapped >= standing.recall_mapped - MOST_LOST:
            return (
                f"{name}, which is in use for this pair, recalls {standing.recall_mapped:.1%} from the same "
                f"readings, this one {new.recall_mapped:.1%}"
            )
    elif not new.kl <= standing.kl:
        return (
            f"{name}, which is in use for this pair, leaves a KL of {standing.kl:.3f} nats on the same "
            f"readings, this one {new.kl:.3f}"
        )
    return ""
