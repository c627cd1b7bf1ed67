"""Two daemons on a LAN for all tests of faults and attackers, and transfers that stand halfway."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from kvnet.api import MemoryInfo
from kvnet.client import AsyncNode
from tests.e2e.daemons import chunks_arrived, memory_nobody_has
from tests.lan.clock import Clock
from tests.lan.harness import Lan
from tests.lan.nodes import LanDaemon, found, introduce_by_id, waiting

SLOW_MBIT = 4.0  # a memory of 1 MB takes some two seconds
DISK_NBYTES = 96 << 20
SEEDS = count(1000)  # of texts: each test has a memory that nobody else has


@dataclass(frozen=True, slots=True)
class Scene:
    """alice sends, bob receives. The third node is for whoever stands between them, the fourth for others."""

    lan: Lan
    folder: Path
    alice: LanDaemon
    bob: LanDaemon
    clock: Clock  # bob's

    async def memory(self) -> MemoryInfo:
        """A memory of alice's that bob does not have."""
        async with self.alice.async_node() as alice:
            return await memory_nobody_has(alice, next(SEEDS))


@contextmanager
def play() -> Iterator[Scene]:
    """Both run; bob's state is on a small disk of its own, and his clock can be set."""
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    with Lan(4) as lan, _disk(folder / "bob"):
        alice, bob = (
            LanDaemon(lan, lan.nodes[index], folder / name) for index, name in enumerate(("alice", "bob"))
        )
        clock = Clock(folder)
        try:
            alice.launch()
            bob.launch(*clock.wrapper)
            for daemon in (alice, bob):
                daemon.wait_until_ready()
            introduce_by_id(alice, bob)
            yield Scene(lan, folder, alice, bob, clock)
        finally:
            alice.stop()
            bob.stop()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _disk(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES},mode=700", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@asynccontextmanager
async def halfway(scene: Scene) -> AsyncIterator[tuple[MemoryInfo, AsyncNode]]:
    """A memory of which bob has some chunks and not all, on its way out of alice's outbox over a slow link.

    Whoever leaves the block finds the link as it was.
    """
    memory, sender = await scene.memory(), scene.lan.nodes[0]
    async with scene.alice.async_node() as alice:
        await found(alice, "bob")
        scene.lan.limit_rate(sender, SLOW_MBIT)
        sending = asyncio.create_task(alice.send(memory, "bob", codec="exact", if_off="wait"))
        try:
            await chunks_arrived(scene.bob, memory)
            yield memory, alice
        finally:
            scene.lan.unlimit_rate(sender)
            sending.cancel()
            await asyncio.wait({sending})


@asynccontextmanager
async def delivering(scene: Scene) -> AsyncIterator[MemoryInfo]:
    """A memory that waited in alice's outbox and is halfway to bob, over a slow link within the block."""
    memory, lan = await scene.memory(), scene.lan
    sender, receiver = lan.nodes[:2]
    async with scene.alice.async_node() as alice:
        await found(alice, "bob")
        lan.lose_route(sender, receiver)
        assert (await alice.send(memory, "bob", codec="exact")).queued
        lan.find_route(sender, receiver)
        lan.limit_rate(sender, SLOW_MBIT)
        try:
            await alice.retry_outbox_entry((await waiting(alice, memory)).id)
            await chunks_arrived(scene.bob, memory)
            yield memory
        finally:
            lan.unlimit_rate(sender)
