"""Texts kept beside memories: what a memory is of, for models that cannot use the memory itself.

One file in the memory's folder, for this user only, sealed as the memory is. It goes with the memory, and
never into its file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from kvnet.errors import StateCorrupt, UnknownMemory
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Offer
from kvnet.types import MemoryHeader, MemoryId
from kvnetd.store.disk import full_disk_refused
from kvnetd.store.vault import place_of

if TYPE_CHECKING:
    from kvnetd.store.memories import MemoryStore

TEXT_FILE: Final = "text.txt"


def attach_text(memories: MemoryStore, memory: MemoryHeader, text: str) -> None:
    """Keep a text beside a stored memory; one that is there already stays.

    Raises UnknownMemory, StoreFull.
    """
    folder = memories.root / memory.id
    if not folder.exists():
        raise UnknownMemory(f"memory {memory.id}: was removed meanwhile")
    if not place_of(folder / TEXT_FILE).exists():
        with full_disk_refused("text"):
            memories.vault.write(folder / TEXT_FILE, text.encode())


def has_text(memories: MemoryStore, memory: MemoryHeader) -> bool:
    """Whether there is a text to a stored memory."""
    return _text_file(memories, memory) is not None


def attached_text(memories: MemoryStore, memory: MemoryHeader) -> str | None:
    """The text of a stored memory, or of the one here that it was encoded from. Raises StateCorrupt."""
    path = _text_file(memories, memory)
    if path is None:
        return None
    try:
        return memories.vault.read(path).decode()
    except (OSError, UnicodeDecodeError) as exc:
        raise StateCorrupt(f"{path}: cannot be read as text ({exc}); remove it or restore it") from exc


def carry_text(place: Path, fresh: Path) -> None:
    """Take the text of a memory along into the folder that replaces its own."""
    kept = place_of(place / TEXT_FILE)
    if kept.exists() and not place_of(fresh / TEXT_FILE).exists():
        os.link(kept, fresh / kept.name)


def kept_body(offer: Offer, sealed: SignedMessage) -> bytes:
    """What the ledger keeps of an offer: not its text, which goes when the memory is forgotten.

    The receipt names the offer's digest all the same.
    """
    return b"" if offer.text or offer.prefix_text else sealed.body


def _text_file(memories: MemoryStore, memory: MemoryHeader) -> Path | None:
    path = memories.root / memory.id / TEXT_FILE
    if place_of(path).exists():
        return path
    try:
        # What a memory was encoded from is its maker's word: followed only where it was made here.
        made_here = memories.get(memory.id).notes.in_passing
        source = memories.get(MemoryId(memory.derived_from if made_here else ""))
    except UnknownMemory:
        return None
    path = memories.root / source.id / TEXT_FILE
    return path if place_of(path).exists() else None
