"""What can be done for a stored memory that is not as it should be. Called from the store's own thread."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Final

from kvnet.durable import sync_folder
from kvnet.errors import UnknownMemory
from kvnet.types import MemoryId
from kvnetd.store.disk import full_disk_refused, require_room
from kvnetd.store.memories import MemoryStore
from kvnetd.store.places import put_in_place
from kvnetd.store.records import SECTIONS_FILE, MemoryRecord
from kvnetd.store.sections import make_sections_file, read_section
from kvnetd.store.texts import TEXT_FILE
from kvnetd.store.unfinished import OFFER_FILE

ASIDE: Final = "aside"  # beside the folder of memories
_SEALED: Final = (OFFER_FILE, TEXT_FILE)  # in a memory's folder, beside its sections


def lies_in_clear(memories: MemoryStore, memory: str) -> bool:
    """Whether anything of a stored memory that would be sealed now is not."""
    folder = memories.root / memory
    return any((folder / name).exists() for name in (SECTIONS_FILE, *_SEALED))


def seal_memory(memories: MemoryStore, record: MemoryRecord) -> None:
    """Write a memory again, sealed, and put it in its place: the old one is there until the new one is.

    Raises StateCorrupt for one that is damaged, StoreFull, UnknownMemory.
    """
    folder = memories.root / record.id
    require_room(folder, record.head.sections_nbytes, what="sealing")
    fresh = memories.new_folder(record.id)
    try:
        with full_disk_refused("sealing"):
            _copy_sealed(memories, record, fresh)
            put_in_place(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _copy_sealed(memories: MemoryStore, record: MemoryRecord, fresh: Path) -> None:
    folder = memories.root / record.id
    _, sections = memories.open_stored(record)
    with sections, make_sections_file(fresh, memories.vault) as out:
        end = 0
        for section in record.head.sections:
            end = out.write(end, read_section(sections, section))
        out.sync()
    for path in folder.iterdir():
        if path.name in _SEALED:
            memories.vault.write(fresh / path.name, path.read_bytes())
        elif not (fresh / path.name).exists() and path.name != SECTIONS_FILE:
            os.link(path, fresh / path.name)
    sync_folder(fresh)


def set_aside(memories: MemoryStore, memory: str) -> Path | None:
    """Move what lies in a damaged memory's place out of the store, as it is; returns where it lies now.

    None where it is whole, by now. Raises UnknownMemory where nothing lies there any more, StateCorrupt
    where it cannot be read just now.
    """
    # Once more, on the thread that writes: it may have been sent or made anew since.
    with suppress(UnknownMemory):
        if memories.is_intact(memories.get(MemoryId(memory))):
            memories.damaged.pop(memory, None)
            return None
    aside = memories.root.parent / ASIDE
    aside.mkdir(mode=0o700, exist_ok=True)
    place, number = aside / memory, 1
    while place.exists():
        number += 1
        place = aside / f"{memory}.{number}"
    try:
        (memories.root / memory).rename(place)
    except FileNotFoundError as exc:
        raise UnknownMemory(f"memory {memory:.60}: was removed meanwhile") from exc
    sync_folder(aside)
    sync_folder(memories.root)
    memories.dismiss(memory)
    return place
