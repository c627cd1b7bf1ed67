"""A node in memory: transport's PeerBackend, Inbound and Outbound with a dict for a disk."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from kvnet.errors import BadSignature, UnknownMemory
from kvnet.format.compress import decompress
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import SignedMessage, VerifiedChunk
from kvnet.plan import ChunkKey, count_chunks
from kvnet.transfer.admission import admit_offer
from kvnet.transfer.messages import PROTOCOL_VERSION, Hello, Offer, PullRequest, open_sealed, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import Part, SenderSession
from kvnet.transport.budgets import ByteBudget
from kvnet.transport.client import PeerClient
from kvnet.types import MemoryId, RawMemory, TransferId, chunk_digest, content_digest
from tests.builders import (
    NOW,
    RECEIVER,
    make_head,
    make_memory,
    make_offer,
    make_receiver,
    wire_basis,
    wire_chunks,
)
from tests.gates import gate_of

Disk = dict[int, VerifiedChunk]
MEMORY = make_memory()
TOTAL = 6


class MemoryOutbound:
    """A memory on its way out."""

    def __init__(self, key: NodeKey, memory: RawMemory, offer: Offer, basis: bytes = b"") -> None:
        of_memory, of_basis = wire_chunks(memory), wire_basis(memory.header, basis)
        chunks, self._payloads = of_memory[0] + of_basis[0], of_memory[1] + of_basis[1]
        self.key = key
        self.sealed_offer = seal(key, offer)
        self.head = make_head(memory, key=key)
        digest = hashlib.sha256(self.sealed_offer.body).digest()
        self.session = SenderSession(offer, offer_digest=digest, chunks=chunks)
        self.failures: list[BaseException | None] = []
        self.receipts: list[SignedMessage] = []
        self.sent: list[int] = []
        self.die_after = len(chunks) + 1

    async def parts(self, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The chunks in order, until the link is cut."""
        for key in missing:
            if len(self.sent) == self.die_after:
                raise ConnectionAbortedError("the sender dies here")
            self.sent.append(key.index)
            yield self.session.chunks[key.index], self._payloads[key.index]

    async def sealed_head(self) -> SignedMessage:
        """The head, as it was made."""
        return self.head.sealed

    async def delivered(self, receipt: SignedMessage) -> None:
        """Keep the receipt."""
        self.receipts.append(receipt)

    async def close(self, failure: BaseException | None) -> None:
        """Remember how it ended."""
        self.failures.append(failure)


class MemoryInbound:
    """A memory on its way in; `disk` outlives it."""

    def __init__(self, node: MemoryNode, session: ReceiverSession, disk: Disk) -> None:
        self.session = session
        self.key = node.key
        self.unstored = node.unstored
        self._node = node
        self._disk = disk
        self.failures: list[BaseException | None] = []

    async def use(self, chunk: VerifiedChunk) -> None:
        """Nobody does."""

    async def store(self, chunks: list[VerifiedChunk]) -> None:
        """As a disk: after a while everything is there."""
        await self._node.disk_is_ready.wait()
        for chunk in chunks:
            self._disk[chunk.envelope.key.index] = chunk

    async def finish(self, head: VerifiedHead) -> SignedMessage:
        """Decompress everything, compare with the offer, keep it."""
        header = self.session.offer.memory
        raws = []
        for index in range(len(self.session.plan)):
            chunk = self._disk[index]
            envelope = chunk.envelope
            raws.append(bytes(decompress(chunk.signed.payload, envelope.compression, envelope.raw_nbytes)))
        count = count_chunks(header)
        if content_digest([chunk_digest(raw) for raw in raws[:count]]) != header.content_digest:
            raise BadSignature("the contents are not the memory offered")
        self._node.memories[header.id] = RawMemory(header, tuple(raws[:count]))
        if header.coding.basis:
            self._node.bases[header.coding.basis] = b"".join(raws[count:])
        return seal(self.key, self.session.receipt(received_at=NOW))

    async def close(self, error: BaseException | None) -> None:
        """Remember how it ended."""
        self.failures.append(error)
        self._node.closed.set()


class MemoryNode:
    """Answers hellos, takes offers, sends its memories. Its clock stands at NOW."""

    def __init__(self, key: NodeKey, pool: Executor, **receiver: Any) -> None:
        self.key = key
        self.pool = pool
        self.memories: dict[MemoryId, RawMemory] = {}
        self.bases: dict[str, bytes] = {}
        self.disks: dict[TransferId, Disk] = {}
        self.inbound: list[MemoryInbound] = []
        self.outbound: list[MemoryOutbound] = []
        self.closed = asyncio.Event()
        self.unstored = ByteBudget(64 << 20)
        self.disk_is_ready = asyncio.Event()
        self.disk_is_ready.set()
        self._receiver = make_receiver(node_id=key.node_id, **receiver)

    def takes(self, **changes: Any) -> None:
        """Change what it hosts and has room for: as `make_receiver`."""
        self._receiver = replace(self._receiver, **changes)

    def hello(self, nonce: bytes) -> Hello:
        """Who this node is."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            nonce=nonce.hex(),
            node_id=self.key.node_id,
            name="node",
            namespace="default",
            fingerprint=self._receiver.fingerprint,
            geometry=self._receiver.geometry,
            limits=self._receiver.limits,
            free_nbytes=self._receiver.free_nbytes,
        )

    async def open_inbound(self, sealed_offer: SignedMessage) -> MemoryInbound:
        """Verify and admit."""
        offer, verified = open_sealed(Offer, sealed_offer, signer=None)
        tier = admit_offer(offer, sender=verified.signer, receiver=self._receiver, now=NOW)
        disk = self.disks.setdefault(offer.transfer_id, {})
        held = {index: chunk.envelope.wire_digest for index, chunk in disk.items()}
        session = ReceiverSession(
            offer, offer_digest=verified.digest, nonce=os.urandom(16), tier=tier, held=held
        )
        self.inbound.append(MemoryInbound(self, session, disk))
        self.closed.clear()
        return self.inbound[-1]

    async def open_outbound(self, sealed_request: SignedMessage) -> MemoryOutbound:
        """Verify and prepare."""
        request, verified = open_sealed(PullRequest, sealed_request, signer=None)
        memory = self.memories.get(request.memory)
        if memory is None:
            raise UnknownMemory(f"memory {request.memory}: not here")
        self.outbound.append(self.outgoing(memory, receiver=verified.signer))
        return self.outbound[-1]

    def outgoing(self, memory: RawMemory, *, basis: bytes = b"", **changes: Any) -> MemoryOutbound:
        """An offer of this node."""
        offer = make_offer(memory, **{"sender": self.key.node_id, **changes})
        return MemoryOutbound(self.key, memory, offer, basis)

    async def settled(self) -> MemoryInbound:
        """The latest transfer on its way in, once it was closed."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.closed.wait(), 5)
        return self.inbound[-1]


@dataclass
class Pair:
    """Bob listens; Alice knows his address and his key."""

    alice: MemoryNode
    bob: MemoryNode
    address: str

    def client(self, **changes: Any) -> PeerClient:
        """Alice's connection to Bob."""
        gate = gate_of(self.alice.key, RECEIVER)
        return PeerClient(self.address, **{"public": RECEIVER.public, "peer": "bob", "gate": gate, **changes})

    async def push(self, outbound: MemoryOutbound | None = None) -> MemoryOutbound:
        """Send MEMORY from Alice to Bob, who has it then."""
        outbound = outbound or self.alice.outgoing(MEMORY)
        async with self.client() as client:
            sent = await client.push(outbound)
        assert sent.receipt.memory == MEMORY.header.id
        assert self.bob.memories[MEMORY.header.id] == MEMORY
        return outbound
