"""Gates of nodes that trust certain keys, for tests that change nothing about that; channels without one."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc

from kvnet.identity.certificates import LeafCertificate, issue_leaf, pin, server_name
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.transport.doorman import NAMESPACE_KEY
from kvnet.transport.gate import Gate
from kvnet.transport.limits import PortLimits
from kvnet.types import NodeId

NAMESPACE = ((NAMESPACE_KEY, b"default"),)  # what every call of a peer says


def gate_of(
    key: NodeKey, *others: NodeKey, namespace: str = "default", limits: PortLimits | None = None
) -> Gate:
    """A gate that lets in these others; call it inside the event loop."""
    return Gate(key, _trusting(*(other.node_id for other in others)), namespace=namespace, limits=limits)


@cache
def _trusting(*node_ids: NodeId) -> PeerList:
    with TemporaryDirectory() as folder:
        peers = PeerList(Path(folder) / "peers.json")
        for node_id in node_ids:
            peers.add(AddedPeer(node_id, short_id(node_id), "", ""))
    return peers


def raw_channel(
    key: NodeKey, address: str, public: bytes, leaf: LeafCertificate | None = None
) -> grpc.aio.Channel:
    """As a caller that follows no rules but those of TLS: it sends messages of any length."""
    leaf = leaf or issue_leaf(key)
    credentials = grpc.ssl_channel_credentials(pin(public, by=key), leaf.key_pem, leaf.chain_pem)
    options = (
        ("grpc.ssl_target_name_override", server_name(public)),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
    )
    return grpc.aio.secure_channel(address, credentials, options=options)
