"""Both sessions against a small model, over a network that reorders, repeats, drops and alters, between two
nodes that crash, at any moment, and resume.

The model knows what is on the receiver's disk: chunks, and in the end a receipt. Nothing is acknowledged
before it is durable, a commit succeeds exactly when everything is, every receipt says the same, whatever
crashed after the first, and frames of an earlier attempt are refused.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from kvnet.errors import (
    BadSignature,
    ConflictingChunk,
    MalformedChunk,
    MalformedMessage,
    ReplayedMessage,
    TransferIncomplete,
)
from kvnet.format.envelope import ENVELOPE_NBYTES
from kvnet.identity.signing import SignedChunk, sign_chunk, verify_chunk
from kvnet.transfer.messages import Receipt
from kvnet.transfer.receiver import SPARE_REPEATS, AlreadyHeld, ReceiverSession, StoreChunk
from kvnet.transfer.sender import SPARE_ACKS, SenderSession
from kvnet.types import Compression, Tier, chunk_digest
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
        self.receipt: Receipt | None = None  # on disk with the memory, once that is complete
        self.sender = _new_sender()
        self.connect()

    def connect(self) -> None:
        """A fresh attempt: the receiver knows what is on disk and chooses a new nonce."""
        self.attempt += 1
        self.in_memory.clear()
        self.acked = set(self.on_disk)  # by the sender's knowledge
        self.num_repeats = self.num_idle_acks = 0
        self.receiver = ReceiverSession(
            _OFFER,
            offer_digest=_OFFER_DIGEST,
            nonce=self.attempt.to_bytes(16, "little"),
            tier=Tier.EXACT,
            held={} if self.receipt else self.on_disk,  # what is complete has left the spool
            completed=self.receipt.chunks_digest if self.receipt else "",
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
        if self.receipt:
            return  # the daemon stores nothing of a transfer that was completed before
        verified = verify_chunk(signed, self.receiver.binding)
        index = verified.envelope.key.index
        is_repeat = index in self.on_disk or index in self.in_memory
        self.num_repeats += is_repeat
        if self.num_repeats > len(_CHUNKS) + SPARE_REPEATS:
            with pytest.raises(MalformedChunk):
                self.receiver.receive(verified)
            self.connect()
            return
        decided = self.receiver.receive(verified)
        if is_repeat:
            assert decided == AlreadyHeld(index, verified.envelope.wire_nbytes)
        else:
            assert decided == StoreChunk(verified)
            self.in_memory.append(index)

    @rule(order=st.permutations(range(len(_CHUNKS))), num_lost=st.integers(0, 2))
    def send_what_is_missing(self, order: list[int], num_lost: int) -> None:
        """As the sender does it, but in any order, and the last ones are lost on the way."""
        missing = [index for index in order if index not in self.on_disk and index not in self.in_memory]
        for index in missing[: len(missing) - num_lost]:
            self.deliver(self.send(index))

    @rule(frame=consumes(frames))
    def drop(self, frame: tuple[int, SignedChunk]) -> None:
        """The wire loses a frame."""

    @rule(frame=frames, at=st.integers(0, ENVELOPE_NBYTES - 1), in_payload=st.booleans())
    def deliver_altered(self, frame: tuple[int, SignedChunk], at: int, in_payload: bool) -> None:
        """A bit that flipped on the way: nothing of it is taken, and the attempt goes on."""
        _, signed = frame
        envelope, payload = signed.envelope, bytes(signed.payload)
        if in_payload:
            signed = replace(signed, payload=_flipped(payload, at % len(payload)))
        else:
            signed = replace(signed, envelope=_flipped(envelope, at))
        with pytest.raises((BadSignature, MalformedChunk, ReplayedMessage)):
            verify_chunk(signed, self.receiver.binding)

    @precondition(lambda self: not self.receipt)
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
            wire_digest=chunk_digest(other),
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
        if attempt != self.attempt:
            return
        self.num_idle_acks += self.acked.issuperset(indices)
        self.acked.update(indices)
        if self.num_idle_acks > len(_CHUNKS) + SPARE_ACKS:
            with pytest.raises(MalformedMessage):
                self.sender.acked(indices)
            self.connect()
            return
        assert self.sender.acked(indices) == (len(self.acked) == len(_CHUNKS))

    @rule()
    def receiver_crashes(self) -> None:
        """What was admitted and is not durable is gone."""
        self.connect()

    @precondition(lambda self: self.in_memory)
    @rule(data=st.data())
    def receiver_crashes_after_the_disk_and_before_the_acknowledgement(self, data: st.DataObject) -> None:
        for index in data.draw(st.lists(st.sampled_from(self.in_memory), min_size=1, unique=True)):
            self.on_disk[index] = _CHUNKS[index].wire_digest
        self.connect()

    @rule()
    def sender_crashes(self) -> None:
        """All that it knew of the transfer is gone but the offer, which it makes again from its outbox."""
        self.sender = _new_sender()
        self.connect()

    @precondition(lambda self: len(self.on_disk) == len(_CHUNKS) and not self.receipt)
    @rule()
    def receiver_crashes_after_the_receipt_is_on_disk_and_before_it_is_sent(self) -> None:
        self.receiver.commit(self.sender.commit())
        self.receipt = self.receiver.receipt(received_at=NOW)
        self.connect()
        assert not self.sender.accepted(self.receiver.accept())

    @rule()
    def commit(self) -> None:
        """However early the sender commits, the receiver decides by what is durable."""
        if len(self.on_disk) < len(_CHUNKS):
            with pytest.raises(TransferIncomplete):
                self.receiver.commit(self.sender.commit())
            return
        self.receiver.commit(self.sender.commit())
        receipt = self.receiver.receipt(received_at=NOW)
        assert self.receipt in (None, receipt)
        self.receipt = receipt
        self.sender.finish(receipt)

    @rule()
    def commit_of_an_earlier_attempt(self) -> None:
        stale = self.sender.commit()
        self.connect()
        with pytest.raises(ReplayedMessage):
            self.receiver.commit(stale)

    @invariant()
    def nothing_is_acknowledged_before_it_is_durable(self) -> None:
        assert self.receiver.durable_count == len(self.on_disk)
        assert self.sender.acked_count == len(self.acked) <= len(self.on_disk)
        for layer in range(_OFFER.memory.geometry.num_layers):
            if self.sender.layer_done(layer):
                indices = {chunk.key.index for chunk in _CHUNKS if chunk.key.layer_idx == layer}
                assert indices <= set(self.on_disk)

    @invariant()
    def what_is_on_disk_is_what_the_sender_has(self) -> None:
        assert all(_CHUNKS[index].wire_digest == digest for index, digest in self.on_disk.items())
        assert self.receipt is None or len(self.on_disk) == len(_CHUNKS)


TestTransfer = Transfer.TestCase
TestTransfer.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def _new_sender() -> SenderSession:
    return SenderSession(_OFFER, offer_digest=_OFFER_DIGEST, chunks=_CHUNKS)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _make_durable(model: Transfer) -> list[int]:
    batch, model.in_memory = model.in_memory, []
    for index in batch:
        model.on_disk[index] = _CHUNKS[index].wire_digest
        model.receiver.durable(index)
    return batch


def test_lossless_run_of_the_model_completes() -> None:
    """Guards the model itself: its rules can reach a receipt."""
    model = Transfer()
    for index in range(len(_CHUNKS)):
        model.deliver(model.send(index))
    _make_durable(model)
    model.commit()
    assert model.receipt is not None


def test_run_with_every_fault_of_the_model_completes() -> None:
    """Guards it too: reordered, repeated, altered, dropped, crashed on both sides, and resumed."""
    model = Transfer()
    half = len(_CHUNKS) // 2
    sent = [model.send(index) for index in range(len(_CHUNKS))]
    for frame in reversed(sent[:half]):
        model.deliver(frame)
        model.deliver(frame)
        model.deliver_altered(frame, 7, in_payload=True)
    model.deliver_ack((model.attempt, _make_durable(model)))
    model.deliver(sent[half])
    model.receiver_crashes()
    assert set(model.on_disk) == set(range(half))
    model.deliver(sent[half])  # of the attempt before: refused
    model.sender_crashes()
    for index in range(half, len(_CHUNKS)):
        model.deliver(model.send(index))
    _make_durable(model)
    model.receiver_crashes_after_the_receipt_is_on_disk_and_before_it_is_sent()
    receipt = model.receipt
    model.commit()
    assert receipt is not None
    assert model.receipt == model.sender.receipt == receipt
