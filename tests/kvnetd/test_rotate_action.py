"""A node changes its key: peers take the new one over the wire or from a file, the old one no more."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions.rotate import accept_rotation, rotate_key
from kvnetd.actions.send import say_hello
from kvnetd.parties import require_may_ask, take_rotation
from kvnetd.services import Services
from kvnetd.store.outbox import Parcel

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedMessage,
    NotPermitted,
    PeerNotAdded,
    ReplayedMessage,
    UnknownPeer,
    WrongPeer,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList, Permission
from kvnet.identity.rotation import make_statement
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.kvnetd.nodes import AT, Node, add, events, listening, services_of

pytestmark = pytest.mark.timeout(60)
NEW = NodeKey(b"\x04" * 32)


@asynccontextmanager
async def open_node(root: Path, name: str, key: NodeKey) -> AsyncIterator[Node]:
    """A node with its peer port open and its key on disk."""
    async with services_of(root / name, key, name=name) as services:
        services.config.home.identity.parent.mkdir(mode=0o700, exist_ok=True)
        async with listening(services) as node:
            yield node


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Node]:
    async with open_node(tmp_path, "alice", SENDER) as node:
        yield node


@pytest.fixture
async def bob(tmp_path: Path) -> AsyncIterator[Node]:
    async with open_node(tmp_path, "bob", RECEIVER) as node:
        yield node


def peer_of(services: Services, name: str) -> AddedPeer:
    """As it is on disk."""
    return next(peer for peer in PeerList(services.config.home.peers).all() if peer.name == name)


async def test_peers_that_answer_take_the_new_key_and_let_in_the_old_one_no_more(
    alice: Node, bob: Node, tmp_path: Path
) -> None:
    add(alice, bob)
    add(bob, alice)
    bob.services.peers.trust("alice", permissions=(Permission.SEND,), quota_nbytes=7)
    report = await rotate_key(alice.services)
    home = alice.services.config.home
    new = NodeKey.load_or_create(home.identity)
    assert (report.old_id, report.new_id) == (SENDER.node_id, new.node_id)
    assert (report.told, report.untold) == (("bob",), ())
    known = peer_of(bob.services, "alice")
    assert (known.node_id, known.rotated_from) == (new.node_id, SENDER.node_id)
    assert (known.permissions, known.quota_nbytes) == ((Permission.SEND,), 7)
    assert [line["event"] for line in events(bob.services, "peer")] == ["peer.rotated"]
    with pytest.raises(KvnetError) as refused:
        await say_hello(alice.services, alice.services.peers.find("bob"))
    assert isinstance(refused.value, PeerNotAdded)
    async with open_node(tmp_path, "anew", new) as started:
        add(started, bob)
        hello, _, _ = await say_hello(started.services, started.services.peers.find("bob"))
    assert hello.node_id == RECEIVER.node_id


async def test_peer_that_is_off_takes_the_new_key_from_the_file(alice: Node, bob: Node) -> None:
    add(bob, alice)
    alice.services.peers.add(AddedPeer(RECEIVER.node_id, "bob", "127.0.0.1:1", AT))
    report = await rotate_key(alice.services)
    assert (report.told, report.untold) == ((), ("bob",))
    data = await asyncio.to_thread(Path(report.statement).read_bytes)
    info = await accept_rotation(bob.services, data)
    assert (info.node_id, info.name, info.rotated_from) == (report.new_id, "alice", SENDER.node_id)
    assert bob.services.peers.get(SENDER.node_id) is None


async def test_what_waits_for_the_peer_and_what_came_from_it_follow_its_new_key(bob: Node) -> None:
    services = bob.services
    services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    parcel = Parcel(SENDER.node_id, "alice", "", "", "mem_x", "", "", False)
    services.ledger.outbox.add("out_1", parcel, now=AT, expires_at="2099-01-01T00:00:00.000Z", most=9)
    record = bob.remember()
    record = replace(record, notes=replace(record.notes, origin=SENDER.node_id))
    await accept_rotation(services, statement(SENDER, NEW))
    assert [entry.peer for entry in services.ledger.outbox.heads()] == [NEW.node_id]
    require_may_ask(services, record)
    services.peers.revoke("alice", at=AT)
    with pytest.raises(NotPermitted):
        require_may_ask(services, record)


async def test_new_key_is_on_disk_for_this_user_alone_and_the_old_one_is_gone(alice: Node) -> None:
    home = alice.services.config.home
    home.identity.write_bytes(b"\x01" * 32)
    home.identity.chmod(0o600)
    report = await rotate_key(alice.services)
    assert NodeKey.load_or_create(home.identity).node_id == report.new_id
    assert stat.S_IMODE(home.identity.stat().st_mode) == 0o600
    names = {path.name for path in home.identity.parent.iterdir()} - {"vault.key"}
    assert names == {"node.key", Path(report.statement).name}


async def test_revoked_peers_are_not_told(alice: Node, bob: Node) -> None:
    add(alice, bob)
    alice.services.peers.revoke("bob", at=AT)
    assert (await rotate_key(alice.services)).told == ()


def statement(old: NodeKey, new: NodeKey, at: float | None = None) -> bytes:
    return make_statement(old, new, rotated_at=int(time.time() if at is None else at))


async def test_statement_counts_for_the_caller_alone(bob: Node) -> None:
    bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    bob.services.peers.add(AddedPeer(STRANGER.node_id, "mallory", "", AT))
    with pytest.raises(WrongPeer):
        await take_rotation(bob.services, statement(SENDER, NEW), caller=STRANGER.public)
    assert bob.services.peers.find("alice").node_id == SENDER.node_id


async def test_key_of_another_peer_is_not_taken_over(bob: Node) -> None:
    bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    bob.services.peers.add(AddedPeer(STRANGER.node_id, "mallory", "", AT))
    with pytest.raises(KvnetError, match="here already"):
        await take_rotation(bob.services, statement(STRANGER, SENDER), caller=STRANGER.public)


@pytest.mark.parametrize("standing", ["unknown", "revoked"])
async def test_key_that_is_not_trusted_signs_for_nothing(bob: Node, standing: str) -> None:
    if standing == "revoked":
        bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
        bob.services.peers.revoke("alice", at=AT)
    with pytest.raises(UnknownPeer):
        await accept_rotation(bob.services, statement(SENDER, NEW))


async def test_statement_of_long_ago_is_refused_and_so_is_noise(bob: Node) -> None:
    added_at = "2026-06-01T00:00:00.000Z"
    bob.services.peers.add(replace(AddedPeer(SENDER.node_id, "alice", "", added_at)))
    with pytest.raises(ReplayedMessage):
        await accept_rotation(bob.services, statement(SENDER, NEW, at=1_700_000_000))
    with pytest.raises(MalformedMessage):
        await accept_rotation(bob.services, b"{}")
    forged = statement(SENDER, NEW).replace(NEW.node_id.encode(), STRANGER.node_id.encode())
    with pytest.raises(BadSignature):
        await accept_rotation(bob.services, forged)


async def test_list_with_a_date_that_is_none_takes_any_statement(bob: Node) -> None:
    bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", "long ago"))
    assert (await accept_rotation(bob.services, statement(SENDER, NEW, at=1))).node_id == NEW.node_id


async def test_crash_before_the_key_is_in_place_leaves_the_old_one(
    alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = alice.services.config.home
    home.identity.write_bytes(b"\x01" * 32)
    home.identity.chmod(0o600)

    def no_statement(*arguments: Any, **more: Any) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kvnetd.actions.rotate.make_statement", no_statement)
    with pytest.raises(KvnetError):
        await rotate_key(alice.services)
    assert NodeKey.load_or_create(home.identity).node_id == SENDER.node_id
    monkeypatch.undo()
    assert (await asyncio.wait_for(rotate_key(alice.services), 10)).old_id == SENDER.node_id
