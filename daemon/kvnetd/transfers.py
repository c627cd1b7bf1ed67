"""Every transfer of this node: admits offers, prepares what goes out. Stands behind the peer server."""

from __future__ import annotations

import os
import time
from concurrent.futures import Executor

from kvnet.errors import KvnetError, MalformedMessage, PeerNotAdded, ReplayedMessage, TooBusy
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage, VerifiedMessage
from kvnet.transfer.admission import Receiver, admit_offer
from kvnet.transfer.messages import PROTOCOL_VERSION, Hello, Limits, Offer, PullRequest, open_sealed, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.types import MemoryId, NodeId, Tier, TransferId
from kvnetd.incoming import InboundTransfer
from kvnetd.outgoing import OutboundTransfer, new_offer
from kvnetd.services import Services
from kvnetd.store.disk import free_nbytes

PULL_LIFE_S = 300


class Transfers:
    """Implements transport's PeerBackend on top of the store and the model host."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self.key: NodeKey = services.key
        self.pool: Executor = services.pool
        self._inbound: set[TransferId] = set()
        self._unfinished: dict[tuple[str, ...], tuple[Offer, SignedMessage]] = {}
        self._seen_pulls: dict[str, int] = {}

    def hello(self, nonce: bytes) -> Hello:
        """Who this node is, what it hosts and takes, bound to the caller's nonce."""
        receiver = self._receiver()
        return Hello(
            protocol=PROTOCOL_VERSION,
            nonce=nonce.hex(),
            node_id=receiver.node_id,
            name=self._services.config.name,
            namespace=self._services.config.namespace,
            fingerprint=receiver.fingerprint,
            geometry=receiver.geometry,
            limits=receiver.limits,
            free_nbytes=receiver.free_nbytes,
        )

    async def open_inbound(self, sealed_offer: SignedMessage) -> InboundTransfer:
        """A peer offers a memory; once complete, a message about it waits in the inbox."""
        return await self._open(sealed_offer, is_message=True)

    async def open_pulled(
        self, sealed_offer: SignedMessage, *, wanted: MemoryId, peer: AddedPeer
    ) -> InboundTransfer:
        """A peer answers our pull: it must offer what was asked for."""
        offer, _ = open_sealed(Offer, sealed_offer, signer=peer.public)
        if offer.memory.id != wanted:
            raise MalformedMessage(f"{peer.name}: offers {offer.memory.id} instead of {wanted}")
        return await self._open(sealed_offer, is_message=False)

    async def _open(self, sealed_offer: SignedMessage, *, is_message: bool) -> InboundTransfer:
        # Verify, then admit: nothing is allocated for an offer that is refused here.
        offer, verified = open_sealed(Offer, sealed_offer, signer=None)
        peer = self._require_added(verified.signer)
        _check_transfer_id(offer.transfer_id)
        tier = admit_offer(offer, sender=verified.signer, receiver=self._receiver(), now=int(time.time()))
        if offer.transfer_id in self._inbound:
            raise TooBusy(f"transfer {offer.transfer_id}: already on its way in; wait for it")
        if len(self._inbound) >= self._services.config.max_inbound_transfers:
            raise TooBusy(f"{len(self._inbound)} transfers are on their way in; try again later")
        self._inbound.add(offer.transfer_id)
        try:
            return await self._begin(offer, sealed_offer, verified, tier, peer, is_message)
        except BaseException:
            self._inbound.discard(offer.transfer_id)
            raise

    def prepare(
        self, wanted: MemoryId, peer: AddedPeer, *, note: str, agents: tuple[str, str]
    ) -> OutboundTransfer:
        """An offer for one of our memories; the unfinished one from before, if there is, so it resumes."""
        services = self._services
        record = services.memories.find(wanted)
        now = int(time.time())
        slot = (record.id, peer.node_id, note, *agents)
        offer, sealed = self._unfinished.get(slot, (None, None))
        if offer is None or sealed is None or offer.expires_at <= now:
            offer = new_offer(
                record,
                sender=self.key.node_id,
                receiver=peer.node_id,
                now=now,
                life_s=self._receiver().limits.offer_life_s,
                agents=agents,
                note=note,
            )
            sealed = seal(self.key, offer)
            self._unfinished = {k: v for k, v in self._unfinished.items() if v[0].expires_at > now}
            self._unfinished[slot] = (offer, sealed)
        span = services.log.begin(
            "transfer",
            direction="out",
            transfer_id=offer.transfer_id,
            peer=peer.name,
            memory=record.id,
            agent=agents[1],
            raw_bytes=record.header.raw_nbytes,
            wire_bytes=sum(section.wire_nbytes for section in record.sections),
        )
        return OutboundTransfer(
            key=self.key,
            record=record,
            offer=offer,
            sealed_offer=sealed,
            sections=services.memories.open_sections(record),
            pool=services.pool,
            span=span,
            on_delivered=lambda: self._unfinished.pop(slot, None),
        )

    async def open_outbound(self, sealed_request: SignedMessage) -> OutboundTransfer:
        """A peer asks for one of our memories."""
        request, verified = open_sealed(PullRequest, sealed_request, signer=None)
        peer = self._require_added(verified.signer)
        now = int(time.time())
        self._seen_pulls = {n: t for n, t in self._seen_pulls.items() if now - t <= PULL_LIFE_S}
        fresh = abs(now - request.created_at) <= PULL_LIFE_S and request.nonce not in self._seen_pulls
        if request.receiver != verified.signer or request.sender != self.key.node_id or not fresh:
            raise ReplayedMessage("pull: made for another node, or used before; ask again")
        self._seen_pulls[request.nonce] = request.created_at
        return self.prepare(request.memory, peer, note="", agents=("", ""))

    def pull_request(self, memory: MemoryId, peer: AddedPeer) -> SignedMessage:
        """A signed request for a peer's memory."""
        request = PullRequest(
            memory=memory,
            receiver=self.key.node_id,
            sender=peer.node_id,
            created_at=int(time.time()),
            nonce=os.urandom(16).hex(),
        )
        return seal(self.key, request)

    async def _begin(
        self,
        offer: Offer,
        sealed: SignedMessage,
        verified: VerifiedMessage,
        tier: Tier,
        peer: AddedPeer,
        is_message: bool,
    ) -> InboundTransfer:
        services = self._services
        done = await services.in_store(services.ledger.completed, offer.transfer_id)
        incoming = receipt = None
        if done is None:
            incoming = await services.in_store(services.spool.open, offer, sealed)
            held = incoming.held
        else:
            receipt, held = self._completed_before(offer, verified, done)
        session = ReceiverSession(
            offer, offer_digest=verified.digest, nonce=os.urandom(16), tier=tier, held=held
        )
        return InboundTransfer(
            services,
            session=session,
            peer=peer,
            sealed_offer=sealed,
            incoming=incoming,
            receipt=receipt,
            is_message=is_message,
            on_close=lambda: self._inbound.discard(offer.transfer_id),
        )

    def _completed_before(
        self, offer: Offer, verified: VerifiedMessage, done: tuple[bytes, bytes, bytes, bytes]
    ) -> tuple[SignedMessage, dict[int, bytes]]:
        # The sender lost our receipt: it gets the same one, so exactly once stays exactly once.
        body, receipt_body, signer, signature = done
        try:
            record = self._services.memories.find(offer.memory.id)
        except KvnetError:
            record = None
        if body != verified.body or record is None:
            raise ReplayedMessage(f"transfer {offer.transfer_id}: was completed before; send it anew")
        held = {chunk.key.index: chunk.wire_digest for chunk in record.wire_chunks()}
        return SignedMessage("kvnet/receipt/v1", receipt_body, signer, signature), held

    def _require_added(self, signer: NodeId) -> AddedPeer:
        peer = self._services.peers.get(signer)
        if peer is None:
            raise PeerNotAdded(
                f"node {short_id(signer)}: not among the peers of {self._services.config.name}; "
                f"run there: kvnet peer add HOST:PORT --id {signer}"
            )
        return peer

    def _receiver(self) -> Receiver:
        services = self._services
        return Receiver(
            node_id=self.key.node_id,
            fingerprint=services.host.fingerprint,
            geometry=services.host.geometry,
            limits=Limits(
                max_seq_len=services.host.max_seq_len,
                max_transfer_nbytes=services.config.max_transfer_nbytes,
            ),
            free_nbytes=free_nbytes(services.config.home.store),
        )


def _check_transfer_id(transfer_id: TransferId) -> None:
    if len(transfer_id) != 32 or set(transfer_id) - set("0123456789abcdef"):
        raise MalformedMessage("offer: the transfer id is not 32 lower-case hex digits")
