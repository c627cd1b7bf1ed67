"""Whether to take an offer: a pure function of the offer, this node and the time.

Every check here runs before a byte is allocated for the transfer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from kvnet.compat import require_tier
from kvnet.errors import (
    IncompatibleModel,
    MalformedMessage,
    PeerError,
    ReplayedMessage,
    StoreFull,
    TextTooLong,
)
from kvnet.plan import MAX_ATTENTION_HEADS, check_coding, count_transfer_chunks, transfer_room_nbytes
from kvnet.transfer.messages import (
    MAX_NOTE_CHARS,
    MAX_RELAYED,
    MAX_TEXT_NBYTES,
    Limits,
    Offer,
    relay_id,
)
from kvnet.types import Fingerprint, Geometry, NodeId, Scheme, Tier

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NODE_ID: Final = re.compile(r"[a-z2-7]{52}")
_MEMORY_ID: Final = re.compile(r"mem_[a-z2-7]{52}")
MAX_LABEL_CHARS: Final = 64


@dataclass(frozen=True, slots=True)
class Receiver:
    """What this node is and has room for, when the offer arrives."""

    node_id: NodeId
    fingerprint: Fingerprint
    geometry: Geometry
    limits: Limits
    free_nbytes: int


def admit_offer(
    offer: Offer,
    *,
    sender: NodeId,
    receiver: Receiver,
    now: int,
    held_nbytes: int = 0,
    has_map: bool = False,
    begun: bool = False,
) -> Tier:
    """Decide an offer and say which tier its memory reaches here.

    `held_nbytes` of it are here already, from an earlier attempt; `has_map`: an admitted map leads from its
    model to this one. One that fits in no other way is taken where a text comes with it. `begun`: this very
    offer was admitted before, so that its time has done its work.
    Raises MalformedMessage, ReplayedMessage, IncompatibleModel, TextTooLong or StoreFull.
    """
    check_parties(offer, sender=sender, receiver=receiver)
    if not begun:
        check_time(offer, receiver=receiver, now=now)
    _check_shape(offer, receiver.limits)
    _check_words(offer)
    _check_relays(offer)
    memory = offer.memory
    tier = require_tier(
        (memory.fingerprint, memory.geometry),
        (receiver.fingerprint, receiver.geometry),
        has_map=has_map,
        in_coordinates=memory.coding.scheme is Scheme.PORT,
        has_text=bool(offer.text),
    )
    if bool(memory.start_pos) is not bool(memory.prefix_digest):
        raise MalformedMessage(
            f"offer: starts at position {memory.start_pos} behind a prefix of digest "
            f"{memory.prefix_digest!r:.80}; a memory has both or neither"
        )
    if memory.start_pos and tier not in (Tier.EXACT, Tier.IDENTITY, Tier.TEXT, Tier.KEPT):
        raise IncompatibleModel(
            f"memory: starts at position {memory.start_pos}; a map takes whole memories, from 0"
        )
    if memory.start_pos + memory.seq_len > receiver.limits.max_seq_len:
        raise TextTooLong(
            f"memory of {memory.start_pos + memory.seq_len} tokens: this node's model reads at most "
            f"{receiver.limits.max_seq_len}; send a shorter one"
        )
    room = min(receiver.limits.max_transfer_nbytes, receiver.free_nbytes + held_nbytes)
    needed = transfer_room_nbytes(memory)
    if needed > room:
        raise StoreFull(
            f"memory of {needed} bytes: this node has room for {room}; forget some memories there"
        )
    return tier


def check_parties(offer: Offer, *, sender: NodeId, receiver: Receiver) -> None:
    """That the offer's signer made it, for this node. Raises PeerError subclasses."""
    if offer.sender != sender:
        raise PeerError("offer: names another sender than the key that signed it")
    if offer.receiver != receiver.node_id:
        raise ReplayedMessage("offer: made for another receiver")


def check_time(offer: Offer, *, receiver: Receiver, now: int) -> None:
    """That an offer which was never admitted is for now. Raises ReplayedMessage, MalformedMessage."""
    skew = receiver.limits.clock_skew_s
    if not offer.created_at - skew <= now <= offer.expires_at + skew:
        raise ReplayedMessage(
            f"offer: valid from {offer.created_at} to {offer.expires_at}, it is {now} here; "
            "send again, or set the clocks"
        )
    if offer.expires_at - offer.created_at > receiver.limits.offer_life_s:
        raise MalformedMessage(f"offer: lives longer than {receiver.limits.offer_life_s} s")


def _check_shape(offer: Offer, limits: Limits) -> None:
    geometry = offer.memory.geometry
    bounds = (
        ("num_layers", geometry.num_layers, limits.max_layers),
        ("num_kv_heads", geometry.num_kv_heads, limits.max_kv_heads),
        ("head_dim", geometry.head_dim, limits.max_head_dim),
    )
    for name, value, most in bounds:
        if not 1 <= value <= most:
            raise MalformedMessage(f"offer: {name} {value}, allowed are 1 to {most}")
    if not 1 <= offer.memory.seq_len < 1 << 31:
        raise MalformedMessage(f"offer: {offer.memory.seq_len} tokens, a memory has at least one")
    if offer.memory.attention_heads > MAX_ATTENTION_HEADS:
        raise MalformedMessage(
            f"offer: {offer.memory.attention_heads} attention heads, at most {MAX_ATTENTION_HEADS}"
        )
    digest = offer.memory.content_digest
    if digest and not _DIGEST.fullmatch(digest):
        raise MalformedMessage(f"offer: content_digest {digest!r:.80} is neither empty nor `sha256:` and hex")
    wrong = check_coding(offer.memory)
    if wrong:
        raise MalformedMessage(f"offer: its coding is none of FORMAT.md §8: {wrong}")
    if offer.memory.coding.scheme not in limits.schemes:
        raise IncompatibleModel(
            f"offer: {offer.memory.coding.scheme} coding, this node decodes {', '.join(limits.schemes)}"
        )
    planned = count_transfer_chunks(offer.memory)
    if offer.chunk_count != planned:
        raise MalformedMessage(f"offer: {offer.chunk_count} chunks, its geometry makes {planned}")


def _check_words(offer: Offer) -> None:
    """What an offer says beside its memory."""
    if len(offer.note) > MAX_NOTE_CHARS:
        raise MalformedMessage(f"offer: a note of {len(offer.note)} characters, at most {MAX_NOTE_CHARS}")
    text_nbytes = len(offer.text.encode())
    if text_nbytes > MAX_TEXT_NBYTES:
        raise MalformedMessage(f"offer: a text of {text_nbytes} bytes, at most {MAX_TEXT_NBYTES}")
    prefix_nbytes = len(offer.prefix_text.encode())
    if prefix_nbytes > MAX_TEXT_NBYTES:
        raise MalformedMessage(f"offer: a prefix_text of {prefix_nbytes} bytes, at most {MAX_TEXT_NBYTES}")
    if (offer.behind or offer.prefix_text) and not offer.memory.start_pos:
        raise MalformedMessage("offer: tells of tokens before a memory that begins at position 0")
    if offer.behind and not _MEMORY_ID.fullmatch(offer.behind):
        raise MalformedMessage(f"offer: behind {offer.behind!r:.80}, which is no memory's id")
    if len(offer.label) > MAX_LABEL_CHARS or not (offer.label.isprintable() or not offer.label):
        raise MalformedMessage(
            f"offer: label {offer.label!r:.80}, wanted at most {MAX_LABEL_CHARS} printable characters"
        )
    in_coordinates = offer.memory.coding.scheme is Scheme.PORT
    if bool(offer.map) is not in_coordinates:
        raise MalformedMessage(
            f"offer: names the map {offer.map!r:.60} of a memory in {offer.memory.coding.scheme} coding; "
            "a memory in coordinates names the map that made them, and no other names one"
        )


def _check_relays(offer: Offer) -> None:
    """What an offer says of copies that are passed on."""
    named = (*offer.relay_to, *((offer.origin,) if offer.origin else ()))
    if offer.wire_digest and not _DIGEST.fullmatch(offer.wire_digest):
        raise MalformedMessage(f"offer: wire_digest {offer.wire_digest!r:.80} is not `sha256:` and hex")
    if named and (not offer.wire_digest or offer.memory.is_open):
        raise MalformedMessage("offer: to be passed on, and does not say which bytes; it needs a wire_digest")
    if len(offer.relay_to) > MAX_RELAYED:
        raise MalformedMessage(f"offer: passed on to {len(offer.relay_to)} nodes, at most {MAX_RELAYED}")
    if not all(_NODE_ID.fullmatch(node_id) for node_id in named):
        raise MalformedMessage("offer: relay_to or origin holds something else than node ids")
    if named and len({*named, offer.sender, offer.receiver}) != len(named) + 2:
        raise MalformedMessage("offer: names a node twice among sender, receiver, origin and relay_to")
    if offer.origin and (offer.note or offer.text or offer.agent or offer.sender_agent):
        raise MalformedMessage("offer: a copy that is passed on is no message, and carries no words of one")
    if offer.origin and offer.transfer_id != relay_id(offer.origin, offer.memory.id, offer.wire_digest):
        raise MalformedMessage("offer: passed on under another transfer id than its origin and bytes make")
