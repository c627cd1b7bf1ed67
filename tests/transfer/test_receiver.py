"""The receiving session: what is admitted, what is a repeat, what ends the transfer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest

from kvnet.errors import (
    BadSignature,
    ConflictingChunk,
    KvnetError,
    MalformedChunk,
    ReplayedMessage,
    TransferIncomplete,
)
from kvnet.format.envelope import Envelope
from kvnet.identity.seal import VerifiedHead, seal_head, verify_head
from kvnet.identity.signing import VerifiedChunk, sign_chunk, verify_chunk
from kvnet.plan import ChunkKey
from kvnet.transfer.messages import Commit, unpack_bitmap
from kvnet.transfer.receiver import SPARE_REPEATS, AlreadyHeld, ReceiverSession, StoreChunk
from kvnet.transfer.sender import SenderSession
from kvnet.types import Compression, Kind, Tier, chunk_digest
from tests.builders import (
    MAP_ID,
    NOW,
    SENDER,
    STRANGER,
    make_basis,
    make_head,
    make_memory,
    make_offer,
    make_port,
    wire_chunks,
)

MEMORY = make_memory()
OFFER = make_offer(MEMORY)
OFFER_DIGEST = b"o" * 32
CHUNKS, PAYLOADS = wire_chunks(MEMORY)
TOTAL = len(CHUNKS)


def receiving(held: dict[int, bytes] | None = None, nonce: bytes = b"n" * 16) -> ReceiverSession:
    """A session for OFFER."""
    return ReceiverSession(OFFER, offer_digest=OFFER_DIGEST, nonce=nonce, tier=Tier.EXACT, held=held or {})


def sending(receiver: ReceiverSession) -> SenderSession:
    """The session on the other side, which has read the accept."""
    session = SenderSession(OFFER, offer_digest=OFFER_DIGEST, chunks=CHUNKS)
    session.accepted(receiver.accept())
    return session


def chunk(
    receiver: ReceiverSession, index: int, payload: bytes | None = None, **changes: Any
) -> VerifiedChunk:
    """Chunk `index` as its sender signed it, or with other contents or claims."""
    envelope = sending(receiver).envelope(CHUNKS[index])
    sent = PAYLOADS[index] if payload is None else payload
    if payload is not None:
        changes.update(wire_nbytes=len(sent), wire_digest=chunk_digest(sent))
    signed = sign_chunk(SENDER, replace(envelope, **changes), sent)
    return verify_chunk(signed, receiver.binding)


def complete(receiver: ReceiverSession) -> Commit:
    """Every chunk durable; returns the sender's commit."""
    for index in range(TOTAL):
        receiver.receive(chunk(receiver, index))
        receiver.durable(index)
    return sending(receiver).commit()


def test_chunks_in_any_order_complete_a_transfer() -> None:
    receiver = receiving()
    for index in reversed(range(TOTAL)):
        assert isinstance(receiver.receive(chunk(receiver, index)), StoreChunk)
        receiver.durable(index)
    receiver.commit(sending(receiver).commit())
    assert receiver.durable_count == TOTAL


def test_repeated_chunk_is_held_already_durable_or_not() -> None:
    receiver = receiving()
    receiver.receive(chunk(receiver, 2))
    assert receiver.receive(again := chunk(receiver, 2)) == AlreadyHeld(2, again.envelope.wire_nbytes)
    assert receiver.durable_count == 0
    receiver.durable(2)
    assert receiver.receive(again := chunk(receiver, 2)) == AlreadyHeld(2, again.envelope.wire_nbytes)
    assert receiver.durable_count == 1


def test_chunk_repeated_without_end_ends_the_transfer() -> None:
    receiver = receiving()
    receiver.receive(chunk(receiver, 2))
    for _ in range(TOTAL + SPARE_REPEATS):
        assert receiver.receive(again := chunk(receiver, 2)) == AlreadyHeld(2, again.envelope.wire_nbytes)
    with pytest.raises(MalformedChunk, match="without end"):
        receiver.receive(chunk(receiver, 2))


def test_completed_transfer_holds_everything_and_takes_the_same_commit_again() -> None:
    commit = complete(receiving())
    again = ReceiverSession(
        OFFER,
        offer_digest=OFFER_DIGEST,
        nonce=b"n" * 16,
        tier=Tier.EXACT,
        held={},
        completed=commit.chunks_digest,
    )
    assert unpack_bitmap(again.accept().held, TOTAL) == set(range(TOTAL))
    with pytest.raises(BadSignature):
        again.commit(replace(commit, chunks_digest="sha256:" + "0" * 64))
    again.commit(commit)
    assert again.receipt(received_at=NOW).chunks_digest == commit.chunks_digest


def test_same_chunk_with_other_contents_ends_the_transfer() -> None:
    receiver = receiving()
    receiver.receive(chunk(receiver, 1))
    other = bytes(CHUNKS[1].raw_nbytes)
    with pytest.raises(ConflictingChunk, match="chunk 1"):
        receiver.receive(chunk(receiver, 1, other, compression=Compression.NONE))


def test_contents_other_than_before_the_restart_end_the_transfer() -> None:
    receiver = receiving(held={1: b"x" * 32})
    with pytest.raises(ConflictingChunk):
        receiver.receive(chunk(receiver, 1))


@pytest.mark.parametrize(
    "changes",
    [
        {"key": replace(CHUNKS[0].key, index=TOTAL)},
        {"key": replace(CHUNKS[0].key, index=2**32 - 1)},
        {"key": replace(CHUNKS[0].key, index=1)},
        {"key": replace(CHUNKS[0].key, layer_idx=1)},
        {"key": replace(CHUNKS[0].key, kind=Kind.ATTENTION)},
        {"key": replace(CHUNKS[0].key, kind=Kind.BASIS)},
        {"key": replace(CHUNKS[0].key, start=1)},
        {"key": replace(CHUNKS[0].key, stop=6)},
        {"key": ChunkKey(0, 0, Kind.KEY, 2**32 - 1, 0)},
        {"total": TOTAL + 1},
        {"total": 0},
        {"raw_nbytes": CHUNKS[0].raw_nbytes + 1},
        {"raw_nbytes": CHUNKS[0].raw_nbytes - 1},
    ],
    ids=str,
)
def test_chunk_that_contradicts_the_offer_is_refused_and_not_remembered(changes: dict[str, Any]) -> None:
    receiver = receiving()
    with pytest.raises(MalformedChunk):
        receiver.receive(chunk(receiver, 0, **changes))
    assert isinstance(receiver.receive(chunk(receiver, 0)), StoreChunk)


def test_chunk_cannot_be_durable_before_it_was_admitted() -> None:
    with pytest.raises(ValueError, match="never admitted"):
        receiving().durable(0)


def test_accept_names_offer_nonce_and_what_is_durable() -> None:
    receiver = receiving(held={0: b"d" * 32, 4: b"e" * 32})
    receiver.receive(chunk(receiver, 2))
    accept = receiver.accept()
    assert accept.transfer_id == OFFER.transfer_id
    assert accept.offer_digest == OFFER_DIGEST.hex()
    assert bytes.fromhex(accept.nonce) == b"n" * 16
    assert unpack_bitmap(accept.held, TOTAL) == {0, 4}


def test_commit_before_the_last_chunk_is_durable_is_refused() -> None:
    receiver = receiving()
    commit = complete(receiving())
    for index in range(TOTAL):
        with pytest.raises(TransferIncomplete, match=f"{TOTAL - index} of {TOTAL}"):
            receiver.commit(commit)
        receiver.receive(chunk(receiver, index))
        with pytest.raises(TransferIncomplete):
            receiver.commit(commit)
        receiver.durable(index)
    receiver.commit(commit)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"transfer_id": "ff" * 16}, ReplayedMessage),
        ({"nonce": "ff" * 16}, ReplayedMessage),
        ({"offer_digest": "ff" * 32}, ReplayedMessage),
        ({"chunks_digest": "sha256:" + "0" * 64}, BadSignature),
    ],
)
def test_commit_for_anything_else_is_refused(changes: dict[str, str], refusal: type[KvnetError]) -> None:
    receiver = receiving()
    commit = complete(receiver)
    with pytest.raises(refusal):
        receiver.commit(replace(commit, **changes))
    receiver.commit(commit)


def test_seal_of_the_memory_and_its_chunks_is_taken() -> None:
    receiver = receiving()
    complete(receiver)
    receiver.check_seal(make_head(MEMORY))
    receiver.check_seal(make_head(MEMORY, key=STRANGER))  # who made a memory need not be who sends it


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (make_head(make_memory(seed=1)), "another memory"),
        (make_head(make_memory(derived_from=MEMORY.header.id)), "another memory"),
        (make_head(MEMORY, wanted=Compression.NONE), "not those of the chunks received"),
        (make_head(MEMORY, wanted=Compression.ZSTD), "not those of the chunks received"),
    ],
)
def test_seal_of_anything_else_is_refused(head: VerifiedHead, why: str) -> None:
    receiver = receiving()
    complete(receiver)
    with pytest.raises(BadSignature, match=why):
        receiver.check_seal(head)


def test_seal_of_a_completed_transfer_must_be_of_its_memory() -> None:
    commit = complete(receiving())
    again = ReceiverSession(
        OFFER,
        offer_digest=OFFER_DIGEST,
        nonce=b"n" * 16,
        tier=Tier.EXACT,
        held={},
        completed=commit.chunks_digest,
    )
    again.check_seal(make_head(MEMORY))
    with pytest.raises(BadSignature, match="another memory"):
        again.check_seal(make_head(make_memory(seed=1)))


def test_seal_of_coordinates_names_the_map_that_the_offer_named() -> None:
    memory = make_memory(coding=make_port()[0])
    for offer, why in ((make_offer(memory), ""), (make_offer(memory, map="map_" + "a" * 52), "another map")):
        session = ReceiverSession(
            offer, offer_digest=OFFER_DIGEST, nonce=b"n" * 16, tier=Tier.MAPPED, held={}, completed="sha256:0"
        )
        with pytest.raises(BadSignature, match=why) if why else nullcontext():
            session.check_seal(make_head(memory))


COMPACT_OFFER = make_offer(make_memory(coding=make_basis()[0]))


def compact_chunk(receiver: ReceiverSession, index: int, nbytes: int) -> VerifiedChunk:
    """A chunk of a transform-coded memory, or of its basis, with so many bytes."""
    payload = bytes(nbytes)
    envelope = Envelope(
        sender_key=receiver.binding.sender_key,
        receiver_key=receiver.binding.receiver_key,
        transfer_id=receiver.binding.transfer_id,
        nonce=receiver.binding.nonce,
        offer_digest=OFFER_DIGEST,
        key=receiver.plan[index],
        total=len(receiver.plan),
        compression=Compression.NONE,
        raw_nbytes=nbytes,
        wire_nbytes=nbytes,
        wire_digest=chunk_digest(payload),
    )
    return verify_chunk(sign_chunk(SENDER, envelope, payload), receiver.binding)


# 5 tokens of 8 channels: 4 bytes, then at most 3 exact tokens of 4 + 16 bytes and 2 of 8 codes each.
@pytest.mark.parametrize(
    ("index", "nbytes", "is_taken"),
    [
        (0, 3, False),
        (0, 4, True),
        (0, 60, True),
        (0, 80, True),
        (0, 81, False),
        (6, 299, False),
        (6, 300, True),
        (6, 301, False),
    ],
)
def test_transform_coded_chunk_has_a_range_of_lengths_and_its_basis_one(
    index: int, nbytes: int, is_taken: bool
) -> None:
    receiver = ReceiverSession(
        COMPACT_OFFER, offer_digest=OFFER_DIGEST, nonce=b"n" * 16, tier=Tier.EXACT, held={}
    )
    chunk = compact_chunk(receiver, index, nbytes)
    if is_taken:
        assert isinstance(receiver.receive(chunk), StoreChunk)
    else:
        with pytest.raises(MalformedChunk, match=f"{nbytes} raw bytes"):
            receiver.receive(chunk)


def test_receipt_confirms_the_chunks_that_came() -> None:
    receiver = receiving()
    commit = complete(receiver)
    receipt = receiver.receipt(received_at=NOW)
    assert (receipt.transfer_id, receipt.offer_digest) == (commit.transfer_id, commit.offer_digest)
    assert receipt.chunks_digest == commit.chunks_digest
    assert (receipt.memory, receipt.tier, receipt.received_at) == (OFFER.memory.id, "exact", NOW)


def test_seal_of_a_memory_that_a_map_made_and_no_coordinates_may_name_it() -> None:
    receiver = receiving()
    complete(receiver)
    header = replace(make_head(MEMORY).header, w_matrix_reference=MAP_ID)
    receiver.check_seal(verify_head(seal_head(SENDER, header)))
