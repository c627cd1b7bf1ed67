"""The signed control messages and their bytes. Knows no sockets, no clock, no store.

A body is strict JSON; it is verified and digested as the bytes that came, never re-encoded.
Source: FORMAT.md §2.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar

from kvnet.errors import MalformedMessage, ProtocolMismatch
from kvnet.format import strict_json
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import (
    MAX_BODY_NBYTES,
    SignedMessage,
    VerifiedMessage,
    sign_message,
    verify_message,
)
from kvnet.types import (
    Compression,
    Fingerprint,
    Geometry,
    MemoryHeader,
    MemoryId,
    NodeId,
    Scheme,
    TransferId,
    canonical_json,
)

PROTOCOL_VERSION = 5
MAX_NOTE_CHARS = 2000
MAX_TEXT_NBYTES = 256 << 10
MAX_OFFER_NBYTES = MAX_BODY_NBYTES + 6 * MAX_TEXT_NBYTES  # JSON writes a byte of text in at most six
MAX_HELLO_MAPS = 256
MAX_RELAYED = 64  # receivers to whom one offer is passed on
# Younger than the messages they stand in: a message that does not need one is what it was before.
_UNSAID_IF_EMPTY = frozenset(
    {"codec", "map", "maps", "origin", "relay_to", "start_pos", "text", "wire_digest"}
    | {"behind", "label", "prefill_token_ns", "prefill_us", "prefix_text", "quiet"}
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a node takes from one transfer; stated in its hello, enforced at the offer."""

    max_seq_len: int
    max_transfer_nbytes: int = 4 << 30
    max_layers: int = 512
    max_kv_heads: int = 256
    max_head_dim: int = 1024
    offer_life_s: int = 600
    clock_skew_s: int = 300
    schemes: tuple[str, ...] = tuple(scheme.value for scheme in Scheme)
    compressions: tuple[str, ...] = tuple(choice.name.lower() for choice in Compression)


@dataclass(frozen=True, slots=True)
class HeldMap:
    """A map that a node would use: from the model with this fingerprint digest to the one it hosts."""

    source: str
    id: str


@dataclass(frozen=True, slots=True)
class Hello:
    """Who a node is and what it hosts, bound to the caller's nonce."""

    TYPE: ClassVar[str] = "kvnet/hello/v1"

    protocol: int
    nonce: str
    node_id: NodeId
    name: str
    namespace: str
    fingerprint: Fingerprint
    geometry: Geometry
    limits: Limits
    free_nbytes: int
    maps: tuple[HeldMap, ...] = ()  # those that it would choose first come first
    prefill_us: int = 0  # how long it takes to read a text: so much,
    prefill_token_ns: int = 0  # and so much for each token; 0 where it never measured

    def maps_from(self, source: Fingerprint) -> tuple[str, ...]:
        """Ids of the node's maps from this model to the one it hosts."""
        return tuple(held.id for held in self.maps if held.source == source.digest)


@dataclass(frozen=True, slots=True)
class Offer:
    """What is about to be sent, to whom, and until when.

    `text` is what the memory is of, for a model that cannot use the memory: nothing but the sender's
    signature says that the two belong together. `map` is the id of the map that made a memory's coordinates,
    and empty of a memory in any other coding.

    `relay_to` names further receivers, to whom this one may pass the memory on while it comes. Such a copy is
    no message: its offer names the `origin`, who offers the same memory itself, and takes what the copy left
    out. `wire_digest` says for both which bytes are meant: the chunks digest of the memory without its basis.

    `behind` is the sender's memory of the tokens before this one's. `prefix_text` is a text that begins with
    them: a receiver without a memory of them reads them from it, while the chunks arrive. No message comes of
    what is `quiet`; the receiver lets `label`, under the sender's name, point at what arrived last.
    """

    TYPE: ClassVar[str] = "kvnet/offer/v1"

    transfer_id: TransferId
    memory: MemoryHeader
    sender: NodeId
    receiver: NodeId
    chunk_count: int
    created_at: int
    expires_at: int
    note: str = ""
    sender_agent: str = ""
    agent: str = ""
    text: str = field(default="", repr=False, metadata={"max_chars": MAX_TEXT_NBYTES})
    map: str = ""
    relay_to: tuple[NodeId, ...] = ()
    wire_digest: str = ""
    origin: str = ""  # id, of a copy that is passed on: who sends the message itself
    behind: str = ""
    prefix_text: str = field(default="", repr=False, metadata={"max_chars": MAX_TEXT_NBYTES})
    quiet: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Accept:
    """The receiver's consent: a fresh nonce and the chunks it already holds."""

    TYPE: ClassVar[str] = "kvnet/accept/v1"

    transfer_id: TransferId
    offer_digest: str
    nonce: str
    held: str  # base64 of a bitmap, chunk i at bit i % 8 of byte i // 8


@dataclass(frozen=True, slots=True)
class Commit:
    """The sender's last word: the digest over all chunk digests in order."""

    TYPE: ClassVar[str] = "kvnet/commit/v1"

    transfer_id: TransferId
    offer_digest: str
    nonce: str
    chunks_digest: str


@dataclass(frozen=True, slots=True)
class Receipt:
    """The receiver's proof that it holds the memory, durably."""

    TYPE: ClassVar[str] = "kvnet/receipt/v1"

    transfer_id: TransferId
    offer_digest: str
    chunks_digest: str
    memory: MemoryId
    tier: str
    received_at: int


@dataclass(frozen=True, slots=True)
class PullRequest:
    """Ask a peer to send one of its memories, or what it reads of a text: `memory` is empty then.

    `codec` is the coding that is wished for. Of the text or the memory only what is behind the first
    `start_pos` tokens is sent, which the asking node has.
    """

    TYPE: ClassVar[str] = "kvnet/pull/v1"

    memory: MemoryId
    receiver: NodeId
    sender: NodeId
    created_at: int
    nonce: str
    text: str = field(default="", repr=False, metadata={"max_chars": MAX_TEXT_NBYTES})
    codec: str = ""
    start_pos: int = 0


class Message(Protocol):
    """Any of the dataclasses above."""

    TYPE: ClassVar[str]
    __dataclass_fields__: ClassVar[dict[str, Any]]


M = TypeVar("M", bound=Message)


def require_protocol(protocol: int, *, who: str) -> None:
    """That a node speaks this version of the protocol. Raises ProtocolMismatch, with the field's two values.

    There is one version at a time: a node of an older one would refuse fields that it does not know.
    """
    if protocol != PROTOCOL_VERSION:
        raise ProtocolMismatch(
            f"{who}: protocol {protocol} (needs {PROTOCOL_VERSION}); install the same kvnet on both nodes",
            details={"protocol": [str(protocol), str(PROTOCOL_VERSION)]},
        )


def seal(key: NodeKey, message: Message) -> SignedMessage:
    """Encode and sign."""
    return sign_message(key, message.TYPE, canonical_json(_said(asdict(message))))


def _said(fields: dict[str, Any]) -> dict[str, Any]:
    said = {name: value for name, value in fields.items() if value or name not in _UNSAID_IF_EMPTY}
    memory = said.get("memory")
    if isinstance(memory, dict) and not memory["prefix_digest"]:
        said["memory"] = {name: value for name, value in memory.items() if name != "prefix_digest"}
    return said


def open_sealed(cls: type[M], sealed: SignedMessage, *, signer: bytes | None) -> tuple[M, VerifiedMessage]:
    """Inverse of `seal`: verify, then decode. The VerifiedMessage carries signer and digest."""
    with_text = cls.TYPE in (Offer.TYPE, PullRequest.TYPE)
    max_nbytes = MAX_OFFER_NBYTES if with_text else MAX_BODY_NBYTES
    verified = verify_message(sealed, type_=cls.TYPE, signer=signer, max_nbytes=max_nbytes)
    return strict_json.decode(cls, verified.body, what=cls.TYPE, max_nbytes=max_nbytes), verified


def relay_id(origin: str, memory: MemoryId, wire_digest: str) -> TransferId:
    """The transfer id of every copy that is passed on of what `origin` sends. Source: FORMAT.md §5."""
    named = "\0".join(("kvnet/relay/v1", origin, memory, wire_digest))
    return TransferId(hashlib.sha256(named.encode()).hexdigest()[:32])


def pack_bitmap(held: frozenset[int] | set[int], count: int) -> str:
    """Chunk indices as base64 of a bitmap."""
    bits = bytearray(-(-count // 8))
    for index in held:
        bits[index // 8] |= 1 << (index % 8)
    return base64.b64encode(bytes(bits)).decode()


def unpack_bitmap(text: str, count: int) -> frozenset[int]:
    """Inverse of `pack_bitmap`. Raises MalformedMessage for another length or bits beyond `count`."""
    try:
        bits = base64.b64decode(text, validate=True)
    except ValueError as exc:
        raise MalformedMessage("accept: the bitmap is not base64") from exc
    held = frozenset(i for i in range(len(bits) * 8) if bits[i // 8] >> (i % 8) & 1)
    if len(bits) != -(-count // 8) or any(index >= count for index in held):
        raise MalformedMessage(f"accept: the bitmap has {len(bits)} bytes for {count} chunks")
    return held
