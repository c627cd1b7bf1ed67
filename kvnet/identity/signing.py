"""Sign and verify control messages and chunks. Knows bytes and keys; no tensors, no gRPC.

Only `verify_message` makes a VerifiedMessage and only `verify_chunk` makes a VerifiedChunk; what
decodes or stores accepts nothing else. A signature says who, never harmless.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import InitVar, dataclass
from typing import Final

from kvnet.errors import BadSignature, MalformedChunk, MalformedMessage, ReplayedMessage
from kvnet.format.envelope import Envelope
from kvnet.identity.keys import NodeKey, node_id_of, verify_signature
from kvnet.types import NodeId, chunk_digest

_MESSAGE_DOMAIN: Final = b"kvnet/message/v1\0"
_WITNESS: Final = object()

MAX_BODY_NBYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """A control message as it came: nothing checked."""

    type: str
    body: bytes
    signer: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedMessage:
    """A control message whose signature holds. Made by `verify_message` alone."""

    type: str
    body: bytes
    signer: NodeId
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("VerifiedMessage is made by verify_message")

    @property
    def digest(self) -> bytes:
        """SHA-256 of the body: how later messages refer to this one."""
        return hashlib.sha256(self.body).digest()


@dataclass(frozen=True, slots=True)
class SignedChunk:
    """A chunk as it came: nothing checked."""

    envelope: bytes
    signature: bytes
    payload: bytes | memoryview


@dataclass(frozen=True, slots=True)
class VerifiedChunk:
    """A chunk that its sender signed for this very transfer. Made by `verify_chunk` alone."""

    envelope: Envelope
    signed: SignedChunk
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("VerifiedChunk is made by verify_chunk")


@dataclass(frozen=True, slots=True)
class ChunkBinding:
    """What every chunk of one transfer must be bound to."""

    sender_key: bytes
    receiver_key: bytes
    transfer_id: bytes
    nonce: bytes
    offer_digest: bytes


def sign_message(key: NodeKey, type_: str, body: bytes) -> SignedMessage:
    """Sign a control message: domain, type and body, each with its length (as DSSE's PAE)."""
    return SignedMessage(type_, body, key.public, key.sign(_pae(type_, body)))


def verify_message(
    message: SignedMessage, *, type_: str, signer: bytes | None = None, max_nbytes: int = MAX_BODY_NBYTES
) -> VerifiedMessage:
    """Check type, length and signature; with `signer`, that this key and no other made it.

    Raises MalformedMessage for another type or a longer body, BadSignature for another key or other bytes.
    """
    if message.type != type_:
        raise MalformedMessage(f"expected a {type_} message, got {message.type!r:.40}")
    if len(message.body) > max_nbytes:
        raise MalformedMessage(f"{type_}: {len(message.body)} bytes, at most {max_nbytes} are read")
    if signer is not None and message.signer != signer:
        raise BadSignature(f"{type_}: signed by another key than the peer's; dial the node you meant")
    if not verify_signature(message.signer, _pae(message.type, message.body), message.signature):
        raise BadSignature(f"{type_}: the signature does not match the message; it was altered on the way")
    return VerifiedMessage(message.type, message.body, node_id_of(message.signer), _WITNESS)


def sign_chunk(key: NodeKey, envelope: Envelope, payload: bytes | memoryview) -> SignedChunk:
    """Sign the envelope; the payload is covered by the digest in it."""
    packed = envelope.pack()
    return SignedChunk(packed, key.sign(packed), payload)


def verify_chunk(chunk: SignedChunk, binding: ChunkBinding) -> VerifiedChunk:
    """Check a chunk's size, binding, signature and digest, in that order, before anything decodes it.

    Raises MalformedChunk, ReplayedMessage or BadSignature. Source: FORMAT.md §4.
    """
    envelope = Envelope.unpack(chunk.envelope)
    if len(chunk.payload) != envelope.wire_nbytes:
        raise MalformedChunk(
            f"chunk {envelope.key.index}: {len(chunk.payload)} payload bytes, "
            f"its envelope says {envelope.wire_nbytes}"
        )
    if envelope.sender_key != binding.sender_key:
        raise BadSignature(f"chunk {envelope.key.index}: sent under another key than the offer's")
    if envelope.receiver_key != binding.receiver_key:
        raise ReplayedMessage(f"chunk {envelope.key.index}: made for another receiver")
    if envelope.transfer_id != binding.transfer_id or envelope.offer_digest != binding.offer_digest:
        raise ReplayedMessage(f"chunk {envelope.key.index}: belongs to another transfer")
    if envelope.nonce != binding.nonce:
        raise ReplayedMessage(f"chunk {envelope.key.index}: made for an earlier attempt at this transfer")
    if not verify_signature(binding.sender_key, chunk.envelope, chunk.signature):
        raise BadSignature(f"chunk {envelope.key.index}: the signature does not match its envelope")
    if chunk_digest(chunk.payload) != envelope.wire_digest:
        raise BadSignature(f"chunk {envelope.key.index}: the payload is not what was signed")
    return VerifiedChunk(envelope, chunk, _WITNESS)


def _pae(type_: str, body: bytes) -> bytes:
    name = type_.encode()
    return _MESSAGE_DOMAIN + struct.pack("<I", len(name)) + name + struct.pack("<Q", len(body)) + body
