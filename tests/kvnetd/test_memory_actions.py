"""list and forget: memories that cannot be read any more are shown as such, and can go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.actions import memories
from kvnetd.services import Services
from kvnetd.store.memories import HEADER_FILE, SECTIONS_FILE, MemoryRecord, MemoryStore

from kvnet.api import MemoryInfo
from kvnet.errors import StateCorrupt, UnknownMemory
from kvnet.types import Compression
from tests.builders import make_memory
from tests.kvnetd.nodes import AT


@pytest.fixture
def records(services: Services) -> list[MemoryRecord]:
    """Three memories, the first two with a name."""
    found = [
        services.memories.put(make_memory(seed), wanted=Compression.NONE, created_at=AT) for seed in range(3)
    ]
    services.ledger.name("first", found[0].id)
    services.ledger.name("second", found[1].id)
    return found


def folder(services: Services, record: MemoryRecord) -> Path:
    return services.memories.root / record.id


def restarted(services: Services) -> Services:
    """The same state folder, scanned again."""
    return replace(services, memories=MemoryStore(services.memories.root))


@pytest.fixture
def damaged(services: Services, records: list[MemoryRecord]) -> Services:
    """The first memory has no readable header, the second other bytes than were stored."""
    (folder(services, records[0]) / HEADER_FILE).write_text("{")
    sections = folder(services, records[1]) / SECTIONS_FILE
    sections.write_bytes(bytes(sections.stat().st_size))
    services = restarted(services)
    with pytest.raises(StateCorrupt):
        services.memories.load(records[1])
    return services


def about(infos: tuple[MemoryInfo, ...]) -> list[tuple[str, str, bool, bool]]:
    return [(info.id, info.name, bool(info.problem), info.header is None) for info in infos]


async def test_damaged_memories_are_listed_once_with_their_names_and_what_is_wrong(
    damaged: Services, records: list[MemoryRecord]
) -> None:
    infos = await memories.list_memories(damaged)
    assert about(infos) == [
        (records[2].id, "", False, False),
        (records[0].id, "first", True, True),
        (records[1].id, "second", True, True),
    ]
    assert HEADER_FILE in infos[1].problem
    assert "not what was stored" in infos[2].problem


@pytest.mark.parametrize("by_name", [True, False])
async def test_damaged_memories_can_be_forgotten(
    damaged: Services, records: list[MemoryRecord], by_name: bool
) -> None:
    for record, name in zip(records[:2], ("first", "second"), strict=True):
        gone = await memories.forget(damaged, name if by_name else record.id)
        assert about((gone,)) == [(record.id, name, True, True)]
        assert not folder(damaged, record).exists()
        with pytest.raises(UnknownMemory):
            await memories.forget(damaged, name if by_name else record.id)
    assert about(await memories.list_memories(damaged)) == [(records[2].id, "", False, False)]
    assert damaged.ledger.names() == {}
    assert restarted(damaged).memories.damaged == {}


async def test_whole_memory_is_forgotten_by_name_start_or_id(
    services: Services, records: list[MemoryRecord]
) -> None:
    for record, wanted in zip(records, ("first", records[1].id[:12], records[2].id), strict=True):
        gone = await memories.forget(services, wanted)
        assert (gone.id, gone.problem) == (record.id, "")
    assert await memories.list_memories(services) == ()


async def test_memory_that_is_asked_for_and_cannot_be_read_says_so(
    damaged: Services, records: list[MemoryRecord]
) -> None:
    for wanted in ("first", records[0].id):
        with pytest.raises(StateCorrupt, match=records[0].id):
            await memories.find(damaged, wanted)
    assert len(damaged.memories.damaged) == 2
    with pytest.raises(UnknownMemory):
        await memories.forget(damaged, "../" + records[2].id)
    assert folder(damaged, records[2]).exists()
