"""Key rotation: both keys have signed, for one another, and not long ago."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import BadSignature, MalformedMessage, PeerError, ReplayedMessage
from kvnet.identity.keys import NodeKey, grouped
from kvnet.identity.rotation import (
    CLOCK_SKEW_S,
    Rotation,
    make_statement,
    require_after,
    verify_statement,
)
from kvnet.identity.signing import sign_message
from kvnet.types import NodeId, canonical_json, to_plain
from tests.builders import NOW, RECEIVER, SENDER, STRANGER

STATEMENT = make_statement(SENDER, RECEIVER, rotated_at=NOW)
SAID = Rotation(SENDER.node_id, RECEIVER.node_id, NOW)


def statement(
    said: Rotation, old: NodeKey = SENDER, new: NodeKey = RECEIVER, type_: str = Rotation.TYPE
) -> bytes:
    """A document that says anything, signed by anyone."""
    body = canonical_json(to_plain(said))
    signatures = [sign_message(key, type_, body).signature.hex() for key in (old, new)]
    return canonical_json(
        {"body": body.decode(), "signed_by_old": signatures[0], "signed_by_new": signatures[1]}
    )


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=32, max_size=32), st.integers(0, 2**40))
def test_statement_says_what_was_signed(old: bytes, new: bytes, at: int) -> None:
    keys = NodeKey(old), NodeKey(new)
    if keys[0].node_id != keys[1].node_id:
        said = verify_statement(make_statement(*keys, rotated_at=at))
        assert said == Rotation(keys[0].node_id, keys[1].node_id, at)


@pytest.mark.parametrize(
    ("old", "new"), [(STRANGER, RECEIVER), (SENDER, STRANGER), (RECEIVER, SENDER), (STRANGER, STRANGER)]
)
def test_statement_that_one_of_the_two_did_not_sign_is_refused(old: NodeKey, new: NodeKey) -> None:
    """Not the old one: anybody could take its place. Not the new one: it could be another node's."""
    with pytest.raises(BadSignature):
        verify_statement(statement(SAID, old, new))


def test_signature_of_another_type_of_message_is_none() -> None:
    with pytest.raises(BadSignature):
        verify_statement(statement(SAID, type_="kvnet/receipt/v1"))


@given(st.integers(0, len(STATEMENT) - 1), st.integers(1, 255))
def test_changed_statement_is_refused(place: int, flip: int) -> None:
    changed = bytearray(STATEMENT)
    changed[place] ^= flip
    try:
        said = verify_statement(bytes(changed))
    except PeerError:
        return
    assert said == SAID  # a hexadecimal digit in upper case says the same
    assert bytes(changed).lower() == STATEMENT.lower()


MALFORMED = {
    "empty": b"",
    "no object": b"[]",
    "a field too few": canonical_json({"body": "{}", "signed_by_old": ""}),
    "too long": STATEMENT + b" " * 4096,
    "body is no document": canonical_json({"body": "x", "signed_by_old": "", "signed_by_new": ""}),
    "not hexadecimal": canonical_json(json.loads(STATEMENT) | {"signed_by_new": "x" * 128}),
    "to itself": statement(replace(SAID, new=SENDER.node_id), SENDER, SENDER),
    "no id": statement(replace(SAID, new=NodeId("bob"))),
    "id in groups": statement(replace(SAID, old=NodeId(grouped(SENDER.node_id)))),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        verify_statement(data)


def test_statement_from_before_the_trust_is_refused() -> None:
    require_after(SAID, trusted_since=NOW + CLOCK_SKEW_S)
    with pytest.raises(ReplayedMessage, match="pair again"):
        require_after(SAID, trusted_since=NOW + CLOCK_SKEW_S + 1)
