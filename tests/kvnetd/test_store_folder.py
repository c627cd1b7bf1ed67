"""A store's folder is opened by a kvnet that knows it, with the key it was sealed with, or left alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from kvnetd.store.folder import STORE_FILE, STORE_VERSION, open_folder

from kvnet.errors import StateCorrupt


@pytest.fixture
def store(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "identity" / "vault.key"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_first_opening_makes_a_key_for_this_user_only_and_the_next_finds_it(
    store: Path, key_file: Path
) -> None:
    first = open_folder(store, key_file, seals=True)
    assert key_file.stat().st_mode & 0o777 == 0o600
    frame = first.seal(b"data", what="x")
    again = open_folder(store, key_file, seals=False)
    assert (again.open(frame, what="x"), again.seals) == (b"data", False)


def test_folder_of_an_older_version_is_refused_and_left_untouched(store: Path, key_file: Path) -> None:
    text = json.dumps({"version": STORE_VERSION - 1, "vault": "00" * 16})
    (store / STORE_FILE).write_text(text)
    key_file.parent.mkdir(exist_ok=True)
    key_file.write_bytes(b"k" * 32)
    with pytest.raises(StateCorrupt, match=r"a store of version 2, this kvnet reads 3; move it away"):
        open_folder(store, key_file, seals=True)
    assert (store / STORE_FILE).read_text() == text


def test_folder_of_a_newer_version_is_refused_and_left_untouched(store: Path, key_file: Path) -> None:
    (store / STORE_FILE).write_text(json.dumps({"version": STORE_VERSION + 1, "shape": "of the future"}))
    before = contents(store.parent)
    with pytest.raises(StateCorrupt, match="install the newer kvnet"):
        open_folder(store, key_file, seals=True)
    assert contents(store.parent) == before


def test_missing_key_is_refused_and_no_new_one_is_made(store: Path, key_file: Path) -> None:
    open_folder(store, key_file, seals=True)
    key_file.unlink()
    with pytest.raises(StateCorrupt, match=r"vault\.key: is missing.*restore it"):
        open_folder(store, key_file, seals=True)
    assert not key_file.exists()


def test_another_key_is_refused(store: Path, key_file: Path) -> None:
    open_folder(store, key_file, seals=True)
    key_file.write_bytes(b"o" * 32)
    with pytest.raises(StateCorrupt, match="is not the key"):
        open_folder(store, key_file, seals=True)


def test_key_that_others_can_read_is_refused(store: Path, key_file: Path) -> None:
    open_folder(store, key_file, seals=True)
    key_file.chmod(0o640)
    with pytest.raises(StateCorrupt, match="mode 0640"):
        open_folder(store, key_file, seals=True)


def test_key_of_another_length_is_refused(store: Path, key_file: Path) -> None:
    open_folder(store, key_file, seals=True)
    key_file.write_bytes(b"short")
    with pytest.raises(StateCorrupt, match="5 bytes, a key has 32"):
        open_folder(store, key_file, seals=True)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"version":3}', b'{"version":"2","vault":"a"}', b"\xff"]
)
def test_garbage_is_refused_and_left_untouched(store: Path, key_file: Path, data: bytes) -> None:
    open_folder(store, key_file, seals=True)
    (store / STORE_FILE).write_bytes(data)
    before = contents(store.parent)
    with pytest.raises(StateCorrupt, match=r"store\.json"):
        open_folder(store, key_file, seals=True)
    assert contents(store.parent) == before
