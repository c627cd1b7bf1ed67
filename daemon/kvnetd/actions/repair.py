"""doctor --repair: check every digest in the store, set aside what is damaged, seal what lies in clear."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from kvnet.api import Progress, Repaired, RepairReport
from kvnet.errors import KvnetError
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.repair import lies_in_clear, seal_memory, set_aside


async def repair(services: Services) -> AsyncGenerator[Progress | RepairReport, None]:
    """Go through the store, a Progress for each memory, the report last. All else goes on meanwhile.

    A memory that is damaged is moved out of the store's way, never removed; its names and messages stay.
    """
    began, memories = time.perf_counter(), services.memories
    found: list[Repaired] = []
    checked = memories.all()
    for done, record in enumerate(checked, 1):
        try:
            found += await _mend(services, record)
        except KvnetError as exc:  # it was removed or written anew meanwhile, or the disk is full
            found.append(Repaired(record.id, "left alone", exc.message, ""))
        yield Progress(done, len(checked))
    for memory, problem in tuple(memories.damaged.items()):
        try:
            path = await services.in_store(set_aside, memories, memory)
        except KvnetError as exc:
            found.append(Repaired(memory, "left alone", exc.message, ""))
            continue
        if path is not None:
            found.append(Repaired(memory, "set aside", problem, str(path)))
            services.log.write("store.set_aside", memory=memory, message=problem)
    problem = await services.in_store(services.ledger.check)
    problems = [f"ledger: {problem}; restore it from a backup"] if problem else []
    problems += [
        f"{name}: {why}; `kvnet align rm` it and import it again" for name, why in _alignments(services)
    ]
    report = RepairReport(
        checked=len(checked),
        sections=sum(len(record.head.sections) for record in checked),
        nbytes=sum(record.head.sections_nbytes for record in checked),
        repaired=tuple(found),
        problems=tuple(problems),
        seconds=round(time.perf_counter() - began, 6),
    )
    services.log.write("store.checked", count=len(checked), duration_s=report.seconds)
    yield report


async def _mend(services: Services, record: MemoryRecord) -> list[Repaired]:
    """Check a memory beside the store's thread, which transfers wait for; seal it if that is due."""
    memories = services.memories
    if not await services.in_pool(memories.is_intact, record):
        return []  # it is told as damaged now, and set aside behind all others
    memories.damaged.pop(record.id, None)
    if not (memories.vault.seals and lies_in_clear(memories, record.id)):
        return []
    await services.in_store(seal_memory, memories, record)
    services.log.write("store.sealed", memory=record.id)
    return [Repaired(record.id, "sealed", "", str(memories.root / record.id))]


def _alignments(services: Services) -> tuple[tuple[str, str], ...]:
    return tuple(services.alignments.damaged.items())
