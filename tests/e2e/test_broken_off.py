"""Broken off in the middle: transfers cut, flipped or killed, and callers that go away."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time

import pytest

from kvnet.errors import NotRunning, PeerError, UnknownMemory
from tests.e2e.daemons import (
    SOME_CHUNKS_NBYTES,
    Daemon,
    MakeDaemon,
    Pair,
    chunks_arrived,
    cli_command,
    dialled_at,
    environment,
    memory_nobody_has,
    reply,
    when_free,
)
from tests.lan.proxy import FaultProxy, Faults

pytestmark = pytest.mark.usefixtures("pair_goes_on")

SOON_S = 6.0  # the reply that is left alone would take longer, and be logged as completed


# --- transfers that break --------------------------------------------------------------------------------


async def test_a_transfer_cut_in_the_middle_resumes(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await memory_nobody_has(alice, 30)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "bob", codec="exact", if_off="fail"))
            await chunks_arrived(pair.bob, memory)
            proxy.cut()
            with pytest.raises(PeerError, match="bob"):
                await sending
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob", codec="exact", if_off="fail"))
    assert 0 < report.resumed_chunks < report.chunks
    assert report.wire_bytes < report.raw_bytes
    with pair.bob.node() as bob, pair.alice.node() as sender:
        assert reply(bob.ask(pair.prompt, memory)) == reply(sender.ask(pair.prompt, memory))
        assert [message.memory for message in bob.inbox()].count(memory.id) == 1
    events = [line["event"] for line in pair.bob.events("transfer") if line.get("memory") == memory.id]
    assert [event for event in events if event != "transfer.started"] == [
        "transfer.failed",
        "transfer.completed",
    ]


async def test_a_connection_reset_in_a_burst_loses_nothing_that_was_promised(pair: Pair) -> None:
    # The reset overtakes what the receiver has not read yet: no chunk need have arrived.
    cutting = Faults(cut_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=cutting) as proxy:
        memory = await memory_nobody_has(alice, 31)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            with pytest.raises(PeerError, match="bob"):
                await alice.send(memory, "bob", codec="exact", if_off="fail")
            assert proxy.num_cut == 1
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob", codec="exact", if_off="fail"))
    assert (report.memory, report.tier) == (memory.id, "exact")


async def test_a_flipped_bit_on_the_way_is_no_memory(pair: Pair) -> None:
    flipping = Faults(flip_at=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=flipping) as proxy:
        memory = await memory_nobody_has(alice, 32)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            with pytest.raises(PeerError):
                await alice.send(memory, "bob", codec="exact", if_off="fail")
            with pair.bob.node() as bob, pytest.raises(UnknownMemory):
                bob.show(memory)
            proxy.heal()
            report = await when_free(lambda: alice.send(memory, "bob", codec="exact", if_off="fail"))
    assert report.memory == memory.id


async def test_a_receiver_killed_in_the_middle_comes_back_and_the_transfer_resumes(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with pair.alice.async_node() as alice, FaultProxy(*address, to_server=stalling) as proxy:
        memory = await memory_nobody_has(alice, 33)
        async with dialled_at(pair.alice, pair.bob, proxy.port):
            sending = asyncio.create_task(alice.send(memory, "bob", codec="exact", if_off="fail"))
            await chunks_arrived(pair.bob, memory)
            pair.bob.kill()
            with pytest.raises(PeerError):
                await sending
            proxy.heal()
            await asyncio.to_thread(pair.bob.start)
            report = await when_free(lambda: alice.send(memory, "bob", codec="exact", if_off="fail"))
    assert 0 < report.resumed_chunks < report.chunks
    with pair.bob.node() as bob, pair.alice.node() as sender:
        assert reply(bob.ask(pair.prompt, memory)) == reply(sender.ask(pair.prompt, memory))


async def test_a_sender_killed_in_the_middle_comes_back_and_sends_anew(pair: Pair) -> None:
    stalling = Faults(stall_after_nbytes=SOME_CHUNKS_NBYTES)
    address = ("127.0.0.1", int(pair.bob.grpc.rpartition(":")[2]))
    async with (
        FaultProxy(*address, to_server=stalling) as proxy,
        dialled_at(pair.alice, pair.bob, proxy.port),
    ):
        async with pair.alice.async_node() as alice:
            memory = await memory_nobody_has(alice, 34)
            sending = asyncio.create_task(alice.send(memory, "bob", codec="exact", if_off="fail"))
            await chunks_arrived(pair.bob, memory)
            pair.alice.kill()
            with pytest.raises(NotRunning):
                await sending
        proxy.heal()
        await asyncio.to_thread(pair.alice.start)
    async with pair.alice.async_node() as alice, pair.bob.async_node() as bob:
        report = await when_free(lambda: alice.send(memory, "bob", codec="exact", if_off="fail"))
        assert report.memory == memory.id
        assert reply(await bob.ask(pair.prompt, memory)) == reply(await alice.ask(pair.prompt, memory))


# --- callers that go away -------------------------------------------------------------------------------


ONE_LEFT_ONE_ANSWERED = [f"generation.{what}" for what in ("completed", "failed", "started", "started")]


def _generations(daemon: Daemon) -> list[str]:
    return [line["event"] for line in daemon.events("generation")]


@pytest.mark.parametrize("with_signal", [signal.SIGKILL, signal.SIGINT])
def test_a_caller_that_goes_away_frees_the_model(rambler: Daemon, with_signal: signal.Signals) -> None:
    command = cli_command("ask", "Tell me the colour of the red box.", "--max-tokens", "2000")
    process = subprocess.Popen(
        command, env=environment(rambler.home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process, process.stdout as said:
        said.read(1)
        process.send_signal(with_signal)
        process.wait(20)
    with rambler.node() as node:
        began = time.monotonic()
        answer = node.ask("Who?", max_tokens=1)
        waited_s = time.monotonic() - began
    assert answer.tokens == 1
    assert waited_s < SOON_S
    assert sorted(_generations(rambler)[-4:]) == ONE_LEFT_ONE_ANSWERED


async def test_a_stream_left_early_frees_the_model(rambler: Daemon) -> None:
    async with rambler.async_node() as node:
        stream = node.ask_stream("Tell me the colour of the red box.", max_tokens=2000)
        assert isinstance(await anext(stream), str)
        await stream.aclose()
        answer = await asyncio.wait_for(node.ask("Who?", max_tokens=1), SOON_S)
    assert answer.tokens == 1
    assert sorted(_generations(rambler)[-4:]) == ONE_LEFT_ONE_ANSWERED


def test_stopping_while_it_generates_ends_the_generation_and_the_daemon(
    daemon: MakeDaemon, rambler: Daemon
) -> None:
    process = subprocess.Popen(
        cli_command("ask", "Tell me the colour of the red box.", "--max-tokens", "2000"),
        env=environment(rambler.home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    with process:
        process.stdout.read(1)
        assert rambler.stop() == 0
        last_words = process.stderr.read().decode()
        assert process.wait(20) in (3, 4)
    assert last_words.startswith("error: ")
    assert rambler.events()[-1]["event"] == "node.completed"
    rambler.start()
    with rambler.node() as node:
        assert node.ask("Who?", max_tokens=1).tokens == 1
