"""Transfers that somebody broke off, at every stage: nothing of them stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from kvnetd.actions import send

from kvnet.api import LayerProgress
from kvnet.errors import KvnetError
from tests.builders import RECEIVER, make_memory
from tests.kvnetd.exchange import pull_memory, send_memory
from tests.kvnetd.nodes import Node, add, listening, services_of, spooled

MEMORY = make_memory(seed=3, seq_len=48)
NUM_CANCELLED = 150  # `scripts/bench/stream` breaks off a thousand
WARM_UP = 50  # transfers after which caches and pools have their size
MAX_GROWTH_NBYTES = 2 << 20
MAX_CLOSING = 4  # connections of the last one
LONGEST_S = 0.08  # that a transfer is let run: long enough to end by itself now and then


@pytest.fixture
async def bob(tmp_path: Path, alice: Node) -> AsyncIterator[Node]:
    """RECEIVER's node, which takes in more unfinished transfers of one peer than usual."""
    limits = {"max_unfinished_per_peer": NUM_CANCELLED}
    async with (
        services_of(tmp_path / "bob", RECEIVER, name="bob", limits=limits) as services,
        listening(services) as node,
    ):
        add(alice, node)
        add(node, alice)
        yield node


async def break_off(alice: Node, bob: Node, number: int, rng: random.Random) -> None:
    """Begin a transfer and leave it: after some time, or when its first layer is durable; as push or pull."""
    if number % 3 == 0:
        steps = send.send(
            alice.services,
            alice.transfers,
            memory=MEMORY.header.id,
            to="bob",
            note=str(number),
            agent="",
            codec="exact",
        )
        with contextlib.suppress(KvnetError):  # the one before is still being closed
            async with aclosing(steps):
                async for step in steps:
                    assert isinstance(step, LayerProgress)
                    break
        return
    act = (
        send_memory(alice, note=str(number), memory=MEMORY.header.id)
        if number % 3 == 1
        else pull_memory(bob, "alice", MEMORY.header.id)
    )
    with contextlib.suppress(TimeoutError, KvnetError):
        async with asyncio.timeout(rng.uniform(0, LONGEST_S)):
            await act


async def settled(alice: Node, bob: Node) -> None:
    """Wait until both ends have closed everything that is on its way."""
    async with asyncio.timeout(30):
        for node in (alice, bob):
            while node.transfers._departures._outbound or node.transfers._arrivals._inbound:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


def count_files() -> int:
    """Files and sockets that this process holds open."""
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # links, not paths


@pytest.mark.slow
async def test_cancelled_transfers_leave_no_task_no_file_and_no_memory(alice: Node, bob: Node) -> None:
    alice.remember(MEMORY)
    rng = random.Random(0)
    tasks = files = allocated = 0
    tracemalloc.start()
    gc.disable()  # what was broken off is let go at once, not when the collector comes by
    try:
        for number in range(NUM_CANCELLED):
            await break_off(alice, bob, number, rng)
            for folder in bob.services.memories.all():  # so that the next one is not refused as delivered
                bob.services.memories.forget(folder.id)
            if number in (WARM_UP, NUM_CANCELLED - 1):
                await settled(alice, bob)
                if number == WARM_UP:
                    tasks, files = len(asyncio.all_tasks()), count_files()
                    gc.collect()
                    allocated = tracemalloc.get_traced_memory()[0]
        left = count_files()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - allocated
    finally:
        gc.enable()
        tracemalloc.stop()
    async with asyncio.timeout(30):
        while len(asyncio.all_tasks()) > tasks:  # noqa: ASYNC110  # gRPC's own, of the calls that ended last
            await asyncio.sleep(0.1)
    assert left <= files + MAX_CLOSING
    assert grown < MAX_GROWTH_NBYTES
    assert (await send_memory(alice, note="last", memory=MEMORY.header.id)).memory == MEMORY.header.id
    assert len(spooled(bob.services)) < NUM_CANCELLED  # unfinished ones stay for a resume, until they expire
