"""Which node a memory's numbers came from, through whatever was made of it here. Reads records alone."""

from __future__ import annotations

from kvnet.errors import UnknownMemory
from kvnet.types import MemoryHeader, MemoryId
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import MemoryRecord


def source_of(memories: MemoryStore, record: MemoryRecord) -> str:
    """The node that sent or signed a memory, or what it was encoded from here; "" for one made here.

    A received memory that is encoded again here is signed by this node, and no safer for it.
    """
    notes = record.notes
    if notes.origin or notes.source or not notes.in_passing:
        return notes.origin or notes.source
    try:
        return source_of(memories, memories.get(MemoryId(record.header.derived_from)))
    except UnknownMemory:
        return ""


def source_of_own_file(memories: MemoryStore, header: MemoryHeader, signer: str) -> str:
    """The same for a file that this node once signed: what it was encoded from may have been anybody's."""
    if not header.derived_from:
        return ""
    try:
        return source_of(memories, memories.get(MemoryId(header.derived_from)))
    except UnknownMemory:
        return signer  # nobody can tell any more: not taken for this model's own work
