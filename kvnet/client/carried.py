"""Maps and ports as parts of a package: where each lies in it, and by which name its manifest calls them."""

from __future__ import annotations

from collections.abc import Iterable

from kvnet.alignment import AlignmentKind
from kvnet.api import AlignmentInfo
from kvnet.errors import RequestError


def path_in_package(alignment: AlignmentInfo) -> str:
    """Where a map or port lies in a package (FORMAT.md §9)."""
    return f"alignments/{alignment.id}.bin"


def paths_by_receiver(carried: Iterable[AlignmentInfo]) -> dict[str, str]:
    """Name of the model each leads to -> its path; a port that a map ends in goes by that map.

    Raises RequestError for two that lead to models of one name.
    """
    listed = tuple(carried)
    ended_in = {alignment.port for alignment in listed if alignment.kind == AlignmentKind.MAP}
    found: dict[str, str] = {}
    for alignment in listed:
        if alignment.id in ended_in:
            continue
        if alignment.receiver in found:
            raise RequestError(
                f"alignment {alignment.id}: leads to {alignment.receiver:.60}, as another one does; "
                "pack one for each model"
            )
        found[alignment.receiver] = path_in_package(alignment)
    return found
