"""Calibrations by digest, and notes on models: whole, or as good as not there."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvnetd.store.bases import BasisStore
from kvnetd.store.models import ModelNotes

from kvnet.errors import StateCorrupt, StoreFull, UnknownBasis

UNKNOWN = "sha256:" + "0" * 64


def path_of(bases: BasisStore, digest: str) -> Path:
    return bases.root / f"{digest.removeprefix('sha256:')}.safetensors"


@given(data=st.binary(max_size=300))
def test_get_is_the_inverse_of_put(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    bases = BasisStore(tmp_path_factory.mktemp("bases"))
    digest = bases.put(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert bases.put(data) == digest
    for store in (bases, BasisStore(bases.root)):
        assert store.get(digest) == store.require(digest) == data
    assert len(list(bases.root.iterdir())) == 1


def test_basis_that_is_not_here_is_unknown(bases: BasisStore) -> None:
    assert bases.get(UNKNOWN) is None
    with pytest.raises(UnknownBasis, match="import the memory's package") as refused:
        bases.require(UNKNOWN)
    assert refused.value.code == "unknown_basis"


@pytest.mark.parametrize(
    "digest",
    [
        "",
        "sha256:",
        "0" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "A" * 64,
        "sha256:../../secret",
        UNKNOWN + "/..",
    ],
)
def test_no_digest_from_outside_becomes_a_path(bases: BasisStore, digest: str) -> None:
    (bases.root.parent / "secret.safetensors").write_bytes(b"")
    with pytest.raises(UnknownBasis, match="not a sha256 digest"):
        bases.get(digest)


def test_damaged_basis_is_as_good_as_not_here_and_can_come_again(bases: BasisStore) -> None:
    digest = bases.put(b"basis")
    path_of(bases, digest).write_bytes(b"basiz")
    assert bases.get(digest) is None
    assert list(bases.root.iterdir()) == []
    bases.put(b"basis")
    assert bases.get(digest) == b"basis"


def test_damaged_basis_is_mended_by_having_it_again(bases: BasisStore) -> None:
    digest = bases.put(b"basis")
    path_of(bases, digest).write_bytes(b"basi")
    assert bases.put(b"basis") == digest
    assert bases.get(digest) == b"basis"


def test_basis_without_room_is_refused(bases: BasisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnetd.store.disk.free_nbytes", lambda folder: 4)
    with pytest.raises(StoreFull, match="needs 5 bytes"):
        bases.put(b"basis")
    assert list(bases.root.iterdir()) == []


@pytest.fixture
def notes(tmp_path: Path) -> ModelNotes:
    return ModelNotes(tmp_path / "store" / "models.json")


def test_notes_are_kept_by_model_and_name(notes: ModelNotes, tmp_path: Path) -> None:
    assert notes.get("sha256:a") == {}
    notes.note("sha256:a", basis="sha256:1")
    notes.note("sha256:b", basis="sha256:2")
    notes.note("sha256:a", auto={"choice": {"preset": "int4", "kl": 0.5}})
    notes.note("sha256:b", basis="sha256:3")
    for found in (notes, ModelNotes(tmp_path / "store" / "models.json")):
        assert found.get("sha256:a") == {
            "basis": "sha256:1",
            "auto": {"choice": {"preset": "int4", "kl": 0.5}},
        }
        assert found.get("sha256:b") == {"basis": "sha256:3"}


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"a":NaN}', b'{"a":{},"a":{}}'])
def test_damaged_notes_are_told_and_left_alone(notes: ModelNotes, tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "store" / "models.json"
    path.write_bytes(data)
    for act in (lambda: notes.get("sha256:a"), lambda: notes.note("sha256:a", basis="")):
        with pytest.raises(StateCorrupt, match="remove it"):
            act()
    assert path.read_bytes() == data
