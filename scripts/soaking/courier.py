"""Sends messages until the sender has accepted each, and watches them arrive. Knows nothing of faults."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Final

from kvnet.api import LayerProgress, MemoryInfo
from kvnet.client import AsyncNode
from kvnet.errors import KvnetError
from kvnet.files.receipts import verify_receipt

from .checker import Arrived, Message
from .nodes import SoakNode

POLL_S: Final = 0.04
_RETRY_S: Final = 0.2


class Courier:
    """Between two nodes; remembers everything that arrived."""

    def __init__(self, sender: SoakNode, receiver: SoakNode, folder: Path) -> None:
        self.sender, self.receiver = sender, receiver
        self.arrived: list[Arrived] = []
        self.refusals: Counter[str] = Counter()  # what `send` raised, by code
        self.failed: list[str] = []  # entries of the outbox that would not have been tried again
        self.last_refusal = ""
        self.num_receipts = 0
        self.bad_receipts: list[str] = []
        self._folder = folder
        self._verified: set[str] = set()

    async def submit(self, message: Message, healed: asyncio.Event) -> None:
        """Send it as somebody would who needs it there: again if that failed, once the fault is over."""
        while not message.accepted:
            try:
                await self._send(message)
            except KvnetError as error:
                self.refusals[error.code] += 1
                self.last_refusal = error.message
            else:
                message.accepted = True
                return
            await healed.wait()
            # Whoever asked may not have heard that it was taken: asking again would be another message.
            message.accepted = await self._was_taken(message)
            await asyncio.sleep(0 if message.accepted else _RETRY_S)

    async def until_arrived(self, messages: list[Message], since: float) -> float:
        """Wait until all are there and nothing waits; seconds since `since`."""
        notes = {message.note for message in messages}
        while True:
            await self.look()
            entries = await self.sender.sdk.outbox()
            if not entries and notes <= {one.note for one in self.arrived}:
                return time.monotonic() - since
            for entry in entries:
                if entry.state == "failed":
                    self.failed.append(f"{entry.note}: {entry.problem}")
                    await self.sender.sdk.retry_outbox_entry(entry)
            await asyncio.sleep(POLL_S)

    async def look(self) -> None:
        """Take what is new out of the receiver's inbox."""
        for found in await self.receiver.sdk.inbox(every_agent=True):
            self.arrived.append(Arrived(found.id, found.note, found.memory))
            await self.receiver.sdk.acknowledge(found)

    async def digest(self, node: SoakNode, memory: str) -> str:
        """SHA-256 of a memory's file as a node gives it out; "" where it gives none."""
        file = self._folder / f"{node.name}.awkg"
        file.unlink(missing_ok=True)
        try:
            await node.sdk.export_memory(memory, file)
        except KvnetError:
            return ""
        return hashlib.sha256(file.read_bytes()).hexdigest()

    async def verify_receipts(self) -> None:
        """Check every receipt that came since the last time."""
        for info in await self.sender.sdk.receipts():
            if info.transfer_id in self._verified:
                continue
            self._verified.add(info.transfer_id)
            self.num_receipts += 1
            file = self._folder / "receipt.json"
            file.unlink(missing_ok=True)
            try:
                await self.sender.sdk.export_receipt(info, file)
                proven = verify_receipt(file.read_bytes())
            except KvnetError as error:
                self.bad_receipts.append(f"receipt {info.transfer_id}: {error.message}")
                continue
            wanted = (info.memory, self.receiver.node_id, self.sender.node_id)
            if (proven.memory, proven.receiver, proven.sender) != wanted:
                self.bad_receipts.append(f"receipt {info.transfer_id}: proves {proven}")

    async def damage(self, node: SoakNode) -> list[str]:
        """What the check of a node's whole store finds wrong."""
        report = await node.sdk.repair()
        found = [f"{node.name}: {one.memory} {one.done}: {one.problem}" for one in report.repaired]
        return found + [f"{node.name}: {problem}" for problem in report.problems]

    async def _send(self, message: Message) -> None:
        acked = 0
        # A connection of its own: `sdk` is closed when a node is restarted.
        async with AsyncNode(home=self.sender.home.root) as node:
            steps = node.send_stream(message.memory, self.receiver.name, note=message.note, codec="exact")
            try:
                async with aclosing(steps):
                    async for step in steps:
                        if isinstance(step, LayerProgress):
                            acked = step.chunks_done
                            continue
                        if step.queued:
                            message.acked_chunks = max(acked, message.acked_chunks)
                        return
            except KvnetError:
                message.acked_chunks = max(acked, message.acked_chunks)
                raise
        raise AssertionError("the daemon ended the transfer without a report")

    async def _was_taken(self, message: Message) -> bool:
        try:
            waiting = await self.sender.sdk.outbox()
            await self.look()
        except KvnetError:
            return False
        known = {entry.note for entry in waiting} | {one.note for one in self.arrived}
        return message.note in known


def message_of(memory: MemoryInfo, note: str) -> Message:
    """A message about one of the sender's memories."""
    return Message(note, memory.id, memory.stored_nbytes, chunks=2 * memory.layers)
