"""Memories as files: what a store exports anyone can verify, and any other store takes in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE, MemoryRecord

from kvnet.errors import BadSignature, KvnetError, MalformedFile, StateCorrupt, StoreFull
from kvnet.files.reader import MemoryFile
from kvnet.files.writer import write_memory_file
from kvnet.identity.seal import seal_head
from kvnet.types import Compression, RawMemory, Scheme
from tests.builders import (
    INT8,
    MAP_ID,
    RECEIVER,
    SENDER,
    make_basis,
    make_head,
    make_memory,
    make_port,
    wire_chunks,
)
from tests.kvnetd.nodes import AT, making
from tests.kvnetd.stores import import_file

MEMORY = make_memory()
MEMORIES = {
    "raw": MEMORY,
    "int8": make_memory(coding=INT8, derived_from=MEMORY.header.id),
    "compact with attention": make_memory(coding=make_basis()[0], attention_heads=4),
    "coordinates of a port": make_memory(coding=make_port()[0], derived_from=MEMORY.header.id),
}
each_memory = pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)


@pytest.fixture
def elsewhere(tmp_path: Path) -> MemoryStore:
    """Another node's store."""
    return MemoryStore(tmp_path / "elsewhere")


def written(path: Path, memory: RawMemory = MEMORY) -> Path:
    """A file that SENDER made."""
    write_memory_file(path, make_head(memory).sealed, wire_chunks(memory)[1])
    return path


def exported(store: MemoryStore, record: MemoryRecord, path: Path) -> Path:
    path.write_bytes(b"".join(store.export(record)))
    return path


@each_memory
@pytest.mark.parametrize("wanted", Compression)
def test_exported_file_verifies_under_the_key_of_this_node(
    memories: MemoryStore, tmp_path: Path, memory: RawMemory, wanted: Compression
) -> None:
    used = MAP_ID if memory.header.coding.scheme is Scheme.PORT else ""
    made = making(wanted, domain="law", topic="torts", language_hint="en", alignment=used)
    record = memories.put(memory, made, RECEIVER)
    with MemoryFile.open(exported(memories, record, tmp_path / "file")) as file:
        file.verify()
        assert (file.memory_id, file.header.memory) == (memory.header.id, memory.header)
        assert tuple(bytes(file.raw(i)) for i in range(len(memory.chunks))) == memory.chunks
        assert (file.header.signed_by, file.header.created_by) == (RECEIVER.node_id, "alice")
        assert (file.header.compression, file.header.created_at) == (wanted, AT)
        assert file.header.w_matrix_reference == used
        told = file.header.metadata
        assert (told.domain, told.topic, told.language_hint) == ("law", "torts", "en")
        assert file.head.file_nbytes == (tmp_path / "file").stat().st_size


@each_memory
def test_file_goes_through_a_store_and_comes_out_byte_for_byte(
    memories: MemoryStore, elsewhere: MemoryStore, tmp_path: Path, memory: RawMemory
) -> None:
    path = written(tmp_path / "file", memory)
    record = import_file(memories, path)
    assert (record.id, record.origin, record.stored_at) == (memory.header.id, SENDER.node_id, AT)
    assert memories.load(record) == memory
    again = exported(memories, MemoryStore(memories.root).find(record.id), tmp_path / "again")
    third = import_file(elsewhere, again)
    assert exported(elsewhere, third, tmp_path / "third").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("at", [0, 5, 9, 100, 1000, -64, -1])
def test_altered_file_is_refused_and_leaves_nothing(memories: MemoryStore, tmp_path: Path, at: int) -> None:
    path = written(tmp_path / "file")
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(KvnetError) as refused:
        import_file(memories, path)
    assert refused.value.code in ("malformed_file", "unsupported_format", "bad_signature")
    assert (list(memories.root.iterdir()), memories.all(), memories.damaged) == ([], (), {})


def test_file_whose_sections_were_altered_is_refused_and_leaves_nothing(
    memories: MemoryStore, tmp_path: Path
) -> None:
    path = written(tmp_path / "file")
    data = bytearray(path.read_bytes())
    for at in range(len(make_head(MEMORY).sealed.body), len(data) - 64, 97):
        data[at] ^= 0x80
        path.write_bytes(data)
        with pytest.raises(BadSignature):
            import_file(memories, path)
        data[at] ^= 0x80
    assert list(memories.root.iterdir()) == []


def test_file_of_other_contents_than_its_id_says_is_refused(memories: MemoryStore, tmp_path: Path) -> None:
    """Signed and whole, but a lie: the content digest is that of another memory."""
    liar = replace(MEMORY.header, content_digest=make_memory(1).header.content_digest)
    head = replace(make_head(MEMORY).header, memory=liar, repeated=None)
    path = tmp_path / "file"
    write_memory_file(path, seal_head(SENDER, head), wire_chunks(MEMORY)[1])
    with pytest.raises(BadSignature, match="contentDigest"):
        import_file(memories, path)
    assert list(memories.root.iterdir()) == []


def test_file_cut_short_is_refused_and_leaves_nothing(memories: MemoryStore, tmp_path: Path) -> None:
    path = written(tmp_path / "file")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises((MalformedFile, BadSignature)):
        import_file(memories, path)
    assert list(memories.root.iterdir()) == []


def test_import_without_room_is_refused_and_leaves_nothing(
    memories: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "file")
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: 1)
    with pytest.raises(StoreFull, match="forget some"):
        import_file(memories, path)
    assert list(memories.root.iterdir()) == []


def test_imported_copy_gives_way_to_no_whole_one_and_replaces_a_damaged_one(
    memories: MemoryStore, tmp_path: Path
) -> None:
    path = written(tmp_path / "file")
    mine = memories.put(MEMORY, making(), RECEIVER)
    assert import_file(memories, path) is mine
    sections = memories.root / mine.id / SECTIONS_FILE
    sections.write_bytes(bytes(sections.stat().st_size))
    found = import_file(memories, path)
    assert (found.id, found.origin, memories.damaged) == (mine.id, SENDER.node_id, {})
    assert memories.load(found) == MEMORY


def test_damaged_section_is_never_exported(memories: MemoryStore) -> None:
    record = memories.put(MEMORY, making(), RECEIVER)
    sections = memories.root / record.id / SECTIONS_FILE
    data = bytearray(sections.read_bytes())
    data[-1] ^= 1
    sections.write_bytes(data)
    pieces = memories.export(record)
    with pytest.raises(StateCorrupt, match="not what was stored"):
        for _ in pieces:
            pass


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((Compression.NONE, 0), (Compression.ZSTD, 0)),
        ((Compression.ZSTD, 0), (Compression.ZSTD, 19)),
        ((Compression.SPLIT, 0), (Compression.LZ4, 0)),
    ],
)
def test_memory_made_here_is_written_again_in_another_compression(
    memories: MemoryStore, first: tuple[Compression, int], second: tuple[Compression, int]
) -> None:
    before = memories.put(MEMORY, making(first[0], level=first[1]), RECEIVER)
    after = memories.put(MEMORY, making(second[0], level=second[1]), RECEIVER)
    assert after.id == before.id
    assert (after.head.compression, after.head.compression_level) != (
        before.head.compression,
        before.head.compression_level,
    )
    for store in (memories, MemoryStore(memories.root)):
        assert store.all() == (after,)
        assert store.load(after) == MEMORY


@pytest.mark.parametrize("level", [0, 3])
def test_memory_made_again_in_the_same_compression_is_the_one_that_is_here(
    memories: MemoryStore, level: int
) -> None:
    before = memories.put(MEMORY, making(Compression.ZSTD), RECEIVER)
    assert memories.put(MEMORY, making(Compression.ZSTD, level=level), RECEIVER) is before


def test_memory_of_another_node_keeps_its_makers_seal_whatever_is_made_here(
    memories: MemoryStore, tmp_path: Path
) -> None:
    path = written(tmp_path / "file")
    record = import_file(memories, path)
    assert memories.put(MEMORY, making(Compression.ZSTD, level=19), RECEIVER) is record
    assert exported(memories, record, tmp_path / "again").read_bytes() == path.read_bytes()


def test_encoding_is_known_as_one_while_its_source_is_here(memories: MemoryStore) -> None:
    source = memories.put(MEMORY, making(), RECEIVER)
    encoding = memories.put(MEMORIES["int8"], making(in_passing=True), RECEIVER)
    assert memories.encodings_of(source.id) == (encoding,)
    assert (memories.is_encoding(source), memories.is_encoding(encoding)) == (False, True)
    memories.forget(source.id)
    assert not memories.is_encoding(encoding)


def test_coding_that_is_asked_for_later_is_a_memory_of_its_own_from_then_on(memories: MemoryStore) -> None:
    source = memories.put(MEMORY, making(), RECEIVER)
    memories.put(MEMORIES["int8"], making(in_passing=True), RECEIVER)
    asked_for = memories.put(MEMORIES["int8"], making(), RECEIVER)
    assert memories.put(MEMORIES["int8"], making(in_passing=True), RECEIVER) == asked_for
    for store in (memories, MemoryStore(memories.root)):
        assert not store.is_encoding(store.get(asked_for.id))
        assert store.encodings_of(source.id) == ()


def test_file_that_this_node_signed_itself_comes_home(memories: MemoryStore, tmp_path: Path) -> None:
    made = memories.put(MEMORY, making(), RECEIVER)
    path = exported(memories, made, tmp_path / "file")
    memories.forget(made.id)
    assert import_file(memories, path).origin == ""
    memories.forget(made.id)
    assert import_file(memories, path, own=SENDER.node_id).origin == RECEIVER.node_id


def test_encoding_that_came_from_elsewhere_is_a_memory_of_its_own(
    memories: MemoryStore, tmp_path: Path
) -> None:
    source = memories.put(MEMORY, making(), RECEIVER)
    received = import_file(memories, written(tmp_path / "file", MEMORIES["int8"]))
    assert received.header.derived_from == source.id
    assert memories.encodings_of(source.id) == ()
    assert not memories.is_encoding(received)
