"""Memories at rest: whole or absent, and read back only when every digest agrees."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.store.memories import HEADER_FILE, SECTIONS_FILE, MemoryRecord, MemoryStore
from kvnetd.store.spool import Spool

from kvnet.errors import RequestError, StateCorrupt, StoreFull, UnknownMemory
from kvnet.types import Compression, MemoryId
from tests.builders import SENDER, make_memory
from tests.kvnetd.conftest import Arrival

MEMORY = make_memory()
AT = "2026-01-01T00:00:00Z"


def put(memories: MemoryStore, seed: int = 0, *, at: str = AT) -> MemoryRecord:
    """Store the memory made from `seed`."""
    return memories.put(make_memory(seed), wanted=Compression.LZ4, created_at=at)


def reopened(memories: MemoryStore) -> MemoryStore:
    """The same folder after a restart."""
    return MemoryStore(memories.root)


@pytest.mark.parametrize("wanted", Compression)
def test_memory_is_read_back_as_it_was_even_after_a_restart(
    memories: MemoryStore, wanted: Compression
) -> None:
    record = memories.put(MEMORY, wanted=wanted, created_at=AT)
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
        memories.put(broken, wanted=Compression.NONE, created_at=AT)
    assert list(memories.root.iterdir()) == []


@pytest.mark.parametrize("where", [0, 100, -1])
def test_flipped_byte_on_disk_is_refused_when_read(memories: MemoryStore, where: int) -> None:
    record = put(memories)
    path = memories.root / record.id / SECTIONS_FILE
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateCorrupt, match="not what was stored"):
        reopened(memories).load(record)


def test_sections_cut_short_or_missing_are_refused_when_read(memories: MemoryStore) -> None:
    record = put(memories)
    path = memories.root / record.id / SECTIONS_FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StateCorrupt, match="not what was stored"):
        memories.load(record)
    path.unlink()
    with pytest.raises(StateCorrupt, match="cannot be read"):
        memories.load(record)


def flip(memories: MemoryStore, record: MemoryRecord) -> None:
    """One bit of the stored sections."""
    path = memories.root / record.id / SECTIONS_FILE
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("is_known_damaged", [False, True])
@pytest.mark.parametrize("wanted", Compression)
def test_damaged_copy_gives_way_to_a_fresh_one_that_is_put(
    memories: MemoryStore, is_known_damaged: bool, wanted: Compression
) -> None:
    record = put(memories)
    flip(memories, record)
    if is_known_damaged:
        with pytest.raises(StateCorrupt):
            memories.load(record)
        assert list(memories.damaged) == [record.id]
    fresh = memories.put(make_memory(), wanted=wanted, created_at="2027-01-01")
    assert (fresh.id, fresh.created_at, memories.damaged) == (record.id, "2027-01-01", {})
    for store in (memories, reopened(memories)):
        assert store.load(store.get(fresh.id)) == MEMORY


def test_damaged_copy_gives_way_to_a_fresh_one_that_arrives_and_a_whole_one_stays(
    memories: MemoryStore, spool: Spool, arrival: Arrival
) -> None:
    mine = put(memories)
    for is_damaged, origin in ((False, ""), (True, SENDER.node_id)):
        if is_damaged:
            flip(memories, mine)
        incoming = spool.open(arrival.offer, arrival.sealed)
        incoming.store(arrival.chunks)
        found = incoming.finish(memories, created_at=AT)
        assert (found.id, found.origin) == (mine.id, origin)
        assert memories.load(memories.get(mine.id)) == MEMORY
        assert list(spool.root.iterdir()) == []


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


def rewrite(memories: MemoryStore, change: Callable[[dict[str, Any]], None]) -> MemoryRecord:
    """A stored memory whose record on disk was changed."""
    record = put(memories)
    path = memories.root / record.id / HEADER_FILE
    plain = json.loads(path.read_text())
    change(plain)
    path.write_text(json.dumps(plain))
    return record


DAMAGE: dict[str, Callable[[dict[str, Any]], None]] = {
    "newer version": lambda plain: plain.update(version=2),
    "unknown field": lambda plain: plain.update(surprise=1),
    "another header": lambda plain: plain["header"].update(seq_len=6),
    "missing section": lambda plain: plain["sections"].pop(),
    "unknown compression": lambda plain: plain["sections"][0].update(compression=9),
    "digest that is no hex": lambda plain: plain["sections"][0].update(wire_digest="zz"),
    "huge section": lambda plain: plain["sections"][0].update(wire_nbytes=2**62),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_damaged_record_is_named_and_the_others_are_read(
    memories: MemoryStore, change: Callable[[dict[str, Any]], None]
) -> None:
    healthy = put(memories, 1)
    damaged = rewrite(memories, change)
    store = reopened(memories)
    assert store.all() == (healthy,)
    assert list(store.damaged) == [damaged.id]
    with pytest.raises(StateCorrupt, match=damaged.id):
        store.find(damaged.id)


@pytest.mark.parametrize("text", ["", "\x00" * 100, "{"])
def test_record_of_noise_is_damaged(memories: MemoryStore, text: str) -> None:
    record = put(memories)
    (memories.root / record.id / HEADER_FILE).write_text(text)
    assert list(reopened(memories).damaged) == [record.id]


def test_stray_entries_are_damaged_and_left_alone(memories: MemoryStore) -> None:
    (memories.root / "stray").write_text("mine")
    (memories.root / "folder").mkdir()
    assert set(reopened(memories).damaged) == {"stray", "folder"}
    assert (memories.root / "stray").read_text() == "mine"


def test_damaged_memory_is_mended_by_having_it_again(memories: MemoryStore) -> None:
    record = rewrite(memories, DAMAGE["unknown field"])
    store = reopened(memories)
    put(store)
    assert store.damaged == {}
    assert reopened(store).load(record) == MEMORY


def test_a_bad_sector_makes_a_copy_damaged_and_a_fresh_one_replaces_it(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put(memories)

    def bad_sector(*args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.store.memories.os.pread", bad_sector)
        with pytest.raises(StateCorrupt, match="cannot be read"):
            memories.load(record)
        assert set(memories.damaged) == {record.id}
        put(memories)
    assert memories.load(memories.find(record.id)) == make_memory(0)
    assert memories.damaged == {}


def test_a_memory_that_reads_well_again_is_no_longer_damaged(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put(memories)
    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.store.memories.os.pread", lambda *args: b"")
        with pytest.raises(StateCorrupt):
            memories.load(record)
    assert set(memories.damaged) == {record.id}
    memories.load(record)
    assert memories.damaged == {}


def test_damaged_memory_goes_by_the_start_of_its_id(memories: MemoryStore) -> None:
    record = put(memories)
    (memories.root / record.id / HEADER_FILE).write_text("{")
    store = reopened(memories)
    assert store.resolve(record.id[:16]) == record.id
    with pytest.raises(StateCorrupt, match=record.id):
        store.find(record.id[:16])
    store.forget(store.resolve(record.id[:16]))
    assert list(store.root.iterdir()) == []


def test_memory_whose_folder_was_removed_by_hand_is_forgotten_too(memories: MemoryStore) -> None:
    record = put(memories)
    shutil.rmtree(memories.root / record.id)
    with pytest.raises(UnknownMemory, match="removed meanwhile"):
        memories.forget(record.id)
    assert memories.all() == ()
