"""Both sessions against a small model, over a network that reorders, repeats, drops and crashes.

The model knows which chunks are durable. Nothing is acknowledged before it is durable, a commit
succeeds exactly when everything is, every receipt says the same, and frames of an earlier attempt
are refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from kvnet.errors import ConflictingChunk, ReplayedMessage, TransferIncomplete
from kvnet.identity.signing import SignedChunk, sign_chunk, verify_chunk
from kvnet.transfer.messages import Receipt
from kvnet.transfer.receiver import AlreadyHeld, ReceiverSession, StoreChunk
from kvnet.transfer.sender import SenderSession
from kvnet.types import Compression, Tier
from tests.builders import NOW, SENDER, make_basis, make_memory, make_offer, wire_basis, wire_chunks

_CODING, _BASIS = make_basis()
_MEMORY = make_memory(num_layers=2, coding=_CODING)
_OFFER = make_offer(_MEMORY)
_OFFER_DIGEST = b"o" * 32
_CHUNKS, _PAYLOADS = (
    of_memory + of_basis
    for of_memory, of_basis in zip(wire_chunks(_MEMORY), wire_basis(_MEMORY.header, _BASIS), strict=True)
)
_indices = st.integers(0, len(_CHUNKS) - 1)


class Transfer(RuleBasedStateMachine):
    """One offer, as many attempts as it takes."""

    frames = Bundle("frames")  # on the wire; delivered any number of times, or never
    acks = Bundle("acks")

    def __init__(self) -> None:
        super().__init__()
        self.attempt = 0
        self.on_disk: dict[int, bytes] = {}  # the model: what survives a crash
        self.in_memory: list[int] = []  # admitted, not yet durable
        self.receipts: list[Receipt] = []
        self.sender = SenderSession(_OFFER, offer_digest=_OFFER_DIGEST, chunks=_CHUNKS)
        self.connect()

    def connect(self) -> None:
        """A fresh attempt: the receiver knows what is on disk and chooses a new nonce."""
        self.attempt += 1
        self.in_memory.clear()
        self.receiver = ReceiverSession(
            _OFFER,
            offer_digest=_OFFER_DIGEST,
            nonce=self.attempt.to_bytes(16, "little"),
            tier=Tier.EXACT,
            held=self.on_disk,
        )
        missing = self.sender.accepted(self.receiver.accept())
        assert {key.index for key in missing} == set(range(len(_CHUNKS))) - set(self.on_disk)

    @rule(target=frames, index=_indices)
    def send(self, index: int) -> tuple[int, SignedChunk]:
        """The sender signs a chunk for this attempt; whether it ever arrives is open."""
        envelope = self.sender.envelope(_CHUNKS[index])
        return self.attempt, sign_chunk(SENDER, envelope, _PAYLOADS[index])

    @rule(frame=frames)
    def deliver(self, frame: tuple[int, SignedChunk]) -> None:
        attempt, signed = frame
        if attempt != self.attempt:
            with pytest.raises(ReplayedMessage):
                verify_chunk(signed, self.receiver.binding)
            return
        verified = verify_chunk(signed, self.receiver.binding)
        index = verified.envelope.key.index
        decided = self.receiver.receive(verified)
        if index in self.on_disk or index in self.in_memory:
            assert decided == AlreadyHeld(index)
        else:
            assert decided == StoreChunk(verified)
            self.in_memory.append(index)

    @rule(frame=consumes(frames))
    def drop(self, frame: tuple[int, SignedChunk]) -> None:
        """The wire loses a frame."""

    @rule(index=_indices)
    def deliver_other_contents(self, index: int) -> None:
        """The sender contradicts itself: that ends the attempt, and what is durable stays."""
        if index not in self.on_disk and index not in self.in_memory:
            return
        other = bytes(_CHUNKS[index].raw_nbytes - 1) + b"x"
        envelope = replace(
            self.sender.envelope(_CHUNKS[index]),
            compression=Compression.NONE,
            wire_nbytes=len(other),
            wire_digest=hashlib.sha256(other).digest(),
        )
        verified = verify_chunk(sign_chunk(SENDER, envelope, other), self.receiver.binding)
        with pytest.raises(ConflictingChunk):
            self.receiver.receive(verified)
        self.connect()

    @precondition(lambda self: self.in_memory)
    @rule(target=acks, data=st.data())
    def sync(self, data: st.DataObject) -> tuple[int, list[int]]:
        """The store makes a batch durable; only now may an acknowledgement leave."""
        count = data.draw(st.integers(1, len(self.in_memory)))
        batch, self.in_memory = self.in_memory[:count], self.in_memory[count:]
        for index in batch:
            self.on_disk[index] = _CHUNKS[index].wire_digest
            self.receiver.durable(index)
        return self.attempt, batch

    @rule(ack=acks)
    def deliver_ack(self, ack: tuple[int, list[int]]) -> None:
        """Acks travel on the attempt's own stream: those of an earlier one never arrive."""
        attempt, indices = ack
        if attempt == self.attempt:
            complete = self.sender.acked(indices)
            assert complete == (self.sender.acked_count == len(_CHUNKS))

    @rule()
    def crash_and_resume(self) -> None:
        self.connect()

    @rule()
    def commit(self) -> None:
        """However early the sender commits, the receiver decides by what is durable."""
        if len(self.on_disk) < len(_CHUNKS):
            with pytest.raises(TransferIncomplete):
                self.receiver.commit(self.sender.commit())
            return
        self.receiver.commit(self.sender.commit())
        receipt = self.receiver.receipt(received_at=NOW)
        self.sender.finish(receipt)
        self.receipts.append(receipt)

    @rule()
    def commit_of_an_earlier_attempt(self) -> None:
        stale = self.sender.commit()
        self.connect()
        with pytest.raises(ReplayedMessage):
            self.receiver.commit(stale)

    @invariant()
    def nothing_is_acknowledged_before_it_is_durable(self) -> None:
        assert self.receiver.durable_count == len(self.on_disk)
        assert self.sender.acked_count <= len(self.on_disk)
        for layer in range(_OFFER.memory.geometry.num_layers):
            if self.sender.layer_done(layer):
                indices = {chunk.key.index for chunk in _CHUNKS if chunk.key.layer_idx == layer}
                assert indices <= set(self.on_disk)

    @invariant()
    def every_receipt_says_the_same(self) -> None:
        assert len(set(self.receipts)) <= 1


TestTransfer = Transfer.TestCase
TestTransfer.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_lossless_run_of_the_model_completes() -> None:
    """Guards the model itself: its rules can reach a receipt."""
    model = Transfer()
    for index in range(len(_CHUNKS)):
        model.deliver((model.attempt, model.send(index)[1]))
    for index in list(model.in_memory):
        model.on_disk[index] = _CHUNKS[index].wire_digest
        model.receiver.durable(index)
    model.commit()
    assert len(model.receipts) == 1
