"""Transfers on their way in: who may send, whether there is room, what was completed before."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

from kvnet.errors import (
    IncompatibleModel,
    MalformedMessage,
    MissingPrefix,
    ReplayedMessage,
    StoreFull,
    TooBusy,
)
from kvnet.identity.keys import short_id
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.signing import SignedMessage, VerifiedMessage
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.admission import admit_offer, check_parties
from kvnet.transfer.messages import Offer, Receipt, open_sealed
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transport.budgets import ByteBudget
from kvnet.types import MemoryId, Tier
from kvnetd import chains
from kvnetd.alignments import leads_here, map_used, refuse_unjudged
from kvnetd.incoming import Head, InboundTransfer
from kvnetd.limits import inflight_nbytes
from kvnetd.parties import begin_transfer_span, is_hex, require_added, this_receiver
from kvnetd.relaying import CopyInbound, Relays
from kvnetd.services import Services
from kvnetd.store.disk import files_nbytes
from kvnetd.store.spool import folder_name
from kvnetd.store.unfinished import IncomingTransfer


class Arrivals:
    """What this node is receiving, whoever asked for it."""

    def __init__(self, services: Services, relays: Relays) -> None:
        self._services = services
        self._relays = relays
        # By the name of the spool's folder: bytes that were promised room and are not there yet.
        self._inbound: dict[str, int] = {}
        # Others that nobody may begin or sweep: read still, although nobody waits for them; or to be claimed.
        self._locked: set[str] = set()
        self._unstored = ByteBudget(inflight_nbytes(services.config.limits))

    async def open(self, sealed: SignedMessage, *, pulled: MemoryId | None) -> InboundTransfer:
        """Verify and admit an offer: one that comes by itself, or the answer to our pull of `pulled`.

        An empty `pulled` is the pull of a text, which is answered with a memory that is still being read.
        """
        span = begin_transfer_span(self._services, sealed.signer, direction="in")
        try:
            # Who before what: a stranger's offer is not even parsed.
            peer = require_added(self._services, sealed.signer)
            offer, verified = open_sealed(Offer, sealed, signer=peer.public)
            memory = "" if offer.memory.is_open else offer.memory.id
            span.add(transfer_id=offer.transfer_id, memory=memory, agent=offer.agent)
            _check_form(offer, pulled)
            is_message = pulled is None and not offer.quiet and not offer.origin
            check_parties(offer, sender=verified.signer, receiver=this_receiver(self._services))
            self._relays.check(offer)
            await self._relays.ready(offer)
            session, incoming, receipt, head = await self._admit(
                offer, sealed, verified, peer, is_message=is_message
            )
        except BaseException as failure:
            span.end(failure)
            raise
        span.add(
            tier=session.tier.value,
            map=map_used(self._services, offer.memory, session.tier, offer.map),
            raw_bytes=offer.memory.raw_nbytes,
        )
        kind = InboundTransfer
        if offer.origin:
            kind = CopyInbound
            span.add(origin=short_id(offer.origin))
        return kind(
            self._services,
            session=session,
            peer=peer,
            sealed_offer=sealed,
            incoming=incoming,
            receipt=receipt,
            is_message=is_message,
            # What was pulled, or still read, comes under an offer of its own each time.
            is_resumable=pulled is None and not offer.memory.is_open,
            unstored=self._unstored,
            span=span,
            on_store=partial(self._wrote, offer),
            on_close=partial(self._closed, offer),
            head=head,
        )

    async def _admit(
        self,
        offer: Offer,
        sealed: SignedMessage,
        verified: VerifiedMessage,
        peer: AddedPeer,
        *,
        is_message: bool,
    ) -> tuple[ReceiverSession, IncomingTransfer | None, SignedMessage | None, Head | None]:
        services = self._services
        slot = folder_name(offer)
        if slot in self._inbound or slot in self._locked:
            raise TooBusy(f"transfer {offer.transfer_id}: already on its way in; wait for it")
        self._require_place(peer)
        self._inbound[slot] = 0  # before the first await, so that no second one slips in
        if offer.origin:
            self._relays.coming(offer)
        head: Head | None = None
        copied: Offer | None = None
        try:
            done = await services.in_store(_received, services, peer, offer)
            if done is not None:
                session, receipt = self._completed_before(offer, verified, *done)
                return session, None, receipt, None
            begun = await services.in_store(services.spool.knows, offer, sealed)
            copied = None if begun else await self._copy_of(offer)
            # What lies here under other words is no part of this offer, and goes when it is admitted.
            here = offer if begun else copied
            held_nbytes = await services.in_store(services.spool.held_nbytes, here) if here else 0
            counted = {slot} if copied is None else {slot, folder_name(copied)}
            stored = await services.in_store(_stored, services, peer, counted)
            # Until room is promised below nothing is awaited: nobody else is promised the same.
            tier = admit_offer(
                offer,
                sender=verified.signer,
                receiver=this_receiver(services, promised_nbytes=sum(self._inbound.values())),
                now=int(time.time()),
                held_nbytes=held_nbytes,
                has_map=leads_here(services, offer.memory, offer.map),
                begun=begun,
            )
            room = services.spool.room_nbytes(offer, sealed)
            # What is read here before the memory is stored in the sender's name too.
            head_nbytes = _head_nbytes(offer) if tier is Tier.EXACT else 0
            self._require_quota(peer, stored, room + head_nbytes)
            self._require_spool(peer, stored, room)
            self._require_few(peer, stored, is_message=is_message)
            self._inbound[slot] = transfer_room_nbytes(offer.memory) - held_nbytes + head_nbytes
            if tier in (Tier.EXACT, Tier.IDENTITY):
                head = await self._head_of(offer, tier, peer)
            if copied is not None:
                await services.in_store(services.spool.claim, copied, offer, sealed)
            await services.in_store(services.spool.prepare, offer, sealed)
            incoming = await self._take_up(slot, offer)
        except BaseException as error:
            self._closed(offer)
            if head is not None:
                head.abandon()
            if isinstance(error, IncompatibleModel):
                refuse_unjudged(services, offer.memory)  # says more: there is a map, and why it is not used
            raise
        finally:
            if copied is not None:
                self._locked.discard(folder_name(copied))
        return self._session(offer, verified, tier, held=incoming.held), incoming, None, head

    async def _copy_of(self, offer: Offer) -> Offer | None:
        """The offer of what others passed on of this one's bytes, unless it is still in use; locked."""
        copied = await self._services.in_store(self._services.spool.copy_of, offer)
        if copied is None or folder_name(copied) in {*self._inbound, *self._locked}:
            return None
        self._locked.add(folder_name(copied))  # until it is claimed, or this offer is refused
        return copied

    async def _head_of(self, offer: Offer, tier: Tier, peer: AddedPeer) -> Head | None:
        """Where the memory of the tokens before is not here: their reading, if their text came along.

        Raises MissingPrefix, NotPermitted.
        """
        try:
            await chains.links_before(self._services, offer.memory, origin=offer.origin or offer.sender)
        except MissingPrefix as missing:
            if tier is Tier.EXACT and offer.prefix_text:
                self._services.gate.check(peer.public, Permission.ASK)
                self._services.require_model()
                from kvnetd.heads import HeadReading  # torch

                return HeadReading(self._services, offer)
            if not offer.behind:
                raise
            raise MissingPrefix(
                f"{missing.message} ({offer.behind} at {peer.name})",
                details={**missing.details, "behind": [offer.behind]},
            ) from None
        return None

    async def _take_up(self, slot: str, offer: Offer) -> IncomingTransfer:
        """Read what of it is here, beside the store's thread; closed if the caller goes away."""
        services = self._services
        taking = asyncio.ensure_future(services.in_pool(services.spool.take_up, offer))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # Two that read at once would cut off each other's chunks: nobody else begins until it has ended.
            self._locked.add(slot)
            taking.add_done_callback(partial(self._give_up, slot))
            raise

    def _give_up(self, slot: str, taken: asyncio.Future[IncomingTransfer]) -> None:
        self._locked.discard(slot)
        if not taken.cancelled() and taken.exception() is None:
            taken.result().close()

    def _require_place(self, peer: AddedPeer) -> None:
        """That one more transfer may be on its way in. Raises TooBusy."""
        limits = self._services.config.limits
        its_own = len(self._promised(peer))
        if its_own >= limits.max_inbound_transfers_per_peer:
            raise TooBusy(f"{its_own} transfers of {peer.name} are on their way in; try again later")
        if len(self._inbound) >= limits.max_inbound_transfers:
            raise TooBusy(f"{len(self._inbound)} transfers are on their way in; try again later")

    def _require_quota(self, peer: AddedPeer, stored: _Stored, needed_nbytes: int) -> None:
        """That a peer's memories, those on their way included, stay within its quota. Raises StoreFull."""
        used_nbytes = stored.kept_nbytes + stored.its_unfinished_nbytes + sum(self._promised(peer))
        if peer.quota_nbytes is not None and used_nbytes + needed_nbytes > peer.quota_nbytes:
            raise StoreFull(
                f"memory of {needed_nbytes} bytes: {self._services.config.name} keeps at most "
                f"{peer.quota_nbytes} bytes of {peer.name}, and has {used_nbytes}; forget some there, "
                "or raise it: `kvnet peer trust`"
            )

    def _require_spool(self, peer: AddedPeer, stored: _Stored, needed_nbytes: int) -> None:
        """That what is unfinished stays within its bounds, a peer's and everybody's. Raises StoreFull."""
        limits = self._services.config.limits
        its_own = stored.its_unfinished_nbytes + sum(self._promised(peer))
        of_all = stored.unfinished_nbytes + sum(self._inbound.values())
        for whose, used_nbytes, most_nbytes in (
            (f" of {peer.name}", its_own, limits.max_unfinished_nbytes_per_peer),
            ("", of_all, limits.max_unfinished_nbytes),
        ):
            if used_nbytes + needed_nbytes > most_nbytes:
                raise StoreFull(
                    f"memory of {needed_nbytes} bytes: unfinished transfers{whose} take {used_nbytes} of "
                    f"{most_nbytes}; finish those first"
                )

    def _require_few(self, peer: AddedPeer, stored: _Stored, *, is_message: bool) -> None:
        """That neither unfinished transfers nor messages nobody reads grow for ever. Raises TooBusy."""
        limits = self._services.config.limits
        if stored.unfinished_count >= limits.max_unfinished_per_peer:
            raise TooBusy(
                f"{stored.unfinished_count} transfers of {peer.name} are unfinished; finish those first"
            )
        if is_message and stored.unread_count >= limits.max_unread_per_peer:
            raise TooBusy(
                f"{stored.unread_count} messages of {peer.name} are unread in the inbox; "
                "they go on when some are acknowledged there"
            )

    def _promised(self, peer: AddedPeer) -> tuple[int, ...]:
        """Of each of a peer's transfers on their way in: bytes that are not there yet."""
        mine = f"{peer.node_id}-"
        return tuple(nbytes for slot, nbytes in self._inbound.items() if slot.startswith(mine))

    def _completed_before(
        self, offer: Offer, verified: VerifiedMessage, sender: str, receipt: SignedMessage
    ) -> tuple[ReceiverSession, SignedMessage | None]:
        """`sender` is the id that the peer had then."""
        # The sender lost our receipt: it gets the same one, so exactly once stays exactly once.
        before, _ = open_sealed(Receipt, receipt, signer=receipt.signer)
        is_same_offer = before.offer_digest == verified.digest.hex()
        # Of the two nodes one has another key since: the offer is another, and so is what is signed of it.
        was_rekeyed = receipt.signer != self._services.key.public or sender != offer.sender
        is_same_memory = not offer.memory.is_open and before.memory == offer.memory.id
        if not is_same_offer and not (was_rekeyed and is_same_memory):
            raise ReplayedMessage(f"transfer {offer.transfer_id}: was completed before; send under a new id")
        session = self._session(offer, verified, Tier(before.tier), completed=before.chunks_digest)
        return session, receipt if is_same_offer else None

    def _session(
        self,
        offer: Offer,
        verified: VerifiedMessage,
        tier: Tier,
        *,
        held: dict[int, bytes] | None = None,
        completed: str = "",
    ) -> ReceiverSession:
        return ReceiverSession(
            offer,
            offer_digest=verified.digest,
            nonce=os.urandom(16),
            tier=tier,
            held=held or {},
            completed=completed,
        )

    async def expire(self) -> None:
        """Clear out transfers that nobody can resume any more."""
        services = self._services
        life_s, busy = services.config.unfinished_life_s, frozenset({*self._inbound, *self._locked})
        await services.in_store(services.spool.expire, now=int(time.time()), life_s=life_s, busy=busy)

    def _wrote(self, offer: Offer, nbytes: int) -> None:
        slot = folder_name(offer)
        self._inbound[slot] = max(0, self._inbound[slot] - nbytes)
        self._relays.check_uncut(offer)

    def _closed(self, offer: Offer) -> None:
        self._inbound.pop(folder_name(offer), None)
        if offer.origin:
            self._relays.came(offer)


@dataclass(frozen=True, slots=True)
class _Stored:
    """What lies here beside the transfer in question: of one peer, and everybody's unfinished ones."""

    kept_nbytes: int  # memories with their texts, messages, receipts
    unfinished_count: int
    unread_count: int
    its_unfinished_nbytes: int
    unfinished_nbytes: int


def _stored(services: Services, peer: AddedPeer, slots: Collection[str]) -> _Stored:
    # In one go, so that a transfer which ends meanwhile is counted where it was or where it goes.
    origins = frozenset(peer.all_ids)
    memories, spool, ledger = services.memories, services.spool, services.ledger
    kept = sum(files_nbytes(memories.root / one.id) for one in memories.all() if one.origin in origins)
    return _Stored(
        kept_nbytes=kept + ledger.received_nbytes(origins),
        unfinished_count=sum(spool.count_of(one, but=slots) for one in origins),
        unread_count=ledger.count_unread(origins),
        its_unfinished_nbytes=sum(spool.nbytes_of(one, but=slots) for one in origins),
        unfinished_nbytes=spool.nbytes_of(but=slots),
    )


def _received(services: Services, peer: AddedPeer, offer: Offer) -> tuple[str, SignedMessage] | None:
    """By which key's id a peer completed this transfer before, and our receipt of it."""
    for sender in reversed(peer.all_ids):
        found = services.ledger.received(sender, offer.transfer_id)
        if found is not None:
            return sender, found[1]
    return None


def _head_nbytes(offer: Offer) -> int:
    return offer.memory.start_pos * offer.memory.geometry.token_nbytes if offer.prefix_text else 0


def _check_form(offer: Offer, pulled: MemoryId | None) -> None:
    if not is_hex(offer.transfer_id, num_chars=32):
        raise MalformedMessage("offer: the transfer id is not 32 lower-case hex digits")
    if pulled is not None and (offer.origin or offer.relay_to):
        raise MalformedMessage("offer: what was asked for comes from who has it, and is not passed on")
    found = "" if offer.memory.is_open else offer.memory.id
    if pulled is not None and found != pulled:
        wanted = pulled or "a text that is read for this node"
        raise MalformedMessage(f"offer: of {found or 'a text'} instead of {wanted}, which was asked for")
