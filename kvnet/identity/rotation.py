"""A node's new key, signed for by its old one. Knows keys and bytes; no sockets, no trust list.

The statement is signed twice: by the old key, which is trusted, and by the new one, so that nobody can make
a key of another node its own. Whoever holds a stolen key can make one too: a key that was stolen is revoked,
and its node paired again. Source: FORMAT.md §14.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from kvnet.errors import MalformedMessage, ReplayedMessage, RequestError
from kvnet.format import strict_json
from kvnet.identity.keys import NodeKey, node_id_of, public_key_of, short_id
from kvnet.identity.signing import SignedMessage, sign_message, verify_message
from kvnet.types import NodeId, canonical_json, to_plain

MAX_STATEMENT_NBYTES: Final = 4096
CLOCK_SKEW_S: Final = 300


@dataclass(frozen=True, slots=True)
class Rotation:
    """From one id to another, at a time by the clock of the node (seconds since 1970, UTC)."""

    TYPE: ClassVar[str] = "kvnet/rotation/v1"

    old: NodeId
    new: NodeId
    rotated_at: int


@dataclass(frozen=True, slots=True)
class _Statement:
    """The document: what is signed, as text, and both signatures in hexadecimal."""

    body: str
    signed_by_old: str
    signed_by_new: str


def make_statement(old: NodeKey, new: NodeKey, *, rotated_at: int) -> bytes:
    """The document that tells peers of `old` to trust `new` in its place."""
    body = canonical_json(to_plain(Rotation(old.node_id, new.node_id, rotated_at)))
    signatures = [sign_message(key, Rotation.TYPE, body).signature.hex() for key in (old, new)]
    return canonical_json(to_plain(_Statement(body.decode(), *signatures)))


def verify_statement(data: bytes) -> Rotation:
    """What both keys have signed.

    Raises MalformedMessage for what is no statement, BadSignature where one of the two did not sign it.
    """
    what = "key rotation"
    statement = strict_json.decode(_Statement, data, what=what, max_nbytes=MAX_STATEMENT_NBYTES)
    body = statement.body.encode()
    said = strict_json.decode(Rotation, body, what=what, max_nbytes=MAX_STATEMENT_NBYTES)
    if said.old == said.new:
        raise MalformedMessage(f"{what}: from a key to itself")
    for node_id, signature in ((said.old, statement.signed_by_old), (said.new, statement.signed_by_new)):
        public = _public(node_id)
        try:
            sealed = SignedMessage(Rotation.TYPE, body, public, bytes.fromhex(signature))
        except ValueError as exc:
            raise MalformedMessage(f"{what}: a signature is not hexadecimal") from exc
        verify_message(sealed, type_=Rotation.TYPE, signer=public, max_nbytes=MAX_STATEMENT_NBYTES)
    return said


def require_after(rotation: Rotation, *, trusted_since: int) -> None:
    """That a statement is no older than the trust it is shown to, but for clocks. Raises ReplayedMessage.

    Else one of long ago would count again for a node that was removed and added with its former key.
    """
    if rotation.rotated_at + CLOCK_SKEW_S < trusted_since:
        raise ReplayedMessage(
            f"key rotation of {short_id(rotation.old)}: was made before this node came to trust that key; "
            "pair again"
        )


def _public(node_id: str) -> bytes:
    try:
        public = public_key_of(node_id)
    except RequestError as exc:
        raise MalformedMessage(f"key rotation: {node_id!r:.60} is no node id") from exc
    if node_id_of(public) != node_id:
        raise MalformedMessage(f"key rotation: {node_id!r:.60} is not spelt as a node id is")
    return public
