"""Mutual TLS with pinned identities: each trap that grpcio and X.509 set, and what a stranger gets to see."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from kvnet import wire
from kvnet.errors import (
    BadSignature,
    KvnetError,
    PeerNotAdded,
    PeerUnreachable,
    WrongNamespace,
    WrongPeer,
)
from kvnet.identity.certificates import LeafCertificate, issue_leaf, server_name
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.transport.client import PeerClient
from kvnet.transport.gate import Gate
from kvnet.transport.security import who_answers
from kvnet.transport.server import PeerServer
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.gates import NAMESPACE, gate_of, raw_channel
from tests.identity.leaves import forged_leaf
from tests.transport.backend import MemoryNode, Pair

HELLO = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 16)
CAROL = NodeKey(b"carol".ljust(32))


@pytest.fixture
async def address(pool: Executor) -> AsyncIterator[str]:
    """Bob, who lets in Alice and Carol."""
    server = PeerServer(MemoryNode(RECEIVER, pool), gate_of(RECEIVER, SENDER, CAROL))
    port = await server.start(host="127.0.0.1", port=0)
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def call(address: str, key: NodeKey, leaf: LeafCertificate | None = None) -> KvnetError | None:
    """What a hello is answered, with this leaf; None is a hello."""
    async with raw_channel(key, address, RECEIVER.public, leaf) as channel:
        try:
            await peer_pb2_grpc.PeerStub(channel).Hello(HELLO, metadata=NAMESPACE, timeout=10)
        except grpc.aio.AioRpcError as error:
            return wire.peer_status_to_error(error, peer="bob")
    return None


@pytest.mark.parametrize("key", [SENDER, CAROL], ids=["alice", "carol"])
async def test_each_of_several_pinned_peers_gets_in_as_itself(address: str, key: NodeKey) -> None:
    assert await call(address, key) is None


@pytest.mark.parametrize("key", [STRANGER, RECEIVER], ids=["a stranger", "its own key"])
async def test_no_other_key_gets_in(address: str, key: NodeKey) -> None:
    assert isinstance(await call(address, key), PeerUnreachable | PeerNotAdded)


FRESH = ec.generate_private_key(ec.SECP256R1())
FORGED: dict[str, Callable[[], LeafCertificate]] = {
    # Without name constraints an added peer could mint a leaf that bears another one's name.
    "name of another peer": lambda: forged_leaf(CAROL, name=server_name(SENDER.public)),
    "name and issuer of another peer": lambda: forged_leaf(CAROL, says=SENDER),
    "issuer of another peer": lambda: forged_leaf(CAROL, issuer=SENDER.node_id),
    "signed by a stranger as a peer": lambda: forged_leaf(STRANGER, says=SENDER),
    # A certificate that is no CA signs nothing, be it signed by a peer.
    "signed by a leaf": lambda: forged_leaf(SENDER, under=FRESH),
    "below an intermediate CA": lambda: chained(forged_leaf(SENDER, is_ca=True, own=FRESH), FRESH),
    # gRPC's list of signature algorithms has no Ed25519: an identity is no leaf.
    "Ed25519": lambda: forged_leaf(SENDER, own=ed25519.Ed25519PrivateKey.generate()),
}


def chained(ca: LeafCertificate, ca_key: ec.EllipticCurvePrivateKey) -> LeafCertificate:
    """A leaf under a CA that a peer made, shown with that CA."""
    leaf = forged_leaf(SENDER, under=ca_key)
    return LeafCertificate(leaf.chain_pem + ca.chain_pem, leaf.key_pem)


@pytest.mark.parametrize("forge", FORGED.values(), ids=FORGED)
async def test_forged_leaf_gets_nobody_in(address: str, forge: Callable[[], LeafCertificate]) -> None:
    assert isinstance(await call(address, CAROL, forge()), PeerUnreachable)
    assert await call(address, CAROL, forged_leaf(CAROL)) is None  # nothing is wrong with this one


async def test_leaf_that_does_not_say_who_signed_it_is_refused_at_the_call(address: str) -> None:
    # The handshake would do: it finds the pin by its name. Who calls must be told by a signature, though.
    leaf = forged_leaf(CAROL, hint=False)
    assert isinstance(await call(address, CAROL, leaf), BadSignature)


async def test_caller_without_a_certificate_gets_nowhere(address: str) -> None:
    credentials = grpc.ssl_channel_credentials()
    async with (
        grpc.aio.insecure_channel(address) as plain,
        grpc.aio.secure_channel(address, credentials) as tls,
    ):
        for channel in (plain, tls):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await peer_pb2_grpc.PeerStub(channel).Hello(HELLO, timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_stranger_may_learn_who_answers_and_that_is_all(address: str) -> None:
    shown = await who_answers(address)
    assert shown is not None
    assert shown.public == RECEIVER.public
    assert await who_answers(address) == shown
    assert await who_answers("127.0.0.1:1") is None


async def test_port_that_speaks_no_tls_is_nobody() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 no\r\n\r\n")
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        assert await who_answers(f"127.0.0.1:{port}") is None


async def test_another_node_at_the_address_is_the_wrong_peer_and_is_told_nothing(address: str) -> None:
    gate = gate_of(SENDER, STRANGER)
    async with PeerClient(address, public=STRANGER.public, peer="carol", gate=gate) as client:
        with pytest.raises(WrongPeer, match="carol: another node answers"):
            await client.hello()


async def test_node_that_has_not_added_us_is_told_apart_from_one_that_is_not_there(address: str) -> None:
    gate = gate_of(STRANGER, RECEIVER)
    async with PeerClient(address, public=RECEIVER.public, peer="bob", gate=gate) as client:
        with pytest.raises(PeerNotAdded, match=f"kvnet peer add HOST:PORT --id {STRANGER.node_id}"):
            await client.hello()


async def test_man_in_the_middle_with_certificates_of_his_own_gets_no_hello(
    pool: Executor, address: str
) -> None:
    mallory = PeerServer(MemoryNode(STRANGER, pool), gate_of(STRANGER, SENDER))
    port = await mallory.start(host="127.0.0.1", port=0)
    async with PeerClient(
        f"127.0.0.1:{port}", public=RECEIVER.public, peer="bob", gate=gate_of(SENDER, RECEIVER)
    ) as client:
        with pytest.raises(WrongPeer):
            await client.hello()
    assert isinstance(await call(address, STRANGER, forged_leaf(STRANGER, says=SENDER)), PeerUnreachable)
    await mallory.stop(0)


@pytest.mark.parametrize("namespace", ["other", "", "default ", "Grüße"])
async def test_node_of_another_namespace_is_refused_by_either_end(pair: Pair, namespace: str) -> None:
    async with pair.client(gate=gate_of(SENDER, RECEIVER, namespace=namespace)) as client:
        with pytest.raises(WrongNamespace, match="the calling node: is in namespace"):
            await client.hello()
    with pytest.raises(WrongNamespace, match="bob: is in namespace 'default'"):
        gate_of(SENDER, namespace=namespace).check_namespace("default", who="bob")


async def test_call_that_names_no_namespace_is_refused(address: str) -> None:
    async with raw_channel(SENDER, address, RECEIVER.public, issue_leaf(SENDER)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await peer_pb2_grpc.PeerStub(channel).Hello(HELLO, timeout=10)
    assert isinstance(wire.peer_status_to_error(refused.value, peer="bob"), WrongNamespace)


def ticket_of(port: int, context: ssl.SSLContext, ticket: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """A ticket of the server's, which lets in whoever shows `ticket`, or else a certificate; None if not."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, session=ticket) as tls,
        ):
            tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            is_in = bool(tls.recv(64))  # nothing is a refusal that came behind our end of the handshake
            was_reused, fresh = tls.session_reused, tls.session
    except OSError:
        return None
    if not is_in:
        return None
    assert was_reused is (ticket is not None)
    return fresh


async def test_ticket_of_a_session_lets_a_peer_in_again_but_not_once_it_is_revoked(
    pool: Executor, tmp_path: Path
) -> None:
    peers = PeerList(tmp_path / "peers.json")
    peers.add(AddedPeer(SENDER.node_id, "alice", "", ""))
    peers.add(AddedPeer(CAROL.node_id, "carol", "", ""))
    server = PeerServer(MemoryNode(RECEIVER, pool), Gate(RECEIVER, peers, namespace="default"))
    port = await server.start(host="127.0.0.1", port=0)
    leaf, file = issue_leaf(SENDER), tmp_path / "leaf.pem"
    file.write_bytes(leaf.key_pem + leaf.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(file)
    first = await asyncio.to_thread(ticket_of, port, context, None)
    assert first is not None
    second = await asyncio.to_thread(ticket_of, port, context, first)
    assert second is not None
    peers.revoke("alice", at="2026-01-01T00:00:00Z")
    for ticket in (first, second, None):
        assert await asyncio.to_thread(ticket_of, port, context, ticket) is None
    assert await call(f"127.0.0.1:{port}", CAROL) is None
    await server.stop(0)
