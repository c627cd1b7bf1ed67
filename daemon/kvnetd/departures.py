"""Transfers on their way out: which offer is made, resumed or never used again."""

from __future__ import annotations

import asyncio
import os
import time
from functools import partial

from kvnet.errors import (
    CapacityError,
    MalformedMessage,
    PeerUnreachable,
    ReplayedMessage,
    TooBusy,
    TransferIncomplete,
)
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage, VerifiedMessage
from kvnet.transfer.messages import Offer, PullRequest, chunks_digest, open_sealed, seal
from kvnet.types import MemoryId, sha256_hex
from kvnetd.log import Span
from kvnetd.outgoing import OutboundTransfer, StoredParts, new_offer, open_parts
from kvnetd.parties import begin_transfer_span, is_hex, require_added, this_receiver
from kvnetd.services import Services
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
        self._unfinished: dict[tuple[str, ...], tuple[Offer, SignedMessage]] = {}
        self._seen_pulls: dict[str, int] = {}

    async def prepare(
        self, record: MemoryRecord, peer: AddedPeer, *, note: str, agents: tuple[str, str], text: str = ""
    ) -> OutboundTransfer:
        """An offer for one of our memories; the unfinished one from before, if there is, so it resumes.

        `text` goes with it, for a model that cannot use the memory.

        Raises TooBusy while the same message is already on its way, or the memory is just written anew.
        """
        sections = chunks_digest([chunk.wire_digest for chunk in record.wire_chunks()])
        slot = ("send", record.id, sections, peer.node_id, note, *agents, sha256_hex(text.encode()))
        now = int(time.time())
        if slot in self._outbound:
            raise TooBusy(f"memory {record.id[:16]}: is already on its way to {peer.name}; wait for it")
        offer, sealed = self._unfinished.get(slot, (None, None))
        if offer is None or sealed is None or not offer.created_at <= now < offer.expires_at:
            offer = self._offer(record, peer, now=now, note=note, agents=agents, text=text)
            sealed = seal(self._services.key, offer)
        span = begin_transfer_span(self._services, peer.public, direction="out")
        try:
            return await self._outgoing(record, offer, sealed, slot, span)
        except BaseException as error:
            span.end(error)
            raise

    async def answer_pull(self, sealed_request: SignedMessage) -> OutboundTransfer:
        """A peer asks for one of our memories, by its full id."""
        span = begin_transfer_span(self._services, sealed_request.signer, direction="out")
        try:
            peer = require_added(self._services, sealed_request.signer)
            request, verified = open_sealed(PullRequest, sealed_request, signer=peer.public)
            now = int(time.time())
            self._check_pull(request, verified, now)
            record = self._services.memories.get(request.memory)
            offer = self._offer(record, peer, now=now, note="", agents=("", ""))
            # A slot of its own: a pull must never use up the offer of a message.
            slot = ("pull", offer.transfer_id)
            sealed = seal(self._services.key, offer)
            return await self._outgoing(record, offer, sealed, slot, span)
        except BaseException as error:
            span.end(error)
            raise

    def pull_request(self, memory: MemoryId, peer: AddedPeer) -> SignedMessage:
        """A signed request for a peer's memory."""
        request = PullRequest(
            memory=memory,
            receiver=self._services.key.node_id,
            sender=peer.node_id,
            created_at=int(time.time()),
            nonce=os.urandom(16).hex(),
        )
        return seal(self._services.key, request)

    def _offer(
        self,
        record: MemoryRecord,
        peer: AddedPeer,
        *,
        now: int,
        note: str,
        agents: tuple[str, str],
        text: str = "",
    ) -> Offer:
        return new_offer(
            record,
            sender=self._services.key.node_id,
            receiver=peer.node_id,
            now=now,
            life_s=this_receiver(self._services).limits.offer_life_s,
            agents=agents,
            note=note,
            text=text,
        )

    async def _outgoing(
        self,
        record: MemoryRecord,
        offer: Offer,
        sealed: SignedMessage,
        slot: tuple[str, ...],
        span: Span,
    ) -> OutboundTransfer:
        span.add(
            transfer_id=offer.transfer_id,
            memory=record.id,
            agent=offer.agent,
            raw_bytes=record.header.raw_nbytes,
        )
        self._outbound.add(slot)  # before the first await, so that no second one slips in
        try:
            stored = await self._opened(record)
            try:
                outbound = OutboundTransfer(
                    self._services,
                    record=record,
                    offer=offer,
                    sealed_offer=sealed,
                    stored=stored,
                    span=span,
                    on_close=partial(self._closed, slot),
                )
            except BaseException:
                stored.sections.close()
                raise
        except BaseException:
            self._outbound.discard(slot)
            raise
        if slot[0] == "send":
            self._unfinished[slot] = (offer, sealed)
        return outbound

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

    def _closed(self, slot: tuple[str, ...], failure: BaseException | None) -> None:
        self._outbound.discard(slot)
        now = time.time()
        self._unfinished = {k: v for k, v in self._unfinished.items() if v[0].expires_at > now}
        if not isinstance(failure, _RESUMABLE):
            self._unfinished.pop(slot, None)

    def _check_pull(self, request: PullRequest, verified: VerifiedMessage, now: int) -> None:
        self._seen_pulls = {n: t for n, t in self._seen_pulls.items() if now - t <= PULL_LIFE_S}
        if len(self._seen_pulls) >= MAX_SEEN_PULLS:
            raise TooBusy("too many pulls in the last minutes; try again later")
        if not is_hex(request.nonce, num_chars=32):
            raise MalformedMessage("pull: the nonce is not 32 lower-case hex digits")
        fresh = abs(now - request.created_at) <= PULL_LIFE_S and request.nonce not in self._seen_pulls
        if request.receiver != verified.signer or request.sender != self._services.key.node_id or not fresh:
            raise ReplayedMessage("pull: made for another node, or used before; ask again")
        self._seen_pulls[request.nonce] = max(now, request.created_at)


def _close_if_opened(opening: asyncio.Future[StoredParts]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().sections.close()
