"""One memory for several receivers: one copy leaves its origin, and what a relay does costs time at worst."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd import relaying
from kvnetd.actions import send
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.actions.outbox import Sending
from kvnetd.actions.send_many import receivers_of, send_many
from kvnetd.passing import CopyOutbound

from kvnet.api import SendReport
from kvnet.errors import PeerUnreachable, RequestError
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.peers import Permission
from kvnet.transfer.sender import Part, WireChunk
from kvnet.types import chunk_digest
from tests.builders import RECEIVER, SENDER
from tests.kvnetd.nodes import MEMORY, Node, add, events, inbox, listening, receipts, services_of, spooled

NUM_CHUNKS = len(MEMORY.chunks)
KEYS = {"alice": SENDER, "bob": RECEIVER, "carol": NodeKey(b"\x04" * 32), "dave": NodeKey(b"\x05" * 32)}


class Party:
    """alice, bob, carol and dave, who know each other."""

    def __init__(self, nodes: dict[str, Node]) -> None:
        self.nodes = nodes
        self.alice, self.bob, self.carol, self.dave = nodes.values()

    async def send(self, to: str = "bob,carol,dave", **asked: Any) -> list[SendReport]:
        """Alice sends; the reports in the order of the receivers."""
        services = self.alice.services
        wish = Sending(MEMORY.header.id, to, "a note", "", "exact", with_text=False, if_off="fail", **asked)
        dispatcher = Dispatcher(services, self.alice.transfers)
        async with aclosing(send_many(services, self.alice.transfers, dispatcher, wish)) as steps:
            found = [step async for step in steps if isinstance(step, SendReport)]
        return sorted(found, key=lambda report: report.peer)

    def all_have_it(self, names: Iterable[str] = ("bob", "carol", "dave")) -> bool:
        """Each has the memory as it was made, one message of alice's, and nothing left over."""
        for name in names:
            services = self.nodes[name].services
            record = services.memories.get(MEMORY.header.id)
            assert services.memories.load(record).chunks == MEMORY.chunks
            assert record.notes.origin == SENDER.node_id
            assert [message.sender_name for message in inbox(services)] == ["alice"]
            assert [(way, peer) for way, peer, _, _ in receipts(services)] == [("in", SENDER.node_id)]
            assert spooled(services) == []
        return True


@pytest.fixture
async def party(tmp_path: Path) -> AsyncIterator[Party]:
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, key in KEYS.items():
            services = await stack.enter_async_context(services_of(tmp_path / name, key, name=name))
            nodes[name] = await stack.enter_async_context(listening(services))
        for one in nodes.values():
            for other in nodes.values():
                if one is not other:
                    add(one, other)
        found = Party(nodes)
        found.alice.remember(MEMORY)
        yield found


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for a copy that does not begin."""
    monkeypatch.setattr(relaying, "BEGIN_S", 0.2)


async def test_one_copy_leaves_the_origin_and_everybody_gets_a_message_of_its_own(party: Party) -> None:
    reports = await party.send()
    assert [(report.peer, report.problem) for report in reports] == [("bob", ""), ("carol", ""), ("dave", "")]
    assert [report.resumed_chunks for report in reports] == [0, NUM_CHUNKS, NUM_CHUNKS]
    assert [report.wire_bytes > 0 for report in reports] == [True, False, False]
    assert party.all_have_it()
    sent = [one for one in events(party.bob.services) if one["direction"] == "out"]
    ended = [one["origin"] for one in sent if one["event"] == "transfer.completed"]
    assert ended == [short_id(SENDER.node_id)] * 2  # so small a memory goes to both at once
    assert len({report.transfer_id for report in reports}) == 3


async def test_two_agents_of_one_node_get_a_message_each(party: Party) -> None:
    await party.send("bob/reader,bob/writer,carol")
    assert sorted(message.agent for message in inbox(party.bob.services)) == ["reader", "writer"]
    assert party.all_have_it(["carol"])


async def test_a_receiver_without_the_permission_passes_nothing_on_and_the_next_one_does(
    party: Party, soon: None
) -> None:
    party.bob.services.peers.trust("alice", permissions=(Permission.SEND,))
    reports = await party.send()
    assert [report.resumed_chunks for report in reports] == [0, 0, 0]
    assert party.all_have_it()
    assert [one["direction"] for one in events(party.bob.services)] == ["in", "in"]


async def test_a_node_that_the_relay_does_not_know_is_served_by_the_origin(party: Party, soon: None) -> None:
    party.bob.services.peers.remove("carol")
    reports = await party.send()
    assert [report.resumed_chunks for report in reports] == [0, 0, NUM_CHUNKS]
    assert party.all_have_it()


async def test_a_copy_of_a_stranger_to_its_receiver_is_refused(party: Party) -> None:
    party.carol.services.peers.remove("alice")
    reports = await party.send("bob,carol")
    assert [bool(report.problem) for report in reports] == [False, True]
    assert spooled(party.carol.services) == []


async def test_a_relay_that_stops_in_the_middle_leaves_the_rest_to_the_origin(
    party: Party, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CopyOutbound.parts

    async def dying(self: CopyOutbound, missing: Any) -> AsyncIterator[Part]:
        async with aclosing(plain(self, missing)) as parts:
            num = 0
            async for part in parts:
                if num == NUM_CHUNKS // 2:
                    await asyncio.sleep(0.3)  # the first half is there by now
                    raise PeerUnreachable("the relay died")
                num += 1
                yield part

    monkeypatch.setattr(CopyOutbound, "parts", dying)
    reports = await party.send("bob,carol")
    assert [report.resumed_chunks for report in reports] == [0, NUM_CHUNKS // 2]
    assert party.all_have_it(["bob", "carol"])


@pytest.mark.parametrize("stops", [False, True])
async def test_a_relay_that_flips_a_byte_is_found_out_and_the_origin_delivers(
    party: Party, soon: None, monkeypatch: pytest.MonkeyPatch, stops: bool
) -> None:
    """It signs what it made of the chunk. One that stops before the seal is found out at the origin's."""
    plain = CopyOutbound.parts

    async def lying(self: CopyOutbound, missing: Any) -> AsyncIterator[Part]:
        async with aclosing(plain(self, missing)) as parts:
            num = 0
            async for chunk, wire in parts:
                if num == 2:
                    wire = bytes(wire[:-1]) + bytes([wire[-1] ^ 1])
                    chunk = forged(chunk, wire)
                    self.session._chunks[chunk.key.index] = chunk
                num += 1
                yield chunk, wire
            if stops:
                await asyncio.sleep(0.3)
                raise PeerUnreachable("gone before the seal")

    monkeypatch.setattr(CopyOutbound, "parts", lying)
    reports = await party.send("bob,carol")
    assert [(report.problem, report.resumed_chunks) for report in reports] == [("", 0), ("", 0)]
    assert party.all_have_it(["bob", "carol"])


async def test_a_relay_that_dawdles_is_cut_off_and_what_it_brought_is_kept(
    party: Party, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relaying, "END_S", 0.5)
    plain = CopyOutbound.parts

    async def slow(self: CopyOutbound, missing: Any) -> AsyncIterator[Part]:
        async with aclosing(plain(self, missing)) as parts:
            async for part in parts:
                await asyncio.sleep(0.4)
                yield part

    monkeypatch.setattr(CopyOutbound, "parts", slow)
    reports = await party.send("bob,carol")
    assert 0 < reports[1].resumed_chunks < NUM_CHUNKS
    assert party.all_have_it(["bob", "carol"])


async def _copied_only(party: Party) -> None:
    """Alice sends to bob, for carol too, and then does no more."""
    alice = party.alice
    steps = send.send(
        alice.services,
        alice.transfers,
        memory=MEMORY.header.id,
        to="bob",
        note="",
        agent="",
        codec="exact",
        relay_to=(KEYS["carol"].node_id,),
    )
    async with aclosing(steps):
        assert [step async for step in steps]
    for _ in range(1000):
        if any(
            one["event"] == "transfer.completed" and one["direction"] == "out"
            for one in events(party.bob.services)
        ):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("bob passed nothing on")


async def test_a_copy_that_no_message_follows_is_no_message_and_expires(party: Party) -> None:
    await _copied_only(party)
    carol = party.carol.services
    assert (inbox(carol), receipts(carol), carol.memories.all()) == ((), [], ())
    (folder,) = spooled(carol)
    assert folder.startswith(KEYS["bob"].node_id)
    life_s = carol.config.unfinished_life_s
    later = int(time.time()) + life_s + 1
    assert carol.spool.expire(now=later, life_s=life_s, busy=frozenset()) == 1
    assert spooled(carol) == []


async def test_a_copy_counts_against_the_quota_of_who_brings_it(party: Party, soon: None) -> None:
    party.carol.services.peers.trust("bob", quota_nbytes=10)
    reports = await party.send("bob,carol")
    assert [report.resumed_chunks for report in reports] == [0, 0]
    assert party.all_have_it(["bob", "carol"])


async def test_a_mode_that_is_for_one_receiver_is_refused_before_anything_is_sent(party: Party) -> None:
    with pytest.raises(RequestError, match="mode"):
        await party.send("bob,carol", mode="split")
    assert events(party.alice.services) == []


def forged(chunk: WireChunk, wire: bytes) -> WireChunk:
    """The chunk as its liar signs it."""
    return replace(chunk, wire_digest=chunk_digest(wire))


def test_receivers_are_named_with_commas_and_each_once() -> None:
    assert receivers_of("bob, carol/reader,dave") == ("bob", "carol/reader", "dave")
    for bad in ("bob,,carol", ",", "bob,carol,bob", ",".join(f"n{i}" for i in range(66))):
        with pytest.raises(RequestError, match=r"^to: "):
            receivers_of(bad)
