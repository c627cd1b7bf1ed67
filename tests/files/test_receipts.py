"""A receipt's file proves who held what and who sent it, to anyone, or is refused."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from kvnet.errors import BadSignature, MalformedFile
from kvnet.files.receipts import pack_receipt, verify_receipt
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Offer, Receipt, seal
from tests.builders import RECEIVER, SENDER, STRANGER, make_memory, make_offer

OFFER = make_offer(make_memory())
SEALED_OFFER = seal(SENDER, OFFER)


def receipt(
    offer: Offer = OFFER, sealed: SignedMessage = SEALED_OFFER, *, key: NodeKey = RECEIVER, **changes: Any
) -> SignedMessage:
    plain = Receipt(
        transfer_id=offer.transfer_id,
        offer_digest=hashlib.sha256(sealed.body).hexdigest(),
        chunks_digest="sha256:" + "ab" * 32,
        memory=offer.memory.id,
        tier="exact",
        received_at=1_800_000_000,
    )
    return seal(key, replace(plain, **changes))


def test_receipt_with_its_offer_proves_who_held_what_and_who_sent_it() -> None:
    found = verify_receipt(pack_receipt(receipt(), SEALED_OFFER))
    assert (found.receiver, found.sender) == (RECEIVER.node_id, SENDER.node_id)
    assert (found.memory, found.transfer_id) == (OFFER.memory.id, OFFER.transfer_id)
    assert (found.tier, found.received_at) == ("exact", 1_800_000_000)


def test_receipt_without_its_offer_names_no_sender() -> None:
    assert verify_receipt(pack_receipt(receipt(), None)).sender == ""


@pytest.mark.parametrize(
    ("sealed_receipt", "sealed_offer"),
    [
        (receipt(), seal(SENDER, replace(OFFER, note="other"))),
        (receipt(transfer_id="ee" * 16), SEALED_OFFER),
        (receipt(memory="mem_" + "a" * 52), SEALED_OFFER),
        (receipt(key=STRANGER), SEALED_OFFER),
        (receipt(), SignedMessage(Offer.TYPE, SEALED_OFFER.body, STRANGER.public, SEALED_OFFER.signature)),
        (receipt(), seal(STRANGER, OFFER)),
        (replace(receipt(), signature=bytes(64)), SEALED_OFFER),
        (replace(receipt(), body=receipt(tier="mapped").body), SEALED_OFFER),
    ],
    ids=[
        "another offer",
        "another transfer",
        "another memory",
        "another receiver",
        "an offer under another key",
        "an offer that another signed",
        "no signature",
        "another tier",
    ],
)
def test_receipt_that_does_not_prove_what_it_says_is_refused(
    sealed_receipt: SignedMessage, sealed_offer: SignedMessage
) -> None:
    with pytest.raises(BadSignature):
        verify_receipt(pack_receipt(sealed_receipt, sealed_offer))


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(pack_receipt(receipt(), SEALED_OFFER)), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        changed(type="kvnet/receipt-file/v2"),
        changed(more=1),
        changed(receipt={"body": "!", "signer": RECEIVER.node_id, "signature": ""}),
        changed(receipt={"body": "", "signer": "nobody", "signature": ""}),
        changed(offer=7),
        b" " * (2 << 20),
    ],
)
def test_other_files_are_malformed(data: bytes) -> None:
    with pytest.raises((MalformedFile, BadSignature)):
        verify_receipt(data)


def test_every_flipped_bit_of_either_body_is_found() -> None:
    document = json.loads(pack_receipt(receipt(), SEALED_OFFER))
    for part in ("receipt", "offer"):
        body = base64.b64decode(document[part]["body"])
        for at in range(0, len(body), 7):
            flipped = bytearray(body)
            flipped[at] ^= 1
            altered = {**document[part], "body": base64.b64encode(flipped).decode()}
            with pytest.raises(BadSignature):
                verify_receipt(json.dumps({**document, part: altered}).encode())
