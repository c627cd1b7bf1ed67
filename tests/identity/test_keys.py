"""The private key stays private, and a node id means one key."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import RequestError, StateCorrupt
from kvnet.identity.keys import (
    SHORT_ID_CHARS,
    NodeKey,
    grouped,
    node_id_of,
    public_key_of,
    short_id,
    verify_signature,
)
from tests.builders import SENDER, STRANGER

public_keys = st.binary(min_size=32, max_size=32)
LOW_ORDER_KEYS = [bytes(32), b"\x01" + bytes(31), b"\xff" * 32]


def write_key(path: Path, seed: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(seed)
    path.chmod(mode)
    return path


def test_new_key_file_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "identity" / "node.key"
    before = os.umask(0)
    try:
        NodeKey.load_or_create(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_key_is_the_same_after_a_restart_and_never_twice(tmp_path: Path) -> None:
    first = NodeKey.load_or_create(tmp_path / "a.key")
    assert NodeKey.load_or_create(tmp_path / "a.key").public == first.public
    assert NodeKey.load_or_create(tmp_path / "b.key").public != first.public
    assert NodeKey.generate().public != NodeKey.generate().public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o666, 0o610])
def test_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = write_key(tmp_path / "node.key", b"s" * 32, mode)
    with pytest.raises(StateCorrupt, match=f"{mode:04o}.*chmod 600"):
        NodeKey.load_or_create(path)
    assert path.read_bytes() == b"s" * 32


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_key_of_another_size_is_refused_and_left_untouched(tmp_path: Path, size: int) -> None:
    path = write_key(tmp_path / "node.key", b"s" * size)
    with pytest.raises(StateCorrupt, match=f"{size} bytes"):
        NodeKey.load_or_create(path)
    assert path.read_bytes() == b"s" * size


def test_key_object_shows_no_seed() -> None:
    assert "01" * 32 not in repr(SENDER) + str(SENDER)
    assert not hasattr(SENDER, "__dict__")


@given(public_keys)
def test_public_key_of_is_the_inverse_of_node_id_of(public: bytes) -> None:
    node_id = node_id_of(public)
    assert public_key_of(node_id) == public
    assert len(node_id) == 52
    assert short_id(node_id) == node_id[:SHORT_ID_CHARS]


@given(public_keys)
def test_node_id_in_groups_capitals_or_with_blanks_is_accepted(public: bytes) -> None:
    node_id = node_id_of(public)
    assert [len(group) for group in grouped(node_id).split("-")] == [13] * 4
    for written in (grouped(node_id), node_id.upper(), grouped(node_id).replace("-", " ")):
        assert public_key_of(written) == public


@pytest.mark.parametrize(
    "text",
    ["", "alice", SENDER.node_id[:-1], SENDER.node_id + "a", "1" * 52, "a" * 51 + "b", "é" * 52, "ß" * 26],
)
def test_text_that_names_no_key_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="base32"):
        public_key_of(text)


@given(st.binary(max_size=100))
def test_own_signature_verifies(message: bytes) -> None:
    assert verify_signature(SENDER.public, message, SENDER.sign(message))


def test_other_key_message_or_signature_does_not_verify() -> None:
    signature = SENDER.sign(b"message")
    assert not verify_signature(STRANGER.public, b"message", signature)
    assert not verify_signature(SENDER.public, b"Message", signature)
    for bit in range(8 * len(signature)):
        flipped = bytearray(signature)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify_signature(SENDER.public, b"message", bytes(flipped))


@pytest.mark.parametrize("public", [b"", b"k" * 31, b"k" * 33])
def test_key_of_another_size_never_verifies(public: bytes) -> None:
    assert not verify_signature(public, b"message", SENDER.sign(b"message"))


@pytest.mark.parametrize("signature", [b"", b"s" * 63, b"s" * 65, b"s" * 1000])
def test_signature_of_another_size_never_verifies(signature: bytes) -> None:
    assert not verify_signature(SENDER.public, b"message", signature)


@pytest.mark.parametrize("public", LOW_ORDER_KEYS)
def test_weak_key_does_not_verify_a_forged_signature(public: bytes) -> None:
    assert not verify_signature(public, b"message", public + bytes(32))
    assert not verify_signature(public, b"message", bytes(64))
