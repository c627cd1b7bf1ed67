"""Transfers on their way in: who may send, whether there is room, what was completed before."""

from __future__ import annotations

import os
import time
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
from kvnet.types import MemoryId, Tier
from kvnetd import chains
from kvnetd.alignments import leads_here, map_used, refuse_unjudged
from kvnetd.incoming import Head, InboundTransfer
from kvnetd.parties import begin_transfer_span, is_hex, require_added, this_receiver
from kvnetd.relaying import CopyInbound, Relays
from kvnetd.services import Services
from kvnetd.store.spool import IncomingTransfer, folder_name


class Arrivals:
    """What this node is receiving, whoever asked for it."""

    def __init__(self, services: Services, relays: Relays) -> None:
        self._services = services
        self._relays = relays
        # By the name of the spool's folder: bytes that were promised room and are not there yet.
        self._inbound: dict[str, int] = {}

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
            check_parties(offer, sender=verified.signer, receiver=this_receiver(self._services))
            self._relays.check(offer)
            await self._relays.ready(offer)
            session, incoming, receipt, head = await self._admit(offer, sealed, verified, peer)
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
            is_message=pulled is None,
            span=span,
            on_store=partial(self._wrote, offer),
            on_close=partial(self._closed, offer),
            head=head,
        )

    async def _admit(
        self, offer: Offer, sealed: SignedMessage, verified: VerifiedMessage, peer: AddedPeer
    ) -> tuple[ReceiverSession, IncomingTransfer | None, SignedMessage | None, Head | None]:
        services = self._services
        slot = folder_name(offer)
        if slot in self._inbound:
            raise TooBusy(f"transfer {offer.transfer_id}: already on its way in; wait for it")
        if len(self._inbound) >= services.config.max_inbound_transfers:
            raise TooBusy(f"{len(self._inbound)} transfers are on their way in; try again later")
        self._inbound[slot] = 0  # before the first await, so that no second one slips in
        if offer.origin:
            self._relays.coming(offer)
        head: Head | None = None
        try:
            done = await services.in_store(services.ledger.received, offer.sender, offer.transfer_id)
            if done is not None:
                return self._completed_before(offer, verified, done[1]), None, done[1], None
            begun = await services.in_store(services.spool.knows, offer, sealed)
            copied = await self._copy_of(offer)
            held_nbytes = await services.in_store(services.spool.held_nbytes, copied or offer)
            tier = admit_offer(
                offer,
                sender=verified.signer,
                receiver=this_receiver(services, promised_nbytes=sum(self._inbound.values())),
                now=int(time.time()),
                held_nbytes=held_nbytes,
                has_map=leads_here(services, offer.memory, offer.map),
                begun=begun,
            )
            if tier in (Tier.EXACT, Tier.IDENTITY):
                head = await self._head_of(offer, tier, peer)
            needed = transfer_room_nbytes(offer.memory) - held_nbytes
            await self._require_quota(peer, needed)
            self._inbound[slot] = needed
            if copied is not None:
                await services.in_store(services.spool.claim, copied, offer, sealed)
            incoming = await services.take_from_store(
                services.spool.open, IncomingTransfer.close, offer, sealed
            )
        except BaseException as error:
            self._closed(offer)
            if head is not None:
                head.abandon()
            if isinstance(error, IncompatibleModel):
                refuse_unjudged(services, offer.memory)  # says more: there is a map, and why it is not used
            raise
        return self._session(offer, verified, tier, held=incoming.held), incoming, None, head

    async def _copy_of(self, offer: Offer) -> Offer | None:
        """The offer of what others passed on of this one's bytes, unless it is still written to."""
        copied = await self._services.in_store(self._services.spool.copy_of, offer)
        return None if copied is None or folder_name(copied) in self._inbound else copied

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

    async def _require_quota(self, peer: AddedPeer, needed_nbytes: int) -> None:
        """That a peer's memories, those on their way included, stay within its quota. Raises StoreFull."""
        if peer.quota_nbytes is None:
            return
        services = self._services
        used = await services.in_store(_stored_nbytes, services, peer)
        # After the await: nothing is promised to another of its transfers before ours is decided.
        used += sum(nbytes for slot, nbytes in self._inbound.items() if slot.startswith(f"{peer.node_id}-"))
        if used + needed_nbytes > peer.quota_nbytes:
            raise StoreFull(
                f"memory of {needed_nbytes} bytes: {services.config.name} keeps at most {peer.quota_nbytes} "
                f"bytes of {peer.name}, and has {used}; forget some there, or raise it: `kvnet peer trust`"
            )

    def _completed_before(
        self, offer: Offer, verified: VerifiedMessage, receipt: SignedMessage
    ) -> ReceiverSession:
        # The sender lost our receipt: it gets the same one, so exactly once stays exactly once.
        before, _ = open_sealed(Receipt, receipt, signer=self._services.key.public)
        if before.offer_digest != verified.digest.hex():
            raise ReplayedMessage(f"transfer {offer.transfer_id}: was completed before; send under a new id")
        return self._session(offer, verified, Tier(before.tier), completed=before.chunks_digest)

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
        life_s, busy = services.config.unfinished_life_s, frozenset(self._inbound)
        await services.in_store(services.spool.expire, now=int(time.time()), life_s=life_s, busy=busy)

    def _wrote(self, offer: Offer, nbytes: int) -> None:
        slot = folder_name(offer)
        self._inbound[slot] = max(0, self._inbound[slot] - nbytes)
        self._relays.check_uncut(offer)

    def _closed(self, offer: Offer) -> None:
        self._inbound.pop(folder_name(offer), None)
        if offer.origin:
            self._relays.came(offer)


def _stored_nbytes(services: Services, peer: AddedPeer) -> int:
    # In one go, so that a transfer which ends meanwhile is counted where it was or where it goes.
    origins = {peer.node_id, peer.rotated_from} - {""}
    kept = sum(one.head.sections_nbytes for one in services.memories.all() if one.origin in origins)
    return kept + services.spool.nbytes_of(peer.node_id)


def _check_form(offer: Offer, pulled: MemoryId | None) -> None:
    if not is_hex(offer.transfer_id, num_chars=32):
        raise MalformedMessage("offer: the transfer id is not 32 lower-case hex digits")
    if pulled is not None and (offer.origin or offer.relay_to):
        raise MalformedMessage("offer: what was asked for comes from who has it, and is not passed on")
    found = "" if offer.memory.is_open else offer.memory.id
    if pulled is not None and found != pulled:
        wanted = pulled or "a text that is read for this node"
        raise MalformedMessage(f"offer: of {found or 'a text'} instead of {wanted}, which was asked for")
