"""Two nodes over loopback: messages arrive once, both sides keep receipts, and the logs say how it went."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import pytest
from kvnetd.actions import peers
from kvnetd.store.sections import read_section
from kvnetd.transfers import Transfers

from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    PeerError,
    PeerNotAdded,
    PeerUnreachable,
    TransferIncomplete,
    UnknownMemory,
)
from kvnet.transfer.sender import Part
from kvnet.types import MemoryId
from tests.builders import STRANGER, make_fingerprint
from tests.kvnetd.exchange import failure_at, pull_memory, send_memory
from tests.kvnetd.nodes import MEMORY, Node, events, inbox, receipts, spooled

TOTAL = 6


ON_DISK_S = 0.5


def break_after(monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    """The sender's link goes down when so many chunks are read."""
    left = iter(range(chunks))

    def read(*args: Any) -> bytes:
        if next(left, None) is None:
            time.sleep(ON_DISK_S)  # on a thread of the pool: those before it are read ahead, and now arrive
            raise PeerUnreachable("the link broke")
        return read_section(*args)

    monkeypatch.setattr("kvnetd.outgoing.read_section", read)


async def test_both_sides_keep_the_receipt_of_a_message_and_of_a_pull(alice: Node, bob: Node) -> None:
    alice.remember()
    sent = await send_memory(alice)
    alice_id, bob_id = alice.services.key.node_id, bob.services.key.node_id
    assert receipts(alice.services) == [("out", bob_id, sent.transfer_id, MEMORY.header.id)]
    assert receipts(bob.services) == [("in", alice_id, sent.transfer_id, MEMORY.header.id)]
    pulled = await pull_memory(bob, "alice")
    assert receipts(alice.services)[1:] == [("out", bob_id, pulled.transfer_id, MEMORY.header.id)]
    assert receipts(bob.services)[1:] == [("in", alice_id, pulled.transfer_id, MEMORY.header.id)]
    assert len(inbox(bob.services)) == 1
    stored = [
        {row for row in node.services.ledger._run("SELECT receipt_body, receipt_signature FROM transfers")}
        for node in (alice, bob)
    ]
    assert stored[0] == stored[1]


async def test_pull_between_two_attempts_at_a_message_leaves_the_message_in_the_inbox_once(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.remember()
    with monkeypatch.context() as patched:
        break_after(patched, 3)
        async with failure_at(bob):
            with pytest.raises(PeerUnreachable):
                await send_memory(alice)
    assert inbox(bob.services) == ()
    await pull_memory(bob, "alice")
    assert inbox(bob.services) == ()
    report = await send_memory(alice)
    (message,) = inbox(bob.services)
    assert (message.memory, message.sender_name) == (MEMORY.header.id, "alice")
    assert spooled(bob.services) == []
    assert report.transfer_id in {transfer for _, _, transfer, _ in receipts(bob.services)}


async def test_message_whose_receipt_was_lost_is_sent_again_and_arrives_once(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.remember()

    async def lost(*args: Any) -> None:
        raise TransferIncomplete("the link broke")

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.outgoing.OutboundTransfer.delivered", lost)
        with pytest.raises(TransferIncomplete):
            await send_memory(alice)
    assert (len(inbox(bob.services)), receipts(alice.services)) == (1, [])
    report = await send_memory(alice)
    assert (report.resumed_chunks, len(inbox(bob.services)), len(receipts(bob.services))) == (TOTAL, 1, 1)
    assert [row[2] for row in receipts(alice.services)] == [report.transfer_id]


async def test_message_sent_twice_on_purpose_arrives_twice(alice: Node, bob: Node) -> None:
    alice.remember()
    assert (await send_memory(alice)).transfer_id != (await send_memory(alice)).transfer_id
    assert len(inbox(bob.services)) == 2


async def test_peer_that_was_removed_gets_nothing_and_sends_nothing(alice: Node, bob: Node) -> None:
    alice.remember()
    bob.services.peers.remove("alice")
    with pytest.raises(PeerNotAdded, match="bob at"):
        await send_memory(alice)
    alice.services.peers.remove("bob")
    with pytest.raises(KvnetError, match="not among the added peers"):
        await send_memory(alice)
    assert (bob.services.memories.all(), inbox(bob.services)) == ((), ())


async def test_peer_that_is_removed_while_it_sends_is_told_so(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.remember()

    def remove_and_read(*args: Any) -> bytes:
        if bob.services.peers.all():
            bob.services.peers.remove("alice")
        return read_section(*args)

    monkeypatch.setattr("kvnetd.outgoing.read_section", remove_and_read)
    with pytest.raises(PeerNotAdded, match="is not trusted here, or no longer"):
        await send_memory(alice)
    assert (bob.services.memories.all(), inbox(bob.services), receipts(alice.services)) == ((), (), [])


async def test_refusal_by_a_peer_is_logged_on_both_sides_with_its_code(alice: Node, bob: Node) -> None:
    alice.remember()
    host: Any = replace(bob.services.host, fingerprint=make_fingerprint(architecture="Other"))  # type: ignore[type-var]
    bob.transfers._arrivals._services = replace(bob.services, host=host)
    with pytest.raises(IncompatibleModel, match="bob at"):
        await send_memory(alice)
    for node, direction in ((alice, "out"), (bob, "in")):
        started, failed = events(node.services)
        assert (started["event"], failed["event"]) == ("transfer.started", "transfer.failed")
        assert (failed["error"], failed["direction"]) == ("incompatible_model", direction)


async def test_send_that_is_cancelled_is_logged_so_and_can_be_resumed(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.remember()
    reading = asyncio.Event()

    async def hang(*args: Any) -> AsyncGenerator[Part, None]:
        reading.set()
        await asyncio.sleep(30)
        for nothing in ():
            yield nothing

    with monkeypatch.context() as patched:
        patched.setattr("kvnetd.outgoing.OutboundTransfer.parts", hang)
        async with failure_at(bob):
            sending = asyncio.create_task(send_memory(alice))
            await asyncio.wait_for(reading.wait(), 10)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
    assert events(alice.services)[-1]["error"] == "cancelled"
    first = events(alice.services)[-1]["transfer_id"]
    # Bob sees either the end of the stream or that gRPC cancels his handler.
    assert events(bob.services)[-1]["error"] in ("transfer_incomplete", "cancelled")
    assert (await send_memory(alice)).transfer_id == first


async def test_pull_by_the_start_of_an_id_tells_the_puller_nothing(alice: Node, bob: Node) -> None:
    alice.remember()
    request = bob.transfers.pull_request(MemoryId(MEMORY.header.id[:20]), bob.services.peers.find("alice"))
    with pytest.raises(UnknownMemory) as refused:
        await alice.transfers.open_outbound(request)
    assert refused.value.message == "no such memory here"
    with pytest.raises(UnknownMemory, match=r"alice at .*: no such memory here"):
        await pull_memory(bob, "alice", "mem_" + "a" * 52)


async def test_bug_of_a_peer_is_its_own(alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    alice.remember()

    async def broken(*args: Any) -> None:
        raise RuntimeError("/home/bob/secret")

    with monkeypatch.context() as patched:
        patched.setattr(Transfers, "open_inbound", broken)
        with pytest.raises(PeerError, match=r"bob at .*: the node met a bug") as refused:
            await send_memory(alice)
    assert "secret" not in refused.value.message
    await send_memory(alice)


@pytest.mark.parametrize(
    ("says", "becomes"), [("bobby", "bobby"), ("a/b", ""), ("\x1b[31m", ""), ("alice", "")]
)
async def test_peer_is_called_what_it_calls_itself_only_where_that_is_a_name(
    alice: Node, bob: Node, says: str, becomes: str
) -> None:
    alice.services.peers.remove("bob")
    bob.transfers._services = replace(bob.services, config=replace(bob.services.config, name=says))
    carol = replace(bob.services.peers.find("alice"), name="alice", node_id=STRANGER.node_id)
    alice.services.peers.add(carol)
    node_id = bob.services.key.node_id
    info = await peers.add_peer(alice.services, address=bob.address, node_id=node_id, name="")
    assert info.reachable
    assert info.name == alice.services.peers.find(node_id).name == (becomes or node_id[:13])
