"""Damage to memories at rest: named, refused, and mended by having the memory again."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import HEAD_FILE, LOCAL_FILE, SECTIONS_FILE, SIGNATURE_FILE, MemoryRecord
from kvnetd.store.spool import Spool

from kvnet.errors import StateCorrupt, UnknownMemory
from kvnet.types import Compression
from tests.builders import RECEIVER, SENDER, make_head, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import AT, making
from tests.kvnetd.stores import put, reopened

MEMORY = make_memory()


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
    fresh = memories.put(make_memory(), making(wanted, at="2027-01-01"), RECEIVER)
    assert (fresh.id, fresh.stored_at, memories.damaged) == (record.id, "2027-01-01", {})
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
        found = incoming.finish(memories, arrival.head, stored_at=AT)
        assert (found.id, found.origin) == (mine.id, origin)
        assert memories.load(memories.get(mine.id)) == MEMORY
        assert list(spool.root.iterdir()) == []


Change = Callable[[Path], object]


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Change:
    """A file of a stored memory with other bytes."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def renoted(change: Callable[[dict[str, Any]], object]) -> Change:
    """Other notes in `local.json`."""

    def act(folder: Path) -> None:
        plain = json.loads((folder / LOCAL_FILE).read_text())
        change(plain)
        (folder / LOCAL_FILE).write_text(json.dumps(plain))

    return act


def swap_head(folder: Path) -> None:
    """A good head under a good signature, of another memory."""
    sealed = make_head(make_memory(1)).sealed
    (folder / HEAD_FILE).write_bytes(sealed.body)
    (folder / SIGNATURE_FILE).write_bytes(sealed.signature)


DAMAGE: dict[str, tuple[Change, str]] = {
    "head with another word": (rewrite(HEAD_FILE, lambda d: d.replace(b'"alice"', b'"mabel"')), "signed"),
    "head cut short": (rewrite(HEAD_FILE, lambda d: d[:-1]), "head"),
    "head of nothing": (rewrite(HEAD_FILE, lambda d: b""), "head"),
    "head of noise": (rewrite(HEAD_FILE, lambda d: bytes(100)), "head"),
    "head of a newer version": (rewrite(HEAD_FILE, lambda d: d[:4] + b"\4\0" + d[6:]), "version 4"),
    "head that is gone": (lambda folder: (folder / HEAD_FILE).unlink(), "cannot be read"),
    "head of another memory": (swap_head, "does not describe the memory"),
    "signature of zeros": (rewrite(SIGNATURE_FILE, lambda d: bytes(64)), "signed"),
    "signature cut short": (rewrite(SIGNATURE_FILE, lambda d: d[:-1]), "signed"),
    "signature that is gone": (lambda folder: (folder / SIGNATURE_FILE).unlink(), "cannot be read"),
    "notes of noise": (rewrite(LOCAL_FILE, lambda d: bytes(100)), LOCAL_FILE),
    "notes cut short": (rewrite(LOCAL_FILE, lambda d: d[:-1]), LOCAL_FILE),
    "notes that are gone": (lambda folder: (folder / LOCAL_FILE).unlink(), "cannot be read"),
    "notes of a newer version": (renoted(lambda plain: plain.update(version=2)), "version 2"),
    "notes with an unknown field": (renoted(lambda plain: plain.update(surprise=1)), "surprise"),
    "notes without an origin": (renoted(lambda plain: plain.pop("origin")), "origin"),
    "notes with a step that is none": (renoted(lambda plain: plain.update(steps=[{"step": 1}])), "step"),
}


@pytest.mark.parametrize(("change", "why"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_record_is_named_and_the_others_are_read(
    memories: MemoryStore, change: Change, why: str
) -> None:
    healthy, damaged = put(memories, 1), put(memories)
    change(memories.root / damaged.id)
    store = reopened(memories)
    assert store.all() == (healthy,)
    assert list(store.damaged) == [damaged.id]
    assert why in store.damaged[damaged.id]
    with pytest.raises(StateCorrupt, match=damaged.id):
        store.find(damaged.id)
    with pytest.raises(UnknownMemory):  # a peer learns nothing of it
        store.get(damaged.id)


@pytest.mark.parametrize(("change", "why"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_memory_is_mended_by_having_it_again(memories: MemoryStore, change: Change, why: str) -> None:
    record = put(memories)
    change(memories.root / record.id)
    store = reopened(memories)
    assert why in store.damaged[record.id]
    put(store)
    assert store.damaged == {}
    assert reopened(store).load(record) == MEMORY


def test_head_that_is_damaged_while_the_node_runs_is_not_exported(memories: MemoryStore) -> None:
    record = put(memories)
    DAMAGE["signature of zeros"][0](memories.root / record.id)
    with pytest.raises(StateCorrupt, match=HEAD_FILE):
        list(memories.export(record))


def test_stray_entries_are_damaged_and_left_alone(memories: MemoryStore) -> None:
    (memories.root / "stray").write_text("mine")
    (memories.root / "folder").mkdir()
    assert set(reopened(memories).damaged) == {"stray", "folder"}
    assert (memories.root / "stray").read_text() == "mine"


def test_a_bad_sector_makes_a_copy_damaged_and_a_fresh_one_replaces_it(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put(memories)

    def bad_sector(*args: Any) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.store.sections.os.pread", bad_sector)
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
        patched.setattr("kvnetd.store.sections.os.pread", lambda *args: b"")
        with pytest.raises(StateCorrupt):
            memories.load(record)
    assert set(memories.damaged) == {record.id}
    memories.load(record)
    assert memories.damaged == {}


def test_damaged_memory_goes_by_the_start_of_its_id(memories: MemoryStore) -> None:
    record = put(memories)
    DAMAGE["head of noise"][0](memories.root / record.id)
    store = reopened(memories)
    assert store.resolve(record.id[:16]) == record.id
    with pytest.raises(StateCorrupt, match=record.id):
        store.find(record.id[:16])
    store.forget(store.resolve(record.id[:16]))
    assert list(store.root.iterdir()) == []
