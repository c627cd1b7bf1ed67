"""The signed control messages: bytes that never change, decoded only after they verify."""

from __future__ import annotations

import base64
import json
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import BadSignature, MalformedMessage, ProtocolMismatch
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.transfer.messages import (
    MAX_HELLO_MAPS,
    MAX_OFFER_NBYTES,
    MAX_TEXT_NBYTES,
    PROTOCOL_VERSION,
    Accept,
    Commit,
    HeldMap,
    Hello,
    Limits,
    Offer,
    PullRequest,
    Receipt,
    open_sealed,
    pack_bitmap,
    require_protocol,
    seal,
    unpack_bitmap,
)
from kvnet.types import MemoryId, TransferId, chunks_digest
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    STRANGER,
    make_basis,
    make_fingerprint,
    make_geometry,
    make_memory,
    make_offer,
)

GOLDEN = Path(__file__).parent.parent / "golden" / "offer_v3.json"
TRANSFER = TransferId("ab" * 16)
MESSAGES: list[Any] = [
    Hello(
        protocol=PROTOCOL_VERSION,
        nonce="00" * 16,
        node_id=SENDER.node_id,
        name="alice",
        namespace="default",
        fingerprint=make_fingerprint(),
        geometry=make_geometry(),
        limits=Limits(max_seq_len=64),
        free_nbytes=1 << 40,
        maps=(HeldMap(make_fingerprint().digest, "map_" + "a" * 52),),
    ),
    make_offer(make_memory(7), note="grüße 😀", sender_agent="a", agent="b", text="Zürich\n\u0001 😀"),
    Accept(TRANSFER, "00" * 32, "11" * 16, pack_bitmap({0, 5}, 6)),
    Commit(TRANSFER, "00" * 32, "11" * 16, chunks_digest([b"d" * 32])),
    Receipt(TRANSFER, "00" * 32, chunks_digest([b"d" * 32]), MemoryId("mem_x"), "exact", NOW),
    PullRequest(MemoryId("mem_x"), RECEIVER.node_id, SENDER.node_id, NOW, "22" * 16),
]
each_message = pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)


@each_message
def test_open_sealed_is_the_inverse_of_seal(message: Any) -> None:
    opened, verified = open_sealed(type(message), seal(SENDER, message), signer=SENDER.public)
    assert opened == message
    assert verified.signer == SENDER.node_id


def test_every_message_has_a_type_of_its_own() -> None:
    assert len({message.TYPE for message in MESSAGES}) == len(MESSAGES)


def test_sealed_offer_is_what_it_always_was() -> None:
    golden = json.loads(GOLDEN.read_text())
    coding, _ = make_basis()
    memory = make_memory(
        7,
        coding=replace(coding, pruned_heads=((0, 1), (2, 0))),
        attention_heads=4,
        derived_from=make_memory(7).header.id,
    )
    sealed = seal(SENDER, make_offer(memory))
    assert sealed.type == golden["type"]
    assert sealed.body.decode() == golden["body"]
    assert sealed.signer.hex() == golden["signer"]
    assert sealed.signature.hex() == golden["signature"]


@each_message
def test_message_is_no_other_message(message: Any) -> None:
    sealed = seal(SENDER, message)
    for other in MESSAGES:
        if type(other) is not type(message):
            with pytest.raises(MalformedMessage, match="expected a"):
                open_sealed(type(other), sealed, signer=None)


@each_message
def test_every_field_is_checked_and_no_other_is_taken(message: Any) -> None:
    body = asdict(message)
    for spec in fields(message):
        refuse(message, {**body, spec.name: [None]})
        if spec.default is MISSING and spec.default_factory is MISSING:
            refuse(message, {key: value for key, value in body.items() if key != spec.name})
    refuse(message, {**body, "surprise": 1})


def refuse(message: Any, body: dict[str, Any]) -> None:
    """A well-signed message with this body is malformed."""
    sealed = sign_message(SENDER, message.TYPE, json.dumps(body).encode())
    with pytest.raises(MalformedMessage):
        open_sealed(type(message), sealed, signer=SENDER.public)


def test_offer_whose_model_name_is_no_text_is_refused() -> None:
    body = asdict(make_offer(make_memory()))
    body["memory"]["fingerprint"]["model"] = "\ud800"
    refuse(make_offer(make_memory()), body)


def test_what_is_empty_and_came_later_is_not_written() -> None:
    """So that a message without it is byte for byte what readers of before know."""
    hello = replace(MESSAGES[0], maps=())
    assert b'"maps"' not in seal(SENDER, hello).body
    assert b'"maps"' in seal(SENDER, MESSAGES[0]).body
    offer = make_offer(make_memory())
    assert b'"text"' not in seal(SENDER, offer).body
    assert b'"map"' not in seal(SENDER, offer).body
    assert open_sealed(Offer, seal(SENDER, offer), signer=None)[0].text == ""


def test_largest_hello_is_small_enough_to_be_read() -> None:
    held = HeldMap(make_fingerprint().digest, "map_" + "a" * 52)
    hello = replace(MESSAGES[0], name="n" * 4096, namespace="n" * 4096, maps=(held,) * MAX_HELLO_MAPS)
    assert open_sealed(Hello, seal(SENDER, hello), signer=SENDER.public)[0] == hello


def test_maps_from_a_model_are_those_of_its_fingerprint_in_the_order_told() -> None:
    other = make_fingerprint(architecture="Other")
    held = [HeldMap(model.digest, f"map_{i}") for i, model in enumerate((make_fingerprint(), other) * 2)]
    hello = replace(MESSAGES[0], maps=tuple(held))
    assert hello.maps_from(make_fingerprint(model="renamed")) == ("map_0", "map_2")
    assert hello.maps_from(make_fingerprint(architecture="Third")) == ()


@pytest.mark.parametrize("protocol", [PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1])
def test_other_protocol_version_is_told_as_the_field_that_differs(protocol: int) -> None:
    wanted = rf"^bob: protocol {protocol} \(needs {PROTOCOL_VERSION}\); install the same kvnet on both"
    with pytest.raises(ProtocolMismatch, match=wanted) as caught:
        require_protocol(protocol, who="bob")
    assert caught.value.details == {"protocol": [str(protocol), str(PROTOCOL_VERSION)]}
    require_protocol(PROTOCOL_VERSION, who="bob")


@pytest.mark.parametrize("char", ["a", "\n", "\u0001", '"', "é", "東", "😀"])
@pytest.mark.parametrize("escaped", [False, True])
def test_longest_text_fits_an_offer_whatever_its_characters(char: str, escaped: bool) -> None:
    text = char * (MAX_TEXT_NBYTES // len(char.encode()))
    body = asdict(make_offer(make_memory(), note="\u0001" * 2000, text=text))
    data = json.dumps(body, ensure_ascii=escaped).encode()
    assert len(data) <= MAX_OFFER_NBYTES
    opened, _ = open_sealed(Offer, sign_message(SENDER, Offer.TYPE, data), signer=SENDER.public)
    assert opened.text == text


@pytest.mark.parametrize(
    "text", [7, None, ["a"], {"a": 1}, True, "\ud800", "a\udfff", "a" * (MAX_TEXT_NBYTES + 1)]
)
def test_text_that_is_none_is_refused(text: Any) -> None:
    refuse(make_offer(make_memory()), {**asdict(make_offer(make_memory())), "text": text})


def test_offer_of_more_bytes_than_any_text_needs_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(MalformedMessage, match=f"at most {MAX_OFFER_NBYTES}"):
        open_sealed(Offer, sign_message(SENDER, Offer.TYPE, b"[" * (MAX_OFFER_NBYTES + 1)), signer=None)


def test_no_other_field_of_an_offer_may_be_as_long_as_its_text() -> None:
    for name in ("note", "agent", "sender_agent"):
        refuse(make_offer(make_memory()), {**asdict(make_offer(make_memory())), name: "a" * 4097})


def test_text_is_not_shown_where_an_offer_is() -> None:
    assert "zebrafinch" not in repr(make_offer(make_memory(), text="zebrafinch"))


def test_limits_that_a_hello_does_not_name_are_the_formats() -> None:
    body = asdict(MESSAGES[0])
    body["limits"] = {"max_seq_len": 7}
    sealed = sign_message(SENDER, Hello.TYPE, json.dumps(body).encode())
    assert open_sealed(Hello, sealed, signer=SENDER.public)[0].limits == Limits(
        max_seq_len=7,
        max_transfer_nbytes=4_294_967_296,
        max_layers=512,
        max_kv_heads=256,
        max_head_dim=1024,
        offer_life_s=600,
        clock_skew_s=300,
        schemes=("raw", "grouped", "transform", "port"),
        compressions=("none", "lz4", "zstd", "split"),
    )


def test_memory_whose_new_fields_are_missing_is_raw_and_nothing_more() -> None:
    offer = make_offer(make_memory())
    body = asdict(offer)
    for name in ("coding", "attention_heads", "derived_from"):
        del body["memory"][name]
    sealed = sign_message(SENDER, Offer.TYPE, json.dumps(body).encode())
    opened, _ = open_sealed(Offer, sealed, signer=SENDER.public)
    assert opened == offer
    assert opened.memory.id == offer.memory.id


@pytest.mark.parametrize(
    "coding",
    [
        {"scheme": "dream"},
        {"key_bits": -1},
        {"key_bits": 8.0},
        {"hadamard": 1},
        {"basis": None},
        {"basis_nbytes": 2**63},
        {"pruned_heads": [0, 1]},
        {"pruned_heads": [[0, "1"]]},
        {"pruned_heads": [[0, -1]]},
        {"pruned_heads": [[0, True]]},
        {"pruned_heads": {"0": 1}},
        {"surprise": 1},
    ],
    ids=str,
)
def test_coding_of_another_shape_is_malformed(coding: dict[str, Any]) -> None:
    offer = make_offer(make_memory())
    body = asdict(offer)
    body["memory"]["coding"] |= coding
    refuse(offer, body)


def test_signature_is_checked_before_the_body_is_read() -> None:
    with pytest.raises(BadSignature):
        open_sealed(Offer, SignedMessage(Offer.TYPE, b"[" * 100, SENDER.public, b"s" * 64), signer=None)


def test_message_of_another_signer_is_refused() -> None:
    with pytest.raises(BadSignature):
        open_sealed(Commit, seal(STRANGER, MESSAGES[3]), signer=SENDER.public)


def test_body_is_digested_as_it_came() -> None:
    spaced = sign_message(SENDER, Commit.TYPE, json.dumps(asdict(MESSAGES[3]), indent=1).encode())
    opened, verified = open_sealed(Commit, spaced, signer=SENDER.public)
    assert opened == MESSAGES[3]
    assert verified.digest != open_sealed(Commit, seal(SENDER, opened), signer=None)[1].digest


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.sets(st.integers(0, n - 1)), st.just(n))))
def test_unpack_bitmap_is_the_inverse_of_pack_bitmap(case: tuple[set[int], int]) -> None:
    held, count = case
    assert unpack_bitmap(pack_bitmap(held, count), count) == held


@pytest.mark.parametrize("text", ["", "AA", "AAA=", "Aw==", "AAAA", "!!!!", "é===", "AQ=\n="])
def test_bitmap_of_another_size_or_beyond_the_last_chunk_is_refused(text: str) -> None:
    assert unpack_bitmap("AQ==", 1) == {0}
    with pytest.raises(MalformedMessage, match="bitmap"):
        unpack_bitmap(text, 1)


def test_chunks_digest_depends_on_order_and_number() -> None:
    a, b = b"a" * 32, b"b" * 32
    assert len({chunks_digest([]), chunks_digest([a]), chunks_digest([a, b]), chunks_digest([b, a])}) == 4


def test_chunk_i_is_bit_i_of_the_bitmap() -> None:
    assert base64.b64decode(pack_bitmap({0, 5, 9}, 10)) == bytes([0b100001, 0b10])
