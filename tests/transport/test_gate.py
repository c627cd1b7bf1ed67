"""Trust that changes while nodes deal with each other: permissions, revocation, a key in two places."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from kvnet import wire
from kvnet.errors import KvnetError, NotPermitted, PeerNotAdded
from kvnet.identity.certificates import issue_leaf
from kvnet.identity.peers import AddedPeer, PeerList, Permission
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.transport.gate import MAX_EARLIER_LEAVES, Gate
from kvnet.transport.readings import Reading
from kvnet.transport.security import Shown
from kvnet.transport.server import PeerServer
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.gates import NAMESPACE, raw_channel
from tests.transport.attacker import attack
from tests.transport.backend import MEMORY, MemoryNode, Pair
from tests.transport.readers import MemoryReader, make_request

SOON_S = 5.0  # it takes some milliseconds; a loaded machine must not fail the test


@dataclass
class Dealing:
    """Alice and Bob, each with a trust list that may change."""

    pair: Pair
    alices: PeerList
    bobs: PeerList
    alice: Gate
    alarms: list[str]


@pytest.fixture
async def dealing(tmp_path: Path, pool: Executor) -> AsyncIterator[Dealing]:
    alices, bobs = PeerList(tmp_path / "alices.json"), PeerList(tmp_path / "bobs.json")
    alices.add(AddedPeer(RECEIVER.node_id, "bob", "", ""))
    bobs.add(AddedPeer(SENDER.node_id, "alice", "", ""))
    alarms: list[str] = []

    def on_alarm(peer: AddedPeer, message: str) -> None:
        alarms.append(f"{peer.name}: {message}")

    alice = Gate(SENDER, alices, namespace="default")
    bob = MemoryNode(RECEIVER, pool)
    gate = Gate(RECEIVER, bobs, namespace="default", on_alarm=on_alarm)
    server = PeerServer(bob, gate, MemoryReader(RECEIVER, pool))
    port = await server.start(host="127.0.0.1", port=0)
    yield Dealing(Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}"), alices, bobs, alice, alarms)
    await server.stop(0)


async def refusal_of(dealing: Dealing, permission: Permission) -> KvnetError | None:
    """What Bob answers a call that needs this permission; None where he takes the first frame."""
    async with raw_channel(SENDER, dealing.pair.address, RECEIVER.public) as channel:
        stub = peer_pb2_grpc.PeerStub(channel)
        calls = {Permission.SEND: stub.Push, Permission.PULL: stub.Pull, Permission.READ: stub.Read}
        call = calls[permission](metadata=NAMESPACE)
        try:
            async with asyncio.timeout(SOON_S):
                await call.initial_metadata()
                await call.done_writing()
                await call.read()
        except grpc.aio.AioRpcError as error:
            return wire.peer_status_to_error(error, peer="bob")
    return None


@pytest.mark.parametrize("withheld", [Permission.SEND, Permission.PULL, Permission.READ])
async def test_peer_may_do_what_it_has_permission_for_and_nothing_else(
    dealing: Dealing, withheld: Permission
) -> None:
    dealing.bobs.trust("alice", permissions=[one for one in Permission if one is not withheld])
    for permission in (Permission.SEND, Permission.PULL, Permission.READ):
        refusal = await refusal_of(dealing, permission)
        assert isinstance(refusal, NotPermitted) == (permission is withheld)
    async with dealing.pair.client(gate=dealing.alice) as client:
        assert (await client.hello()).node_id == RECEIVER.node_id


async def test_peer_is_let_in_and_shut_out_without_a_restart(dealing: Dealing) -> None:
    async with dealing.pair.client(gate=dealing.alice) as client:
        await client.hello()
        dealing.bobs.revoke("alice", at="now")
        with pytest.raises(PeerNotAdded, match="no longer"):  # on the connection that is open
            await client.hello()
    async with dealing.pair.client(gate=dealing.alice) as client:
        with pytest.raises(PeerNotAdded, match="does not let this node in"):  # on a new one
            await client.hello()
    dealing.bobs.trust("alice")
    async with dealing.pair.client(gate=dealing.alice) as client:
        await client.hello()


@pytest.mark.parametrize("change", ["revoke", "remove", "permission"])
async def test_open_stream_of_a_peer_that_loses_trust_ends_at_once(dealing: Dealing, change: str) -> None:
    async with attack(dealing.pair) as alice:
        await alice.offer()
        await alice.send(0)
        assert isinstance(await alice.stream.read(), list)
        if change == "revoke":
            dealing.bobs.revoke("alice", at="now")
        elif change == "remove":
            dealing.bobs.remove("alice")
        else:
            dealing.bobs.trust("alice", permissions=[Permission.PULL])
        async with asyncio.timeout(SOON_S):
            refusal = await alice.refusal()
    assert type(refusal) is (NotPermitted if change == "permission" else PeerNotAdded)
    (failure,) = (await dealing.pair.bob.settled()).failures
    assert isinstance(failure, asyncio.CancelledError)
    assert dealing.pair.bob.memories == {}


async def test_stream_of_another_peer_goes_on_when_one_is_revoked(dealing: Dealing) -> None:
    dealing.bobs.add(AddedPeer(STRANGER.node_id, "carol", "", ""))
    async with attack(dealing.pair) as alice:
        await alice.offer()
        dealing.bobs.revoke("carol", at="now")
        dealing.bobs.trust("alice", permissions=[Permission.SEND])
        await alice.send(0, 1)
        assert isinstance(await alice.stream.read(), list)


async def test_what_this_node_sends_stops_when_it_revokes_the_receiver(dealing: Dealing) -> None:
    dealing.pair.bob.disk_is_ready.clear()
    outbound = dealing.pair.alice.outgoing(MEMORY)
    async with dealing.pair.client(gate=dealing.alice) as client:
        pushing = asyncio.create_task(client.push(outbound))
        while not dealing.pair.bob.inbound:  # noqa: ASYNC110  # a node in memory has no event for it
            await asyncio.sleep(0.01)
        dealing.alices.revoke("bob", at="now")
        with pytest.raises(PeerNotAdded, match="trusted no longer"):
            async with asyncio.timeout(SOON_S):
                await pushing
        with pytest.raises(PeerNotAdded):
            await client.push(dealing.pair.alice.outgoing(MEMORY))
    dealing.pair.bob.disk_is_ready.set()


async def test_what_this_node_has_read_stops_when_it_revokes_the_reader(
    dealing: Dealing, pool: Executor
) -> None:
    hello = dealing.pair.bob.hello(b"n" * 16)
    async with dealing.pair.client(gate=dealing.alice) as client:
        readings = client.read_texts(
            make_request(num_texts=1000), ["salt"] * 1000, key=SENDER, hello=hello, pool=pool
        )
        await anext(readings)
        dealing.alices.revoke("bob", at="now")
        with pytest.raises(PeerNotAdded):
            await asyncio.wait_for(all_of(readings), SOON_S)


async def all_of(readings: AsyncIterator[Reading]) -> list[Reading]:
    return [reading async for reading in readings]


async def test_key_whose_leaves_come_by_turns_is_an_alarm_and_a_restart_is_none(dealing: Dealing) -> None:
    first, second = issue_leaf(SENDER), issue_leaf(SENDER)
    hello = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 16)
    for leaf, count in ((first, 0), (first, 0), (second, 0), (second, 0), (first, 1)):
        async with raw_channel(SENDER, dealing.pair.address, RECEIVER.public, leaf) as channel:
            await peer_pb2_grpc.PeerStub(channel).Hello(hello, metadata=NAMESPACE, timeout=10)
        assert len(dealing.alarms) == count
    assert dealing.alarms == ["alice: two nodes use its key at once, at 127.0.0.1 and 127.0.0.1"]


async def test_alarm_names_both_places_and_old_leaves_are_forgotten(tmp_path: Path) -> None:
    peers, alarms = PeerList(tmp_path / "peers.json"), list[str]()
    peers.add(AddedPeer(SENDER.node_id, "alice", "", ""))
    gate = Gate(RECEIVER, peers, namespace="default", on_alarm=lambda peer, message: alarms.append(message))

    def saw(leaf: int, host: str) -> None:
        gate.saw(Shown(SENDER.public, bytes([leaf])), host)

    for leaf in range(MAX_EARLIER_LEAVES + 2):
        saw(leaf, f"10.0.0.{leaf}")
    saw(0, "10.0.0.0")  # so long ago that nobody remembers
    assert alarms == []
    saw(MAX_EARLIER_LEAVES + 1, "10.0.0.99")
    assert alarms == [f"two nodes use its key at once, at 10.0.0.{MAX_EARLIER_LEAVES + 1} and 10.0.0.0"]
    peers.sound_alarm(SENDER.node_id, alarms[0])
    saw(0, "10.0.0.0")
    assert len(alarms) == 1  # once, until somebody looked into it
