"""What must be true, after every fault, of a memory that one daemon sent to another."""

from __future__ import annotations

import asyncio
import time

from kvnet.api import MemoryInfo
from kvnet.client import AsyncNode
from kvnet.files.receipts import verify_receipt
from tests.e2e.daemons import Daemon, reply

RECOVERED_S = 30.0  # from the end of a fault to the receipt
QUESTION = "What colour is the red box?"


async def delivered_once(
    sender: Daemon, receiver: Daemon, memory: MemoryInfo, *, healed_at: float | None = None
) -> None:
    """What must be true after every fault: the memory is there, whole, once, and proven; nothing else is.

    `healed_at` (now if not given, of `time.monotonic()`) is when the fault ended. Other transfers of the two
    must have ended.
    """
    deadline = (time.monotonic() if healed_at is None else healed_at) + RECOVERED_S
    async with sender.async_node() as here, receiver.async_node() as there:
        await _receipt_came(here, memory, deadline)
        messages = [message.memory for message in await there.inbox(every_agent=True)]
        assert messages.count(memory.id) == 1
        assert (await there.show(memory)).header == memory.header
        assert reply(await there.ask(QUESTION, memory)) == reply(await here.ask(QUESTION, memory))
        await _receipt_proves(here, sender, receiver, memory)
        await _store_is_clean(there, receiver)
    arrived = [line for line in receiver.events("transfer.completed") if line.get("memory") == memory.id]
    assert len(arrived) <= 1  # none where it was killed between the commit and the log


async def _receipt_came(sender: AsyncNode, memory: MemoryInfo, deadline: float) -> None:
    while True:
        entries = [entry for entry in await sender.outbox() if entry.memory == memory.id]
        if not entries and any(info.memory == memory.id for info in await sender.receipts()):
            return
        assert {entry.state for entry in entries} <= {"waiting"}, entries
        assert time.monotonic() < deadline, f"not delivered {RECOVERED_S} s after the fault: {entries}"
        await asyncio.sleep(0.05)


async def _receipt_proves(node: AsyncNode, sender: Daemon, receiver: Daemon, memory: MemoryInfo) -> None:
    (kept,) = [info for info in await node.receipts() if info.memory == memory.id]
    file = sender.home.root / f"{kept.transfer_id}.receipt.json"
    await node.export_receipt(kept, file)
    proof = verify_receipt(file.read_bytes())
    # An offer with a text in it is not kept.
    parties = (sender.node_id if kept.has_offer else "", receiver.node_id)
    assert (proof.memory, proof.sender, proof.receiver) == (memory.id, *parties)


async def _store_is_clean(node: AsyncNode, daemon: Daemon) -> None:
    """Every digest of every memory is checked, and nothing unfinished is left."""
    report = await node.repair()
    assert (report.repaired, report.problems) == ((), ())
    assert report.checked == len(await node.memories(all=True))
    assert list((daemon.home.store / "incoming").iterdir()) == []
