"""The two ends of a transfer as the daemon knows them: the added peer, and this node as a receiver."""

from __future__ import annotations

from datetime import datetime

from kvnet.errors import NotPermitted, PeerNotAdded, WrongPeer
from kvnet.identity.keys import node_id_of, short_id
from kvnet.identity.peers import AddedPeer, Permission
from kvnet.identity.rotation import require_after, verify_statement
from kvnet.transfer.admission import Receiver
from kvnet.transfer.messages import Limits
from kvnetd.log import Span
from kvnetd.services import Services
from kvnetd.store.disk import free_nbytes
from kvnetd.store.origins import source_of
from kvnetd.store.records import MemoryRecord


def require_added(services: Services, signer: bytes) -> AddedPeer:
    """The added peer that holds this key. Raises PeerNotAdded."""
    node_id = node_id_of(signer)
    peer = services.peers.trusted(signer)
    if peer is None:
        raise PeerNotAdded(
            f"node {short_id(node_id)}: not among the peers of {services.config.name}; "
            f"run there: kvnet peer add HOST:PORT --id {node_id:.60}"
        )
    return peer


def require_may_ask(services: Services, record: MemoryRecord) -> None:
    """That a memory is our own, or of a peer whose memories may be used in answers. Raises NotPermitted.

    So with what was encoded here from one of theirs.
    """
    peer = services.peers.ever(source_of(services.memories, record))
    if peer is not None and not (peer.is_trusted and Permission.ASK in peer.permissions):
        raise NotPermitted(
            f"memory {record.id}: came from {peer.name}, whose memories may not be used in answers; "
            f"give that permission with `kvnet peer trust {peer.name}`"
        )


def untrusted_source(services: Services, record: MemoryRecord) -> str:
    """Whose word a memory is: a peer's name, or the node id of somebody else; "" for one made here.

    Also of what was encoded or projected here from such a one.
    """
    source = source_of(services.memories, record)
    peer = services.peers.ever(source)
    return peer.name if peer is not None else source


async def take_rotation(services: Services, statement: bytes, *, caller: bytes | None = None) -> AddedPeer:
    """Trust a peer's new key in the place of its old one; with `caller`, that of whoever shows it.

    Raises UnknownPeer where the old one is not trusted, WrongPeer, BadSignature, MalformedMessage,
    ReplayedMessage.
    """
    said = verify_statement(statement)
    if caller is not None and node_id_of(caller) != said.old:
        raise WrongPeer(f"key rotation of {short_id(said.old)}: shown by {short_id(node_id_of(caller))}")
    peer = services.peers.find(said.old)
    require_after(said, trusted_since=_seconds(peer.added_at))
    peer = await services.in_trust(services.peers.rotate, said.old, said.new)
    await services.in_store(services.ledger.outbox.readdress, said.old, said.new)
    services.directory.know(tuple(one.node_id for one in services.peers.all()))
    services.log.write("peer.rotated", peer=peer.name)
    return peer


def begin_transfer_span(services: Services, signer: bytes, *, direction: str) -> Span:
    """`transfer.started`, for whoever holds this key, added or not."""
    node_id = node_id_of(signer)
    peer = services.peers.get(node_id)
    return services.log.begin("transfer", direction=direction, peer=peer.name if peer else short_id(node_id))


def this_receiver(services: Services, *, promised_nbytes: int = 0) -> Receiver:
    """This node now; `promised_nbytes` of its free space are for transfers on their way in."""
    limits = services.config.limits
    return Receiver(
        node_id=services.key.node_id,
        fingerprint=services.host.fingerprint,
        geometry=services.host.geometry,
        limits=Limits(
            max_seq_len=services.host.max_seq_len,
            max_transfer_nbytes=limits.max_transfer_nbytes,
            offer_life_s=limits.offer_life_s,
            clock_skew_s=limits.clock_skew_s,
        ),
        free_nbytes=max(0, free_nbytes(services.config.home.store) - promised_nbytes),
    )


def _seconds(timestamp: str) -> int:
    try:
        return int(datetime.fromisoformat(timestamp).timestamp())
    except ValueError:
        return 0  # the list was written by hand: any statement is younger


def is_hex(text: str, *, num_chars: int) -> bool:
    """Whether `text` is so many lower-case hex digits."""
    return len(text) == num_chars and not set(text) - set("0123456789abcdef")
