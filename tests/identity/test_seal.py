"""A head is believed after its signature, and after it agrees with itself; in this order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import BadSignature, KvnetError, MalformedFile, MalformedMessage, UnsupportedFormat
from kvnet.format.awkg import MAX_HEAD_NBYTES, AwkgHeader, pack_head
from kvnet.identity.keys import grouped, node_id_of
from kvnet.identity.seal import SEAL_TYPE, VerifiedHead, seal_head, verify_head, verify_head_bytes
from kvnet.identity.signing import MAX_BODY_NBYTES, sign_message
from kvnet.types import NodeId, RawMemory
from tests.format.memory_files import (
    OTHER,
    WRITER,
    head_with,
    make_awkg_header,
    make_header_of_memory,
    make_raw_memory,
    memory_files,
    seal_anything,
)

MEMORY = make_raw_memory(make_header_of_memory())
HEADER, WIRES = make_awkg_header(MEMORY)
SEALED = seal_head(WRITER, HEADER)


@given(memory_files())
def test_verify_head_takes_what_seal_head_made(made: tuple[RawMemory, AwkgHeader, list[bytes]]) -> None:
    memory, header, wires = made
    sealed = seal_head(WRITER, header)
    for head in (verify_head(sealed), verify_head_bytes(sealed.body, sealed.signature)):
        assert (head.header, head.sealed) == (header, sealed)
        assert head.memory_id == memory.header.id
        assert head.file_nbytes == len(sealed.body) + sum(map(len, wires)) + 64


def test_seal_is_the_message_signature_over_the_head() -> None:
    assert sign_message(WRITER, "kvnet/awkg/v3", pack_head(HEADER)) == SEALED


def test_header_longer_than_a_control_message_is_sealed() -> None:
    memory = make_raw_memory(
        replace(make_header_of_memory(), geometry=replace(MEMORY.header.geometry, num_layers=200))
    )
    header, _ = make_awkg_header(memory)
    sealed = seal_head(WRITER, header)
    assert MAX_BODY_NBYTES < len(sealed.body) < MAX_HEAD_NBYTES
    assert verify_head(sealed).header == header


def test_header_of_another_signer_is_not_sealed() -> None:
    with pytest.raises(ValueError, match="cannot be sealed"):
        seal_head(OTHER, HEADER)


def test_header_that_no_reader_takes_is_not_sealed() -> None:
    for wrong in (replace(HEADER, sections=HEADER.sections[1:]), replace(HEADER, created_at="today")):
        with pytest.raises(ValueError, match="no reader takes"):
            seal_head(WRITER, wrong)


def test_signature_by_another_key_is_refused() -> None:
    for sealed in (
        seal_anything(SEALED.body, OTHER),
        replace(seal_anything(SEALED.body, OTHER), signer=WRITER.public),
        replace(SEALED, signer=OTHER.public),
    ):
        with pytest.raises(BadSignature):
            verify_head(sealed)
    with pytest.raises(BadSignature, match="altered or cut short"):
        verify_head_bytes(SEALED.body, seal_anything(SEALED.body, OTHER).signature)


def test_signature_of_another_type_is_refused() -> None:
    other = sign_message(WRITER, "kvnet/offer/v1", SEALED.body)
    with pytest.raises(MalformedMessage, match="expected a kvnet/awkg/v3"):
        verify_head(other)
    with pytest.raises(BadSignature):
        verify_head(replace(other, type=SEAL_TYPE))


@given(st.integers(0, 63), st.integers(1, 255))
def test_flipped_byte_of_the_signature_is_refused(at: int, flip: int) -> None:
    signature = bytearray(SEALED.signature)
    signature[at] ^= flip
    with pytest.raises(BadSignature):
        verify_head_bytes(SEALED.body, bytes(signature))


def test_flipped_byte_anywhere_in_the_head_is_refused() -> None:
    for at in range(len(SEALED.body)):
        head = bytearray(SEALED.body)
        head[at] ^= 1
        with pytest.raises((BadSignature, MalformedFile, UnsupportedFormat)):
            verify_head_bytes(bytes(head), SEALED.signature)


@pytest.mark.parametrize(
    "signed_by",
    [
        "",
        "nobody",
        WRITER.node_id.upper(),
        grouped(WRITER.node_id),
        WRITER.node_id[:-1],
        WRITER.node_id + "a",
        "ü" * 52,
    ],
)
def test_signer_has_one_spelling(signed_by: str) -> None:
    head = head_with(SEALED.body, lambda document: document.update(signedBy=signed_by))
    with pytest.raises(MalformedFile, match="signedBy"):
        verify_head(seal_anything(head))


@given(st.binary(min_size=32, max_size=32))
def test_any_key_may_be_named_and_none_but_the_signers_is_believed(public: bytes) -> None:
    named = head_with(SEALED.body, lambda document: document.update(signedBy=node_id_of(public)))
    with pytest.raises(BadSignature):
        verify_head(seal_anything(named))


def test_forms_come_before_the_signature_and_the_signature_before_the_rest() -> None:
    broken = head_with(SEALED.body, lambda document: document.update(numLayers=0))
    with pytest.raises(MalformedFile):  # rule 3, though the signature is wrong too
        verify_head_bytes(broken, SEALED.signature)
    contradictory = head_with(SEALED.body, lambda document: document["sections"].pop())
    with pytest.raises(BadSignature):  # rule 4, though the table is wrong too
        verify_head_bytes(contradictory, SEALED.signature)
    with pytest.raises(MalformedFile):  # rule 6
        verify_head(seal_anything(contradictory))


def test_verified_head_cannot_be_made_elsewhere() -> None:
    with pytest.raises(TypeError, match="verify_head"):
        VerifiedHead(HEADER, SEALED, object())
    with pytest.raises((TypeError, ValueError)):
        replace(verify_head(SEALED), header=replace(HEADER, signed_by=NodeId("me")))


@given(st.binary(max_size=100), st.binary(max_size=70))
def test_noise_is_refused(head: bytes, signature: bytes) -> None:
    with pytest.raises(KvnetError):
        verify_head_bytes(head, signature)


def test_message_of_another_type_is_refused_before_its_body_is_looked_at() -> None:
    with pytest.raises(MalformedMessage, match="kvnet/other/v1"):
        verify_head(sign_message(WRITER, "kvnet/other/v1", b"no head"))
