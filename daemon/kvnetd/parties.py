"""The two ends of a transfer as the daemon knows them: the added peer, and this node as a receiver."""

from __future__ import annotations

from kvnet.errors import PeerNotAdded
from kvnet.identity.keys import node_id_of, short_id
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.admission import Receiver
from kvnet.transfer.messages import Limits
from kvnetd.log import Span
from kvnetd.services import Services
from kvnetd.store.disk import free_nbytes


def require_added(services: Services, signer: bytes) -> AddedPeer:
    """The added peer that holds this key. Raises PeerNotAdded."""
    node_id = node_id_of(signer)
    peer = services.peers.get(node_id)
    if peer is None:
        raise PeerNotAdded(
            f"node {short_id(node_id)}: not among the peers of {services.config.name}; "
            f"run there: kvnet peer add HOST:PORT --id {node_id:.60}"
        )
    return peer


def begin_transfer_span(services: Services, signer: bytes, *, direction: str) -> Span:
    """`transfer.started`, for whoever holds this key, added or not."""
    node_id = node_id_of(signer)
    peer = services.peers.get(node_id)
    return services.log.begin("transfer", direction=direction, peer=peer.name if peer else short_id(node_id))


def this_receiver(services: Services, *, promised_nbytes: int = 0) -> Receiver:
    """This node now; `promised_nbytes` of its free space are for transfers on their way in."""
    return Receiver(
        node_id=services.key.node_id,
        fingerprint=services.host.fingerprint,
        geometry=services.host.geometry,
        limits=Limits(
            max_seq_len=services.host.max_seq_len,
            max_transfer_nbytes=services.config.max_transfer_nbytes,
        ),
        free_nbytes=max(0, free_nbytes(services.config.home.store) - promised_nbytes),
    )


def is_hex(text: str, *, num_chars: int) -> bool:
    """Whether `text` is so many lower-case hex digits."""
    return len(text) == num_chars and not set(text) - set("0123456789abcdef")
