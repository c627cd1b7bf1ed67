"""Transfers on their way out: which offer is made, resumed or never used again."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import replace
from functools import partial

from kvnet.errors import (
    CapacityError,
    MalformedMessage,
    PeerUnreachable,
    ReplayedMessage,
    TooBusy,
    TransferIncomplete,
    UnknownMemory,
)
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.signing import SignedMessage, VerifiedMessage
from kvnet.transfer.messages import Offer, PullRequest, open_sealed, seal
from kvnet.types import MemoryHeader, MemoryId, NodeId, chunks_digest, sha256_hex
from kvnetd import chains
from kvnetd.log import Span
from kvnetd.outgoing import (
    Beside,
    OutboundTransfer,
    Source,
    StoredParts,
    StoredSource,
    map_of,
    new_offer,
    open_parts,
)
from kvnetd.parties import begin_transfer_span, is_hex, require_added, this_receiver
from kvnetd.services import Services
from kvnetd.store.offers import KeptOffer
from kvnetd.store.records import MemoryRecord

PULL_LIFE_S = 300
MAX_SEEN_PULLS = 1024

# After these the very same offer may still succeed; after any other it never will.
_RESUMABLE = (PeerUnreachable, TransferIncomplete, CapacityError, asyncio.CancelledError, GeneratorExit)


class Departures:
    """What this node is sending, whoever asked for it."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._outbound: set[tuple[str, ...]] = set()

    async def prepare(
        self,
        record: MemoryRecord,
        peer: AddedPeer,
        *,
        note: str,
        agents: tuple[str, str],
        text: str = "",
        parcel: str = "",
        beside: Beside | None = None,
        relay_to: tuple[NodeId, ...] | None = None,
    ) -> OutboundTransfer:
        """An offer for one of our memories; the unfinished one from before, if there is, so it resumes.

        `text` goes with it, for a model that cannot use the memory. `parcel` is the entry of the outbox that
        is done with once this is delivered. An offer that was made for it before is made again however old it
        is: the peer answers with the receipt if it was delivered after all, resumes it, or refuses it.
        With `relay_to` it goes to many: through this peer to those, or, if that is empty, to this one, which
        may hold already what another passed on.

        Raises TooBusy while the same message is already on its way, or the memory is just written anew.
        """
        sections = chunks_digest([chunk.wire_digest for chunk in record.wire_chunks()])
        slot: tuple[str, ...] = ("send", record.id, sections, peer.node_id, note, *agents)
        slot += (sha256_hex(text.encode()), *(beside.slot if beside else ()))
        services, now = self._services, int(time.time())
        if slot in self._outbound:
            raise TooBusy(f"memory {record.id[:16]}: is already on its way to {peer.name}; wait for it")
        self._outbound.add(slot)  # before the first await, so that no second one slips in
        span = begin_transfer_span(services, peer.public, direction="out")
        try:
            offers, vault = services.ledger.offers, services.memories.vault
            kept = await services.in_store(offers.find, slot, vault)
            if (
                kept is None
                or kept.offer.sender != services.key.node_id
                or not _may_resume(kept, now, parcel)
            ):
                words = {"note": note, "text": text, "map_id": map_of(record)}
                words["behind"] = next(chains.behind(services, record), "")
                offer = self._offer(record.header, peer, now=now, agents=agents, beside=beside, **words)
                if relay_to is not None:
                    offer = replace(offer, relay_to=relay_to, wire_digest=sections)
                before = kept or await services.in_store(offers.begun, parcel, vault)
                if before is not None and self._was_rekeyed(before.offer, offer, peer):
                    offer = replace(offer, transfer_id=before.offer.transfer_id)
                kept = KeptOffer(offer, seal(services.key, offer))
            # Sent past the outbox, a message that waits there is delivered all the same.
            kept = replace(kept, parcel=parcel or kept.parcel)
            source = await self._stored(record)
            outbound = self._outgoing(source, kept.offer, kept.sealed, slot, span)
            try:
                await services.in_store(offers.keep, slot, kept, vault)
            except BaseException:
                outbound.release()
                raise
        except BaseException as error:
            self._outbound.discard(slot)
            span.end(error)
            raise
        return outbound

    def _was_rekeyed(self, before: Offer, now: Offer, peer: AddedPeer) -> bool:
        """An earlier offer, but that one node has another key: by its id the peer knows it again."""
        said = [
            (one.memory.id, one.note, one.sender_agent, one.agent, one.text, one.prefix_text, one.label)
            for one in (before, now)
        ]
        keys = [(one.sender, one.receiver) for one in (before, now)]
        return said[0] == said[1] and keys[0] != keys[1] and before.receiver in peer.all_ids

    async def begun(self, parcel: str, peer: AddedPeer) -> tuple[MemoryRecord, str] | None:
        """What an entry of the outbox was begun with: the memory as it was coded then, and the text with it.

        So that an entry is one message, whatever codec, map or calibration would be chosen by now. None where
        nothing was begun, that memory is gone, or one of the two nodes has another key since.
        """
        services = self._services
        kept = await services.in_store(services.ledger.offers.begun, parcel, services.memories.vault)
        if kept is None or (kept.offer.sender, kept.offer.receiver) != (services.key.node_id, peer.node_id):
            return None
        try:
            return services.memories.get(kept.offer.memory.id), kept.offer.text
        except UnknownMemory:
            return None

    async def answer_pull(self, sealed_request: SignedMessage) -> OutboundTransfer:
        """A peer asks for one of our memories, by its full id."""
        span = begin_transfer_span(self._services, sealed_request.signer, direction="out")
        try:
            peer = require_added(self._services, sealed_request.signer)
            request, verified = open_sealed(PullRequest, sealed_request, signer=peer.public)
            now = int(time.time())
            await self._check_pull(request, verified, now)
            source: Source
            if request.text:
                self._services.gate.check(peer.public, Permission.ASK)
                self._services.require_model()
                from kvnetd.live import begin_reading  # torch

                memory, source = await begin_reading(
                    self._services,
                    request.text,
                    codec=request.codec,
                    start_pos=request.start_pos,
                    in_passing=True,
                )
                map_id, behind = "", ""
            else:
                record = self._services.memories.get(request.memory)
                memory, source, map_id = record.header, await self._stored(record), map_of(record)
                behind = next(chains.behind(self._services, record), "")
            offer = self._offer(memory, peer, now=now, note="", agents=("", ""), map_id=map_id, behind=behind)
            # A slot of its own: a pull must never use up the offer of a message.
            return self._outgoing(
                source, offer, seal(self._services.key, offer), ("pull", offer.transfer_id), span
            )
        except BaseException as error:
            span.end(error)
            raise

    async def prepare_reading(
        self,
        memory: MemoryHeader,
        source: Source,
        peer: AddedPeer,
        *,
        note: str,
        agents: tuple[str, str],
        text: str = "",
    ) -> OutboundTransfer:
        """An offer for a memory that is read while it is sent. It is of no use a second time."""
        span = begin_transfer_span(self._services, peer.public, direction="out")
        offer = self._offer(memory, peer, now=int(time.time()), note=note, agents=agents, text=text)
        sealed = seal(self._services.key, offer)
        return self._outgoing(source, offer, sealed, ("read", offer.transfer_id), span)

    def pull_request(
        self, memory: MemoryId, peer: AddedPeer, *, text: str = "", codec: str = "", start_pos: int = 0
    ) -> SignedMessage:
        """A signed request for a peer's memory, or for what it reads of a text."""
        request = PullRequest(
            memory=memory,
            receiver=self._services.key.node_id,
            sender=peer.node_id,
            created_at=int(time.time()),
            nonce=os.urandom(16).hex(),
            text=text,
            codec=codec,
            start_pos=start_pos,
        )
        return seal(self._services.key, request)

    def _offer(
        self,
        memory: MemoryHeader,
        peer: AddedPeer,
        *,
        now: int,
        note: str,
        agents: tuple[str, str],
        text: str = "",
        map_id: str = "",
        behind: str = "",
        beside: Beside | None = None,
    ) -> Offer:
        return new_offer(
            memory,
            sender=self._services.key.node_id,
            receiver=peer.node_id,
            now=now,
            life_s=this_receiver(self._services).limits.offer_life_s,
            agents=agents,
            note=note,
            text=text,
            map_id=map_id,
            behind=behind,
            beside=beside,
        )

    def _outgoing(
        self, source: Source, offer: Offer, sealed: SignedMessage, slot: tuple[str, ...], span: Span
    ) -> OutboundTransfer:
        span.add(
            transfer_id=offer.transfer_id,
            memory="" if offer.memory.is_open else offer.memory.id,
            agent=offer.agent,
            raw_bytes=offer.memory.raw_nbytes,
        )
        try:
            return OutboundTransfer(
                self._services,
                offer=offer,
                sealed_offer=sealed,
                source=source,
                span=span,
                on_close=partial(self._closed, slot),
            )
        except BaseException:
            source.release()
            raise

    async def _stored(self, record: MemoryRecord) -> StoredSource:
        return StoredSource(self._services, record, await self._opened(record))

    async def _opened(self, record: MemoryRecord) -> StoredParts:
        """What is sent, read beside the event loop; closed again where the caller is gone meanwhile."""
        services = self._services
        opening = asyncio.ensure_future(
            services.in_pool(open_parts, services.memories, services.bases, record)
        )
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_if_opened)
            raise

    async def _closed(self, slot: tuple[str, ...], failure: BaseException | None) -> None:
        try:
            if slot[0] == "send" and not isinstance(failure, _RESUMABLE):
                await self._services.in_store(self._services.ledger.offers.drop, slot)
        finally:
            self._outbound.discard(slot)

    async def expire(self) -> None:
        """Forget offers that no peer takes any more, and no entry of the outbox waits to repeat."""
        services = self._services
        before = int(time.time()) - services.config.outbox_life_s - services.config.unfinished_life_s
        await services.in_store(services.ledger.offers.expire, before=before)

    async def _check_pull(self, request: PullRequest, verified: VerifiedMessage, now: int) -> None:
        services = self._services
        requests, signer = services.ledger.requests, verified.signer
        if await services.in_store(requests.count, "pull", signer, now=now) >= MAX_SEEN_PULLS:
            raise TooBusy("too many pulls in the last minutes; try again later")
        if not is_hex(request.nonce, num_chars=32):
            raise MalformedMessage("pull: the nonce is not 32 lower-case hex digits")
        is_ours = request.receiver == signer and request.sender == services.key.node_id
        fresh = abs(now - request.created_at) <= PULL_LIFE_S
        until = max(now, request.created_at) + PULL_LIFE_S
        taken = (
            is_ours
            and fresh
            and await services.in_store(requests.take, "pull", signer, request.nonce, until=until)
        )
        if not taken:
            raise ReplayedMessage("pull: made for another node, or used before; ask again")


def _may_resume(kept: KeptOffer, now: int, parcel: str) -> bool:
    is_its_own = bool(parcel) and kept.parcel == parcel
    return kept.offer.created_at <= now and (is_its_own or now < kept.offer.expires_at)


def _close_if_opened(opening: asyncio.Future[StoredParts]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().sections.close()
