"""list and forget: memories that cannot be read any more are shown as such, and can go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.actions import memories
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import HEAD_FILE, MemoryRecord
from kvnetd.store.sections import sections_place

from kvnet.api import MemoryInfo
from kvnet.errors import StateCorrupt, UnknownMemory
from tests.builders import INT8, make_memory
from tests.kvnetd.nodes import making


@pytest.fixture
def records(services: Services) -> list[MemoryRecord]:
    """Three memories, the first two with a name."""
    found = [services.memories.put(make_memory(seed), making(), services.key) for seed in range(3)]
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
    (folder(services, records[0]) / HEAD_FILE).write_bytes(b"AWKG")
    sections = sections_place(folder(services, records[1]))
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
    assert HEAD_FILE in infos[1].problem
    assert "these bytes were changed" in infos[2].problem


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


@pytest.fixture
def encodings(services: Services, records: list[MemoryRecord]) -> list[MemoryRecord]:
    """Two codings of the first memory: one made in passing, and one that somebody gave a name."""
    found = [
        services.memories.put(
            make_memory(coding=replace(INT8, key_bits=bits), derived_from=records[0].id),
            making(in_passing=True),
            services.key,
        )
        for bits in (8, 4)
    ]
    services.ledger.name("small", found[1].id)
    return found


def ids(infos: tuple[MemoryInfo, ...]) -> set[str]:
    return {info.id for info in infos}


async def test_coding_that_was_made_in_passing_is_listed_only_when_asked_for(
    services: Services, records: list[MemoryRecord], encodings: list[MemoryRecord]
) -> None:
    own = {record.id for record in records}
    assert ids(await memories.list_memories(services)) == own | {encodings[1].id}
    every = await memories.list_memories(services, encodings=True)
    assert ids(every) == own | {record.id for record in encodings}
    told = {info.id: (info.codec, info.name) for info in every}
    assert told[records[2].id] == ("exact", "")
    assert told[encodings[1].id] == ("k4v8g8", "small")
    sizes = {info.id: info.stored_nbytes for info in every}
    assert sizes[encodings[0].id] == encodings[0].head.sections_nbytes
    assert sum(sizes.values()) == services.memories.nbytes


async def test_coding_that_was_made_in_passing_goes_with_its_source_and_a_named_one_stays(
    services: Services, records: list[MemoryRecord], encodings: list[MemoryRecord]
) -> None:
    await memories.forget(services, "first")
    left = {records[1].id, records[2].id, encodings[1].id}
    assert {record.id for record in services.memories.all()} == left
    assert ids(await memories.list_memories(services)) == left
    assert not folder(services, encodings[0]).exists()


async def test_forgetting_a_coding_leaves_its_source(
    services: Services, records: list[MemoryRecord], encodings: list[MemoryRecord]
) -> None:
    await memories.forget(services, encodings[0].id)
    assert {r.id for r in services.memories.all()} == {encodings[1].id, *(r.id for r in records)}


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
