"""Messages and pulls between two nodes, as their daemons start them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from kvnetd.actions import send

from kvnet.api import SendReport
from tests.kvnetd.nodes import MEMORY, Node


async def send_memory(
    node: Node,
    to: str = "bob",
    note: str = "",
    memory: str = MEMORY.header.id,
    codec: str = "exact",
    *,
    with_text: bool = False,
) -> SendReport:
    """Send a memory, MEMORY unless told otherwise; returns the report."""
    steps = send.send(
        node.services,
        node.transfers,
        memory=memory,
        to=to,
        note=note,
        agent="",
        codec=codec,
        with_text=with_text,
    )
    async with aclosing(steps):
        found = [step async for step in steps]
    assert isinstance(found[-1], SendReport)
    return found[-1]


async def pull_memory(node: Node, peer: str, memory: str = MEMORY.header.id) -> SendReport:
    return await send.pull(node.services, node.transfers, memory=memory, peer_name=peer)


@asynccontextmanager
async def failure_at(node: Node) -> AsyncIterator[None]:
    """Leaves the block once a transfer has failed at this node too: until then the same one is too busy."""
    failed, loop = asyncio.Event(), asyncio.get_running_loop()

    def look(line: str) -> None:
        if '"transfer.failed"' in line:
            loop.call_soon_threadsafe(failed.set)

    ignore = node.services.log.listen(look)
    yield
    await asyncio.wait_for(failed.wait(), 10)
    ignore()
