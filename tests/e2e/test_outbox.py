"""Two daemons, one of them off: what waits arrives once and in order, and its receipt proves it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from kvnet.api import MemoryInfo
from kvnet.client import AsyncNode
from tests.e2e.daemons import (
    SOME_CHUNKS_NBYTES,
    Daemon,
    Kvnet,
    MakeHome,
    Pair,
    chunks_arrived,
    dialled_at,
    memory_nobody_has,
    reply,
)
from tests.e2e.outcomes import assert_refused
from tests.lan.proxy import FaultProxy, Faults

pytestmark = pytest.mark.usefixtures("pair_goes_on")

DELIVERED_S = 90.0  # the pauses between attempts grow up to a quarter of a minute


async def _until_nothing_waits(sender: AsyncNode) -> None:
    deadline = time.monotonic() + DELIVERED_S
    while entries := await sender.outbox():
        assert time.monotonic() < deadline, entries
        assert {entry.state for entry in entries} == {"waiting"}, entries
        await asyncio.sleep(0.1)


def _arrived(receiver: Daemon, *memories: MemoryInfo) -> list[str]:
    """Which of these are in the receiver's inbox, in the order in which they came, as often as they came."""
    wanted = {memory.id for memory in memories}
    with receiver.node() as node:
        return [message.memory for message in node.inbox(every_agent=True) if message.memory in wanted]


async def test_what_waits_for_a_peer_outlives_the_sender_and_is_delivered_in_order_once(
    pair: Pair, run: Kvnet, home: MakeHome, tmp_path: Path
) -> None:
    async with pair.alice.async_node() as alice:
        first, second = [await alice.remember(f"Petra's drink is {drink}.") for drink in ("tea", "milk")]
    pair.bob.stop()
    said = run(pair.alice.home.root, "send", first.id, "--to", "bob", "--codec", "exact", "--json")
    assert said.status == 0, said
    assert said.json["queued"].startswith("out_")
    also = run(pair.alice.home.root, "send", second.id, "--to", "bob", "--codec", "exact")
    assert "waits for bob" in also.stdout, also
    await asyncio.to_thread(pair.alice.kill)
    await asyncio.to_thread(pair.alice.start)
    async with pair.alice.async_node() as alice:
        assert [entry.memory for entry in await alice.outbox()] == [first.id, second.id]
        await asyncio.to_thread(pair.bob.start)
        await _until_nothing_waits(alice)
    assert _arrived(pair.bob, first, second) == [first.id, second.id]
    delivered = [line["memory"] for line in pair.alice.events("outbox.delivered")]
    assert delivered[-2:] == [first.id, second.id]
    with pair.bob.node() as bob, pair.alice.node() as sender:
        question = "What is Petra's drink?"
        assert reply(bob.ask(question, first)) == reply(sender.ask(question, first))
    _receipt_proves(pair, first, tmp_path / "first.receipt.json", run, home("nobody"))


def _receipt_proves(pair: Pair, memory: MemoryInfo, file: Path, run: Kvnet, nobody: Path) -> None:
    """Anyone can check who delivered this memory to whom, and that nothing of it was changed since."""
    assert run(pair.alice.home.root, "receipt", "export", memory.id, str(file)).status == 0
    proof = run(nobody, "verify", str(file), "--json").json
    assert (proof["kind"], proof["memory"]) == ("receipt", memory.id)
    assert (proof["sender"], proof["receiver"]) == (pair.alice.node_id, pair.bob.node_id)
    document = json.loads(file.read_text(encoding="utf-8"))
    document["receipt"]["signer"] = pair.alice.node_id
    file.write_text(json.dumps(document), encoding="utf-8")
    assert_refused(run(nobody, "verify", str(file)), "bad_signature", 5, as_json=False)


async def test_a_send_that_breaks_off_in_the_middle_goes_on_by_itself(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await memory_nobody_has(alice, 120)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "bob", codec="exact"))
            await chunks_arrived(pair.bob, memory)
            proxy.cut()
            report = await sending
            assert report.queued.startswith("out_")
            proxy.heal()
            await _until_nothing_waits(alice)
    assert _arrived(pair.bob, memory) == [memory.id]
    (completed,) = [line for line in pair.bob.events("transfer.completed") if line.get("memory") == memory.id]
    assert completed["resumed_chunks"] > 0
    with pair.bob.node() as bob, pair.alice.node() as sender:
        assert reply(bob.ask(pair.prompt, memory)) == reply(sender.ask(pair.prompt, memory))


async def test_who_waits_for_the_peer_gets_the_report_of_the_delivery(pair: Pair) -> None:
    async with pair.alice.async_node() as alice:
        memory = await alice.remember("Jonas's drink is coffee.")
        pair.bob.stop()
        sending = asyncio.create_task(alice.send(memory, "bob", codec="exact", if_off="wait"))
        while not (entries := await alice.outbox()):
            assert not sending.done()
            await asyncio.sleep(0.05)
        assert [entry.memory for entry in entries] == [memory.id]
        await asyncio.to_thread(pair.bob.start)
        async with asyncio.timeout(DELIVERED_S):
            report = await sending
        assert (report.memory, report.tier, report.queued) == (memory.id, "exact", "")
        (kept,) = [info for info in await alice.receipts() if info.memory == memory.id]
        assert (kept.transfer_id, kept.peer) == (report.transfer_id, pair.bob.node_id)
    assert _arrived(pair.bob, memory) == [memory.id]
