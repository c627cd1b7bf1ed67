"""What waits for its peer: in order, once, until it is delivered, fails, expires or is removed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kvnetd.actions import dispatch, outbox
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.actions.outbox import Sending
from kvnetd.services import Services
from kvnetd.store.ledger import Ledger
from kvnetd.store.outbox import Outbox, Parcel
from kvnetd.transfers import Transfers

from kvnet.api import LayerProgress, OutboxEntry, SendReport
from kvnet.errors import (
    IncompatibleModel,
    KvnetError,
    PeerNotAdded,
    PeerUnreachable,
    RequestError,
    StoreFull,
    TooBusy,
    UnknownOutboxEntry,
)
from kvnet.files.receipts import pack_receipt, verify_receipt
from kvnet.types import RawMemory
from tests.builders import make_memory
from tests.kvnetd.nodes import MEMORY, Node, events, inbox
from tests.kvnetd.test_encoding import MEMORY as NUMBERS

PARCEL = Parcel("node", "bob", "reader", "writer", "mem_1", "a note", "int8", with_text=True)
NOW, LATER = "2026-01-01T00:00:00.000Z", "2026-01-08T00:00:00.000Z"
GONE = PeerUnreachable("bob: is off")


@pytest.fixture
def waiting(tmp_path: Path) -> Any:
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        yield ledger.outbox


def add(box: Outbox, name: str, **changes: Any) -> OutboxEntry:
    return box.add(f"out_{name}", replace(PARCEL, **changes), now=NOW, expires_at=LATER, most=5)


def test_entry_is_there_after_a_restart_as_it_was(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "l")) as ledger:
        entry = add(ledger.outbox, "one")
    with closing(Ledger(tmp_path / "l")) as again:
        assert again.outbox.all() == (entry,)
    assert (entry.with_text, entry.state, entry.attempts, entry.problem) == (True, "waiting", 0, "")


def test_same_parcel_that_waits_is_the_same_entry(waiting: Outbox) -> None:
    first = add(waiting, "one")
    assert add(waiting, "two") == first
    others = [{"memory": "mem_2"}, {"note": "x"}, {"agent": "x"}, {"peer": "x"}]
    assert len({add(waiting, f"other{n}", **change).id for n, change in enumerate(others)}) == 4
    with pytest.raises(TooBusy, match="at most 5"):
        add(waiting, "six", memory="mem_6")


def test_what_waits_is_told_in_the_order_of_queueing_and_what_failed_is_not_among_it(waiting: Outbox) -> None:
    for name, peer in (("a1", "a"), ("b1", "b"), ("a2", "a")):
        add(waiting, name, peer=peer, memory=name)
    assert [entry.id for entry in waiting.waiting()] == ["out_a1", "out_b1", "out_a2"]
    waiting.fail("out_a1", problem="no")
    assert [entry.id for entry in waiting.waiting()] == ["out_b1", "out_a2"]
    waiting.retry("out_a1", expires_at=LATER)
    assert [entry.id for entry in waiting.waiting()] == ["out_a1", "out_b1", "out_a2"]


def test_entry_whose_time_is_over_has_failed(waiting: Outbox) -> None:
    entry = add(waiting, "one")
    waiting.tried(entry.id, problem="bob: is off")
    assert waiting.expire(now="2026-01-07") == ()
    (failed,) = waiting.expire(now=LATER)
    assert (failed.state, failed.attempts) == ("failed", 1)
    assert failed.problem == f"not delivered by {LATER}: bob: is off"
    assert waiting.expire(now=LATER) == ()


@pytest.mark.parametrize("wanted", ["", "out_", "out_xxxxx", "out_onetwo' OR '1"])
def test_entry_that_is_not_there_is_unknown(waiting: Outbox, wanted: str) -> None:
    add(waiting, "onetwothree")
    with pytest.raises(UnknownOutboxEntry):
        waiting.find(wanted)


def test_entry_is_found_by_the_start_of_its_id_if_only_one_starts_so(waiting: Outbox) -> None:
    one = add(waiting, "onetwo1")
    assert waiting.find("out_onetwo") == one
    add(waiting, "onetwo2", memory="mem_2")
    with pytest.raises(RequestError, match="2 ids"):
        waiting.find("out_onetwo")


class Postman:
    """Delivers as it is told: fails with what is in `failures` first, then succeeds and keeps the order."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.failures: dict[str, list[BaseException]] = {}
        self.attempts: list[str] = []
        self.delivered: list[str] = []

    async def __call__(
        self, entry: OutboxEntry, peer: str
    ) -> AsyncGenerator[LayerProgress | SendReport, None]:
        self.attempts.append(entry.memory)
        await asyncio.sleep(0)
        if self.failures.get(entry.memory):
            raise self.failures[entry.memory].pop(0)
        self.delivered.append(entry.memory)
        await self.services.in_store(self.services.ledger.outbox.remove, entry.id)
        yield SendReport("t", entry.memory, peer, 1, 1, 1, 0.0, "exact", 0, "exact")


@asynccontextmanager
async def running(dispatcher: Dispatcher) -> AsyncIterator[None]:
    task = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def empty(services: Services) -> None:
    """Until nothing waits any more."""
    async with asyncio.timeout(20):
        while services.ledger.outbox.waiting():  # noqa: ASYNC110  # another task empties it
            await asyncio.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "FIRST_PAUSE_S", 0.001)


def queue(services: Services, *memories: str) -> list[OutboxEntry]:
    """For Alice, in this order."""
    alice = services.peers.find("alice").node_id
    later = "2126-01-01T00:00:00.000Z"
    return [
        services.ledger.outbox.add(
            f"out_{m}", replace(PARCEL, peer=alice, memory=m), now=NOW, expires_at=later, most=99
        )
        for m in memories
    ]


async def test_peer_that_is_off_is_tried_again_and_gets_everything_in_order(
    services: Services, transfers: Transfers, quick: None
) -> None:
    postman = Postman(services)
    postman.failures = {"one": [GONE, GONE, GONE], "three": [GONE]}
    queue(services, "one", "two", "three")
    async with running(Dispatcher(services, transfers, postman)):
        await empty(services)
    assert postman.delivered == ["one", "two", "three"]
    assert postman.attempts == ["one"] * 4 + ["two", "three", "three"]


async def test_peer_that_seems_not_to_let_us_in_is_tried_again(
    services: Services, transfers: Transfers, quick: None
) -> None:
    postman = Postman(services)
    postman.failures = {"one": [PeerNotAdded("alice: does not let this node in")] * 2}
    queue(services, "one")
    async with running(Dispatcher(services, transfers, postman)):
        await empty(services)
    assert postman.delivered == ["one"]


async def test_what_only_the_caller_can_mend_fails_and_the_next_one_goes(
    services: Services, transfers: Transfers
) -> None:
    postman = Postman(services)
    postman.failures = {"one": [IncompatibleModel("other model")], "two": [ValueError("a bug")]}
    first, second, _ = queue(services, "one", "two", "three")
    dispatcher = Dispatcher(services, transfers, postman)
    ending = dispatcher.delivery(first)
    async with running(dispatcher):
        await empty(services)
    assert postman.delivered == ["three"]
    assert [(e.id, e.state) for e in services.ledger.outbox.all()] == [
        (first.id, "failed"),
        (second.id, "failed"),
    ]
    with pytest.raises(IncompatibleModel):
        await ending
    told = [(e["event"], e["entry"], e.get("error")) for e in events(services, "outbox")]
    assert ("outbox.failed", first.id, "incompatible_model") in told
    assert ("outbox.delivered", "out_three", None) in told


async def test_peer_that_is_seen_is_tried_at_once(services: Services, transfers: Transfers) -> None:
    postman = Postman(services)
    postman.failures = {"one": [GONE] * 12}
    dispatcher = Dispatcher(services, transfers, postman)
    (entry,) = queue(services, "one")
    async with running(dispatcher), asyncio.timeout(20):
        while services.ledger.outbox.waiting():  # a dozen pauses would take minutes
            dispatcher.notice(entry.peer)
            await asyncio.sleep(0.01)
    assert postman.delivered == ["one"]


async def test_entry_that_is_removed_ends_whoever_waits_for_it(
    services: Services, transfers: Transfers
) -> None:
    dispatcher = Dispatcher(services, transfers, Postman(services))
    (entry,) = queue(services, "onetwothree")
    ending = dispatcher.delivery(entry)
    assert await outbox.remove(services, dispatcher, entry.id[:10]) == entry
    with pytest.raises(UnknownOutboxEntry, match="was removed"):
        await ending
    assert services.ledger.outbox.all() == ()


async def test_peer_that_was_removed_fails_its_entries_until_they_are_retried(
    services: Services, transfers: Transfers
) -> None:
    postman, alice = Postman(services), services.peers.find("alice")
    dispatcher = Dispatcher(services, transfers, postman)
    (entry,) = queue(services, "onetwothree")
    services.peers.remove("alice")
    async with running(dispatcher):
        await empty(services)
        (failed,) = services.ledger.outbox.all()
        assert "was removed" in failed.problem
        services.peers.add(alice)
        assert (await outbox.retry(services, dispatcher, entry.id)).state == "waiting"
        await empty(services)
    assert postman.delivered == ["onetwothree"]


# Two nodes


def asked(memory: RawMemory = MEMORY, **changes: Any) -> Sending:
    return replace(Sending(memory.header.id, "bob/reader", "note", "", "exact", False, ""), **changes)


async def sent(node: Node, dispatcher: Dispatcher, sending: Sending) -> SendReport:
    steps = outbox.send_or_queue(node.services, node.transfers, dispatcher, sending)
    async with aclosing(steps):
        found = [step async for step in steps]
    assert isinstance(found[-1], SendReport)
    return found[-1]


def switch(node: Node, monkeypatch: pytest.MonkeyPatch, *, off: bool) -> None:
    """As if the peers of this node were off, or on again."""
    from kvnetd.actions import send

    real = send.say_hello

    async def nobody(*_: object, **__: object) -> object:
        raise GONE

    if off:
        monkeypatch.setattr(send, "say_hello", nobody)
    else:
        monkeypatch.undo()
    assert real is not nobody


async def test_memories_for_a_peer_that_is_off_arrive_in_order_and_once_when_it_appears(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(alice.services, alice.transfers)
    memories = [make_memory(seed) for seed in (1, 2, 3)]
    for memory in memories:
        alice.remember(memory)
    switch(alice, monkeypatch, off=True)
    reports = [await sent(alice, dispatcher, asked(memory)) for memory in memories]
    again = await sent(alice, dispatcher, asked(memories[1]))
    assert [report.queued for report in reports] == [e.id for e in alice.services.ledger.outbox.all()]
    assert again.queued == reports[1].queued
    switch(alice, monkeypatch, off=False)
    async with running(dispatcher):
        await empty(alice.services)
    assert [message.memory for message in inbox(bob.services)] == [m.header.id for m in memories]
    assert {(message.agent, message.note) for message in inbox(bob.services)} == {("reader", "note")}
    assert alice.services.ledger.outbox.all() == ()


async def test_peer_that_is_there_gets_a_memory_at_once_unless_others_wait_for_it(
    alice: Node, bob: Node
) -> None:
    dispatcher = Dispatcher(alice.services, alice.transfers)
    alice.remember()
    alice.remember(make_memory(1))
    assert (await sent(alice, dispatcher, asked())).queued == ""
    bob_id = alice.services.peers.find("bob").node_id
    parcel = replace(PARCEL, peer=bob_id, memory=make_memory(1).header.id, codec="exact", with_text=False)
    alice.services.ledger.outbox.add("out_1", parcel, now=NOW, expires_at="2126-01-01", most=9)
    assert (await sent(alice, dispatcher, asked(note="second"))).queued
    assert (await sent(alice, dispatcher, asked(note="third", if_off="fail"))).queued == ""
    async with running(dispatcher):
        await empty(alice.services)
    assert [message.note for message in inbox(bob.services)] == ["note", "third", "a note", "second"]


async def test_wait_returns_with_the_report_once_it_is_delivered(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(alice.services, alice.transfers)
    alice.remember()
    switch(alice, monkeypatch, off=True)
    waiting = asyncio.create_task(sent(alice, dispatcher, asked(if_off="wait")))
    while not alice.services.ledger.outbox.all():  # noqa: ASYNC110  # another task fills it
        await asyncio.sleep(0.01)
    switch(alice, monkeypatch, off=False)
    async with running(dispatcher):
        report = await waiting
    assert (report.queued, report.memory, report.tier) == ("", MEMORY.header.id, "exact")
    kept = alice.services.ledger.receipts.find(report.transfer_id)
    found = verify_receipt(pack_receipt(kept.receipt, kept.sealed_offer()))
    assert (found.sender, found.receiver) == (alice.services.key.node_id, bob.services.key.node_id)


@pytest.mark.parametrize(
    ("sending", "failure"),
    [
        (asked(if_off="fail"), PeerUnreachable),
        (asked(if_off="maybe"), RequestError),
        (asked(to="nobody"), KvnetError),
        (replace(asked(), memory="mem_unknown"), KvnetError),
        (asked(note="x" * 5000), RequestError),
    ],
)
async def test_what_cannot_wait_is_refused_at_once(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch, sending: Sending, failure: type[KvnetError]
) -> None:
    alice.remember()
    switch(alice, monkeypatch, off=True)
    with pytest.raises(failure):
        await sent(alice, Dispatcher(alice.services, alice.transfers), sending)
    assert alice.services.ledger.outbox.all() == ()


@pytest.mark.parametrize("lost", ["before the receipt is kept", "link"])
async def test_delivery_whose_end_was_lost_is_not_a_second_message(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    """Bob has it, Alice does not know: her daemon was killed, or an hour went by."""
    alice.remember()
    ledger = alice.services.ledger
    complete = ledger.complete

    def forget(*_: object) -> None:
        raise PeerUnreachable("the link broke")

    monkeypatch.setattr(ledger, "complete", forget)
    dispatcher = Dispatcher(alice.services, alice.transfers)
    assert (await sent(alice, dispatcher, asked())).queued
    assert len(inbox(bob.services)) == 1
    monkeypatch.setattr(ledger, "complete", complete)
    if lost == "link":  # so long that the offer is not taken any more
        monkeypatch.setattr("kvnetd.departures.time.time", lambda: 2_000_000_000.0)
        monkeypatch.setattr("kvnetd.arrivals.time.time", lambda: 2_000_000_000.0)
    later = Transfers(alice.services)  # as after a restart: nothing in memory
    async with running(Dispatcher(alice.services, later)):
        await empty(alice.services)
    assert len(inbox(bob.services)) == 1
    assert len(alice.services.ledger.receipts.all()) == 1


async def test_what_the_peer_has_no_room_for_is_passed_by_those_behind_it_and_tried_again(
    services: Services, transfers: Transfers, quick: None
) -> None:
    postman = Postman(services)
    postman.failures = {"large": [StoreFull("alice: keeps at most 7 bytes")] * 6}
    large, *_ = queue(services, "large", "two", "three")
    async with running(Dispatcher(services, transfers, postman)):
        await empty(services)
    assert postman.delivered == ["two", "three", "large"]
    assert postman.attempts.count("large") == 7
    queue(services, "large")
    postman.failures = {"large": [StoreFull("alice: keeps at most 7 bytes")] * 1000}
    dispatcher = Dispatcher(services, transfers, postman)
    async with running(dispatcher), asyncio.timeout(20):
        while not services.ledger.outbox.find(large.id).problem:  # noqa: ASYNC110  # another task writes it
            await asyncio.sleep(0.01)
    (entry,) = await outbox.list_outbox(services)
    assert (entry.state, entry.problem) == ("waiting", "alice: keeps at most 7 bytes")


async def test_peer_that_is_only_busy_keeps_the_order(
    services: Services, transfers: Transfers, quick: None
) -> None:
    postman = Postman(services)
    postman.failures = {"one": [TooBusy("alice: is busy")] * 3}
    queue(services, "one", "two")
    async with running(Dispatcher(services, transfers, postman)):
        await empty(services)
    assert postman.delivered == ["one", "two"]


async def test_report_of_what_waits_says_why(alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher(alice.services, alice.transfers)
    alice.remember()
    switch(alice, monkeypatch, off=True)
    assert (await sent(alice, dispatcher, asked())).problem == GONE.message
    (entry,) = alice.services.ledger.outbox.all()
    assert (entry.problem, entry.attempts) == (GONE.message, 1)
    switch(alice, monkeypatch, off=False)
    assert (await sent(alice, dispatcher, asked(note="second"))).problem.startswith("others wait for bob")
    assert (await sent(alice, dispatcher, asked(note="third", if_off="fail"))).problem == ""


@pytest.mark.parametrize("begun_by", ["send", "outbox"])
async def test_default_codec_that_changes_between_attempts_makes_no_second_message(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch, begun_by: str
) -> None:
    """Bob has it in one coding; Alice, who lost his receipt, is started again with another."""
    alice.remember(NUMBERS)
    ledger = alice.services.ledger
    complete = ledger.complete

    def forget(*_: object) -> None:
        raise PeerUnreachable("the link broke")

    monkeypatch.setattr(ledger, "complete", forget)
    dispatcher = Dispatcher(alice.services, alice.transfers)
    sending = asked(NUMBERS, codec="")
    if begun_by == "outbox":
        bob_id = alice.services.peers.find("bob").node_id
        parcel = Parcel(bob_id, "bob", "reader", "", NUMBERS.header.id, "note", "", with_text=False)
        ledger.outbox.add("out_1", parcel, now=NOW, expires_at="2126-01-01", most=9)
        async with running(dispatcher), asyncio.timeout(20):
            while not inbox(bob.services):  # noqa: ASYNC110  # another task delivers it
                await asyncio.sleep(0.01)
    else:
        assert (await sent(alice, dispatcher, sending)).queued
    monkeypatch.setattr(ledger, "complete", complete)
    (before,) = inbox(bob.services)
    started = replace(alice.services, config=replace(alice.services.config, codec="int4"))
    async with running(Dispatcher(started, Transfers(started))):
        await empty(started)
    assert inbox(bob.services) == (before,)
    assert [record.memory for record in ledger.receipts.all()] == [before.memory]


async def test_same_message_sent_past_the_outbox_is_not_delivered_from_it_again(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(alice.services, alice.transfers)
    alice.remember()
    with monkeypatch.context() as patched:
        patched.setattr(alice.services.ledger, "complete", lambda *_: _lose())
        assert (await sent(alice, dispatcher, asked())).queued
    assert (await sent(alice, dispatcher, asked(if_off="fail"))).queued == ""
    assert alice.services.ledger.outbox.all() == ()
    assert len(inbox(bob.services)) == 1


def _lose() -> None:
    raise PeerUnreachable("the link broke")


@pytest.mark.parametrize(
    "failure", [GONE, StoreFull("bob: full"), IncompatibleModel("no"), ValueError("a bug")]
)
async def test_full_disk_of_the_ledger_puts_off_and_never_spins(
    services: Services, transfers: Transfers, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    postman = Postman(services)
    postman.failures = {"one": [failure] * 1000}
    queue(services, "one")

    def full(*arguments: Any, **more: Any) -> None:
        raise StoreFull("ledger: database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(services.ledger.outbox, "tried", full)
        patch.setattr(services.ledger.outbox, "fail", full)
        async with running(Dispatcher(services, transfers, postman)):
            await asyncio.sleep(0.4)
    assert len(postman.attempts) <= 2
    assert [entry.memory for entry in services.ledger.outbox.waiting()] == ["one"]


def test_entry_that_is_being_delivered_does_not_expire(waiting: Outbox) -> None:
    entry = add(waiting, "one")
    assert waiting.expire(now=LATER, busy={entry.id}) == ()
    assert len(waiting.expire(now=LATER)) == 1
