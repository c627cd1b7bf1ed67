"""Memories at rest: whole or absent, and read back only when every digest agrees."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE

from kvnet.errors import RequestError, StoreFull, UnknownMemory
from kvnet.types import Compression, MemoryId, RawMemory
from tests.builders import INT8, RECEIVER, make_basis, make_memory
from tests.kvnetd.nodes import making
from tests.kvnetd.stores import put, reopened

MEMORY = make_memory()


CODED = {
    "int8": make_memory(coding=INT8),
    "compact": make_memory(coding=make_basis()[0]),
    "with attention": make_memory(attention_heads=4),
    "int8 with attention": make_memory(coding=INT8, attention_heads=4, derived_from=MEMORY.header.id),
}


@pytest.mark.parametrize("memory", CODED.values(), ids=CODED)
@pytest.mark.parametrize("wanted", Compression)
def test_memory_of_any_coding_is_read_back_as_it_was(
    memories: MemoryStore, memory: RawMemory, wanted: Compression
) -> None:
    record = memories.put(memory, making(wanted), RECEIVER)
    assert reopened(memories).load(record) == memory


@pytest.mark.parametrize("wanted", Compression)
def test_memory_is_read_back_as_it_was_even_after_a_restart(
    memories: MemoryStore, wanted: Compression
) -> None:
    record = memories.put(MEMORY, making(wanted), RECEIVER)
    for store in (memories, reopened(memories)):
        assert store.find(MEMORY.header.id) == record
        assert store.load(record) == MEMORY
        assert store.all() == (record,)
        assert store.nbytes == (store.root / record.id / SECTIONS_FILE).stat().st_size


def test_same_contents_again_change_nothing(memories: MemoryStore) -> None:
    first = put(memories)
    assert put(memories, at="2027-01-01T00:00:00Z") is first
    assert len(list(memories.root.iterdir())) == 1


def test_memories_are_listed_oldest_first(memories: MemoryStore) -> None:
    late, early = put(memories, 1, at="2026-02-01"), put(memories, 2, at="2026-01-01")
    assert memories.all() == reopened(memories).all() == (early, late)


def test_forgotten_memory_is_gone_from_disk(memories: MemoryStore) -> None:
    record = put(memories)
    memories.forget(record.id)
    assert list(memories.root.iterdir()) == []
    with pytest.raises(UnknownMemory):
        memories.find(record.id)


def test_memory_is_found_by_the_start_of_its_id(memories: MemoryStore) -> None:
    record = put(memories)
    assert memories.find(record.id[:8]) == record
    for wanted in (record.id[:7], "mem_", "", "mem_" + "a" * 52):
        with pytest.raises(UnknownMemory):
            memories.find(wanted)


def test_start_of_several_ids_is_refused(memories: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    record = put(memories)
    twin = MemoryId(record.id[:-1] + "_")
    monkeypatch.setitem(memories._records, twin, record)
    with pytest.raises(RequestError, match="2 ids"):
        memories.find(record.id[:10])


def test_no_name_from_outside_becomes_a_path(memories: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    for wanted in ("../outside", "/etc/passwd", "..", "mem_/../../outside", "\0"):
        with pytest.raises(UnknownMemory):
            memories.find(wanted)


def test_what_never_finished_is_cleared_at_the_start(memories: MemoryStore) -> None:
    record = put(memories)
    for name in (".mem_x.new", ".mem_y.gone"):
        (memories.root / name).mkdir()
        (memories.root / name / SECTIONS_FILE).write_bytes(b"half")
    assert [folder.name for folder in reopened(memories).root.iterdir()] == [record.id]


def test_store_without_room_refuses_before_it_writes(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: MEMORY.header.raw_nbytes - 1)
    with pytest.raises(StoreFull, match="forget some"):
        put(memories)
    assert list(memories.root.iterdir()) == []


def test_failure_in_the_middle_leaves_nothing(memories: MemoryStore) -> None:
    broken = replace(MEMORY, chunks=(*MEMORY.chunks[:3], None, *MEMORY.chunks[4:]))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        memories.put(broken, making(), RECEIVER)
    assert list(memories.root.iterdir()) == []


def test_memory_that_is_asked_for_by_a_peer_is_named_in_full(memories: MemoryStore) -> None:
    record = put(memories)
    assert memories.get(record.id) == record
    for wanted in (record.id[:-1], record.id + "a", record.id.upper(), "", "../" + record.id):
        with pytest.raises(UnknownMemory) as refused:
            memories.get(MemoryId(wanted))
        assert refused.value.message == "no such memory here"


def test_stray_file_can_be_forgotten(memories: MemoryStore) -> None:
    (memories.root / "stray").write_text("mine")
    store = reopened(memories)
    store.forget(MemoryId("stray"))
    assert (store.damaged, list(store.root.iterdir())) == ({}, [])


def test_forgetting_what_is_not_there_is_refused(memories: MemoryStore) -> None:
    with pytest.raises(UnknownMemory, match="removed meanwhile"):
        memories.forget(MEMORY.header.id)
    record = put(memories)
    memories.forget(record.id)
    with pytest.raises(UnknownMemory, match="removed meanwhile"):
        memories.load(record)


def test_memory_whose_folder_was_removed_by_hand_is_forgotten_too(memories: MemoryStore) -> None:
    record = put(memories)
    shutil.rmtree(memories.root / record.id)
    with pytest.raises(UnknownMemory, match="removed meanwhile"):
        memories.forget(record.id)
    assert memories.all() == ()
