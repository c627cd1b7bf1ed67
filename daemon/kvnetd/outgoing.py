"""One transfer on its way out: the offer, and payloads read from the store as they are due."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.plan import count_chunks, count_transfer_chunks, plan_transfer
from kvnet.transfer.messages import Offer
from kvnet.transfer.sender import SenderSession, WireChunk
from kvnet.types import Compression, Kind, MemoryHeader, NodeId, Scheme, TransferId
from kvnetd.log import Span
from kvnetd.services import Services, utc_now
from kvnetd.store.bases import BasisStore
from kvnetd.store.ledger import CompletedTransfer
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import MemoryRecord
from kvnetd.store.sections import SectionsFile, read_section
from kvnetd.store.texts import kept_body


@dataclass(frozen=True, slots=True)
class StoredParts:
    """A memory as it is sent: what its chunks are, and where they are read from."""

    chunks: tuple[WireChunk, ...]  # of the memory, then of its basis
    sealed_head: SignedMessage
    basis: bytes
    sections: SectionsFile


def open_parts(memories: MemoryStore, bases: BasisStore, record: MemoryRecord) -> StoredParts:
    """Read and open what a transfer needs; whoever asks closes `sections`. Blocks.

    Raises UnknownBasis, and as `MemoryStore.open_stored`.
    """
    coding = record.header.coding
    basis = bases.require(coding.basis) if coding.basis else b""
    chunks = (*record.wire_chunks(), *basis_chunks(record.header, basis))
    sealed_head, sections = memories.open_stored(record)
    return StoredParts(chunks, sealed_head, basis, sections)


class OutboundTransfer:
    """Implements transport's Outbound. `on_close` hears how it ended; None is a success."""

    def __init__(
        self,
        services: Services,
        *,
        record: MemoryRecord,
        offer: Offer,
        sealed_offer: SignedMessage,
        stored: StoredParts,
        span: Span,
        on_close: Callable[[BaseException | None], Awaitable[None]],
    ) -> None:
        offer_digest = hashlib.sha256(sealed_offer.body).digest()
        self.key: NodeKey = services.key
        self.session = SenderSession(offer, offer_digest=offer_digest, chunks=stored.chunks)
        self.sealed_offer = sealed_offer
        self.sealed_head = stored.sealed_head
        self._services = services
        self._record = record
        self._basis = stored.basis
        self._sections = stored.sections
        self._span = span
        self._on_close = on_close
        self._wire_nbytes = 0
        self._is_delivered = False

    async def payload(self, chunk: WireChunk) -> bytes:
        """The chunk's bytes from the store. Raises StateCorrupt if they are not what was stored."""
        if chunk.key.kind is Kind.BASIS:
            data = self._basis[chunk.key.start : chunk.key.stop]
        else:
            section = self._record.head.sections[chunk.key.index]
            data = await self._services.in_pool(read_section, self._sections, section)
        self._wire_nbytes += len(data)
        return data

    async def delivered(self, receipt: SignedMessage) -> None:
        """Keep the receiver's signed receipt beside our offer."""
        offer = self.session.offer
        transfer = CompletedTransfer(
            direction="out",
            peer=offer.receiver,
            transfer_id=offer.transfer_id,
            memory=offer.memory.id,
            offer_body=kept_body(offer, self.sealed_offer),
            receipt=receipt,
            completed_at=utc_now(),
            offer_signature=b"" if offer.text else self.sealed_offer.signature,
        )
        await self._services.in_store(self._services.ledger.complete, transfer, None)
        self._is_delivered = True

    async def close(self, failure: BaseException | None) -> None:
        """Close the file and write the log's last line."""
        self.release()
        receipt = self.session.receipt
        if self._is_delivered:
            failure = None  # a caller that left before the report changes nothing
        self._span.add(
            chunks=self.session.acked_count,
            resumed_chunks=self.session.resumed_count,
            wire_bytes=self._wire_nbytes,
            tier=receipt.tier if receipt else "",
            map=_map_of(self._record),
        )
        self._span.end(failure)
        await self._on_close(failure)

    def release(self) -> None:
        """Close the file; twice is once."""
        self._sections.close()


def _map_of(record: MemoryRecord) -> str:
    """The map that made a memory's coordinates; in other codings the reference is anybody's words."""
    return record.head.w_matrix_reference if record.header.coding.scheme is Scheme.PORT else ""


def basis_chunks(memory: MemoryHeader, basis: bytes) -> tuple[WireChunk, ...]:
    """The pieces of a memory's basis as the sender's session wants them, uncompressed."""
    pieces = plan_transfer(memory)[count_chunks(memory) :]
    return tuple(
        WireChunk(
            key=key,
            compression=Compression.NONE,
            raw_nbytes=key.stop - key.start,
            wire_nbytes=key.stop - key.start,
            wire_digest=hashlib.sha256(basis[key.start : key.stop]).digest(),
        )
        for key in pieces
    )


def new_offer(
    record: MemoryRecord,
    *,
    sender: NodeId,
    receiver: NodeId,
    now: int,
    life_s: int,
    agents: tuple[str, str],
    note: str,
    text: str = "",
) -> Offer:
    """A fresh offer with its own transfer id; `agents` are the sending and the receiving one.

    `text` is what the memory is of, for a peer whose model cannot use the memory.
    """
    return Offer(
        transfer_id=TransferId(os.urandom(16).hex()),
        memory=record.header,
        sender=sender,
        receiver=receiver,
        chunk_count=count_transfer_chunks(record.header),
        created_at=now,
        expires_at=now + life_s,
        note=note,
        sender_agent=agents[0],
        agent=agents[1],
        text=text,
        map=_map_of(record),
    )
