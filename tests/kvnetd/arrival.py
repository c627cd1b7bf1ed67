"""A memory as it comes from a peer. Imports nothing that hosts a model."""

from __future__ import annotations

import hashlib

from kvnet.identity.signing import SignedMessage, VerifiedChunk, sign_chunk, verify_chunk
from kvnet.transfer.messages import Offer, seal
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import SenderSession
from kvnet.types import RawMemory, Tier
from tests.builders import SENDER, make_head, make_offer, wire_basis, wire_chunks


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
