"""Peers that do not fit, are not known, are others or are not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import time

import pytest

from kvnet.api import MemoryInfo
from kvnet.compat import differences
from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    PeerNotAdded,
    PeerUnreachable,
    UnknownMemory,
    UnknownPeer,
    WrongPeer,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Offer, seal
from kvnet.transport.client import PeerClient
from kvnet.types import TransferId
from tests.e2e.daemons import (
    SOME_CHUNKS_NBYTES,
    Daemon,
    Kvnet,
    Pair,
    chunks_arrived,
    dialled_at,
    introduce,
    memory_nobody_has,
    spooled,
    when_free,
)
from tests.e2e.outcomes import assert_refused_both_ways
from tests.gates import gate_of
from tests.lan.proxy import FaultProxy, Faults

pytestmark = pytest.mark.usefixtures("pair_goes_on")

SOON_S = 5.0  # it takes some milliseconds


class _HandMade:
    """An outbound transfer that offers what it is told to: as much of transport's Outbound as is needed."""

    def __init__(self, key: NodeKey, offer: Offer) -> None:
        self.key = key
        self.sealed_offer: SignedMessage = seal(key, offer)
        self.session = _NoSession(offer)


class _NoSession:
    def __init__(self, offer: Offer) -> None:
        self.offer = offer


def _offer(memory: MemoryInfo, sender: Daemon, receiver: Daemon) -> Offer:
    now = int(time.time())
    geometry = memory.header.geometry
    return Offer(
        transfer_id=TransferId(os.urandom(16).hex()),
        memory=memory.header,
        sender=NodeKey.load_or_create(sender.home.identity).node_id,
        receiver=NodeKey.load_or_create(receiver.home.identity).node_id,
        chunk_count=2 * geometry.num_layers,
        created_at=now,
        expires_at=now + 60,
    )


def test_a_peer_with_another_geometry_is_refused_field_by_field(pair: Pair, rambler: Daemon) -> None:
    introduce(pair.alice, rambler)
    with pair.alice.node() as alice, rambler.node() as other:
        mine, theirs = alice.status(), other.status()
        wanted = differences((mine.fingerprint, mine.geometry), (theirs.fingerprint, theirs.geometry))
        assert {"num_layers", "num_kv_heads", "rope", "weights_digest", "config_digest"} <= set(wanted)
        with pytest.raises(IncompatibleModel) as refused:
            alice.send(pair.memory, "rambler")
        assert refused.value.details == wanted
        for name, (got, needed) in wanted.items():
            assert f"{name} {got} (needs {needed})" in refused.value.message
        (info,) = [peer for peer in alice.peers(probe=True) if peer.name == "rambler"]
        assert (info.reachable, info.tier, info.model) == (True, "refused", "rambler")
        alice.remove_peer("rambler")
    # Nothing was offered: the refusal came from the hello.
    assert not [line for line in rambler.events("transfer") if line.get("memory") == pair.memory.id]


def test_the_cli_shows_the_difference_as_data(pair: Pair, rambler: Daemon, run: Kvnet) -> None:
    introduce(pair.alice, rambler)
    arguments = ("send", "honest", "--to", "rambler")
    assert_refused_both_ways(run, pair.alice.home.root, arguments, "incompatible_model", 5)
    details = run(pair.alice.home.root, *arguments, "--json").json["error"]["details"]
    assert details["num_layers"] == ["4", "5"]
    with pair.alice.node() as alice:
        alice.remove_peer("rambler")


async def test_an_offer_of_another_geometry_is_refused_by_the_receiver(pair: Pair, rambler: Daemon) -> None:
    with rambler.node() as node:
        memory = node.remember("Petra's drink is tea.")
    key = NodeKey.load_or_create(pair.alice.home.identity)
    offer = _offer(memory, pair.alice, pair.bob)
    bob = NodeKey.load_or_create(pair.bob.home.identity)
    gate = gate_of(key, bob)
    async with PeerClient(pair.bob.grpc, public=bob.public, peer="bob", gate=gate) as client:
        with pytest.raises(IncompatibleModel) as refused:
            await client.push(_HandMade(key, offer))  # type: ignore[arg-type]  # as much as is looked at
    assert refused.value.details["num_kv_heads"] == ["4", "2"]
    assert not spooled(pair.bob, offer.transfer_id)


async def test_a_key_that_was_not_added_gets_no_hello_and_no_offer_through(pair: Pair) -> None:
    stranger, bob = NodeKey.generate(), NodeKey.load_or_create(pair.bob.home.identity)
    offer = _offer(pair.memory, pair.alice, pair.bob)
    gate = gate_of(stranger, bob)
    async with PeerClient(pair.bob.grpc, public=bob.public, peer="bob", gate=gate) as client:
        with pytest.raises(PeerNotAdded):
            await client.hello()
        with pytest.raises(PeerUnreachable):
            await client.push(_HandMade(stranger, offer))  # type: ignore[arg-type]
    assert not spooled(pair.bob, offer.transfer_id)


async def test_an_added_peer_passes_on_no_offer_of_another(pair: Pair) -> None:
    alice, bob = (NodeKey.load_or_create(daemon.home.identity) for daemon in (pair.alice, pair.bob))
    offer = _offer(pair.memory, pair.alice, pair.bob)
    async with PeerClient(pair.bob.grpc, public=bob.public, peer="bob", gate=gate_of(alice, bob)) as client:
        with pytest.raises(BadSignature, match="another key than that of the calling node"):
            await client.push(_HandMade(NodeKey.generate(), offer))  # type: ignore[arg-type]
    assert not spooled(pair.bob, offer.transfer_id)


def test_a_memory_taken_from_another_model_is_refused_at_ask(pair: Pair, rambler: Daemon) -> None:
    with rambler.node() as node:
        memory = node.remember("Petra's drink is tea.")
    pair.bob.stop()
    shutil.copytree(rambler.home.store / "memories" / memory.id, pair.bob.home.store / "memories" / memory.id)
    pair.bob.start()
    with pair.bob.node() as bob:
        with pytest.raises(IncompatibleModel):
            bob.ask(pair.prompt, memory)
        bob.forget(memory)


def test_a_node_that_was_not_added_is_refused_in_both_directions(pair: Pair) -> None:
    with pair.alice.node() as alice, pair.bob.node() as bob:
        try:
            bob.remove_peer("alice")
            with pytest.raises(PeerNotAdded, match=pair.alice.node_id):
                alice.send(pair.memory, "bob")
            with pytest.raises(PeerNotAdded):
                alice.pull(pair.memory.id, "bob")
            with pytest.raises(UnknownPeer):
                bob.send(pair.memory, "alice")
            with pytest.raises(UnknownPeer):
                bob.pull(pair.memory.id, "alice")
        finally:
            introduce(pair.alice, pair.bob)
        assert alice.send(pair.memory, "bob", codec="exact").memory == pair.memory.id
        assert bob.send(pair.memory, "alice", codec="exact").memory == pair.memory.id


def test_another_key_at_the_address_is_a_wrong_peer(pair: Pair, rambler: Daemon) -> None:
    with pair.alice.node() as alice:
        info = alice.add_peer(pair.bob.grpc, node_id=rambler.node_id, name="not-bob")
        assert not info.reachable
        assert "another node answers" in info.problem
        for deal in (
            lambda: alice.send(pair.memory, "not-bob"),
            lambda: alice.pull(pair.memory.id, "not-bob"),
        ):
            with pytest.raises(WrongPeer):
                deal()
        alice.remove_peer("not-bob")


def test_a_peer_that_does_not_run_is_unreachable(pair: Pair, run: Kvnet) -> None:
    with pair.alice.node() as alice:
        nobody = NodeKey.generate().node_id
        info = alice.add_peer("127.0.0.1:1", node_id=nobody, name="nobody")
        assert not info.reachable
        arguments = ("send", "honest", "--to", "nobody", "--no-queue")
        assert_refused_both_ways(run, pair.alice.home.root, arguments, "peer_unreachable", 5)
        assert run(pair.alice.home.root, "doctor").status == 1
        alice.remove_peer("nobody")


def test_pulling_what_the_peer_does_not_have_is_an_unknown_memory(pair: Pair) -> None:
    with pair.alice.node() as alice, pytest.raises(UnknownMemory):
        alice.pull("mem_" + "a" * 52, "bob")


async def test_a_revoked_peer_is_cut_off_in_the_middle_of_a_transfer(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with (
        pair.alice.async_node() as alice,
        pair.bob.async_node() as bob,
        FaultProxy(*address, to_server=stalling) as proxy,
        dialled_at(pair.alice, pair.bob, proxy.port),
    ):
        memory = await memory_nobody_has(alice, 77)
        sending = asyncio.create_task(alice.send(memory, "bob", codec="exact"))
        await chunks_arrived(pair.bob, memory)
        info = await bob.revoke_peer("alice")
        assert info.revoked_at
        async with asyncio.timeout(SOON_S):
            with pytest.raises(PeerNotAdded):
                await sending
        proxy.heal()
        assert (await bob.show_peer("alice")).problem.startswith("revoked at")
        with pytest.raises(UnknownPeer, match="was revoked at"):
            await bob.pull(memory.id, "alice")
        with pytest.raises(PeerNotAdded, match=pair.alice.node_id):
            await alice.pull(pair.memory.id, "bob")
        assert (await bob.trust_peer("alice")).revoked_at == ""
        report = await when_free(lambda: alice.send(memory, "bob", codec="exact"))
        assert report.memory == memory.id
    assert [line["peer"] for line in pair.bob.events("peer.revoked")] == ["alice"]
