"""Where the targets of fuzz_messages start from, and mutations, signed again where signatures are within."""

from __future__ import annotations

import base64
import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace

from kvnet.discovery.advert import Advert
from kvnet.files.receipts import pack_receipt
from kvnet.identity import pairing_messages
from kvnet.identity.keys import NodeKey, node_id_of
from kvnet.identity.pairing import Joining
from kvnet.identity.peers import AddedPeer, Permission, Verified
from kvnet.identity.rotation import Rotation, make_statement
from kvnet.identity.signing import sign_message
from kvnet.transfer.messages import Commit, Message, Offer, PullRequest, Receipt, seal
from kvnet.transport.readings import Reading, ReadText, encode_reading
from kvnet.types import canonical_json, to_plain
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    STRANGER,
    make_basis,
    make_envelope,
    make_memory,
    make_offer,
    make_port,
)
from tests.discovery.rogue import advert_packet
from tests.hostile import fuzz_messages as targets

MutateJson = Callable[[bytes], bytes]
_CONFIG = b"""name = "alice"
model = "ref-a"
listen = "127.0.0.1:7447"
mdns = false
interfaces = ["eth0"]
align = "text"
"""


def message_seeds(target: str) -> list[bytes]:
    """At least one that the target takes."""
    return _SEEDS[target]()


def mutate_message(target: str, data: bytes, rng: random.Random, mutate_json: MutateJson) -> bytes:
    """A document changed within its signatures, or as JSON, or as bytes where it is none."""
    if target == "rotation" and rng.random() < 0.7:
        return _mutate_rotation(data, mutate_json)
    if target == "receipt_file" and rng.random() < 0.7:
        return _mutate_receipt_file(rng, mutate_json)
    return mutate_json(data)


def _mutate_rotation(data: bytes, mutate_json: MutateJson) -> bytes:
    try:
        body = json.loads(data)["body"].encode()
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        body = _rotation_body()
    body = mutate_json(body)
    keys = (SENDER, STRANGER)
    old, new = (sign_message(key, Rotation.TYPE, body).signature.hex() for key in keys)
    document = {"body": body.decode(errors="replace"), "signed_by_old": old, "signed_by_new": new}
    return json.dumps(document).encode()


def _mutate_receipt_file(rng: random.Random, mutate_json: MutateJson) -> bytes:
    offer, receipt = _offer_body(), _receipt_body(_offer_body())
    if rng.random() < 0.5:
        receipt = mutate_json(receipt)
    else:
        offer = mutate_json(offer)
        receipt = _receipt_body(offer)
    document = {
        "type": "kvnet/receipt-file/v1",
        "receipt": _packed(RECEIVER, Receipt, receipt),
        "offer": _packed(SENDER, Offer, offer),
    }
    return json.dumps(document).encode()


def _packed(key: NodeKey, cls: type[Message], body: bytes) -> dict[str, str]:
    signature = sign_message(key, cls.TYPE, body).signature
    text, signed = (base64.b64encode(part).decode() for part in (body, signature))
    return {"body": text, "signer": node_id_of(key.public), "signature": signed}


def _bodies(*said: Message) -> list[bytes]:
    return [seal(SENDER, one).body for one in said]


def _offer_body() -> bytes:
    return seal(SENDER, targets.OFFER).body


def _receipt_body(offer: bytes) -> bytes:
    receipt = replace(_receipt(), offer_digest=hashlib.sha256(offer).hexdigest())
    return seal(RECEIVER, receipt).body


def _receipt() -> Receipt:
    return targets.new_receiver().receipt(received_at=NOW)


def _receipt_files() -> list[bytes]:
    offer = seal(SENDER, targets.OFFER)
    receipt = replace(_receipt(), offer_digest=hashlib.sha256(offer.body).hexdigest())
    return [pack_receipt(seal(RECEIVER, receipt), beside) for beside in (offer, None)]


def _rotation_body() -> bytes:
    return canonical_json(to_plain(Rotation(SENDER.node_id, STRANGER.node_id, NOW)))


def _offers() -> list[Offer]:
    coded = [make_offer(make_memory(coding=make()[0])) for make in (make_basis, make_port)]
    long = make_memory().header
    return [
        targets.OFFER,
        replace(targets.OFFER, note="hello", agent="cook", text="salt and a key"),
        make_offer(make_memory(attention_heads=2)),
        make_offer(replace(long, seq_len=4096)),
        *coded,
    ]


def _reading_head() -> Message:
    memory = make_memory(seq_len=4)
    reading = Reading(0, memory, 1, ((0, 0), (0, 4), (5, 8), (9, 18)))
    return encode_reading(reading, targets.asked(), targets.READ_TEXT)[0]


def _pairing() -> list[bytes]:
    joining = Joining(SENDER, targets.CODE)
    answered = targets.Invitation(RECEIVER, targets.CODE, now=0.0).answer(joining.join)
    proof, proved = joining.prove(answered.answer)
    _, inviter_proof = answered.check(proof)
    introduction = pairing_messages.Introduction("alice", "default", 7447)
    sealed = proved.check(inviter_proof).seal(introduction)
    said = (joining.join, answered.answer, proof, inviter_proof, sealed, pairing_messages.Refused(3))
    return [
        *(bytes([i]) + pairing_messages.pack(one) for i, one in enumerate(said)),
        bytes([6]) + canonical_json(to_plain(introduction)),
    ]


def _peers() -> list[bytes]:
    plain = AddedPeer(SENDER.node_id, "alice", "10.0.0.1:7447", "2026-01-01T00:00:00Z")
    full = replace(
        plain,
        permissions=(Permission.SEND,),
        quota_nbytes=1 << 20,
        verified=Verified.PAIRING,
        revoked_at="2026-01-02T00:00:00Z",
        rotated_from=RECEIVER.node_id,
        alarm="two nodes use its key",
    )
    lists = [[plain], [full, replace(plain, node_id=RECEIVER.node_id, name="bob")], []]
    return [canonical_json({"version": 2, "peers": [to_plain(one) for one in peers]}) for peers in lists]


def _adverts() -> list[bytes]:
    txt = targets.OWN.to_txt()
    return [b"\0" + txt, b"\0" + txt + b"\0", b"\1" + txt]


def _commit() -> Commit:
    session = targets.new_sender()
    session.accepted(targets.new_receiver().accept())
    return session.commit()


_PEER = Advert("b" * 13, "home", 1, 7421)
_SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "envelope": lambda: [make_envelope().pack(), make_envelope(b"").pack()],
    "offer": lambda: _bodies(*_offers()),
    "accept": lambda: _bodies(
        targets.new_receiver().accept(), replace(targets.new_receiver().accept(), held="AA==")
    ),
    "commit": lambda: _bodies(_commit()),
    "receipt": lambda: _bodies(_receipt()),
    "hello": lambda: _bodies(targets.HELLO, replace(targets.HELLO, maps=())),
    "pull": lambda: _bodies(
        PullRequest(targets.OFFER.memory.id, RECEIVER.node_id, SENDER.node_id, NOW, "00" * 16)
    ),
    "read_request": lambda: _bodies(targets.READ_REQUEST),
    "read_text": lambda: _bodies(ReadText(targets.READ_REQUEST.request_id, 0, targets.READ_TEXT)),
    "reading_head": lambda: _bodies(_reading_head()),
    "pairing": _pairing,
    "pairing_code": lambda: [str(targets.CODE).encode(), b"12 Acorn ZEBRA oyster"],
    "rotation": lambda: [make_statement(SENDER, STRANGER, rotated_at=NOW)],
    "receipt_file": _receipt_files,
    "peers": _peers,
    "config": lambda: [_CONFIG, b""],
    "advert": _adverts,
    "records": lambda: [
        advert_packet(_PEER, "10.0.0.2"),
        advert_packet(_PEER, "10.0.0.2", ttl_s=0),
        advert_packet(targets.OWN, "10.0.0.1"),
    ],
}
