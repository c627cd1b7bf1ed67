"""One transfer on its way in: chunks to the spool, then a memory, a receipt and an inbox message."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable
from typing import Protocol

from kvnet.api import InboxMessage
from kvnet.errors import (
    BadSignature,
    ConflictingChunk,
    MalformedChunk,
    MalformedFile,
    PeerNotAdded,
    ReplayedMessage,
    UnsupportedFormat,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import SignedMessage, VerifiedChunk
from kvnet.transfer.messages import Offer, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transport.budgets import ByteBudget
from kvnet.transport.tasks import run_together
from kvnet.types import MemoryId, base32
from kvnetd.landing import Landing
from kvnetd.log import Span
from kvnetd.services import Services, utc_now
from kvnetd.store.ledger import CompletedTransfer
from kvnetd.store.texts import attach_text, kept_body
from kvnetd.store.unfinished import IncomingTransfer

# What came is not what its sender, or the memory's maker, could have signed.
_UNVERIFIED = (
    BadSignature,
    MalformedChunk,
    MalformedFile,
    ReplayedMessage,
    ConflictingChunk,
    UnsupportedFormat,
)


class Head(Protocol):
    """What comes before the memory, and is read here meanwhile (`heads.HeadReading`)."""

    async def keep(self) -> None:
        """Wait until it is read, and store it."""
        ...

    def abandon(self) -> None:
        """Stop."""
        ...


class InboundTransfer:
    """Implements transport's Inbound. Without `incoming` it is a transfer that was completed before."""

    def __init__(
        self,
        services: Services,
        *,
        session: ReceiverSession,
        peer: AddedPeer,
        sealed_offer: SignedMessage,
        incoming: IncomingTransfer | None,
        receipt: SignedMessage | None,
        is_message: bool,
        is_resumable: bool,
        unstored: ByteBudget,
        span: Span,
        on_store: Callable[[int], object],
        on_close: Callable[[], object],
        head: Head | None = None,
    ) -> None:
        self.session = session
        self.key: NodeKey = services.key
        self.unstored = unstored
        self.wire_nbytes = 0
        self.resumed_chunks = session.durable_count
        self._landing: Landing | None = None
        self._services = services
        self._peer = peer
        self._sealed_offer = sealed_offer
        self._incoming = incoming
        self._receipt = receipt
        self._is_message = is_message
        self._is_resumable = is_resumable
        self._on_store = on_store
        self._on_close = on_close
        self._head = head
        self._span = span
        self._began = time.perf_counter()

    @property
    def incoming(self) -> IncomingTransfer | None:
        """Its part of the spool; None of a transfer that was completed before."""
        return self._incoming

    def land(self, landing: Landing) -> None:
        """Let somebody use the memory while it comes; before the first chunk does."""
        self._landing = landing

    async def use(self, chunk: VerifiedChunk) -> None:
        """Decode it for whoever takes the memory as it comes: verified, it need not wait for the disk."""
        if self._landing is not None:
            await self._landing.take(chunk)

    async def store(self, chunks: list[VerifiedChunk]) -> None:
        """Make chunks durable."""
        if self._incoming is None:
            raise ReplayedMessage("chunk: the transfer was completed before")
        await run_together(  # while the disk is waited for, the processor is free
            self._services.in_pool(self._incoming.sum_up, chunks),
            self._services.in_store(self._incoming.store, chunks),
        )
        nbytes = sum(chunk.envelope.wire_nbytes for chunk in chunks)
        self.wire_nbytes += nbytes
        self._on_store(nbytes)

    async def finish(self, head: VerifiedHead) -> SignedMessage:
        """Memory in place, then receipt and message in one transaction, then the answer."""
        if self._receipt is None and self._incoming is not None:
            if self._services.peers.trusted(self._peer.public) is None:
                raise PeerNotAdded(f"{self._peer.name}: was removed while it was sending")
            if self._head is not None:
                await self._head.keep()
            self._receipt = await self._services.in_store(self._adopt, self._incoming, head)
            self._log_verification("completed")
        elif self._receipt is None:
            self._receipt = await self._services.in_store(self._receipt_again)
        return self._receipt

    async def close(self, error: BaseException | None) -> None:
        """Close the files; what is durable stays for a resume, unless it contradicts the sender."""
        try:
            if self._landing is not None:
                self._landing.end(error)
            if self._head is not None:
                self._head.abandon()
            if isinstance(error, _UNVERIFIED):
                self._log_verification("failed", error=error.code, message=error.message)
            if self._incoming is not None:
                complete = self.session.durable_count == len(self.session.plan)
                hopeless = isinstance(error, ConflictingChunk) or (
                    isinstance(error, BadSignature | MalformedChunk) and complete
                )
                hopeless = hopeless or (error is not None and not self._is_resumable)
                release = self._incoming.discard if hopeless else self._incoming.close
                # Whoever cancels this must not leave the files open.
                await asyncio.shield(self._services.in_store(release))
        finally:
            self._span.add(
                wire_bytes=self.wire_nbytes,
                chunks=self.session.durable_count,
                resumed_chunks=self.resumed_chunks,
            )
            self._span.end(error)
            self._on_close()

    def _adopt(self, incoming: IncomingTransfer, head: VerifiedHead) -> SignedMessage:
        services, offer = self._services, self.session.offer
        now = utc_now()
        record = incoming.finish(services.memories, head, stored_at=now)
        if offer.text and record.notes.origin == offer.sender:  # else it is a memory that others gave
            attach_text(services.memories, record.header, offer.text)
        receipt = seal(self.key, self.session.receipt(received_at=int(time.time())))
        message = InboxMessage(
            id=_message_id(offer),
            sender=offer.sender,
            sender_name=self._peer.name,
            sender_agent=offer.sender_agent,
            agent=offer.agent,
            memory=record.id,
            note=offer.note,
            received_at=now,
            acknowledged_at="",
        )
        transfer = self._completed(receipt, record.id, now)
        services.ledger.complete(transfer, message if self._is_message else None)
        if offer.label:
            self._point(offer.label, record.id)
        return receipt

    def _receipt_again(self) -> SignedMessage:
        """Of what was completed when one of the nodes had another key: its message is here."""
        receipt = seal(self.key, self.session.receipt(received_at=int(time.time())))
        transfer = self._completed(receipt, self.session.offer.memory.id, utc_now())
        self._services.ledger.complete(transfer, None)
        return receipt

    def _completed(self, receipt: SignedMessage, memory: MemoryId, at: str) -> CompletedTransfer:
        offer = self.session.offer
        return CompletedTransfer(
            direction="in",
            peer=offer.sender,
            transfer_id=offer.transfer_id,
            memory=memory,
            offer_body=kept_body(offer, self._sealed_offer),
            receipt=receipt,
            completed_at=at,
        )

    def _point(self, label: str, memory: str) -> None:
        """Let the sender's label point here, but for a name that is in use for what others made."""
        ledger, name = self._services.ledger, f"{self._peer.name}/{label}"
        known = ledger.memory_named(name)
        if known is None or known in ledger.memories_from(self._peer.all_ids):
            ledger.name(name, memory)

    def _log_verification(self, outcome: str, **fields: str) -> None:
        self._services.log.write(
            f"verification.{outcome}",
            transfer_id=self.session.offer.transfer_id,
            peer=self._peer.name,
            memory="" if self.session.memory.is_open else self.session.memory.id,
            chunks=self.session.durable_count,
            wire_bytes=self.wire_nbytes,
            duration_s=round(time.perf_counter() - self._began, 6),
            **fields,
        )


def _message_id(offer: Offer) -> str:
    # Of sender and transfer: another sender's use of the same transfer id is another message.
    digest = hashlib.sha256(f"{offer.sender}/{offer.transfer_id}".encode()).digest()
    return "msg_" + base32(digest)[:26]
