"""doctor --repair: every digest is looked at, what is damaged is set aside, what is in clear is sealed."""

from __future__ import annotations

import errno
import os
from contextlib import aclosing
from pathlib import Path

import pytest
from kvnetd.actions.repair import repair
from kvnetd.actions.status import status
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import HEAD_FILE, SECTIONS_FILE, MemoryRecord
from kvnetd.store.repair import lies_in_clear, seal_memory, set_aside
from kvnetd.store.sections import sections_place
from kvnetd.store.texts import attach_text, attached_text
from kvnetd.store.vault import KEY_NBYTES, Vault

from kvnet.api import Progress, RepairReport
from kvnet.errors import StateCorrupt, UnknownMemory
from tests.builders import RECEIVER, make_memory
from tests.kvnetd.nodes import making

TEXT = "kept beside it"


async def repaired(services: Services) -> tuple[list[Progress], RepairReport]:
    async with aclosing(repair(services)) as steps:
        *progress, report = [step async for step in steps]
    assert isinstance(report, RepairReport)
    return [step for step in progress if isinstance(step, Progress)], report


def put(memories: MemoryStore, seed: int) -> MemoryRecord:
    return memories.put(make_memory(seed), making(), RECEIVER)


def in_clear(services: Services, seed: int) -> MemoryRecord:
    """A memory as an earlier kvnet stored it, with its text."""
    before = MemoryStore(services.memories.root, Vault.in_clear())
    record = put(before, seed)
    attach_text(before, record.header, TEXT)
    services.memories._records[record.id] = record
    return record


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_store_that_is_whole_is_left_as_it_is(services: Services) -> None:
    records = [put(services.memories, seed) for seed in range(3)]
    before = {path: path.read_bytes() for path in services.memories.root.rglob("*") if path.is_file()}
    progress, report = await repaired(services)
    assert progress == [Progress(1, 3), Progress(2, 3), Progress(3, 3)]
    assert (report.checked, report.sections, report.repaired, report.problems) == (3, 18, (), ())
    assert report.nbytes == sum(record.head.sections_nbytes for record in records)
    assert {path: path.read_bytes() for path in before} == before


async def test_damaged_memory_is_set_aside_whole_and_the_others_stay(services: Services) -> None:
    bad, good = (put(services.memories, seed) for seed in range(2))
    services.ledger.name("notes", bad.id)
    flip(sections_place(services.memories.root / bad.id))
    damaged = sections_place(services.memories.root / bad.id).read_bytes()
    _, report = await repaired(services)
    (done,) = report.repaired
    assert (done.memory, done.done) == (bad.id, "set aside")
    assert sections_place(Path(done.path)).read_bytes() == damaged
    assert [record.id for record in services.memories.all()] == [good.id]
    assert services.memories.damaged == {}
    assert services.ledger.memory_named("notes") == bad.id
    assert put(services.memories, 0).id == bad.id  # made again, it takes its place and name


async def test_memory_whose_head_is_gone_is_set_aside_too_and_twice_under_two_names(
    services: Services,
) -> None:
    places = []
    for _ in range(2):
        record = put(services.memories, 0)
        (services.memories.root / record.id / HEAD_FILE).unlink()
        services.memories.dismiss(record.id)
        services.memories.damaged[record.id] = "no head"
        _, report = await repaired(services)
        places += [done.path for done in report.repaired]
    assert len(set(places)) == 2
    assert all(sections_place(Path(place)).exists() for place in places)


async def test_memory_in_clear_is_sealed_with_its_text_and_stays_what_it_was(services: Services) -> None:
    record = in_clear(services, 0)
    assert (await status(services)).unsealed == 1
    _, report = await repaired(services)
    assert [(done.memory, done.done) for done in report.repaired] == [(record.id, "sealed")]
    folder = services.memories.root / record.id
    assert not lies_in_clear(services.memories, record.id)
    assert not any(TEXT.encode() in path.read_bytes() for path in folder.iterdir())
    for store in (services.memories, MemoryStore(services.memories.root, services.memories.vault)):
        assert store.load(record) == make_memory(0)
        assert attached_text(store, record.header) == TEXT
    assert (await status(services)).unsealed == 0


async def test_damaged_memory_in_clear_is_set_aside_and_not_sealed(services: Services) -> None:
    record = in_clear(services, 0)
    flip(services.memories.root / record.id / SECTIONS_FILE)
    _, report = await repaired(services)
    assert [(done.memory, done.done) for done in report.repaired] == [(record.id, "set aside")]
    assert (Path(report.repaired[0].path) / SECTIONS_FILE).exists()


def test_sealing_that_fails_leaves_the_memory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clear = MemoryStore(tmp_path / "memories", Vault.in_clear())
    record = put(clear, 0)
    store = MemoryStore(clear.root, Vault(b"k" * KEY_NBYTES))

    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", broken)
        with pytest.raises(OSError, match="Input"):
            seal_memory(store, record)
    assert [entry.name for entry in store.root.iterdir()] == [record.id]
    assert store.load(record) == make_memory(0)


def test_memory_that_is_gone_cannot_be_set_aside(tmp_path: Path) -> None:
    store = MemoryStore(tmp_path / "memories")
    with pytest.raises(UnknownMemory):
        set_aside(store, "mem_x")


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES])
async def test_memory_that_cannot_be_looked_at_just_now_is_left_alone(
    services: Services, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    record, opened = put(services.memories, 0), os.open

    def refused(path: Path, *arguments: int) -> int:
        if record.id in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr("kvnetd.store.sections.os.open", refused)
        _, report = await repaired(services)
        with pytest.raises(StateCorrupt):
            services.memories.load(record)
    assert [done.done for done in report.repaired] == ["left alone"]
    assert services.memories.damaged == {}
    assert services.memories.load(record) == make_memory(0)


async def test_memory_that_is_whole_again_by_now_is_not_set_aside(services: Services) -> None:
    record = put(services.memories, 0)
    services.memories.damaged[record.id] = "was so when it was looked at"
    assert set_aside(services.memories, record.id) is None
    assert services.memories.damaged == {}
    assert services.memories.load(record) == make_memory(0)


async def test_memory_that_is_forgotten_meanwhile_does_not_end_the_repair(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [put(services.memories, seed) for seed in range(2)]
    for record in records:
        flip(sections_place(services.memories.root / record.id))
    first = True

    def forgetting(memories: MemoryStore, memory: str) -> Path | None:
        nonlocal first
        if first:
            memories.forget(records[0].id)
        first = False
        return set_aside(memories, memory)

    monkeypatch.setattr("kvnetd.actions.repair.set_aside", forgetting)
    _, report = await repaired(services)
    assert sorted(done.done for done in report.repaired) == ["left alone", "set aside"]
