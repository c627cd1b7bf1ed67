"""Memories behind others: what counts as the one before, and what a peer is told that lacks it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from kvnetd import chains
from kvnetd.outgoing import Beside
from kvnetd.store.records import LocalNotes, MemoryRecord, Step

from kvnet.errors import MalformedMessage, MissingPrefix, NotPermitted
from kvnet.identity.peers import Permission
from kvnet.transfer.messages import seal
from kvnet.types import Compression, MemoryHeader, RawMemory
from tests.builders import SENDER, STRANGER, make_fingerprint, make_memory
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import Node, complete, inbox, making, offer

BASE = make_memory(1)
FORGED = replace(make_memory(9), header=replace(make_memory(9).header, token_digest=BASE.header.token_digest))


def behind(base: RawMemory, seed: int) -> RawMemory:
    """A memory that goes on where `base` ends."""
    memory, before = make_memory(seed), base.header
    place = {"start_pos": before.start_pos + before.seq_len, "prefix_digest": before.through_digest}
    return replace(memory, header=replace(memory.header, **place))


REST = behind(BASE, 2)
MORE = behind(REST, 3)


def keep(node: Node, memory: RawMemory, *, origin: str = "", after: str = "") -> MemoryRecord:
    """Put a memory into the store, as if it came from `origin`."""
    made = making(Compression.NONE)
    steps = made.notes.steps
    if after:
        steps = (Step("inference", "m", "d", "t", 0.0, {chains.AFTER: after}),)
    notes = LocalNotes(origin=origin, stored_at=made.notes.stored_at, steps=steps)
    return node.services.memories.put(memory, replace(made, notes=notes), node.services.key)


async def before(node: Node, record: MemoryRecord) -> list[str]:
    return [link.id for link in await chains.links_of(node.services, record)]


async def test_memory_without_the_one_before_it_is_refused(alice: Node, bob: Node) -> None:
    keep(alice, REST)
    with pytest.raises(MissingPrefix, match="goes on at position 5") as refused:
        await send_memory(alice, memory=REST.header.id)
    assert refused.value.details["prefix_digest"] == [BASE.header.token_digest]
    assert inbox(bob.services) == ()


async def test_what_the_peer_lacks_goes_first_and_quietly(alice: Node, bob: Node) -> None:
    records = [keep(alice, memory) for memory in (BASE, REST, MORE)]
    await send_memory(alice, memory=MORE.header.id)
    assert {record.id for record in bob.services.memories.all()} == {record.id for record in records}
    assert [message.memory for message in inbox(bob.services)] == [MORE.header.id]
    assert await before(bob, bob.services.memories.get(MORE.header.id)) == [
        BASE.header.id,
        REST.header.id,
    ]


async def test_pull_fetches_what_is_before(alice: Node, bob: Node) -> None:
    for memory in (BASE, REST, MORE):
        keep(alice, memory)
    await pull_memory(bob, "alice", memory=MORE.header.id)
    assert len(bob.services.memories.all()) == 3


async def test_memory_of_a_third_node_is_not_the_one_before(alice: Node, bob: Node) -> None:
    forged = keep(bob, FORGED, origin=STRANGER.node_id)
    rest = keep(bob, REST, origin=alice.services.key.node_id)
    with pytest.raises(MissingPrefix):
        await before(bob, rest)
    own = keep(bob, BASE)
    assert await before(bob, rest) == [own.id]
    assert forged.id != own.id


async def test_memory_of_a_third_node_counts_once_the_sender_sent_it_too(alice: Node, bob: Node) -> None:
    keep(bob, BASE, origin=STRANGER.node_id)
    keep(alice, BASE)
    keep(alice, REST)
    await send_memory(alice, memory=REST.header.id)
    assert await before(bob, bob.services.memories.get(REST.header.id)) == [BASE.header.id]


async def test_memory_read_behind_that_of_another_goes_on_behind_that_one(alice: Node) -> None:
    forged = keep(alice, FORGED, origin=STRANGER.node_id)
    rest = keep(alice, REST, after=forged.id)
    assert await before(alice, rest) == [forged.id]
    alice.services.memories.forget(forged.id)
    with pytest.raises(MissingPrefix):
        await before(alice, rest)


@pytest.mark.parametrize(
    "header",
    [
        replace(BASE.header, fingerprint=make_fingerprint(architecture="Other")),
        make_memory(1, seq_len=4).header,
    ],
)
async def test_memory_of_another_model_or_length_is_not_the_one_before(
    alice: Node, header: MemoryHeader
) -> None:
    other = make_memory(1, seq_len=header.seq_len)
    keep(alice, replace(other, header=replace(header, content_digest=other.header.content_digest)))
    with pytest.raises(MissingPrefix):
        await before(alice, keep(alice, REST))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"behind": "mem_short"}, "no memory's id"),
        ({"label": "x" * 65}, "printable"),
        ({"label": "a\nb"}, "printable"),
        ({"prefix_text": "\u00e9" * (129 << 10)}, "at most"),
    ],
)
async def test_words_about_what_is_before_keep_to_their_form(
    bob: Node, changes: dict[str, str], said: str
) -> None:
    made = offer(memory=REST, **changes)
    with pytest.raises(MalformedMessage, match=said):
        await bob.transfers.open_inbound(seal(SENDER, made))


async def test_text_of_what_is_before_is_read_for_those_alone_that_may_ask(bob: Node) -> None:
    peers = bob.services.peers
    peers.trust(peers.find("alice").node_id, permissions=(Permission.SEND,))
    with pytest.raises(NotPermitted):
        await bob.transfers.open_inbound(seal(SENDER, offer(memory=REST, prefix_text="a b c")))


async def test_label_points_at_what_came_last_and_takes_no_name_of_others(alice: Node, bob: Node) -> None:
    ledger = bob.services.ledger
    for number, memory in enumerate((BASE, REST), start=1):
        made = offer(number, memory=memory, label="talk", quiet=True)
        await complete(await bob.transfers.open_inbound(seal(SENDER, made)), memory=memory)
        assert ledger.memory_named("alice/talk") == memory.header.id
    assert inbox(bob.services) == ()
    ledger.name("alice/mine", keep(bob, make_memory(7)).id)
    made = offer(3, memory=make_memory(8), label="mine")
    await complete(await bob.transfers.open_inbound(seal(SENDER, made)), memory=make_memory(8))
    assert ledger.memory_named("alice/mine") == make_memory(7).header.id


def test_parts_are_messages_of_their_own() -> None:
    slots = {Beside().slot, Beside(quiet=True).slot, Beside(label="a").slot, Beside(prefix_text="t").slot}
    assert len(slots) == 4
    assert Beside().slot == ()
