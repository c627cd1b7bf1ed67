"""Two daemons on a LAN whose processes are killed, whose disk fills up and whose clock jumps.

Each test ends with `delivered_once`, as those of the link do.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal

import pytest
from kvnetd.store.failpoints import VARIABLE as FAILPOINT

from kvnet.errors import ReplayedMessage, UnknownMemory
from tests.lan.nodes import waiting
from tests.lan.outcomes import delivered_once
from tests.lan.scene import Scene, delivering, halfway

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]

HOUR_S = 3600


# --- clocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_jumps_in_the_middle_breaks_nothing(scene: Scene, shift_s: int) -> None:
    try:
        async with halfway(scene) as (memory, _):
            scene.clock.set(shift_s)
            await delivered_once(scene.alice, scene.bob, memory)
    finally:
        scene.clock.set(0)


@pytest.mark.parametrize("shift_s", [HOUR_S, -HOUR_S])
async def test_an_offer_of_another_hour_is_refused_and_taken_once_the_clock_is_right(
    scene: Scene, shift_s: int
) -> None:
    memory = await scene.memory()
    async with scene.alice.async_node() as alice:
        scene.clock.set(shift_s)
        try:
            with pytest.raises(ReplayedMessage, match="set the clocks"):
                await alice.send(memory, "bob", codec="exact")
        finally:
            scene.clock.set(0)
        with scene.bob.node() as bob, pytest.raises(UnknownMemory):
            bob.show(memory)
        await alice.send(memory, "bob", codec="exact")
    await delivered_once(scene.alice, scene.bob, memory)


# --- processes and disks --------------------------------------------------------------------------------


async def test_a_receiver_killed_in_the_middle_and_after_the_commit_delivers_once(scene: Scene) -> None:
    async with halfway(scene) as (memory, alice):
        await asyncio.sleep(random.Random(1).uniform(0.0, 1.0))
        scene.bob.kill()
        # What is committed is not told to the sender, who has to offer it again.
        scene.bob.launch(*(scene.clock.wrapper or ("env",)), f"{FAILPOINT}=ledger.completed")
        await asyncio.to_thread(scene.bob.wait_until_ready)
        await alice.retry_outbox_entry((await waiting(alice, memory)).id)
        process = scene.bob.process
        assert process is not None
        assert await asyncio.to_thread(process.wait, 60) == -signal.SIGKILL
        scene.bob.launch(*scene.clock.wrapper)
        await asyncio.to_thread(scene.bob.wait_until_ready)
        await delivered_once(scene.alice, scene.bob, memory)


async def test_a_sender_killed_while_it_delivers_goes_on_by_itself(scene: Scene) -> None:
    async with delivering(scene) as memory:
        await asyncio.sleep(random.Random(1).uniform(0.0, 1.0))
        scene.alice.kill()
    await asyncio.to_thread(scene.alice.start)
    await delivered_once(scene.alice, scene.bob, memory)


async def test_a_disk_that_fills_up_in_the_middle_delivers_once_there_is_room(scene: Scene) -> None:
    filler = scene.bob.home.root / "filler"
    async with delivering(scene) as memory:
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as out:
            while out.write(bytes(4096)):
                pass
    async with scene.alice.async_node() as alice:
        await waiting(alice, memory, because=("room", "full"))
    with scene.bob.node() as bob, pytest.raises(UnknownMemory):
        bob.show(memory)
    filler.unlink()
    await delivered_once(scene.alice, scene.bob, memory)
