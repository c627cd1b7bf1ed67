"""peers: what is shown of them, what they may, and the alarm of a key in two places."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from kvnetd.actions import peers
from kvnetd.actions.recall import plan
from kvnetd.store.records import LocalNotes

from kvnet.compat import Policy
from kvnet.errors import NotPermitted, PeerUnreachable, RequestError, UnknownPeer
from kvnet.identity.peers import AddedPeer
from tests.builders import RECEIVER, SENDER
from tests.gates import NAMESPACE, raw_channel
from tests.kvnetd.nodes import AT, MEMORY, Node, add, events, listening, making, services_of


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Node]:
    async with services_of(tmp_path / "alice", SENDER, name="alice") as services, listening(services) as node:
        yield node


@pytest.fixture
async def bob(tmp_path: Path, alice: Node) -> AsyncIterator[Node]:
    async with services_of(tmp_path / "bob", RECEIVER, name="bob") as services, listening(services) as node:
        add(node, alice)
        add(alice, node)
        yield node


async def test_peer_is_shown_with_all_that_is_known_of_it(bob: Node, alice: Node) -> None:
    info = await peers.show_peer(bob.services, "alice")
    assert (info.reachable, info.addresses, info.tier) == (True, (alice.address,), "exact")
    assert info.permissions == ("send", "pull", "read", "ask", "relay")
    assert (info.verified, info.added_at, info.revoked_at, info.alarm) == ("by hand", AT, "", "")


async def test_two_nodes_that_answer_with_one_key_are_an_alarm_until_it_is_trusted_again(
    bob: Node, alice: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with services_of(tmp_path / "thief", SENDER, name="alice") as stolen, listening(stolen) as thief:
        monkeypatch.setattr(bob.services.directory, "seen", lambda node_id: (thief.address, alice.address))
        info = await peers.show_peer(bob.services, "alice")
        assert info.alarm == f"two nodes use its key at once, at {alice.address} and {thief.address}"
        assert (await peers.show_peer(bob.services, "alice")).alarm == info.alarm
    assert [(line["peer"], line["message"]) for line in events(bob.services, "peer")] == [
        ("alice", info.alarm)
    ]
    assert (await peers.trust_peer(bob.services, "alice")).alarm == ""
    assert (await peers.show_peer(bob.services, "alice")).alarm == ""


async def test_one_node_at_two_addresses_is_no_alarm(
    bob: Node, alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = alice.address.replace("127.0.0.1", "localhost")
    monkeypatch.setattr(bob.services.directory, "seen", lambda node_id: (other, "127.0.0.1:1"))
    assert (await peers.show_peer(bob.services, "alice")).alarm == ""


async def test_revoked_peer_is_refused_both_ways_until_it_is_trusted_again(bob: Node, alice: Node) -> None:
    info = await peers.revoke_peer(bob.services, "alice")
    assert info.problem == f"revoked at {info.revoked_at}"
    (listed,) = await peers.list_peers(bob.services, probe=True)
    assert (listed.added, listed.reachable, listed.problem) == (True, False, info.problem)
    with pytest.raises(UnknownPeer, match="was revoked at"):
        bob.services.peers.find("alice")
    (seen,) = await peers.list_peers(alice.services, probe=True)
    assert "does not let this node in" in seen.problem
    await peers.trust_peer(bob.services, "alice")
    (seen,) = await peers.list_peers(alice.services, probe=True)
    assert seen.reachable


async def test_permissions_are_changed_by_name_and_others_are_refused(bob: Node) -> None:
    info = await peers.trust_peer(bob.services, "alice", permissions=["pull"], quota_nbytes=1 << 30)
    assert (info.permissions, info.quota_nbytes) == (("pull",), 1 << 30)
    assert (await peers.trust_peer(bob.services, "alice")).permissions == ("pull",)
    with pytest.raises(RequestError, match="permission 'root': none of send, pull, read, ask"):
        await peers.trust_peer(bob.services, "alice", permissions=["root"])


async def test_adding_a_peer_again_gives_it_no_more_permissions(bob: Node, alice: Node) -> None:
    await peers.trust_peer(bob.services, "alice", permissions=["pull"])
    node_id = alice.services.key.node_id
    info = await peers.add_peer(bob.services, address=alice.address, node_id=node_id, name="alice")
    assert (info.reachable, info.permissions) == (True, ("pull",))


async def test_memories_of_a_peer_are_used_only_with_permission(bob: Node, alice: Node) -> None:
    notes = LocalNotes(origin=alice.services.key.node_id, stored_at=AT)
    record = bob.services.memories.put(MEMORY, replace(making(), notes=notes), bob.services.key)
    await plan(bob.services, record.id, Policy.ALIGN)
    await peers.trust_peer(bob.services, "alice", permissions=["send"])
    with pytest.raises(NotPermitted, match="came from alice"):
        await plan(bob.services, record.id, Policy.ALIGN)
    await peers.trust_peer(bob.services, "alice", permissions=["ask"])
    await peers.revoke_peer(bob.services, "alice")
    with pytest.raises(NotPermitted, match="came from alice"):
        await plan(bob.services, record.id, Policy.ALIGN)


async def test_address_without_an_id_says_who_answers_and_adds_nobody(bob: Node, alice: Node) -> None:
    with pytest.raises(RequestError, match=f"--id {alice.services.key.node_id}"):
        await peers.add_peer(bob.services, address=alice.address, node_id="", name="")
    with pytest.raises(PeerUnreachable, match="no node answers there"):
        await peers.add_peer(bob.services, address="127.0.0.1:1", node_id="", name="")
    assert len(bob.services.peers.all()) == 1


async def test_node_of_another_namespace_is_told_so(tmp_path: Path, alice: Node) -> None:
    async with services_of(tmp_path / "carol", RECEIVER, name="carol", namespace="other") as carol:
        carol.peers.add(AddedPeer(SENDER.node_id, "alice", alice.address, AT))
        alice.services.peers.add(AddedPeer(RECEIVER.node_id, "carol", "", AT))
        (info,) = await peers.list_peers(carol, probe=True)
        assert "is in namespace 'other', this node in 'default'" in info.problem


async def test_call_without_a_request_ends_with_the_trust_in_its_caller(bob: Node, alice: Node) -> None:
    never = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        await never.wait()
        yield b""

    async with raw_channel(SENDER, bob.address, RECEIVER.public) as channel:
        call = channel.stream_unary("/kvnet.v1.Peer/Hello")(nothing(), metadata=NAMESPACE)
        await asyncio.sleep(0.3)
        assert not call.done()
        began = time.monotonic()
        await peers.revoke_peer(bob.services, "alice")
        async with asyncio.timeout(30):
            assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
        assert time.monotonic() - began < bob.services.config.limits.unary_deadline_s / 2
        never.set()
