"""Memory stores, spools and whole nodes, and chunks as a sender signs them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kvnetd.services import Services
from kvnetd.store.bases import BasisStore
from kvnetd.store.memories import MemoryStore
from kvnetd.store.spool import Spool
from kvnetd.transfers import Transfers

from kvnet.identity.peers import AddedPeer
from kvnet.identity.signing import SignedMessage, VerifiedChunk, sign_chunk, verify_chunk
from kvnet.transfer.messages import Offer, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import SenderSession
from kvnet.types import RawMemory, Tier
from tests.builders import RECEIVER, SENDER, make_head, make_memory, make_offer, wire_basis, wire_chunks
from tests.kvnetd.nodes import Node, add, listening, services_of

ALICE = AddedPeer(SENDER.node_id, "alice", "", "")


class Arrival:
    """A memory as it comes from a peer: the offer, and each chunk signed and verified."""

    def __init__(
        self,
        memory: RawMemory,
        nonce: bytes = b"n" * 16,
        offer: Offer | None = None,
        basis: bytes = b"",
    ) -> None:
        self.memory = memory
        self.head = make_head(memory)
        self.offer = offer or make_offer(memory)
        self.sealed: SignedMessage = seal(SENDER, self.offer)
        digest = hashlib.sha256(self.sealed.body).digest()
        of_memory, of_basis = wire_chunks(memory), wire_basis(memory.header, basis)
        chunks, payloads = of_memory[0] + of_basis[0], of_memory[1] + of_basis[1]
        receiver = ReceiverSession(self.offer, offer_digest=digest, nonce=nonce, tier=Tier.EXACT, held={})
        sender = SenderSession(self.offer, offer_digest=digest, chunks=chunks)
        sender.accepted(receiver.accept())
        self.chunks: list[VerifiedChunk] = [
            verify_chunk(sign_chunk(SENDER, sender.envelope(chunk), payload), receiver.binding)
            for chunk, payload in zip(chunks, payloads, strict=True)
        ]
        self.payloads = payloads
        self.digests = {chunk.key.index: chunk.wire_digest for chunk in chunks}


@pytest.fixture
def arrival() -> Arrival:
    return Arrival(make_memory())


@pytest.fixture
def bases(tmp_path: Path) -> BasisStore:
    return BasisStore(tmp_path / "bases")


@pytest.fixture
def spool(tmp_path: Path, bases: BasisStore) -> Spool:
    return Spool(tmp_path / "incoming", bases)


@pytest.fixture
def memories(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories")


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    """RECEIVER's node, which has added Alice."""
    async with services_of(tmp_path, RECEIVER, ALICE) as found:
        yield found


@pytest.fixture
def transfers(services: Services) -> Transfers:
    return Transfers(services)


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Node]:
    """SENDER's node, listening."""
    async with services_of(tmp_path / "alice", SENDER, name="alice") as services, listening(services) as node:
        yield node


@pytest.fixture
async def bob(tmp_path: Path, alice: Node) -> AsyncIterator[Node]:
    """RECEIVER's node, listening; he and Alice have added each other."""
    async with services_of(tmp_path / "bob", RECEIVER, name="bob") as services, listening(services) as node:
        add(alice, node)
        add(node, alice)
        yield node
