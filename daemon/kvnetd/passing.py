"""A memory that is passed on while it arrives: chunks leave for the next node once they are durable here.

Nothing is kept in memory: what is passed on is read from the spool, at the pace of whoever takes it. Each hop
signs the chunks anew for the next one; the maker's sealed head goes through as it is.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing

from kvnet.errors import TransferIncomplete
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import SignedMessage, VerifiedChunk
from kvnet.plan import ChunkKey
from kvnet.transfer.messages import Offer
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import Part, SenderSession, WireChunk
from kvnet.transport.budgets import ByteBudget
from kvnet.types import Kind
from kvnetd.incoming import InboundTransfer
from kvnetd.log import Span
from kvnetd.outgoing import basis_chunks
from kvnetd.services import Services
from kvnetd.store.unfinished import IncomingTransfer


class Passing:
    """What of an arriving memory is here, for any number of nodes to whom it goes on."""

    def __init__(self, services: Services, offer: Offer, incoming: IncomingTransfer, basis: bytes) -> None:
        """`basis` is the memory's, where it was here before and does not come with it; empty otherwise."""
        self.failure: BaseException | None = None
        self._services = services
        self._incoming = incoming
        self._basis = basis
        self._sections = incoming.reader()
        self._arrived: list[tuple[WireChunk, int]] = []  # and where each lies, in the order of arrival
        self._total = offer.chunk_count
        self._head: SignedMessage | None = None
        self._changed = asyncio.Event()
        if basis:
            self._arrived += [(chunk, chunk.key.start) for chunk in basis_chunks(offer.memory, basis)]
        here = {chunk.key.index for chunk, _ in self._arrived}
        self._add(index for index in incoming.held if index not in here)

    def take(self, chunks: Sequence[VerifiedChunk]) -> None:
        """These are durable now."""
        self._add(chunk.envelope.key.index for chunk in chunks)
        self._tell()

    def seal(self, head: SignedMessage) -> None:
        """The maker's head came, and describes what came."""
        self._head = head
        self._tell()

    def end(self, failure: BaseException | None) -> None:
        """Nothing more comes."""
        if self._head is None:
            self.failure = failure or TransferIncomplete("what was to be passed on ended early")
            self._tell()

    async def chunks(self) -> AsyncGenerator[tuple[WireChunk, int], None]:
        """Every chunk with its place, once it is here. Raises TransferIncomplete where one never comes."""
        position = 0
        while position < self._total:
            while position == len(self._arrived):
                await self._news()
            yield self._arrived[position]
            position += 1

    async def head(self) -> SignedMessage:
        """The maker's sealed head. Raises TransferIncomplete where it never comes."""
        while self._head is None:
            await self._news()
        return self._head

    async def read(self, chunk: WireChunk, place: int) -> bytes:
        """The wire bytes of a chunk. Raises StateCorrupt."""
        if self._basis and chunk.key.kind is Kind.BASIS:
            return self._basis[chunk.key.start : chunk.key.stop]
        return await self._services.in_pool(self._sections.read, place, chunk.wire_nbytes)

    def release(self) -> None:
        """Close the file; twice is once."""
        self._sections.close()

    async def _news(self) -> None:
        """Wait until something changed. Raises TransferIncomplete where nothing more comes."""
        if self.failure is not None:
            raise TransferIncomplete("what was to be passed on ended early") from self.failure
        await self._changed.wait()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _add(self, indices: Iterable[int]) -> None:
        for index in indices:
            place, envelope = self._incoming.place_of(index)
            chunk = WireChunk(
                envelope.key,
                envelope.compression,
                envelope.raw_nbytes,
                envelope.wire_nbytes,
                envelope.wire_digest,
            )
            self._arrived.append((chunk, place))


class PassedOn:
    """Implements transport's Inbound: an arriving memory whose chunks and seal are told to a Passing."""

    def __init__(self, inbound: InboundTransfer, passing: Passing) -> None:
        self.session: ReceiverSession = inbound.session
        self.key: NodeKey = inbound.key
        self.unstored: ByteBudget = inbound.unstored
        self._inbound = inbound
        self._passing = passing

    async def use(self, chunk: VerifiedChunk) -> None:
        """As the transfer does."""
        await self._inbound.use(chunk)

    async def store(self, chunks: list[VerifiedChunk]) -> None:
        """Make chunks durable; then they go on."""
        await self._inbound.store(chunks)
        self._passing.take(chunks)

    async def finish(self, head: VerifiedHead) -> SignedMessage:
        """As the transfer does; the head goes on at once."""
        self._passing.seal(head.sealed)
        return await self._inbound.finish(head)

    async def close(self, error: BaseException | None) -> None:
        """As the transfer does; what waits for more hears of it."""
        self._passing.end(error)
        await self._inbound.close(error)


class CopyOutbound:
    """Implements transport's Outbound: a memory on its way from another node through this one."""

    def __init__(
        self, *, key: NodeKey, offer: Offer, sealed_offer: SignedMessage, passing: Passing, span: Span
    ) -> None:
        self.key = key
        self.session = SenderSession(offer, offer_digest=hashlib.sha256(sealed_offer.body).digest())
        self.sealed_offer = sealed_offer
        self._passing = passing
        self._span = span
        self._wire_nbytes = 0

    async def parts(self, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """What the next node lacks, each chunk once it is durable here."""
        lacking = {key.index for key in missing}
        async with aclosing(self._passing.chunks()) as chunks:
            async for chunk, place in chunks:
                self.session.know(chunk)
                if chunk.key.index in lacking:
                    self._wire_nbytes += chunk.wire_nbytes
                    yield chunk, await self._passing.read(chunk, place)

    async def sealed_head(self) -> SignedMessage:
        """The maker's, once it came."""
        return await self._passing.head()

    async def delivered(self, receipt: SignedMessage) -> None:
        """Nothing is kept of it: the message is the origin's, and so is its receipt."""

    async def close(self, failure: BaseException | None) -> None:
        """Write the log's last line."""
        receipt = self.session.receipt
        self._span.add(
            chunks=self.session.acked_count,
            resumed_chunks=self.session.resumed_count,
            wire_bytes=self._wire_nbytes,
            tier=receipt.tier if receipt else "",
        )
        self._span.end(failure)
