"""Answers from a memory that arrives, where its sender or its asker is gone in the middle."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing

import pytest

from kvnet.api import MemoryInfo
from kvnet.client import AsyncNode
from kvnet.errors import PeerError
from tests.e2e.daemons import SOME_CHUNKS_NBYTES, Daemon, Pair, dialled_at, long_text, reply
from tests.lan.proxy import FaultProxy, Faults

pytestmark = pytest.mark.usefixtures("pair_goes_on")

NUM_LEFT = 20
SPARE_FILES = 6  # connections that are kept for the next call


def _num_files(daemon: Daemon) -> int:
    """Files and sockets that a daemon holds open."""
    with daemon.node() as node:
        pid = node.status().pid
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208  # links, not paths


async def _ended(node: AsyncNode, question: str, source: dict[str, str]) -> None:
    """Ask behind what comes from alice, who is cut off on the way; the error is told soon."""
    with pytest.raises(PeerError, match="alice"):
        async with asyncio.timeout(30):
            await node.ask(question, peer="alice", **source)


@pytest.mark.parametrize("is_read", [False, True], ids=["stored", "read meanwhile"])
async def test_sender_that_stops_after_half_a_layer_ends_the_answer_and_nothing_else(
    pair: Pair, is_read: bool
) -> None:
    text = long_text(90 + is_read)
    half = Faults(cut_after_nbytes=SOME_CHUNKS_NBYTES // 4)  # within the first layer's second chunk
    async with pair.alice.async_node() as alice, pair.bob.async_node() as bob:
        memory = await alice.remember(text)
        source = {"context": text, "codec": "exact"} if is_read else {"memory": memory.id}
        expected = reply(await alice.ask(pair.prompt, memory))
        address = ("127.0.0.1", int(pair.alice.grpc.rpartition(":")[2]))
        async with (
            FaultProxy(*address, to_client=half) as proxy,
            dialled_at(pair.bob, pair.alice, proxy.port),
        ):
            await _ended(bob, pair.prompt, source)
            assert proxy.num_cut > 0
            proxy.heal()
            answer = await bob.ask(pair.prompt, peer="alice", **source)
        assert reply(answer)[:2] == expected[:2]
        assert answer.kv.tier == "exact"


async def test_asker_that_goes_away_while_the_memory_arrives_leaves_no_file_open(pair: Pair) -> None:
    async with pair.alice.async_node() as alice, pair.bob.async_node() as bob:
        memory = await alice.remember(long_text(92))

        async def left(number: int, asked: MemoryInfo) -> None:
            source = {"context": long_text(92)} if number % 2 else {"memory": asked.id}
            steps = bob.ask_stream(pair.prompt, peer="alice", max_tokens=200, **source)
            async with aclosing(steps):
                waiting = asyncio.ensure_future(anext(steps))
                await asyncio.wait({waiting}, timeout=0.02 * (number % 8))
                waiting.cancel()
                await asyncio.wait({waiting})

        for number in range(4):
            await left(number, memory)
        before = [_num_files(daemon) for daemon in (pair.alice, pair.bob)]
        for number in range(NUM_LEFT):
            await left(number, memory)
        answer = await asyncio.wait_for(bob.ask(pair.prompt, memory.id, peer="alice", max_tokens=4), 60)
        after = [_num_files(daemon) for daemon in (pair.alice, pair.bob)]
    assert answer.kv.tier == "exact"
    assert all(now <= was + SPARE_FILES for was, now in zip(before, after, strict=True)), (before, after)
