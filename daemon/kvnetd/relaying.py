"""Copies that nodes pass on: whom this node relays for, and whom it waits for before it takes bytes twice.

A copy is no message. The origin offers the same memory itself, and that transfer begins with what the copy
brought; a copy that no message follows is swept like any transfer that was not finished.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from kvnet.errors import KvnetError, NotPermitted, PeerNotAdded, PeerUnreachable, TooBusy
from kvnet.identity.keys import short_id
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.signing import SignedMessage
from kvnet.plan import count_chunks
from kvnet.transfer.fanout import Branch, branches
from kvnet.transfer.messages import Offer, relay_id, seal
from kvnet.transport.client import PeerClient
from kvnet.types import NodeId, TransferId
from kvnetd.incoming import InboundTransfer
from kvnetd.parties import begin_transfer_span, this_receiver
from kvnetd.passing import CopyOutbound, PassedOn, Passing
from kvnetd.services import Services
from kvnetd.store.unfinished import IncomingTransfer

_log = logging.getLogger(__name__)

MAX_RELAYS: Final = 4  # memories that are passed on at once
BEGIN_S: Final = 5.0  # how long a receiver of a message waits for a copy to begin,
END_S: Final = 120.0  # and for one that began to be there
CUT_S: Final = 25.0  # a peer that falls silent is given up within this (transport.frames)


class CopyInbound(InboundTransfer):
    """A copy on its way in: it stays in the spool, and neither a message nor a memory comes of it."""

    def _adopt(self, incoming: IncomingTransfer, head: object) -> SignedMessage:
        return seal(self.key, self.session.receipt(received_at=int(time.time())))


class Relays:
    """What this node passes on, and which copies are on their way here. Lives on the event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._ended: dict[TransferId, asyncio.Event] = {}  # by copy on its way in
        self._cut: set[TransferId] = set()
        self._begun = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, offer: Offer) -> None:
        """That a copy is of a peer's who may send here: no message could follow it. Raises NotPermitted."""
        if not offer.origin:
            return
        origin = self._services.peers.get(offer.origin)
        if origin is None or not origin.is_trusted or Permission.SEND not in origin.permissions:
            raise NotPermitted(
                f"copy of what {short_id(offer.origin)} sends: that node may not send here; "
                "its owner would have to add it"
            )
        if offer.transfer_id in self._ended:
            raise TooBusy(f"copy {offer.transfer_id}: is on its way here from another node; wait for it")

    async def ready(self, offer: Offer) -> None:
        """Wait for what others pass on of an offer, before it is said what is missing. Bounded."""
        if offer.origin or not offer.wire_digest or offer.memory.is_open:
            return
        services, copy = self._services, relay_id(offer.sender, offer.memory.id, offer.wire_digest)
        if not offer.relay_to and copy not in self._ended:
            if await services.in_store(services.spool.copy_of, offer) is not None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(BEGIN_S):
                    while copy not in self._ended:
                        await self._begun.wait()
        for wait_s in (END_S, CUT_S):
            ended = self._ended.get(copy)
            if ended is None:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await ended.wait()
                    return
            self._cut.add(copy)  # the sender itself is faster now

    def coming(self, offer: Offer) -> None:
        """A copy is on its way in from now on."""
        self._ended[offer.transfer_id] = asyncio.Event()
        self._begun.set()
        self._begun = asyncio.Event()

    def came(self, offer: Offer) -> None:
        """A copy is on its way in no longer, whether it is whole or not."""
        ended = self._ended.pop(offer.transfer_id, None)
        self._cut.discard(offer.transfer_id)
        if ended is not None:
            ended.set()

    def check_uncut(self, offer: Offer) -> None:
        """Raises TooBusy for a copy that took too long: what it lacks, the origin sends."""
        if offer.transfer_id in self._cut:
            raise TooBusy(f"copy {offer.transfer_id}: took too long; its origin sends the rest")

    async def pass_on(self, inbound: InboundTransfer, peer: AddedPeer) -> InboundTransfer | PassedOn:
        """Begin to pass a transfer on to whom its offer names, if this node does that for its sender."""
        services, offer, incoming = self._services, inbound.session.offer, inbound.incoming
        if incoming is None or not offer.relay_to or not self._does_for(peer, offer):
            return inbound
        basis: bytes | None = None
        if any(index >= count_chunks(offer.memory) for index in incoming.held):
            basis = await services.in_store(services.bases.get, offer.memory.coding.basis)
        passing = Passing(services, offer, incoming, basis or b"")
        task = asyncio.create_task(self._relay(passing, offer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: passing.release())
        return PassedOn(inbound, passing)

    async def close(self) -> None:
        """Break off what is passed on."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _does_for(self, peer: AddedPeer, offer: Offer) -> bool:
        origin = self._services.peers.get(offer.origin) if offer.origin else peer
        may = origin is not None and all(Permission.RELAY in one.permissions for one in (peer, origin))
        return may and len(self._tasks) < MAX_RELAYS

    async def _relay(self, passing: Passing, offer: Offer) -> None:
        shape = branches(offer.relay_to, offer.memory.raw_nbytes)
        try:
            await asyncio.gather(*(self._serve(passing, offer, branch) for branch in shape))
        except Exception:  # nobody waits for this task
            _log.exception("passing on a memory met a bug")

    async def _serve(self, passing: Passing, offer: Offer, branch: Branch) -> None:
        """Pass on to the first of a branch that takes it; who does not is left to the origin."""
        nodes: Sequence[NodeId] = (branch.head, *branch.behind)
        while nodes and passing.failure is None:
            try:
                await self._send(passing, offer, nodes[0], tuple(nodes[1:]))
            except KvnetError:  # is in the log, and costs nothing but time
                nodes = nodes[1:]
            else:
                return

    async def _send(
        self, passing: Passing, offer: Offer, node_id: NodeId, relay_to: tuple[NodeId, ...]
    ) -> None:
        services = self._services
        peer = services.peers.get(node_id)
        if peer is None or not peer.is_trusted:
            raise PeerNotAdded(
                f"node {short_id(node_id)}: is no peer of this node; nothing is passed on to it"
            )
        copy = self._copy(offer, node_id, relay_to)
        sealed = seal(services.key, copy)
        span = begin_transfer_span(services, peer.public, direction="out")
        span.add(
            transfer_id=copy.transfer_id,
            memory=copy.memory.id,
            origin=short_id(copy.origin),
            raw_bytes=copy.memory.raw_nbytes,
        )
        outbound = CopyOutbound(key=services.key, offer=copy, sealed_offer=sealed, passing=passing, span=span)
        failure: BaseException | None = None
        try:
            await self._push(peer, outbound)
        except BaseException as error:
            failure = error
            raise
        finally:
            await outbound.close(failure)

    async def _push(self, peer: AddedPeer, outbound: CopyOutbound) -> None:
        """At the first address that answers; no hello before, which would cost a second handshake a hop."""
        services = self._services
        failure: KvnetError | None = None
        for address in services.directory.addresses(peer):
            who = f"{peer.name} at {address}"
            try:
                async with PeerClient(address, public=peer.public, peer=who, gate=services.gate) as client:
                    await client.push(outbound)
                    return
            except PeerUnreachable as error:
                failure = error
        if failure is not None:
            raise failure

    def _copy(self, offer: Offer, receiver: NodeId, relay_to: tuple[NodeId, ...]) -> Offer:
        services, now = self._services, int(time.time())
        origin = offer.origin or offer.sender
        return Offer(
            transfer_id=relay_id(origin, offer.memory.id, offer.wire_digest),
            memory=offer.memory,
            sender=services.key.node_id,
            receiver=receiver,
            chunk_count=offer.chunk_count,
            created_at=now,
            expires_at=now + this_receiver(services).limits.offer_life_s,
            map=offer.map,
            relay_to=relay_to,
            wire_digest=offer.wire_digest,
            origin=origin,
        )
