"""The sending session: sends what is missing, believes only what is about its own offer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvnet.errors import BadSignature, KvnetError, MalformedMessage, ReplayedMessage
from kvnet.transfer.messages import Accept, Receipt, pack_bitmap
from kvnet.transfer.sender import SPARE_ACKS, SenderSession
from kvnet.types import chunks_digest
from tests.builders import NOW, RECEIVER, SENDER, make_basis, make_memory, make_offer, wire_basis, wire_chunks

OFFER = make_offer(make_memory())
OFFER_DIGEST = b"o" * 32
CHUNKS, _ = wire_chunks(make_memory())
TOTAL = len(CHUNKS)
ACCEPT = Accept(OFFER.transfer_id, OFFER_DIGEST.hex(), "11" * 16, pack_bitmap(set(), TOTAL))


@pytest.fixture
def session() -> SenderSession:
    return SenderSession(OFFER, offer_digest=OFFER_DIGEST, chunks=CHUNKS)


def receipt_of(session: SenderSession) -> Receipt:
    """What an honest receiver answers."""
    digest = session.commit().chunks_digest
    return Receipt(OFFER.transfer_id, OFFER_DIGEST.hex(), digest, OFFER.memory.id, "exact", NOW)


def test_everything_is_sent_in_order_to_who_holds_nothing(session: SenderSession) -> None:
    assert session.accepted(ACCEPT) == session.plan == tuple(chunk.key for chunk in CHUNKS)
    assert session.acked_count == 0


def test_only_what_is_missing_is_sent(session: SenderSession) -> None:
    held = set(range(TOTAL)) - {1, 4}
    missing = session.accepted(replace(ACCEPT, held=pack_bitmap(held, TOTAL)))
    assert [key.index for key in missing] == [1, 4]
    assert session.acked_count == TOTAL - 2
    assert not session.acked([1])
    assert session.acked([4])


def test_nothing_is_sent_to_who_holds_everything(session: SenderSession) -> None:
    assert session.accepted(replace(ACCEPT, held=pack_bitmap(set(range(TOTAL)), TOTAL))) == ()
    assert session.acked([])


def test_chunks_of_another_plan_are_a_bug_of_ours() -> None:
    for chunks in (CHUNKS[:-1], tuple(reversed(CHUNKS)), ()):
        with pytest.raises(ValueError, match="plan"):
            SenderSession(OFFER, offer_digest=OFFER_DIGEST, chunks=chunks)


def test_basis_goes_with_its_memory_and_only_to_who_lacks_it() -> None:
    coding, basis = make_basis(3 << 19)
    memory = make_memory(coding=coding)
    chunks = wire_chunks(memory)[0]
    with pytest.raises(ValueError, match="plan"):
        SenderSession(make_offer(memory), offer_digest=OFFER_DIGEST, chunks=chunks)
    whole = chunks + wire_basis(memory.header, basis)[0]
    session = SenderSession(make_offer(memory), offer_digest=OFFER_DIGEST, chunks=whole)
    assert session.accepted(replace(ACCEPT, held=pack_bitmap(set(), 8))) == session.plan
    assert session.accepted(replace(ACCEPT, held=pack_bitmap({6, 7}, 8))) == session.plan[:6]
    assert session.commit().chunks_digest == chunks_digest([chunk.wire_digest for chunk in whole])


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"transfer_id": "ff" * 16}, ReplayedMessage),
        ({"offer_digest": "ff" * 32}, ReplayedMessage),
        ({"nonce": ""}, MalformedMessage),
        ({"nonce": "11" * 15}, MalformedMessage),
        ({"nonce": "11" * 17}, MalformedMessage),
        ({"nonce": "z" * 32}, MalformedMessage),
        ({"held": ""}, MalformedMessage),
        ({"held": pack_bitmap({TOTAL}, TOTAL + 1)}, MalformedMessage),
        ({"held": pack_bitmap(set(), TOTAL + 8)}, MalformedMessage),
        ({"held": "not base64"}, MalformedMessage),
    ],
    ids=str,
)
def test_accept_of_something_else_is_refused(
    session: SenderSession, changes: dict[str, str], refusal: type[KvnetError]
) -> None:
    with pytest.raises(refusal):
        session.accepted(replace(ACCEPT, **changes))


def test_envelope_binds_a_chunk_to_this_attempt(session: SenderSession) -> None:
    session.accepted(ACCEPT)
    envelope = session.envelope(CHUNKS[3])
    assert (envelope.sender_key, envelope.receiver_key) == (SENDER.public, RECEIVER.public)
    assert (envelope.transfer_id.hex(), envelope.offer_digest) == (OFFER.transfer_id, OFFER_DIGEST)
    assert (envelope.nonce.hex(), envelope.key, envelope.total) == (ACCEPT.nonce, CHUNKS[3].key, TOTAL)
    session.accepted(replace(ACCEPT, nonce="22" * 16))
    assert session.envelope(CHUNKS[3]).nonce == b"\x22" * 16


@pytest.mark.parametrize("index", [TOTAL, 2**32 - 1])
def test_ack_of_a_chunk_that_is_not_there_is_refused(session: SenderSession, index: int) -> None:
    session.accepted(ACCEPT)
    with pytest.raises(MalformedMessage, match=f"chunk {index}"):
        session.acked([index])


def test_repeated_acks_count_once(session: SenderSession) -> None:
    session.accepted(ACCEPT)
    for _ in range(3):
        assert not session.acked([0, 0, 0])
    assert session.acked_count == 1


@pytest.mark.parametrize("indices", [[], [0]])
def test_acks_without_news_and_without_end_end_the_transfer(
    session: SenderSession, indices: list[int]
) -> None:
    session.accepted(ACCEPT)
    session.acked([0])
    for _ in range(TOTAL + SPARE_ACKS):
        assert not session.acked(indices)
    with pytest.raises(MalformedMessage, match="without end"):
        session.acked(indices)


def test_acks_with_news_are_never_too_many(session: SenderSession) -> None:
    session.accepted(ACCEPT)
    assert [session.acked([index]) for index in range(TOTAL)] == [False] * (TOTAL - 1) + [True]


def test_chunks_that_were_held_before_are_counted_as_resumed(session: SenderSession) -> None:
    session.accepted(replace(ACCEPT, held=pack_bitmap({1, 4}, TOTAL)))
    session.acked([0])
    assert (session.resumed_count, session.acked_count) == (2, 3)


def test_layer_is_done_when_its_keys_and_values_are(session: SenderSession) -> None:
    session.accepted(ACCEPT)
    session.acked([0])
    assert not session.layer_done(0)
    session.acked([1])
    assert [session.layer_done(layer) for layer in range(3)] == [True, False, False]


def test_honest_receipt_finishes_the_transfer(session: SenderSession) -> None:
    session.accepted(ACCEPT)
    session.finish(receipt_of(session))


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({"transfer_id": "ff" * 16}, ReplayedMessage),
        ({"offer_digest": "ff" * 32}, ReplayedMessage),
        ({"chunks_digest": "sha256:" + "0" * 64}, BadSignature),
        ({"memory": "mem_other"}, BadSignature),
    ],
)
def test_receipt_for_anything_else_is_refused(
    session: SenderSession, changes: dict[str, str], refusal: type[KvnetError]
) -> None:
    session.accepted(ACCEPT)
    with pytest.raises(refusal):
        session.finish(replace(receipt_of(session), **changes))
