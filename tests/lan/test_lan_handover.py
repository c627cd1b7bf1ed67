"""Two daemons on a LAN: found by mDNS, a memory handed over, another port after a restart."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from kvnet.api import PeerInfo
from kvnet.client import AsyncNode
from kvnet.errors import PeerUnreachable, TooBusy
from tests.e2e.daemons import Daemon, questions, reply
from tests.lan.harness import Lan, require_lan

pytestmark = [pytest.mark.lan, pytest.mark.timeout(180)]

T = TypeVar("T")

FOUND_S = 20.0
BACK_S = 60.0


@dataclass(frozen=True, slots=True)
class LanPair:
    """alice and bob, each in a namespace, who know each other's ids and no addresses."""

    lan: Lan
    alice: Daemon
    bob: Daemon


@pytest.fixture(scope="module")
def pair() -> Iterator[LanPair]:
    """Two nodes with mDNS on, that were added by id alone."""
    require_lan()
    folder = Path(tempfile.mkdtemp(prefix="kv-"))
    with Lan(2) as lan:
        alice, bob = (_on(lan, node, folder / name) for node, name in zip(lan.nodes, ("a", "b"), strict=True))
        try:
            for daemon in (alice, bob):
                daemon.launch()
            for daemon in (alice, bob):
                daemon.wait_until_ready()
            for one, other in ((alice, bob), (bob, alice)):
                with one.node() as node:
                    node.add_peer(node_id=other.node_id, name=other.name)
            yield LanPair(lan, alice, bob)
        finally:
            alice.stop()
            bob.stop()
            shutil.rmtree(folder, ignore_errors=True)


def _on(lan: Lan, node: str, folder: Path) -> Daemon:
    inside = ("ip", "netns", "exec", node)
    return Daemon(folder, folder.name, inside=inside, listen=f"{lan.address(node)}:0", mdns="1")


async def _found(node: AsyncNode, name: str) -> PeerInfo:
    """Wait until mDNS shows the peer."""
    deadline = time.monotonic() + FOUND_S
    while True:
        (info,) = [peer for peer in await node.peers() if peer.name == name]
        if info.addresses:
            return info
        assert time.monotonic() < deadline, f"{name} was not found in {FOUND_S} s"
        await asyncio.sleep(0.1)


async def _until_back(call: Callable[[], Awaitable[T]]) -> T:
    """`await call()`, again while the link is not there yet or the peer still waits for the last attempt."""
    deadline = time.monotonic() + BACK_S
    while True:
        try:
            return await call()
        except (PeerUnreachable, TooBusy):
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


async def test_nodes_added_by_id_find_each_other_and_hand_over(pair: LanPair) -> None:
    text, question = questions(1, seed=3)[0]
    async with pair.alice.async_node() as alice, pair.bob.async_node() as bob:
        for node, daemon, other in ((alice, pair.alice, pair.bob), (bob, pair.bob, pair.alice)):
            info = await _found(node, other.name)
            assert info.source == "mdns"
            assert other.grpc in info.addresses
            assert daemon.grpc not in info.addresses
        (probed,) = await alice.peers(probe=True)
        assert (probed.reachable, probed.tier) == (True, "exact")
        memory = await alice.remember(text)
        report = await alice.send(memory, "b", codec="exact", if_off="fail")
        assert (report.memory, report.tier) == (memory.id, "exact")
        answer = await bob.ask(question.prompt, memory)
        assert reply(answer) == reply(await alice.ask(question.prompt, memory))
        assert answer.kv.reused_tokens == memory.tokens
        assert (await bob.inbox())[-1].sender == pair.alice.node_id


async def test_a_node_that_comes_back_with_another_port_is_found_again(pair: LanPair) -> None:
    before = pair.bob.grpc
    pair.bob.kill()
    pair.bob.flags["listen"] = before.rpartition(":")[0] + ":0"
    await asyncio.to_thread(pair.bob.start)
    assert pair.bob.grpc != before
    async with pair.alice.async_node() as alice:
        memory = await alice.remember("Petra's drink is tea.")
        report = await _until_back(lambda: alice.send(memory, "b", codec="exact", if_off="fail"))
    assert report.memory == memory.id
