"""Calibrations that nothing names any more, cleared away. Called from the store's own thread."""

from __future__ import annotations

from kvnet.errors import StateCorrupt
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.models import ModelNotes
from kvnetd.store.spool import Spool


def drop_unused_bases(bases: BasisStore, memories: MemoryStore, models: ModelNotes, spool: Spool) -> int:
    """Remove the calibrations that no memory, model or unfinished transfer names; returns how many.

    None goes while it cannot be told what is named, and none that was used lately.
    """
    records = memories.all()
    if set(memories.damaged) - {record.id for record in records}:
        return 0  # a head that cannot be read may name one, and can be mended
    try:
        of_models = models.bases()
    except StateCorrupt:
        return 0
    of_memories = {record.header.coding.basis for record in records}
    return bases.keep_only((of_memories | of_models | spool.bases() | bases.recent()) - {""})
