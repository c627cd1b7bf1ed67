"""Maps and ports at rest: found by what they lead from and to, whole or passed over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.bases import BasisStore

from kvnet.errors import MalformedFile, RequestError, StateCorrupt, StoreFull, UnknownAlignment
from kvnet.files.alignments import VerifiedAlignment, read_alignment
from kvnet.model.reference.catalog import packaged_alignments
from kvnet.model.reference.signer import PACKAGED_SIGNER, packaged_key
from kvnet.types import sha256_hex
from tests.builders import SENDER, STRANGER
from tests.files.alignment_files import (
    GATE,
    RECEIVER_MODEL,
    SOURCE,
    make_map_file,
    make_port_file,
    other_model,
)

LATER = "2024-02-01T00:00:00Z"


@pytest.fixture
def store(tmp_path: Path) -> AlignmentStore:
    return AlignmentStore(tmp_path / "alignments")


def a_map(**changes: object) -> VerifiedAlignment:
    return read_alignment(make_map_file(**changes))  # type: ignore[arg-type]


def a_port(**changes: object) -> VerifiedAlignment:
    return read_alignment(make_port_file(**changes))  # type: ignore[arg-type]


def path_of(store: AlignmentStore, name: str) -> Path:
    return store.root / f"{name}.safetensors"


def break_numbers(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_what_is_put_is_found_and_loaded_also_after_a_restart(store: AlignmentStore) -> None:
    found = a_map()
    record = store.put(found)
    assert record.id == found.manifest.id
    for one in (store, AlignmentStore(store.root)):
        loaded = one.load(one.find(record.id[:12]))
        assert (loaded.encoded, loaded.manifest) == (found.encoded, found.manifest)
        assert one.find_map(SOURCE, RECEIVER_MODEL) == record
        assert not one.damaged
    assert path_of(store, record.id).stat().st_mode & 0o077 == 0


def test_the_same_map_twice_is_one_whoever_signed_it(store: AlignmentStore) -> None:
    first = store.put(a_map())
    assert store.put(a_map(key=STRANGER)) == first
    assert first.signer == SENDER.node_id
    assert len(store.all()) == 1


def test_an_id_that_is_not_here_is_unknown(store: AlignmentStore) -> None:
    record = store.put(a_map())
    for wanted in ("", "map_", record.id[:7], record.id + "a", "../secret", "port_aaaaaaaa"):
        with pytest.raises(UnknownAlignment, match="kvnet align ls"):
            store.find(wanted)


def test_a_start_of_several_ids_is_refused(store: AlignmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        store.put(a_map(seed=seed))
    monkeypatch.setattr("kvnetd.store.alignments._MIN_PREFIX_CHARS", 4)
    with pytest.raises(RequestError, match="2 ids start so"):
        store.find("map_")


def test_the_newest_admitted_map_is_chosen(store: AlignmentStore) -> None:
    old, new = store.put(a_map()), store.put(a_map(created_at=LATER))
    assert store.find_map(SOURCE, RECEIVER_MODEL) == new
    assert store.maps_to(RECEIVER_MODEL) == (new, old)
    assert store.all() == (old, new)


def test_a_map_is_of_its_two_models_and_of_one_direction(store: AlignmentStore) -> None:
    store.put(a_map())
    other = other_model("other")
    assert store.find_map(RECEIVER_MODEL, SOURCE) is None
    assert store.find_map(other, RECEIVER_MODEL) is None
    assert store.find_map(SOURCE, other) is None
    assert store.maps_to(SOURCE) == ()


def test_a_map_that_was_not_admitted_is_kept_but_never_chosen(store: AlignmentStore) -> None:
    refused = store.put(a_map(created_at=LATER, gate=replace(GATE, admitted=False)))
    assert store.find_map(SOURCE, RECEIVER_MODEL) is None
    assert store.find(refused.id) == refused
    admitted = store.put(a_map())
    assert store.find_map(SOURCE, RECEIVER_MODEL) == admitted


def test_a_map_without_its_port_is_never_chosen(store: AlignmentStore) -> None:
    port = a_port()
    ending = store.put(a_map(port=port.manifest.id))
    assert store.lacks_port(ending.manifest)
    assert store.find_map(SOURCE, RECEIVER_MODEL) is None
    store.put(port)
    assert not store.lacks_port(ending.manifest)
    assert store.find_map(SOURCE, RECEIVER_MODEL) == ending


def test_the_newest_port_of_a_model_is_found(store: AlignmentStore) -> None:
    assert store.find_port(RECEIVER_MODEL) is None
    store.put(a_map())
    store.put(a_port(created_at=LATER, receiver=other_model("other")))
    new, _ = store.put(a_port(created_at=LATER)), store.put(a_port())
    assert store.find_port(RECEIVER_MODEL) == new


@pytest.mark.parametrize("data", [b"", b"junk" * 10, make_map_file()[:-1], make_map_file(seed=5)])
def test_a_file_that_cannot_be_read_is_told_and_passed_over(store: AlignmentStore, data: bytes) -> None:
    whole, broken = store.put(a_map()), store.put(a_map(created_at=LATER))
    path_of(store, broken.id).write_bytes(data)
    again = AlignmentStore(store.root)
    assert again.all() == (whole,)
    assert list(again.damaged) == [broken.id]
    assert again.find_map(SOURCE, RECEIVER_MODEL) == whole
    with pytest.raises(StateCorrupt, match=broken.id):
        again.find(broken.id)
    assert path_of(store, broken.id).read_bytes() == data
    assert again.remove(broken.id[:12]) == broken.id
    assert not again.damaged
    assert not path_of(store, broken.id).exists()


def test_altered_numbers_are_told_when_they_are_loaded_and_passed_over_then(store: AlignmentStore) -> None:
    old, new = store.put(a_map()), store.put(a_map(created_at=LATER))
    break_numbers(path_of(store, new.id))
    again = AlignmentStore(store.root)
    assert again.find_map(SOURCE, RECEIVER_MODEL) == new
    with pytest.raises(StateCorrupt, match="kvnet align rm"):
        again.load(new)
    assert again.find_map(SOURCE, RECEIVER_MODEL) == old
    assert list(again.damaged) == [new.id]


def test_a_damaged_map_is_mended_by_having_it_again(store: AlignmentStore) -> None:
    record = store.put(a_map())
    break_numbers(path_of(store, record.id))
    assert store.put(a_map()) == record
    assert store.load(record).encoded == a_map().encoded
    path_of(store, record.id).write_bytes(b"")
    again = AlignmentStore(store.root)
    again.put(a_map())
    assert not again.damaged
    assert again.load(again.find(record.id)).manifest == record.manifest


def test_what_is_no_map_of_ours_is_left_alone_and_half_a_file_goes(store: AlignmentStore) -> None:
    (store.root / "notes.txt").write_text("mine", encoding="utf-8")
    (store.root / "map_x.safetensors.new").write_bytes(b"half")
    (store.root / "folder.safetensors").mkdir()
    again = AlignmentStore(store.root)
    assert list(again.damaged) == ["folder"]
    assert sorted(path.name for path in store.root.iterdir()) == ["folder.safetensors", "notes.txt"]


def test_a_map_without_room_is_refused(store: AlignmentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: 4)
    with pytest.raises(StoreFull, match="the store has room for 4"):
        store.put(a_map())
    assert list(store.root.iterdir()) == []
    assert store.all() == ()


def test_what_was_removed_is_gone_after_a_restart_too(store: AlignmentStore) -> None:
    record = store.put(a_map())
    assert store.remove(record.id) == record.id
    for one in (store, AlignmentStore(store.root)):
        assert one.all() == ()
    with pytest.raises(StateCorrupt, match="cannot be read"):
        store.load(record)


# What comes with kvnet


@pytest.fixture
def packaged(tmp_path: Path) -> list[Path]:
    """A packaged map, signed as such."""
    (tmp_path / "maps").mkdir()
    path = tmp_path / "maps" / "a-to-b.safetensors"
    path.write_bytes(make_map_file(key=packaged_key()))
    return [path]


def test_what_comes_with_kvnet_is_found_and_stays(store: AlignmentStore, packaged: list[Path]) -> None:
    found = AlignmentStore(store.root, packaged)
    record = found.find_map(SOURCE, RECEIVER_MODEL)
    assert record is not None
    assert (record.packaged, record.signer) == (True, PACKAGED_SIGNER)
    assert found.is_packaged(record.id)
    assert found.load(record).encoded == packaged[0].read_bytes()
    assert found.put(a_map()) == record  # here already
    with pytest.raises(RequestError, match="came with kvnet and cannot be removed"):
        found.remove(record.id)
    assert list(store.root.iterdir()) == []


def test_packaged_file_that_is_damaged_is_told_and_passed_over(
    store: AlignmentStore, packaged: list[Path]
) -> None:
    break_numbers(packaged[0])
    found = AlignmentStore(store.root, packaged)
    record = found.find_map(SOURCE, RECEIVER_MODEL)
    assert record is not None
    with pytest.raises(StateCorrupt, match="install kvnet again"):
        found.load(record)
    assert found.find_map(SOURCE, RECEIVER_MODEL) is None
    packaged[0].write_bytes(b"")
    assert list(AlignmentStore(store.root, packaged).damaged) == ["a-to-b"]


def test_packaged_key_is_the_one_whose_public_half_is_known() -> None:
    assert packaged_key().node_id == PACKAGED_SIGNER


def test_every_packaged_map_and_port_is_whole_and_signed_as_such(tmp_path: Path) -> None:
    store = AlignmentStore(tmp_path, packaged_alignments())
    assert not store.damaged
    for record in store.all():
        assert store.load(record).signer == PACKAGED_SIGNER


def test_file_of_a_port_is_found_by_its_digest(store: AlignmentStore) -> None:
    port = a_port()
    store.put(port)
    assert store.port_file(port.digest) == bytes(port.encoded)
    assert store.port_file(sha256_hex(b"another")) is None


def test_port_that_lies_among_alignments_need_not_be_sent(store: AlignmentStore, tmp_path: Path) -> None:
    port = a_port()
    bases = BasisStore(tmp_path / "bases", store.port_file)
    assert bases.get(port.digest) is None
    store.put(port)
    assert bases.get(port.digest) == bytes(port.encoded)


def test_map_of_another_never_displaces_the_own_however_much_newer_it_says_it_is(tmp_path: Path) -> None:
    store = AlignmentStore(tmp_path / "alignments", own=[SENDER.node_id])
    own = store.put(a_map())
    store.put(a_map(key=STRANGER, created_at=LATER))
    found = store.find_map(SOURCE, RECEIVER_MODEL)
    assert found is not None
    assert found.id == own.id
    port = store.put(a_port())
    store.put(a_port(key=STRANGER, created_at=LATER))
    assert store.find_port(RECEIVER_MODEL) == port


def test_what_says_it_was_made_later_than_now_is_refused(store: AlignmentStore) -> None:
    """Else it would stay the newest for ever."""

    def at(ahead_s: int) -> str:
        return (datetime.now(UTC) + timedelta(seconds=ahead_s)).strftime("%Y-%m-%dT%H:%M:%SZ")

    for late in (a_map(created_at=at(400)), a_port(created_at="2999-01-01T00:00:00Z")):
        with pytest.raises(MalformedFile, match=f"{late.manifest.id}: says it was made at .*set the clocks"):
            store.put(late)
    assert list(store.root.iterdir()) == []
    assert store.put(a_map(created_at=at(200))).id
