"""Receipts as files: what a receiver signed, and the offer that it answers, for anyone to check.

Source: FORMAT.md §15. Knows signed messages; no daemons.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import asdict, dataclass, field
from typing import Final

from kvnet.errors import BadSignature, KvnetError, MalformedFile, RequestError
from kvnet.format import strict_json
from kvnet.identity.keys import node_id_of, public_key_of
from kvnet.identity.signing import MAX_BODY_NBYTES, SignedMessage
from kvnet.transfer.messages import Offer, Receipt, open_sealed
from kvnet.types import MemoryId, NodeId, canonical_json

RECEIPT_FILE_TYPE: Final = "kvnet/receipt-file/v1"
MAX_RECEIPT_FILE_NBYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class _Signed:
    body: str = field(metadata={"max_chars": 2 * MAX_BODY_NBYTES})  # base64, as is the signature
    signer: str
    signature: str


@dataclass(frozen=True, slots=True)
class _ReceiptFile:
    type: str
    receipt: _Signed
    offer: _Signed | None = None


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """What a receipt proves: `receiver` held this memory durably when it signed.

    `sender` is empty where the offer is not in the file: then nothing says from whom it came.
    """

    transfer_id: str
    memory: MemoryId
    receiver: NodeId
    sender: str
    tier: str
    chunks_digest: str
    received_at: int  # seconds since the epoch, by the receiver's clock


def pack_receipt(receipt: SignedMessage, offer: SignedMessage | None) -> bytes:
    """The file of a receipt, with the offer it answers if that is kept."""
    packed = _ReceiptFile(RECEIPT_FILE_TYPE, _pack(receipt), _pack(offer) if offer else None)
    return canonical_json({name: value for name, value in asdict(packed).items() if value is not None})


def verify_receipt(data: bytes) -> VerifiedReceipt:
    """Check both signatures, and that offer and receipt are of one transfer.

    Raises MalformedFile for what is no receipt's file, BadSignature for one that does not prove what it says.
    """
    try:
        receipt, receiver, sender = _open(data)
    except (MalformedFile, BadSignature):
        raise
    except KvnetError as exc:
        raise MalformedFile(f"receipt: {exc.message}") from exc
    return VerifiedReceipt(
        transfer_id=receipt.transfer_id,
        memory=receipt.memory,
        receiver=receiver,
        sender=sender,
        tier=receipt.tier,
        chunks_digest=receipt.chunks_digest,
        received_at=receipt.received_at,
    )


def _open(data: bytes) -> tuple[Receipt, NodeId, str]:
    found = strict_json.decode(_ReceiptFile, data, what="receipt", max_nbytes=MAX_RECEIPT_FILE_NBYTES)
    if found.type != RECEIPT_FILE_TYPE:
        raise MalformedFile(f"receipt: its type is {found.type!r:.60}, wanted {RECEIPT_FILE_TYPE}")
    receipt, verified = open_sealed(Receipt, _unpack(found.receipt, Receipt.TYPE), signer=None)
    offer = _unpack(found.offer, Offer.TYPE) if found.offer else None
    return receipt, verified.signer, _sender_of(offer, receipt, verified.signer) if offer else ""


def _sender_of(sealed: SignedMessage, receipt: Receipt, receiver: NodeId) -> NodeId:
    offer, verified = open_sealed(Offer, sealed, signer=None)
    if hashlib.sha256(sealed.body).hexdigest() != receipt.offer_digest:
        raise BadSignature("receipt: answers another offer than the one beside it")
    said = (offer.sender, offer.receiver, offer.transfer_id, offer.memory.id)
    proven = (verified.signer, receiver, receipt.transfer_id, receipt.memory)
    if said != proven:
        raise BadSignature("receipt: sender, receiver, transfer or memory are not those of its offer")
    return verified.signer


def _pack(message: SignedMessage) -> _Signed:
    body, signature = (base64.b64encode(data).decode() for data in (message.body, message.signature))
    return _Signed(body, node_id_of(message.signer), signature)


def _unpack(packed: _Signed, type_: str) -> SignedMessage:
    try:
        body, signature = (base64.b64decode(text, validate=True) for text in (packed.body, packed.signature))
    except (ValueError, binascii.Error) as exc:
        raise MalformedFile("receipt: a body or signature is not base64") from exc
    try:
        return SignedMessage(type_, body, public_key_of(packed.signer), signature)
    except RequestError as exc:
        raise MalformedFile(f"receipt: {exc.message}") from exc
