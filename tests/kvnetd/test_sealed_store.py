"""Memories at rest are noise without their key, and everything a store does it does with sealed ones too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE, MemoryRecord
from kvnetd.store.sections import SEALED_SECTIONS_FILE, read_section
from kvnetd.store.spool import Spool, folder_name
from kvnetd.store.texts import attach_text, attached_text
from kvnetd.store.upload import Upload
from kvnetd.store.vault import KEY_NBYTES, SEAL_NBYTES, Vault

from kvnet.errors import StateCorrupt
from kvnet.types import Compression, NodeId
from tests.builders import RECEIVER, make_memory
from tests.kvnetd.conftest import Arrival
from tests.kvnetd.nodes import AT, making
from tests.kvnetd.stores import begin, crashed, file_of, held

VAULT = Vault(b"k" * KEY_NBYTES)
CLEAR = Vault(b"k" * KEY_NBYTES, seals=False)
OTHER = Vault(b"o" * KEY_NBYTES)
MEMORY = make_memory(seq_len=64)
TEXT = "the text that nobody without the key may read"


@pytest.fixture
def sealed(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories", VAULT)


@pytest.fixture
def sealed_spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "incoming", BasisStore(tmp_path / "bases"), VAULT)


def put(store: MemoryStore) -> MemoryRecord:
    return store.put(MEMORY, making(Compression.NONE), RECEIVER)


def bytes_under(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def canaries() -> list[bytes]:
    """Thirty bytes of every chunk, and of the text."""
    return [bytes(chunk[:30]) for chunk in MEMORY.chunks] + [TEXT.encode()]


@pytest.mark.parametrize("vault", [CLEAR, VAULT], ids=["clear", "sealed"])
def test_nothing_of_a_memory_or_its_text_is_legible_in_a_sealed_store(tmp_path: Path, vault: Vault) -> None:
    store = MemoryStore(tmp_path / "memories", vault)
    attach_text(store, put(store).header, TEXT)
    on_disk = bytes_under(store.root)
    assert [canary in on_disk for canary in canaries()] == [vault is CLEAR] * len(canaries())


def test_sealed_memory_is_read_back_whole_and_section_by_section(sealed: MemoryStore) -> None:
    record = put(sealed)
    for store in (sealed, MemoryStore(sealed.root, VAULT), MemoryStore(sealed.root, CLEAR)):
        assert store.load(record) == MEMORY
        with store.open_stored(record)[1] as sections:
            for section in reversed(record.head.sections):
                assert read_section(sections, section) == MEMORY.chunks[section.key.index]
    nbytes = (sealed.root / record.id / SEALED_SECTIONS_FILE).stat().st_size
    assert nbytes == sealed.nbytes + SEAL_NBYTES * len(record.head.sections)


def test_memory_in_clear_is_read_by_a_store_that_seals(tmp_path: Path) -> None:
    before = MemoryStore(tmp_path / "memories", CLEAR)
    record = put(before)
    attach_text(before, record.header, TEXT)
    after = MemoryStore(tmp_path / "memories", VAULT)
    assert after.load(record) == MEMORY
    assert attached_text(after, record.header) == TEXT
    assert (after.root / record.id / SECTIONS_FILE).exists()


def test_sealed_memory_is_damaged_to_whoever_has_another_key(sealed: MemoryStore) -> None:
    record = put(sealed)
    stranger = MemoryStore(sealed.root, OTHER)
    with pytest.raises(StateCorrupt, match="another key"):
        stranger.load(record)
    assert "another key" in stranger.damaged[record.id]
    assert not stranger.is_intact(record)


@pytest.mark.parametrize("at", [0, 30, -1])
def test_flipped_bit_of_a_sealed_section_is_found(sealed: MemoryStore, at: int) -> None:
    record = put(sealed)
    path = sealed.root / record.id / SEALED_SECTIONS_FILE
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(StateCorrupt, match="changed"):
        sealed.load(record)


def test_sections_in_one_anothers_place_are_found(sealed: MemoryStore) -> None:
    record = put(sealed)
    path = sealed.root / record.id / SEALED_SECTIONS_FILE
    frame_nbytes = record.head.sections[0].wire_nbytes + SEAL_NBYTES
    data = path.read_bytes()
    path.write_bytes(data[frame_nbytes : 2 * frame_nbytes] + data[:frame_nbytes] + data[2 * frame_nbytes :])
    with pytest.raises(StateCorrupt, match="not what was stored"):
        sealed.load(record)


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4, 5], [3, 5, 0, 1, 4, 2]], ids=["in order", "mixed"])
def test_sealed_arrival_resumes_after_a_crash_and_is_the_senders_file(
    sealed: MemoryStore, sealed_spool: Spool, order: list[int]
) -> None:
    arrival = Arrival(MEMORY)
    folder = crashed(sealed_spool, arrival, order[:2], order[2:4])
    assert not any(bytes(payload[:30]) in bytes_under(folder) for payload in arrival.payloads)
    again = Spool(sealed_spool.root, BasisStore(sealed_spool.root.parent / "bases"), VAULT)
    assert held(again, arrival) == set(order[:4])
    incoming = begin(again, arrival)
    incoming.store([arrival.chunks[index] for index in order[4:]])
    record = incoming.finish(sealed, arrival.head, stored_at=AT)
    assert b"".join(sealed.export(record)) == file_of(arrival)
    assert sealed.load(record) == MEMORY
    assert not (sealed.root / record.id / SECTIONS_FILE).exists()


def test_torn_frame_at_the_end_of_an_arrival_is_dropped_alone(sealed_spool: Spool) -> None:
    arrival = Arrival(MEMORY)
    folder = crashed(sealed_spool, arrival, [0, 1, 2])
    path = folder / SEALED_SECTIONS_FILE
    os.truncate(path, path.stat().st_size - 1)
    assert held(sealed_spool, arrival) == {0, 1}


def test_transfer_begun_in_clear_is_resumed_by_a_store_that_seals(tmp_path: Path) -> None:
    arrival, bases = Arrival(MEMORY), BasisStore(tmp_path / "bases")
    crashed(Spool(tmp_path / "incoming", bases, CLEAR), arrival, [0, 1])
    spool = Spool(tmp_path / "incoming", bases, VAULT)
    assert held(spool, arrival) == {0, 1}
    assert spool.held_nbytes(arrival.offer) == sum(len(payload) for payload in arrival.payloads[:2])


def test_offer_of_an_unfinished_transfer_is_sealed(sealed_spool: Spool) -> None:
    arrival = Arrival(MEMORY)
    folder = crashed(sealed_spool, arrival, [0])
    assert arrival.sealed.body[:60] not in bytes_under(folder)
    assert sealed_spool.knows(arrival.offer, arrival.sealed)
    assert sealed_spool.root / folder_name(arrival.offer) == folder


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
def test_imported_file_is_sealed_whatever_pieces_it_comes_in(sealed: MemoryStore, step: int) -> None:
    data = file_of(Arrival(MEMORY)) if step > 1 else file_of(Arrival(make_memory(seq_len=1)))
    upload = Upload(sealed)
    for start in range(0, len(data), step):
        upload.write(data[start : start + step])
    record = upload.finish(sealed, upload.verify(), own=[NodeId(RECEIVER.node_id)], stored_at=AT)
    upload.discard()
    assert b"".join(sealed.export(record)) == data
    assert (sealed.root / record.id / SEALED_SECTIONS_FILE).exists()
