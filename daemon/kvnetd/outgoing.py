"""One transfer on its way out: the offer, and payloads read from the store as they are due."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.plan import ChunkKey, count_chunks, count_transfer_chunks, plan_transfer
from kvnet.transfer.messages import Offer
from kvnet.transfer.sender import Part, SenderSession, WireChunk
from kvnet.types import (
    Compression,
    Kind,
    MemoryHeader,
    NodeId,
    Scheme,
    TransferId,
    chunk_digest,
    sha256_hex,
)
from kvnetd.log import Span
from kvnetd.services import Services, utc_now
from kvnetd.store.bases import BasisStore
from kvnetd.store.ledger import CompletedTransfer
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import MemoryRecord
from kvnetd.store.sections import SectionsFile, read_section
from kvnetd.store.texts import kept_body

MAX_READ_AHEAD = 3  # chunks that are read before the link takes them


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


@dataclass(frozen=True, slots=True)
class Beside:
    """What an offer says of a memory that is sent in parts: as `Offer` has it."""

    prefix_text: str = ""
    quiet: bool = False
    label: str = ""

    @property
    def slot(self) -> tuple[str, ...]:
        """What tells its message from others of the same memory; nothing for a whole one."""
        if self == Beside():
            return ()
        return ("part", sha256_hex(self.prefix_text.encode()), str(self.quiet), self.label)


class Source(Protocol):
    """Where the parts of a transfer come from."""

    def know(self, session: SenderSession) -> None:
        """Tell the session of the chunks that are known before the first of them is sent."""
        ...

    def parts(self, session: SenderSession, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The parts that the receiver lacks, each once it is there; the session hears of all others too."""
        ...

    async def finished(self) -> tuple[MemoryRecord, SignedMessage]:
        """The memory and its signed head, once all parts were given."""
        ...

    def release(self) -> None:
        """Let go of what it holds; twice is once."""
        ...


class StoredSource:
    """A memory that lies in the store. Implements Source."""

    def __init__(self, services: Services, record: MemoryRecord, stored: StoredParts) -> None:
        self._services = services
        self._record = record
        self._stored = stored

    def know(self, session: SenderSession) -> None:
        """All of them."""
        for chunk in self._stored.chunks:
            session.know(chunk)

    async def parts(self, session: SenderSession, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The chunks in order, the next ones read meanwhile. Raises StateCorrupt for what is damaged."""
        ahead: deque[asyncio.Task[bytes]] = deque()
        to_come = iter(missing)
        try:
            for key in missing:
                while len(ahead) <= MAX_READ_AHEAD and (coming := next(to_come, None)) is not None:
                    ahead.append(asyncio.create_task(self._wire(coming)))
                yield self._stored.chunks[key.index], await ahead[0]
                ahead.popleft()
        finally:
            for task in ahead:  # what a thread reads already, it reads to its end: the file stays open for it
                task.cancel()
                task.add_done_callback(_looked_at)

    async def _wire(self, key: ChunkKey) -> bytes:
        if key.kind is Kind.BASIS:
            return self._stored.basis[key.start : key.stop]
        section = self._record.head.sections[key.index]
        return await self._services.in_pool(read_section, self._stored.sections, section)

    async def finished(self) -> tuple[MemoryRecord, SignedMessage]:
        """As it was stored."""
        return self._record, self._stored.sealed_head

    def release(self) -> None:
        """Close the file."""
        self._stored.sections.close()


def _looked_at(task: asyncio.Task[bytes]) -> None:
    """Nobody else asks how it ended."""
    if not task.cancelled():
        task.exception()


class OutboundTransfer:
    """Implements transport's Outbound. `on_close` hears how it ended; None is a success."""

    def __init__(
        self,
        services: Services,
        *,
        offer: Offer,
        sealed_offer: SignedMessage,
        source: Source,
        span: Span,
        on_close: Callable[[BaseException | None], Awaitable[None]],
    ) -> None:
        offer_digest = hashlib.sha256(sealed_offer.body).digest()
        self.key: NodeKey = services.key
        self.session = SenderSession(offer, offer_digest=offer_digest)
        self.sealed_offer = sealed_offer
        self.record: MemoryRecord | None = None  # what was sent, once all of it was
        self._services = services
        self._source = source
        self._span = span
        self._on_close = on_close
        self._wire_nbytes = 0
        self._is_delivered = False
        source.know(self.session)

    async def parts(self, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The parts that the receiver lacks, from wherever they come. Raises as the source."""
        async with aclosing(self._source.parts(self.session, missing)) as parts:
            async for chunk, wire in parts:
                self._wire_nbytes += len(wire)
                yield chunk, wire

    async def sealed_head(self) -> SignedMessage:
        """The memory's head, as its maker signed it."""
        self.record, sealed = await self._source.finished()
        self.session.close(self.record.header)
        return sealed

    async def delivered(self, receipt: SignedMessage) -> None:
        """Keep the receiver's signed receipt beside our offer."""
        offer = self.session.offer
        if self.record is None:
            raise AssertionError("a receipt came before the memory was sealed")
        transfer = CompletedTransfer(
            direction="out",
            peer=offer.receiver,
            transfer_id=offer.transfer_id,
            memory=self.record.id,
            offer_body=kept_body(offer, self.sealed_offer),
            receipt=receipt,
            completed_at=utc_now(),
            offer_signature=b"" if offer.text or offer.prefix_text else self.sealed_offer.signature,
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
            map=self.session.offer.map,
        )
        if self.record is not None:
            self._span.add(memory=self.record.id)
        self._span.end(failure)
        await self._on_close(failure)

    def tell(self, **fields: str | float) -> None:
        """Write more into the log's last line."""
        self._span.add(**fields)

    def release(self) -> None:
        """Let go of the parts; twice is once."""
        self._source.release()


def map_of(record: MemoryRecord) -> str:
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
            wire_digest=chunk_digest(basis[key.start : key.stop]),
        )
        for key in pieces
    )


def new_offer(
    memory: MemoryHeader,
    *,
    sender: NodeId,
    receiver: NodeId,
    now: int,
    life_s: int,
    agents: tuple[str, str],
    note: str,
    text: str = "",
    map_id: str = "",
    behind: str = "",
    beside: Beside | None = None,
) -> Offer:
    """A fresh offer with its own transfer id; `agents` are the sending and the receiving one.

    `map_id` names the map that made a memory's coordinates; `text` is what the memory is of, for a peer whose
    model cannot use it. `behind` is the memory here of the tokens before it.
    """
    beside = beside or Beside()
    return Offer(
        transfer_id=TransferId(os.urandom(16).hex()),
        memory=memory,
        sender=sender,
        receiver=receiver,
        chunk_count=count_transfer_chunks(memory),
        created_at=now,
        expires_at=now + life_s,
        note=note,
        sender_agent=agents[0],
        agent=agents[1],
        text=text,
        map=map_id,
        behind=behind,
        prefix_text=beside.prefix_text,
        quiet=beside.quiet,
        label=beside.label,
    )
