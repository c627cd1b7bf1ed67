"""status and events: what this node is and what it has been doing."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator
from dataclasses import asdict

from kvnet.api import NodeStatus
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.version import VERSION
from kvnetd.services import Services
from kvnetd.store.memories import MemoryStore
from kvnetd.store.outbox import WAITING
from kvnetd.store.repair import lies_in_clear

MAX_WAITING_EVENTS = 1024


async def status(services: Services) -> NodeStatus:
    """One look at the node."""
    config, host = services.config, services.host
    unread = await services.in_store(services.ledger.messages, agent=None, unread_only=True)
    outbox = await services.in_store(services.ledger.outbox.all)
    return NodeStatus(
        node_id=services.key.node_id,
        name=config.name,
        grpc=services.listening.address,
        model=host.name,
        pid=os.getpid(),
        version=VERSION,
        protocol=PROTOCOL_VERSION,
        namespace=config.namespace,
        fingerprint=host.fingerprint,
        geometry=host.geometry,
        max_seq_len=host.max_seq_len,
        memories=sum(not services.memories.is_encoding(record) for record in services.memories.all()),
        store_nbytes=services.memories.nbytes,
        peers=len(services.peers.all()),
        unread=len(unread),
        uptime_s=round(time.monotonic() - services.listening.since, 3),
        mdns=services.directory.watches,
        home=str(config.home.root),
        damaged=len(services.memories.damaged),
        outbox=sum(entry.state == WAITING for entry in outbox),
        unsealed=await services.in_pool(_count_unsealed, services.memories),
        settings={k: v for k, v in asdict(config).items() if k != "home"},
    )


def _count_unsealed(memories: MemoryStore) -> int:
    """Memories in clear that the next repair would seal."""
    return sum(lies_in_clear(memories, record.id) for record in memories.all()) if memories.vault.seals else 0


async def events(services: Services, *, follow: bool, past: bool) -> AsyncGenerator[str, None]:
    """Lines of the event log: those it still holds, those to come, or both.

    A reader slower than the log loses the oldest lines, never the daemon's memory.
    """
    waiting: asyncio.Queue[str] = asyncio.Queue(maxsize=MAX_WAITING_EVENTS)
    loop = asyncio.get_running_loop()

    def enqueue(line: str) -> None:
        if waiting.full():
            waiting.get_nowait()
        waiting.put_nowait(line)

    def hand_over(line: str) -> None:
        loop.call_soon_threadsafe(enqueue, line)

    ignore = services.log.listen(hand_over)
    try:
        if past:
            for line in await services.in_store(services.log.lines):
                yield line
        while follow:
            yield await waiting.get()
    finally:
        ignore()
