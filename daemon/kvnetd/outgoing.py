"""One transfer on its way out: the offer, and payloads read from the store as they are due."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import BinaryIO

from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Offer
from kvnet.transfer.sender import SenderSession, WireChunk
from kvnet.types import NodeId, TransferId
from kvnetd.log import Span
from kvnetd.services import utc_now
from kvnetd.store.memories import MemoryRecord, read_section


class OutboundTransfer:
    """Implements transport's Outbound."""

    def __init__(
        self,
        *,
        key: NodeKey,
        record: MemoryRecord,
        offer: Offer,
        sealed_offer: SignedMessage,
        sections: BinaryIO,
        pool: Executor,
        span: Span,
        on_delivered: Callable[[], object],
    ) -> None:
        offer_digest = hashlib.sha256(sealed_offer.body).digest()
        self.key = key
        self.session = SenderSession(offer, offer_digest=offer_digest, chunks=record.wire_chunks())
        self.sealed_offer = sealed_offer
        self._record = record
        self._sections = sections
        self._pool = pool
        self._span = span
        self._on_delivered = on_delivered

    async def payload(self, chunk: WireChunk) -> bytes:
        """The chunk's bytes from the store. Not hashed again here: the receiver checks them."""
        section = self._record.sections[chunk.key.index]
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, read_section, self._sections, section)

    def receipt_row(self, receipt: SignedMessage) -> tuple[str | bytes, ...]:
        """What the ledger keeps of a finished transfer: the offer and the receiver's signed receipt."""
        offer = self.session.offer
        return (
            *(offer.transfer_id, "out", offer.receiver, offer.memory.id, self.sealed_offer.body),
            *(receipt.body, receipt.signer, receipt.signature, utc_now()),
        )

    async def close(self, failure: BaseException | None) -> None:
        """Close the file and write the log's last line; a failed transfer keeps its offer to resume."""
        self._sections.close()
        self._span.add(chunks=self.session.acked_count)
        if self.session.receipt is not None:
            self._span.add(tier=self.session.receipt.tier)
        self._span.end(failure)
        if failure is None:
            self._on_delivered()


def new_offer(
    record: MemoryRecord,
    *,
    sender: NodeId,
    receiver: NodeId,
    now: int,
    life_s: int,
    agents: tuple[str, str],
    note: str,
) -> Offer:
    """A fresh offer with its own transfer id; `agents` are the sending and the receiving one."""
    return Offer(
        transfer_id=TransferId(os.urandom(16).hex()),
        memory=record.header,
        sender=sender,
        receiver=receiver,
        chunk_count=len(record.sections),
        created_at=now,
        expires_at=now + life_s,
        note=note,
        sender_agent=agents[0],
        agent=agents[1],
    )
