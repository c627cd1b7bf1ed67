"""Two daemons on a LAN whose link fails in the middle of a transfer, or harms what goes over it.

Each test ends with `delivered_once`: within 30 s of the fault's end the memory is at the other node, whole,
once, and proven, and nothing unfinished is left.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path

import pytest

from kvnet.api import SendReport
from kvnet.errors import UnknownMemory
from tests.e2e.daemons import long_text
from tests.lan.harness import Output, stop
from tests.lan.nodes import found, waiting
from tests.lan.outcomes import delivered_once
from tests.lan.proxy import Faults
from tests.lan.scene import SEEDS, Scene, halfway

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]

FAST_MBIT = 40.0
_PROXY = str(Path(__file__).with_name("proxy.py"))


# --- the link -------------------------------------------------------------------------------------------


async def test_a_partition_in_the_middle_is_survived_by_the_outbox_alone(scene: Scene) -> None:
    receiver = scene.lan.nodes[1]
    async with halfway(scene) as (memory, alice):
        scene.lan.isolate(receiver)
        await waiting(alice, memory)
        with scene.bob.node() as bob, pytest.raises(UnknownMemory):
            bob.show(memory)
        scene.lan.rejoin(receiver)
        await delivered_once(scene.alice, scene.bob, memory)
    (line,) = [line for line in scene.bob.events("transfer.completed") if line.get("memory") == memory.id]
    assert 0 < line["resumed_chunks"] < line["chunks"]


async def test_a_link_that_goes_down_five_times_delivers(scene: Scene) -> None:
    rng, sender = random.Random(1), scene.lan.nodes[0]
    async with halfway(scene) as (memory, _):
        for _ in range(5):
            scene.lan.link_down(sender)
            await asyncio.sleep(rng.uniform(0.2, 1.0))
            scene.lan.link_up(sender)
            await asyncio.sleep(rng.uniform(0.1, 0.4))
        await delivered_once(scene.alice, scene.bob, memory)


@pytest.mark.parametrize("ratio", [0.01, 0.05, 0.2])
async def test_lost_packets_lose_nothing(scene: Scene, ratio: float) -> None:
    memory = await scene.memory()
    scene.lan.drop_packets(scene.lan.nodes[1], ratio)
    try:
        async with scene.alice.async_node() as alice:
            await alice.send(memory, "bob", codec="exact", if_off="wait")
    finally:
        scene.lan.keep_packets(scene.lan.nodes[1])
    await delivered_once(scene.alice, scene.bob, memory)


async def test_a_link_of_one_megabit_delivers(scene: Scene) -> None:
    scene.lan.limit_rate(scene.lan.nodes[0], 1)
    try:
        async with scene.alice.async_node() as alice:
            memory = await alice.remember(long_text(next(SEEDS))[:1000])
            report = await alice.send(memory, "bob", codec="exact", if_off="fail")
    finally:
        scene.lan.unlimit_rate(scene.lan.nodes[0])
    assert report.seconds > report.wire_bytes * 8 / 2e6  # it was slow
    await delivered_once(scene.alice, scene.bob, memory)


async def test_a_link_that_drops_to_a_hundredth_of_its_speed_in_the_middle_still_delivers(
    scene: Scene,
) -> None:
    memory, sender = await scene.memory(), scene.lan.nodes[0]
    scene.lan.limit_rate(sender, FAST_MBIT)
    try:
        async with scene.alice.async_node() as alice:
            await found(alice, "bob")
            sending = alice.send_stream(memory, "bob", codec="exact", mode="transfer")
            async with asyncio.timeout(120):
                steps = [await anext(sending)]  # a layer is there
                scene.lan.limit_rate(sender, FAST_MBIT / 100)
                steps += [step async for step in sending]
    finally:
        scene.lan.unlimit_rate(sender)
    (report,) = [step for step in steps if isinstance(step, SendReport)]
    assert report.seconds > report.wire_bytes * 8 / (FAST_MBIT * 1e6)
    await delivered_once(scene.alice, scene.bob, memory)


async def test_a_receiver_whose_address_changes_in_the_middle_is_found_again(scene: Scene) -> None:
    before = scene.bob.address
    async with halfway(scene) as (memory, alice):
        scene.lan.change_address(scene.lan.nodes[1], 33)
        changed_at = time.monotonic()
        assert scene.bob.address != before
        await delivered_once(scene.alice, scene.bob, memory, healed_at=changed_at)
        await found(alice, "bob", scene.bob.address)


# --- bytes on the way -----------------------------------------------------------------------------------


@asynccontextmanager
async def _through_a_proxy(scene: Scene, **options: object) -> AsyncIterator[None]:
    """Meanwhile alice reaches bob at the third node, whose proxy does what `options` say (`proxy.py`)."""
    middle, lan = scene.lan.nodes[2], scene.lan
    argv = [sys.executable, _PROXY, lan.address(scene.lan.nodes[1]), str(scene.bob.port), lan.address(middle)]
    proxy = lan.popen(middle, [*argv, json.dumps(options)])
    output = Output(proxy)
    output.wait_for(str.isdigit, 20)
    async with scene.alice.async_node() as alice:
        through = f"{lan.address(middle)}:{output.lines[0]}"
        await alice.add_peer(through, node_id=scene.bob.node_id, name="bob")
        try:
            yield
        finally:
            await alice.add_peer(node_id=scene.bob.node_id, name="bob")
            assert stop(proxy) == 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_connection_cut_at_any_byte_is_resumed(scene: Scene, seed: int) -> None:
    # The first connections are the probe and the hello, which are shorter.
    cut = asdict(Faults(cut_after_nbytes=random.Random(seed).randrange(20_000, 700_000)))
    memory = await scene.memory()
    async with _through_a_proxy(scene, to_server=cut, num_faulty=4, seed=seed):
        async with scene.alice.async_node() as alice:
            await alice.send(memory, "bob", codec="exact", if_off="wait")
        await delivered_once(scene.alice, scene.bob, memory)
    failed = [line for line in scene.alice.events("transfer.failed") if line.get("memory") == memory.id]
    assert failed


@pytest.mark.parametrize("direction", ["to_server", "to_client"])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_bit_flipped_on_the_way_is_sent_again(scene: Scene, seed: int, direction: str) -> None:
    # Acknowledgements and the receipt are some kilobytes; whatever is hit, TLS ends the connection.
    last = 700_000 if direction == "to_server" else 3_000
    flip = asdict(Faults(flip_at=random.Random(seed).randrange(2_000, last)))
    memory = await scene.memory()
    async with _through_a_proxy(scene, **{direction: flip}, num_faulty=4, seed=seed):
        async with scene.alice.async_node() as alice:
            await alice.send(memory, "bob", codec="exact", if_off="wait")
        await delivered_once(scene.alice, scene.bob, memory)


async def test_a_delay_that_varies_delivers(scene: Scene) -> None:
    late = asdict(Faults(delay_s=0.05, jitter_s=0.1))
    memory = await scene.memory()
    async with _through_a_proxy(scene, to_server=late, to_client=late):
        async with scene.alice.async_node() as alice:
            await alice.send(memory, "bob", codec="exact", if_off="fail")
        await delivered_once(scene.alice, scene.bob, memory)
