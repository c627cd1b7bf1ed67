"""Each check of `verify_message` and `verify_chunk`, one wrong thing at a time."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import BadSignature, KvnetError, MalformedChunk, MalformedMessage, ReplayedMessage
from kvnet.format import compress
from kvnet.format.envelope import ENVELOPE_NBYTES
from kvnet.identity import signing
from kvnet.identity.signing import (
    MAX_BODY_NBYTES,
    ChunkBinding,
    SignedChunk,
    SignedMessage,
    VerifiedChunk,
    VerifiedMessage,
    sign_chunk,
    sign_message,
    verify_chunk,
    verify_message,
)
from tests.builders import RECEIVER, SENDER, STRANGER, make_envelope

TYPE = "kvnet/test/v1"
MESSAGE = sign_message(SENDER, TYPE, b'{"a":1}')
PAYLOAD = b"payload"
CHUNK = sign_chunk(SENDER, make_envelope(PAYLOAD), PAYLOAD)
BINDING = ChunkBinding(
    sender_key=SENDER.public,
    receiver_key=RECEIVER.public,
    transfer_id=b"t" * 16,
    nonce=b"n" * 16,
    offer_digest=b"o" * 32,
)


def flipped(data: bytes, bit: int) -> bytes:
    """`data` with one bit changed."""
    changed = bytearray(data)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)


@given(st.text(max_size=20), st.binary(max_size=200))
def test_verify_message_takes_what_sign_message_made(type_: str, body: bytes) -> None:
    message = sign_message(SENDER, type_, body)
    verified = verify_message(message, type_=type_, signer=SENDER.public)
    assert (verified.type, verified.body, verified.signer) == (type_, body, SENDER.node_id)
    assert verified.digest == hashlib.sha256(body).digest()


def test_any_signer_is_taken_where_none_is_named_and_told_apart() -> None:
    assert verify_message(MESSAGE, type_=TYPE).signer == SENDER.node_id


def test_message_of_another_type_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="expected a kvnet/other"):
        verify_message(MESSAGE, type_="kvnet/other/v1", signer=SENDER.public)


def test_signature_for_one_type_is_worthless_for_another() -> None:
    with pytest.raises(BadSignature):
        verify_message(replace(MESSAGE, type="kvnet/other/v1"), type_="kvnet/other/v1")


def test_bytes_cannot_move_between_type_and_body() -> None:
    moved = SignedMessage(TYPE + "{", MESSAGE.body[1:], MESSAGE.signer, MESSAGE.signature)
    with pytest.raises(BadSignature):
        verify_message(moved, type_=TYPE + "{")


def test_message_by_another_key_than_the_dialled_one_is_refused() -> None:
    with pytest.raises(BadSignature, match="another key"):
        verify_message(sign_message(STRANGER, TYPE, b"body"), type_=TYPE, signer=SENDER.public)


@pytest.mark.parametrize("field", ["body", "signer", "signature"])
@pytest.mark.parametrize("bit", [0, 7, 100, 255])
def test_flipped_bit_of_a_message_is_refused(field: str, bit: int) -> None:
    altered = replace(MESSAGE, **{field: flipped(getattr(MESSAGE, field), bit)})
    with pytest.raises(BadSignature):
        verify_message(altered, type_=TYPE)


@pytest.mark.parametrize("field", ["signer", "signature"])
def test_message_with_an_empty_key_or_signature_is_refused(field: str) -> None:
    with pytest.raises(BadSignature):
        verify_message(replace(MESSAGE, **{field: b""}), type_=TYPE)


def test_oversize_body_is_refused_before_its_signature_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signing, "verify_signature", None)
    with pytest.raises(MalformedMessage, match="at most"):
        verify_message(replace(MESSAGE, body=bytes(MAX_BODY_NBYTES + 1)), type_=TYPE)


def test_verify_chunk_takes_what_sign_chunk_made() -> None:
    verified = verify_chunk(CHUNK, BINDING)
    assert verified.envelope == make_envelope(PAYLOAD)
    assert verified.signed is CHUNK


@pytest.mark.parametrize(
    ("field", "value", "refusal", "words"),
    [
        ("sender_key", STRANGER.public, BadSignature, "another key"),
        ("receiver_key", STRANGER.public, ReplayedMessage, "another receiver"),
        ("transfer_id", b"x" * 16, ReplayedMessage, "another transfer"),
        ("offer_digest", b"x" * 32, ReplayedMessage, "another transfer"),
        ("nonce", b"x" * 16, ReplayedMessage, "earlier attempt"),
    ],
)
def test_chunk_bound_elsewhere_is_refused(
    field: str, value: bytes, refusal: type[KvnetError], words: str
) -> None:
    elsewhere: dict[str, Any] = {field: value}
    with pytest.raises(refusal, match=words):
        verify_chunk(sign_chunk(SENDER, make_envelope(PAYLOAD, **elsewhere), PAYLOAD), BINDING)
    with pytest.raises(refusal, match=words):
        verify_chunk(CHUNK, replace(BINDING, **elsewhere))


def test_chunk_signed_by_another_key_in_the_senders_name_is_refused() -> None:
    with pytest.raises(BadSignature, match="does not match its envelope"):
        verify_chunk(sign_chunk(STRANGER, make_envelope(PAYLOAD), PAYLOAD), BINDING)


def test_every_flipped_bit_of_an_envelope_is_refused() -> None:
    for bit in range(8 * ENVELOPE_NBYTES):
        with pytest.raises(KvnetError) as refused:
            verify_chunk(replace(CHUNK, envelope=flipped(CHUNK.envelope, bit)), BINDING)
        assert isinstance(refused.value, MalformedChunk | BadSignature | ReplayedMessage)


@pytest.mark.parametrize("bit", [0, 8, 255, 256, 511])
def test_flipped_signature_bit_is_refused(bit: int) -> None:
    with pytest.raises(BadSignature):
        verify_chunk(replace(CHUNK, signature=flipped(CHUNK.signature, bit)), BINDING)


def test_flipped_payload_byte_is_refused_before_decompression(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compress, "decompress", None)
    for bit in range(8 * len(PAYLOAD)):
        with pytest.raises(BadSignature, match="not what was signed"):
            verify_chunk(replace(CHUNK, payload=flipped(PAYLOAD, bit)), BINDING)


@pytest.mark.parametrize("payload", [b"", PAYLOAD[:-1], PAYLOAD + b"x"])
def test_payload_of_another_size_is_refused_before_it_is_hashed(
    payload: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "hashlib", None)
    with pytest.raises(MalformedChunk, match="payload bytes"):
        verify_chunk(replace(CHUNK, payload=payload), BINDING)


@given(st.binary(max_size=300), st.binary(max_size=80), st.binary(max_size=20))
def test_noise_is_refused_as_a_chunk(envelope: bytes, signature: bytes, payload: bytes) -> None:
    with pytest.raises(MalformedChunk):
        verify_chunk(SignedChunk(envelope, signature, payload), BINDING)


def test_verified_values_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError, match="verify_message"):
        VerifiedMessage(TYPE, b"{}", SENDER.node_id, object())
    with pytest.raises(TypeError, match="verify_chunk"):
        VerifiedChunk(make_envelope(), CHUNK, None)


def test_verified_values_cannot_be_made_from_others() -> None:
    message, chunk = verify_message(MESSAGE, type_=TYPE), verify_chunk(CHUNK, BINDING)
    with pytest.raises((TypeError, ValueError)):
        replace(message, body=b"another")
    with pytest.raises((TypeError, ValueError)):
        replace(chunk, envelope=make_envelope(nonce=b"x" * 16))
    for verified in (message, chunk):
        assert "_witness" not in type(verified).__slots__
