"""What is sealed opens with its key, whole and as what it was sealed, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kvnetd.store.vault import KEY_NBYTES, SEAL_NBYTES, Vault, place_of

from kvnet.errors import StateCorrupt

VAULT = Vault(b"k" * KEY_NBYTES)


@given(st.binary(max_size=2000), st.text(max_size=8))
def test_what_is_sealed_opens_again_and_is_longer_by_the_seal(data: bytes, what: str) -> None:
    frame = VAULT.seal(data, what=what)
    assert len(frame) == len(data) + SEAL_NBYTES
    assert VAULT.open(frame, what=what) == data


def test_the_same_bytes_are_sealed_differently_each_time() -> None:
    assert VAULT.seal(b"same", what="text") != VAULT.seal(b"same", what="text")


@given(st.integers(min_value=0, max_value=SEAL_NBYTES + 9), st.integers(min_value=0, max_value=7))
def test_flipped_bit_of_a_frame_is_found(at: int, bit: int) -> None:
    frame = bytearray(VAULT.seal(b"0123456789", what="text"))
    frame[at] ^= 1 << bit
    with pytest.raises(StateCorrupt):
        VAULT.open(bytes(frame), what="text")


@pytest.mark.parametrize("nbytes", [0, SEAL_NBYTES - 1, SEAL_NBYTES, SEAL_NBYTES + 9])
def test_frame_that_was_cut_is_found(nbytes: int) -> None:
    with pytest.raises(StateCorrupt):
        VAULT.open(VAULT.seal(b"0123456789", what="text")[:nbytes], what="text")


def test_frame_opens_with_no_other_key_and_as_nothing_else() -> None:
    frame = VAULT.seal(b"data", what="text")
    with pytest.raises(StateCorrupt, match="another key"):
        Vault(b"o" * KEY_NBYTES).open(frame, what="text")
    with pytest.raises(StateCorrupt):
        VAULT.open(frame, what="offer")


def test_key_id_tells_keys_apart_and_is_not_the_key() -> None:
    other = Vault(b"o" * KEY_NBYTES)
    assert VAULT.key_id == Vault(b"k" * KEY_NBYTES, seals=False).key_id != other.key_id
    assert (b"k" * KEY_NBYTES).hex() not in VAULT.key_id


def test_key_of_another_length_is_a_bug() -> None:
    with pytest.raises(ValueError, match="31 bytes"):
        Vault(b"k" * 31)


@pytest.mark.parametrize("seals", [True, False])
def test_file_is_read_back_in_clear_or_sealed(tmp_path: Path, seals: bool) -> None:
    vault, path = Vault(b"k" * KEY_NBYTES, seals=seals), tmp_path / "text.txt"
    place = vault.write(path, b"canary")
    assert place == place_of(path) == (tmp_path / "text.sealed" if seals else path)
    assert (b"canary" in place.read_bytes()) is not seals
    assert place.stat().st_mode & 0o777 == 0o600
    for reader in (vault, VAULT):
        assert reader.read(path) == b"canary"


def test_sealed_file_says_what_to_do_where_its_key_is_not_here(tmp_path: Path) -> None:
    VAULT.write(tmp_path / "text.txt", b"canary")
    with pytest.raises(StateCorrupt, match=r"text\.sealed.*another key"):
        Vault.in_clear().read(tmp_path / "text.txt")
    with pytest.raises(FileNotFoundError):
        VAULT.read(tmp_path / "other.txt")
