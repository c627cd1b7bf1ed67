"""A node changes its key: peers take the new one over the wire or from a file, the old one no more."""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions.peers import add_peer, revoke_peer, trust_peer
from kvnetd.actions.rotate import accept_rotation, rotate_key
from kvnetd.actions.send import say_hello
from kvnetd.own_keys import own_ids
from kvnetd.parties import require_may_ask, take_rotation, untrusted_source
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.outbox import Parcel
from kvnetd.store.records import LocalNotes

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedMessage,
    NotPermitted,
    PeerNotAdded,
    ReplayedMessage,
    RequestError,
    StateCorrupt,
    StoreFull,
    TooBusy,
    UnknownPeer,
    WrongPeer,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.peers import AddedPeer, PeerList, Permission
from kvnet.identity.rotation import make_statement
from kvnet.plan import transfer_room_nbytes
from kvnet.transfer.messages import seal
from tests.builders import RECEIVER, SENDER, STRANGER, make_memory
from tests.kvnetd.nodes import AT, MEMORY, Node, add, events, listening, making, offer, services_of

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
    assert [entry.peer for entry in services.ledger.outbox.waiting()] == [NEW.node_id]
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


async def test_peer_that_rotated_twice_keeps_its_quota_its_permissions_and_its_mail(bob: Node) -> None:
    services = bob.services
    services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    parcel = Parcel(SENDER.node_id, "alice", "", "", "mem_x", "", "", False)
    services.ledger.outbox.add("out_1", parcel, now=AT, expires_at="2099-01-01T00:00:00.000Z", most=9)
    notes = LocalNotes(origin=SENDER.node_id, stored_at=AT)
    record = services.memories.put(MEMORY, replace(making(), notes=notes), services.key)
    newest = NodeKey(b"\x05" * 32)
    await accept_rotation(services, statement(SENDER, NEW))
    await accept_rotation(services, statement(NEW, newest))
    alice = peer_of(services, "alice")
    assert alice.all_ids == (SENDER.node_id, NEW.node_id, newest.node_id)
    services.peers.trust("alice", quota_nbytes=transfer_room_nbytes(record.header))
    another = offer(memory=make_memory(7), sender=newest.node_id)
    with pytest.raises(StoreFull, match="of alice"):
        await bob.transfers.open_inbound(seal(newest, another))
    assert [entry.peer for entry in services.ledger.outbox.waiting()] == [newest.node_id]
    assert untrusted_source(services, record) == "alice"
    require_may_ask(services, record)
    services.peers.trust("alice", permissions=(Permission.SEND,))
    with pytest.raises(NotPermitted):
        require_may_ask(services, record)


async def test_peer_that_rotates_without_end_is_told_to_pair_again(
    bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnet.identity.peers.MAX_ROTATIONS", 2)
    bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    keys = [SENDER, *(NodeKey(bytes([number]) * 32) for number in (11, 12, 13))]
    for old, new in pairwise(keys[:3]):
        await accept_rotation(bob.services, statement(old, new))
    with pytest.raises(RequestError, match="pair again"):
        await accept_rotation(bob.services, statement(keys[2], keys[3]))
    assert peer_of(bob.services, "alice").node_id == keys[2].node_id


async def test_what_an_earlier_own_key_signed_is_own_after_two_rotations(alice: Node, tmp_path: Path) -> None:
    home = alice.services.config.home
    home.identity.write_bytes(b"\x01" * 32)
    home.identity.chmod(0o600)
    await rotate_key(alice.services)
    second = NodeKey.load_or_create(home.identity)
    await rotate_key(replace(alice.services, key=second))
    third = NodeKey.load_or_create(home.identity)
    (home.identity.parent / "rotation-damaged.json").write_bytes(b"{}")
    (home.identity.parent / "rotation-others.json").write_bytes(statement(STRANGER, RECEIVER))
    ids = own_ids(home, third)
    assert ids == {alice.services.key.node_id, second.node_id, third.node_id}
    assert own_ids(home, second) == {alice.services.key.node_id, second.node_id}
    store = AlignmentStore(tmp_path / "maps", own=ids)
    assert all(store.is_own(one) for one in ids)
    assert not store.is_own(STRANGER.node_id)


def on_disk(node: Node) -> str:
    return NodeKey.load_or_create(node.services.config.home.identity).node_id


async def test_rotation_that_is_given_up_by_its_caller_goes_on_to_its_end(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(alice, bob)
    add(bob, alice)
    telling, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(*arguments: Any, **more: Any) -> Any:
        telling.set()
        await go_on.wait()
        return await say_hello(*arguments, **more)

    monkeypatch.setattr("kvnetd.actions.rotate.say_hello", slow)
    rotating = asyncio.create_task(rotate_key(alice.services, ended.set))
    await telling.wait()
    rotating.cancel()
    await asyncio.gather(rotating, return_exceptions=True)
    assert rotating.cancelled()
    assert not ended.is_set()
    go_on.set()
    await asyncio.wait_for(ended.wait(), 30)
    assert bob.services.peers.find("alice").node_id == on_disk(alice) != SENDER.node_id


async def test_second_rotation_before_a_new_start_is_refused_and_destroys_no_key(
    alice: Node, bob: Node
) -> None:
    add(alice, bob)
    add(bob, alice)
    both = await asyncio.gather(
        rotate_key(alice.services), rotate_key(alice.services), return_exceptions=True
    )
    assert sorted(type(one).__name__ for one in both) == ["RotationReport", "TooBusy"]
    kept = on_disk(alice)
    with pytest.raises(TooBusy, match="new key already"):
        await rotate_key(alice.services)
    assert bob.services.peers.find("alice").node_id == on_disk(alice) == kept


async def test_statement_of_before_a_crash_is_not_written_over(alice: Node) -> None:
    folder = alice.services.config.home.identity.parent
    earlier = folder / f"rotation-{SENDER.node_id[:13]}.json"
    before = statement(SENDER, NEW)
    earlier.write_bytes(before)
    report = await rotate_key(alice.services)
    assert earlier.read_bytes() == before
    home = alice.services.config.home
    assert {SENDER.node_id, report.new_id} <= own_ids(home, NodeKey.load_or_create(home.identity))


async def test_statement_is_on_disk_before_the_key_that_it_tells_of_is_in_place(
    alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, fsync, replace_path = alice.services.config.home, os.fsync, Path.replace
    synced: list[str] = []
    before_the_key: list[str] = []

    def watched(handle: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    def replaced(path: Path, target: Path) -> Path:
        if target == home.identity:
            before_the_key.extend(synced)
        return replace_path(path, target)

    monkeypatch.setattr(os, "fsync", watched)
    monkeypatch.setattr(Path, "replace", replaced)
    report = await rotate_key(alice.services)
    assert f"{report.statement}.new" in before_the_key


async def test_statement_that_is_not_read_back_leaves_the_old_key(
    alice: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = alice.services.config.home
    home.identity.write_bytes(b"\x01" * 32)
    home.identity.chmod(0o600)
    monkeypatch.setattr(
        "kvnetd.actions.rotate.write_durably",
        lambda path, data: path.write_bytes(statement(SENDER, NEW)),
    )
    with pytest.raises(StateCorrupt, match="not read back"):
        await rotate_key(alice.services)
    assert on_disk(alice) == SENDER.node_id


@pytest.mark.parametrize("again", ["trust", "add"])
async def test_statement_of_before_a_revocation_does_not_count_behind_it(bob: Node, again: str) -> None:
    """Whoever stole the key may have signed it over while it was trusted."""
    bob.services.peers.add(AddedPeer(SENDER.node_id, "alice", "", AT))
    stolen = statement(SENDER, NEW, at=time.time() - 3600)
    await revoke_peer(bob.services, "alice")
    if again == "trust":
        await trust_peer(bob.services, "alice")
    else:
        await add_peer(bob.services, address="", node_id=SENDER.node_id, name="alice")
    with pytest.raises(ReplayedMessage):
        await accept_rotation(bob.services, stolen)
    assert bob.services.peers.find("alice").node_id == SENDER.node_id
