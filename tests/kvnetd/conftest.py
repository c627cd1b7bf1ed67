"""Folders with a memory store or a spool in them, and chunks as a sender signs them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from kvnetd.store.memories import MemoryStore
from kvnetd.store.spool import Spool

from kvnet.identity.signing import SignedMessage, VerifiedChunk, sign_chunk, verify_chunk
from kvnet.transfer.messages import Offer, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import SenderSession
from kvnet.types import RawMemory, Tier
from tests.builders import SENDER, make_memory, make_offer, wire_chunks


class Arrival:
    """A memory as it comes from a peer: the offer, and each chunk signed and verified."""

    def __init__(self, memory: RawMemory, nonce: bytes = b"n" * 16, offer: Offer | None = None) -> None:
        self.memory = memory
        self.offer = offer or make_offer(memory)
        self.sealed: SignedMessage = seal(SENDER, self.offer)
        digest = hashlib.sha256(self.sealed.body).digest()
        chunks, payloads = wire_chunks(memory)
        receiver = ReceiverSession(self.offer, offer_digest=digest, nonce=nonce, tier=Tier.EXACT, held={})
        sender = SenderSession(self.offer, offer_digest=digest, chunks=chunks)
        sender.accepted(receiver.accept())
        self.chunks: list[VerifiedChunk] = [
            verify_chunk(sign_chunk(SENDER, sender.envelope(chunk), payload), receiver.binding)
            for chunk, payload in zip(chunks, payloads, strict=True)
        ]
        self.digests = {chunk.key.index: chunk.wire_digest for chunk in chunks}


@pytest.fixture
def arrival() -> Arrival:
    return Arrival(make_memory())


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "incoming")


@pytest.fixture
def memories(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path / "memories")
