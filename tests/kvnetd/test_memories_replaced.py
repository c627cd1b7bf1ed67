"""A memory that is written anew: the old one stays until the new one is safe, readers see one of them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kvnetd.store import places, texts
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE, MemoryRecord
from kvnetd.store.spool import Spool
from kvnetd.store.texts import attach_text

from kvnet.errors import StateCorrupt, TooBusy, UnknownMemory
from kvnet.types import Compression
from tests.builders import INT8, RECEIVER, SENDER, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import making
from tests.kvnetd.stores import begin, finish, import_file, put, reopened
from tests.kvnetd.test_memory_files import written

MEMORY = make_memory()
CODED = make_memory(coding=INT8, derived_from=MEMORY.header.id)


def rewrite(memories: MemoryStore) -> MemoryRecord:
    """MEMORY in another compression: a healthy copy gives way."""
    return memories.put(MEMORY, making(Compression.NONE), RECEIVER)


def test_crash_between_the_two_renames_leaves_the_old_memory(memories: MemoryStore) -> None:
    record = put(memories)
    (memories.root / record.id).rename(memories.root / f".{record.id}.old")
    (memories.root / f".{record.id}.new").mkdir()
    store = reopened(memories)
    assert store.load(store.get(record.id)) == MEMORY
    assert [entry.name for entry in store.root.iterdir()] == [record.id]


def test_crash_after_the_new_one_is_in_place_leaves_the_new_memory(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memories)
    with monkeypatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *args, **kwargs: None)
        fresh = rewrite(memories)
    assert (memories.root / f".{fresh.id}.old").is_dir()
    store = reopened(memories)
    assert store.all() == (fresh,)
    assert [entry.name for entry in store.root.iterdir()] == [fresh.id]


def test_old_memory_is_removed_only_once_the_new_one_is_synced(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(memories)
    seen: list[tuple[str, list[str]]] = []
    sync, discard = places.sync_folder, places._discard

    def listing(what: str, act: Callable[[Path], None]) -> Callable[[Path], None]:
        def acts(path: Path) -> None:
            seen.append((what, sorted(entry.name[-4:] for entry in memories.root.iterdir())))
            act(path)

        return acts

    monkeypatch.setattr(places, "sync_folder", listing("sync", sync))
    monkeypatch.setattr(places, "_discard", listing("discard", discard))
    end = rewrite(memories).id[-4:]
    assert seen[-2:] == [("sync", sorted([".old", end])), ("discard", sorted([".old", end]))]


@pytest.mark.parametrize("failing", ["rename", "sync"])
def test_failed_move_leaves_the_old_memory(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    record = put(memories)
    rename = Path.rename

    def fail_to_rename(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    def fail_to_sync(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        if failing == "rename":
            patched.setattr(Path, "rename", fail_to_rename)
        else:
            patched.setattr(places, "sync_folder", fail_to_sync)
        with pytest.raises(OSError, match="Input/output"):
            rewrite(memories)
    assert [entry.name for entry in memories.root.iterdir()] == [record.id]
    for store in (memories, reopened(memories)):
        assert store.all() == (record,)
        assert store.load(record) == MEMORY


def test_left_over_of_a_removal_is_no_hindrance(memories: MemoryStore) -> None:
    record = put(memories)
    for how in (".old", ".gone"):
        left = memories.root / f".{record.id}{how}"
        left.mkdir()
        (left / SECTIONS_FILE).write_bytes(b"half")
    rewrite(memories)
    memories.forget(record.id)
    assert list(memories.root.iterdir()) == []
    assert reopened(memories).all() == ()


def test_what_is_made_in_passing_never_replaces_what_was_asked_for(memories: MemoryStore) -> None:
    put(memories)
    asked_for = memories.put(CODED, making(Compression.NONE), RECEIVER)
    assert memories.put(CODED, making(Compression.ZSTD, in_passing=True), RECEIVER) is asked_for
    assert reopened(memories).get(asked_for.id) == asked_for


def test_damaged_memory_that_was_asked_for_is_mended_in_passing_and_stays_asked_for(
    memories: MemoryStore,
) -> None:
    put(memories)
    asked_for = memories.put(CODED, making(), RECEIVER)
    path = memories.root / asked_for.id / SECTIONS_FILE
    path.write_bytes(bytes(path.stat().st_size))
    mended = memories.put(CODED, making(in_passing=True), RECEIVER)
    assert memories.load(mended) == CODED
    assert not reopened(memories).is_encoding(mended)


def test_imported_copy_of_what_lies_here_in_passing_is_asked_for_from_then_on(
    memories: MemoryStore, tmp_path: Path
) -> None:
    put(memories)
    memories.put(CODED, making(in_passing=True), RECEIVER)
    assert not import_file(memories, written(tmp_path / "file", CODED)).notes.in_passing
    assert not reopened(memories).get(CODED.header.id).notes.in_passing


def test_arrived_copy_of_what_lies_here_in_passing_is_asked_for_from_then_on(
    memories: MemoryStore, spool: Spool
) -> None:
    put(memories)
    memories.put(CODED, making(in_passing=True), RECEIVER)
    arrival = Arrival(CODED)
    incoming = begin(spool, arrival)
    incoming.store(arrival.chunks)
    assert not incoming.finish(memories, arrival.head, stored_at="2027-01-01").notes.in_passing
    assert not reopened(memories).get(CODED.header.id).notes.in_passing


def test_encoding_whose_source_was_forgotten_meanwhile_is_not_kept(memories: MemoryStore) -> None:
    source = put(memories)
    memories.forget(source.id)
    with pytest.raises(UnknownMemory, match=source.id):
        memories.put(CODED, making(in_passing=True), RECEIVER)
    assert list(memories.root.iterdir()) == []
    assert memories.put(CODED, making(), RECEIVER).id == CODED.header.id


Reader = Callable[[MemoryStore, MemoryRecord], Any]
READERS: dict[str, Reader] = {
    "export": lambda store, record: list(store.export(record)),
    "open": lambda store, record: store.open_stored(record),
    "load": lambda store, record: store.load(record),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_reader_of_a_memory_that_was_written_anew_is_asked_to_try_again(
    memories: MemoryStore, read: Reader
) -> None:
    before = put(memories)
    after = rewrite(memories)
    with pytest.raises(TooBusy, match="written anew meanwhile; try again"):
        read(memories, before)
    assert memories.damaged == {}
    assert b"".join(memories.export(after)).startswith(b"AWKG")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_memory_that_is_written_anew_between_its_sections_and_its_head_is_not_damaged(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch, read: Reader
) -> None:
    record = put(memories)
    opened = MemoryStore._open_sections

    def overtaken(store: MemoryStore, found: MemoryRecord) -> Any:
        sections = opened(store, found)
        monkeypatch.undo()
        rewrite(store)
        return sections

    monkeypatch.setattr(MemoryStore, "_open_sections", overtaken)
    with pytest.raises(TooBusy, match="try again"):
        read(memories, record)
    assert memories.damaged == {}


def test_export_that_has_begun_ends_with_the_bytes_it_began_with(memories: MemoryStore) -> None:
    record = put(memories)
    whole = b"".join(memories.export(record))
    pieces = memories.export(record)
    begun = next(pieces)
    rewrite(memories)
    assert begun + b"".join(pieces) == whole


def test_damage_is_still_told_as_damage(memories: MemoryStore) -> None:
    record = put(memories)
    path = memories.root / record.id / SECTIONS_FILE
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(StateCorrupt, match="not what was stored"):
        list(memories.export(record))


def test_received_memory_says_when_it_was_received(
    spool: Spool, arrival: Arrival, memories: MemoryStore
) -> None:
    finish(spool, arrival, memories)
    (step,) = memories.get(arrival.offer.memory.id).notes.steps
    assert (step.step, step.at) == ("received", "2026-01-01T00:00:00Z")


def test_imported_memory_says_when_it_was_imported(memories: MemoryStore, tmp_path: Path) -> None:
    record = import_file(memories, written(tmp_path / "file"), own=SENDER.node_id)
    (step,) = record.notes.steps
    assert (step.step, step.at) == ("imported", record.stored_at)
    assert reopened(memories).get(record.id) == record


def test_text_that_is_carried_along_is_durable_before_the_folder_that_had_it_is_removed(
    memories: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = put(memories)
    attach_text(memories, record.header, "kept")
    done: list[str] = []
    fsync = os.fsync

    def watched(handle: int) -> None:
        done.append(f"synced {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def noted(name: str, act: Callable[..., None]) -> Callable[..., None]:
        def acted(*arguments: Path) -> None:
            done.append(name)
            act(*arguments)

        return acted

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr("kvnetd.store.memories.carry_text", noted("carried", texts.carry_text))
    monkeypatch.setattr("kvnetd.store.memories.put_in_place", noted("placed", places.put_in_place))
    rewrite(memories)
    fresh = f"synced .{record.id}.new"
    assert fresh in done[done.index("carried") : done.index("placed")]
    assert texts.attached_text(memories, record.header) == "kept"
