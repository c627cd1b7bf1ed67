"""One transfer on its way in: chunks to the spool, then a memory, a receipt and an inbox message."""

from __future__ import annotations

import time
from collections.abc import Callable

from kvnet.api import InboxMessage
from kvnet.errors import BadSignature, MalformedChunk, ReplayedMessage
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage, VerifiedChunk
from kvnet.transfer.messages import seal
from kvnet.transfer.receiver import ReceiverSession
from kvnetd.log import Span
from kvnetd.services import Services, utc_now
from kvnetd.store.spool import IncomingTransfer


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
        on_close: Callable[[], None],
    ) -> None:
        self.session = session
        self.key: NodeKey = services.key
        self.wire_nbytes = 0
        self._services = services
        self._peer = peer
        self._sealed_offer = sealed_offer
        self._incoming = incoming
        self._receipt = receipt
        self._is_message = is_message
        self._on_close = on_close
        self._began = time.perf_counter()
        self.resumed_chunks = session.durable_count
        self._span: Span = services.log.begin(
            "transfer",
            direction="in",
            transfer_id=session.offer.transfer_id,
            peer=peer.name,
            memory=session.offer.memory.id,
            agent=session.offer.agent,
            tier=session.tier.value,
            raw_bytes=session.offer.memory.raw_nbytes,
        )

    async def store(self, chunks: list[VerifiedChunk]) -> None:
        """Make chunks durable."""
        if self._incoming is None:
            raise ReplayedMessage("chunk: the transfer was completed before")
        await self._services.in_store(self._incoming.store, chunks)
        self.wire_nbytes += sum(chunk.envelope.wire_nbytes for chunk in chunks)

    async def finish(self, sealed_commit: SignedMessage) -> SignedMessage:
        """Memory in place, then receipt and message in one transaction, then the answer."""
        if self._receipt is None and self._incoming is not None:
            self._log_verified(len(self.session.plan))
            self._receipt = await self._services.in_store(self._adopt, self._incoming)
        if self._receipt is None:
            raise AssertionError("a transfer has a spool or a receipt")
        return self._receipt

    async def close(self, error: BaseException | None) -> None:
        """Close the files; what is durable stays for a resume."""
        if self._incoming is not None:
            await self._services.in_store(self._incoming.close)
        if isinstance(error, BadSignature | MalformedChunk | ReplayedMessage):
            self._services.log.write(
                "verification.failed",
                transfer_id=self.session.offer.transfer_id,
                peer=self._peer.name,
                chunks=self.session.durable_count,
                error=error.code,
                message=error.message,
            )
        self._span.add(
            wire_bytes=self.wire_nbytes, chunks=self.session.durable_count, resumed_chunks=self.resumed_chunks
        )
        self._span.end(error)
        self._on_close()

    def _adopt(self, incoming: IncomingTransfer) -> SignedMessage:
        services, offer = self._services, self.session.offer
        now = utc_now()
        record = incoming.finish(services.memories, created_at=now)
        receipt = seal(self.key, self.session.receipt(received_at=int(time.time())))
        message = InboxMessage(
            id=f"msg_{offer.transfer_id}",
            sender=offer.sender,
            sender_name=self._peer.name,
            sender_agent=offer.sender_agent,
            agent=offer.agent,
            memory=record.id,
            note=offer.note,
            received_at=now,
            acknowledged_at="",
        )
        row = (
            *(offer.transfer_id, "in", offer.sender, record.id, self._sealed_offer.body),
            *(receipt.body, receipt.signer, receipt.signature, now),
        )
        services.ledger.complete(row, message if self._is_message else None)
        return receipt

    def _log_verified(self, chunks: int) -> None:
        self._services.log.write(
            "verification.completed",
            transfer_id=self.session.offer.transfer_id,
            peer=self._peer.name,
            memory=self.session.offer.memory.id,
            chunks=chunks,
            wire_bytes=self.wire_nbytes,
            duration_s=round(time.perf_counter() - self._began, 6),
        )
