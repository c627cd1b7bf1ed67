"""A disk that fills up: said as such, survived, and usable again once there is room."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvnet.api import MemoryInfo
from kvnet.errors import StoreFull
from tests.e2e.daemons import (
    SOME_CHUNKS_NBYTES,
    Daemon,
    MakeDaemon,
    MakeHome,
    Pair,
    chunks_arrived,
    dialled_at,
    introduce,
    kvnet,
    long_text,
    memory_nobody_has,
    reply,
    when_free,
)
from tests.e2e.outcomes import assert_refused
from tests.lan.proxy import FaultProxy, Faults

pytestmark = pytest.mark.usefixtures("pair_goes_on")

DISK_NBYTES = 12 << 20


@pytest.fixture
def small_disk(home: MakeHome) -> Iterator[Path]:
    """A home on a disk of 12 MiB of its own."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a tmpfs needs root")
    folder = home("dave")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_NBYTES},mode=700", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    """Write until the disk is full; returns the file to remove."""
    filler = folder / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
        while out.write(bytes(4096)):
            pass
    return filler


async def test_a_full_disk_is_said_and_survived(pair: Pair, daemon: MakeDaemon, small_disk: Path) -> None:
    dave = daemon("dave", small_disk)
    dave.start()
    introduce(pair.alice, dave)
    with dave.node() as node:
        kept = node.remember("Mira's dog is called Pixel.")
        expected = reply(node.ask("What is Mira's dog called?", kept))
        held: list[MemoryInfo] = []
        with pytest.raises(StoreFull, match="room"):
            held.extend(map(node.remember, map(long_text, range(40, 60))))
        assert len(held) >= 3
        said = kvnet(small_disk, "remember", long_text(60), "--json")
        assert_refused(said, "store_full", 6, as_json=True)
        assert reply(node.ask("What is Mira's dog called?", kept)) == expected
        # A peer's memory does not fit either, and is refused before a byte of it is sent.
        with pair.alice.node() as alice:
            alices = alice.remember(long_text(61))
            with pytest.raises(StoreFull):
                alice.send(alices, "dave", codec="exact")
        for memory in held:
            node.forget(memory)
        assert node.remember(long_text(60)).tokens > 0
    await _fill_the_disk_in_the_middle(pair, dave)
    with dave.node() as node:
        assert reply(node.ask("What is Mira's dog called?", kept)) == expected
    with pair.alice.node() as alice:
        alice.remove_peer("dave")
    assert dave.stop() == 0


async def _fill_the_disk_in_the_middle(pair: Pair, dave: Daemon) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(dave.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await memory_nobody_has(alice, 62)
        async with dialled_at(pair.alice, dave, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "dave", codec="exact"))
            await chunks_arrived(dave, memory)
            filler = _fill(dave.home.root)
            proxy.heal()
            with pytest.raises(StoreFull):
                await sending
            # Nothing can be written, not even the log; what needs no disk goes on.
            with dave.node() as node:
                for _ in range(20):
                    assert node.ask("What is Mira's dog called?").tokens > 0
                with pytest.raises(StoreFull):
                    node.remember("Omar's city is Lisbon.", name="omar")
            filler.unlink()
            report = await when_free(lambda: alice.send(memory, "dave", codec="exact"))
    assert report.resumed_chunks > 0
    with dave.node() as node:
        assert node.remember("Omar's city is Lisbon.", name="omar").name == "omar"
    for line in dave.home.events.read_text(encoding="utf-8").splitlines():
        assert json.loads(line)["event"]
