"""Fuzz targets for what others tell a node and for what it finds in its own folder. Knows no fuzzer.

Of a signed message a target takes the body, and signs it as whoever sends rubbish in good order would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from ipaddress import IPv4Interface
from typing import Any

from kvnetd.config import load_config
from kvnetd.parties import is_hex
from zeroconf import DNSCache, DNSIncoming, RecordUpdate  # type: ignore[attr-defined]  # not in its __all__

from kvnet.discovery.advert import Advert, Refusal, parse_service, read_txt
from kvnet.discovery.records import RecordReader, Sighting
from kvnet.errors import MalformedMessage
from kvnet.files.receipts import verify_receipt
from kvnet.format import strict_json
from kvnet.format.envelope import Envelope
from kvnet.identity import pairing_messages
from kvnet.identity.codes import PairingCode, parse_code
from kvnet.identity.keys import NodeKey
from kvnet.identity.pairing import Invitation
from kvnet.identity.peers import PeerList
from kvnet.identity.rotation import verify_statement
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.paths import Home
from kvnet.transfer import messages
from kvnet.transfer.admission import admit_offer
from kvnet.transfer.messages import Limits, open_sealed
from kvnet.transfer.receiver import ReceiverSession
from kvnet.transfer.sender import SenderSession
from kvnet.transport.readings import (
    Asked,
    ReadingHead,
    ReadRequest,
    ReadText,
    check_source,
    open_head,
    open_request,
    open_text,
    sign_request,
)
from kvnet.types import Tier
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    make_fingerprint,
    make_geometry,
    make_memory,
    make_offer,
    make_receiver,
    wire_chunks,
)
from tests.hostile.fuzz_folder import as_file

OWN = Advert("a" * 13, "home", 1, 7420)
CODE = PairingCode(7, ("guitar", "melody", "canyon"))
NONCE, OFFER_DIGEST = b"n" * 16, b"o" * 32
OFFER = make_offer(make_memory())
HELLO = messages.Hello(
    protocol=messages.PROTOCOL_VERSION,
    nonce="00" * 16,
    node_id=RECEIVER.node_id,
    name="bob",
    namespace="default",
    fingerprint=make_fingerprint(),
    geometry=make_geometry(),
    limits=Limits(max_seq_len=64),
    free_nbytes=1 << 20,
    maps=(messages.HeldMap("sha256:" + "00" * 32, "map_" + "m" * 52),),
)
READ_REQUEST = ReadRequest(
    request_id="0123456789abcdef" * 2,
    sender=SENDER.node_id,
    receiver=RECEIVER.node_id,
    closing=" so.",
    num_texts=1,
    corpus_digest="sha256:" + "00" * 32,
    created_at=NOW,
    expires_at=NOW + 600,
)
READ_TEXT = "salt and a key"
PAIRING_KINDS: tuple[type[pairing_messages.Message], ...] = (
    pairing_messages.Join,
    pairing_messages.Answer,
    pairing_messages.JoinerProof,
    pairing_messages.InviterProof,
    pairing_messages.Sealed,
    pairing_messages.Refused,
)
_ROOM = make_receiver(limits=Limits(max_seq_len=4096), free_nbytes=8 << 30)


def fuzz_envelope(data: bytes) -> None:
    """What is read is what would be written."""
    if Envelope.unpack(data).pack() != data:
        raise AssertionError("an envelope was read that would be written otherwise")


def fuzz_offer(data: bytes) -> None:
    """An offer by a paired peer, up to the answer."""
    offer, verified = open_sealed(messages.Offer, _signed(SENDER, messages.Offer, data), signer=SENDER.public)
    if not is_hex(offer.transfer_id, num_chars=32):
        raise MalformedMessage("the daemon looks at this before")
    tier = admit_offer(offer, sender=verified.signer, receiver=_ROOM, now=NOW)
    ReceiverSession(offer, offer_digest=verified.digest, nonce=NONCE, tier=tier, held={}).accept()


def fuzz_accept(data: bytes) -> None:
    """An answer to an offer, up to the chunks that it asks for."""
    accept, _ = open_sealed(messages.Accept, _signed(RECEIVER, messages.Accept, data), signer=RECEIVER.public)
    session = new_sender()
    missing = session.accepted(accept)
    if len(missing) + session.resumed_count != len(session.chunks):
        raise AssertionError("a chunk is neither missing nor held")


def fuzz_commit(data: bytes) -> None:
    """A commit, where everything is durable."""
    commit, _ = open_sealed(messages.Commit, _signed(SENDER, messages.Commit, data), signer=SENDER.public)
    new_receiver().commit(commit)


def fuzz_receipt(data: bytes) -> None:
    """A receipt, where everything was sent."""
    receipt, _ = open_sealed(
        messages.Receipt, _signed(RECEIVER, messages.Receipt, data), signer=RECEIVER.public
    )
    new_sender().finish(receipt)


def fuzz_hello(data: bytes) -> None:
    """A hello, and whether readings by its model can be planned."""
    hello, _ = open_sealed(messages.Hello, _signed(RECEIVER, messages.Hello, data), signer=RECEIVER.public)
    messages.require_protocol(hello.protocol, who="bob")
    hello.maps_from(hello.fingerprint)
    check_source(hello)


def fuzz_pull(data: bytes) -> None:
    """A request for a memory."""
    open_sealed(messages.PullRequest, _signed(SENDER, messages.PullRequest, data), signer=SENDER.public)


def fuzz_read_request(data: bytes) -> None:
    """A request to read texts."""
    open_request(_signed(SENDER, ReadRequest, data), signer=SENDER.public)


def fuzz_read_text(data: bytes) -> None:
    """A text to read."""
    open_text(_signed(SENDER, ReadText, data), asked(), 0)


def fuzz_reading_head(data: bytes) -> None:
    """What a peer says of a reading."""
    open_head(_signed(RECEIVER, ReadingHead, data), asked(), 0, READ_TEXT, HELLO)


def fuzz_pairing(data: bytes) -> None:
    """What is due, then what a stranger says; a join is answered. The last kind is what a box holds."""
    due, said = data[:1] or b"\0", data[1:]
    if due[0] % 7 == 6:
        strict_json.decode(pairing_messages.Introduction, said, what="pairing introduction", max_nbytes=4096)
        return
    made = pairing_messages.unpack(said, PAIRING_KINDS[due[0] % 7], who="a stranger")
    if pairing_messages.pack(made) != said:
        raise AssertionError("a message was read that would be written otherwise")
    if isinstance(made, pairing_messages.Join):
        Invitation(RECEIVER, CODE, now=0.0).answer(made)


def fuzz_pairing_code(data: bytes) -> None:
    """A code as it is typed."""
    code = parse_code(data.decode(errors="replace"))
    if parse_code(str(code)) != code:
        raise AssertionError("a code was read that reads otherwise when it is written")


def fuzz_rotation(data: bytes) -> None:
    """A statement of a new key."""
    verify_statement(data)


def fuzz_receipt_file(data: bytes) -> None:
    """A receipt's file."""
    verify_receipt(data)


def fuzz_peers(data: bytes) -> None:
    """A trust list, which may be edited by hand; what it holds is found in it."""
    listed = PeerList(as_file(data, "peers.json"))
    for peer in listed.all():
        if listed.get(peer.node_id) != peer or listed.find_any(peer.node_id) != peer:
            raise AssertionError("a peer is in the list and not found there")


def fuzz_config(data: bytes) -> None:
    """A config.toml."""
    config = load_config(Home(as_file(data, "config.toml").parent), {}, {})
    if not (config.listen_host and config.name):
        raise AssertionError("a setting that is no setting")


def fuzz_advert(data: bytes) -> None:
    """Whether the names are its own, then TXT data. Nothing is raised: it is an advert, or a reason."""
    head, txt = data[:1] or b"\0", data[1:]
    names = OWN.instance_name, OWN.host_name
    if head[0] & 1:
        names = txt.decode(errors="replace"), txt[::-1].decode(errors="replace")
    read_txt(txt)
    parsed = parse_service(*names, int.from_bytes(txt[:2]), txt, own=OWN)
    if isinstance(parsed, Refusal):
        raise MalformedMessage(parsed.value)


def fuzz_records(data: bytes) -> None:
    """One mDNS packet: sightings, goodbyes, or nothing."""
    heard = _Heard()
    reader = RecordReader(
        OWN, on_sighting=heard.sightings.append, on_goodbye=heard.goodbyes.append, is_listed=lambda _: False
    )
    reader.networks = (IPv4Interface("10.0.0.1/24"),)
    packet = DNSIncoming(data)
    records = packet.answers() if packet.valid and not packet.is_query() else []
    plain: Any = heard  # of a Zeroconf the reader takes the cache alone
    reader.async_update_records(plain, packet.now, [RecordUpdate(record, None) for record in records])
    heard.cache.async_add_records(records)
    reader.async_update_records_complete()
    if not heard.sightings and not heard.goodbyes:
        raise MalformedMessage("nobody is to be seen in it")


MESSAGE_TARGETS: dict[str, Callable[[bytes], None]] = {
    "envelope": fuzz_envelope,
    "offer": fuzz_offer,
    "accept": fuzz_accept,
    "commit": fuzz_commit,
    "receipt": fuzz_receipt,
    "hello": fuzz_hello,
    "pull": fuzz_pull,
    "read_request": fuzz_read_request,
    "read_text": fuzz_read_text,
    "reading_head": fuzz_reading_head,
    "pairing": fuzz_pairing,
    "pairing_code": fuzz_pairing_code,
    "rotation": fuzz_rotation,
    "receipt_file": fuzz_receipt_file,
    "peers": fuzz_peers,
    "config": fuzz_config,
    "advert": fuzz_advert,
    "records": fuzz_records,
}


@dataclass
class _Heard:
    cache: DNSCache = field(default_factory=DNSCache)
    sightings: list[Sighting] = field(default_factory=list)
    goodbyes: list[str] = field(default_factory=list)


def new_sender() -> SenderSession:
    """A sender that has offered OFFER."""
    return SenderSession(OFFER, offer_digest=OFFER_DIGEST, chunks=_chunks())


def new_receiver() -> ReceiverSession:
    """A receiver that holds all of OFFER."""
    held = {chunk.key.index: chunk.wire_digest for chunk in _chunks()}
    return ReceiverSession(OFFER, offer_digest=OFFER_DIGEST, nonce=NONCE, tier=Tier.EXACT, held=held)


@cache
def asked() -> Asked:
    """READ_REQUEST as it was signed."""
    return sign_request(SENDER, READ_REQUEST)[1]


@cache
def _chunks() -> Any:
    return wire_chunks(make_memory())[0]


def _signed(key: NodeKey, cls: type[messages.Message], body: bytes) -> SignedMessage:
    return sign_message(key, cls.TYPE, body)
