"""The limits of the peer port: each is reached on a real connection, beside an honest call that succeeds."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import grpc
import pytest

from kvnet import wire
from kvnet.errors import CapacityError, KvnetError, PeerUnreachable, TooBusy
from kvnet.identity.certificates import LeafCertificate, issue_leaf
from kvnet.identity.keys import NodeKey
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.transport.budgets import MAX_REMEMBERED_CALLERS, ByteBudget, CallBudget
from kvnet.transport.limits import PortLimits
from kvnet.transport.server import PeerServer
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.gates import NAMESPACE, gate_of, raw_channel
from tests.transport.attacker import attack
from tests.transport.backend import MemoryNode, Pair

SOON_S = 10.0  # a loaded machine must not fail the test
HELLO = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 16)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
PING = bytes.fromhex("000008060000000000") + bytes(8)

REACHED = {
    "max_sockets": "test_socket_beyond_the_most_is_closed_at_once",
    "max_connections": "test_call_from_one_connection_too_many_is_refused",
    "max_connections_per_ip": "test_call_from_one_connection_too_many_is_refused",
    "max_connections_per_peer": "test_call_from_one_connection_too_many_is_refused",
    "max_streams": "test_call_beyond_those_of_a_connection_waits_at_its_caller",
    "max_calls": "test_call_beyond_those_that_are_dealt_with_is_refused",
    "max_calls_per_peer": "test_call_beyond_those_that_are_dealt_with_is_refused",
    "max_calls_per_s": "test_peer_that_calls_without_end_is_refused_and_another_is_answered",
    "busy_pause_s": "test_call_of_too_many_is_refused_late_or_has_its_turn",
    "handshake_deadline_s": "test_stranger_that_does_not_shake_hands_in_time_is_hung_up_on",
    "unary_deadline_s": "test_request_that_never_comes_ends_its_call",
    "idle_deadline_s": "test_stream_that_is_silent_ends",
    "keepalive_s": "test_keepalive_goes_into_the_options_as_it_is_set",
    "keepalive_timeout_s": "test_keepalive_goes_into_the_options_as_it_is_set",
    "min_ping_interval_s": "test_peer_that_pings_too_often_is_hung_up_on",
    "connection_age_s": "test_connection_ends_when_it_is_old_or_idle",
    "connection_idle_s": "test_connection_ends_when_it_is_old_or_idle",
}


def test_every_limit_of_the_port_has_a_test_that_reaches_it() -> None:
    assert set(REACHED) == {spec.name for spec in fields(PortLimits)}
    assert [name for name in REACHED.values() if not callable(globals().get(name))] == []


@asynccontextmanager
async def bounded(pool: Executor, *others: NodeKey, **limits: int) -> AsyncIterator[Pair]:
    """Bob, who deals with Alice and these others within these limits."""
    bob = MemoryNode(RECEIVER, pool)
    server = PeerServer(bob, gate_of(RECEIVER, SENDER, *others, limits=PortLimits(**limits)))
    port = await server.start(host="127.0.0.1", port=0)
    try:
        yield Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


async def hello(pair: Pair, key: NodeKey = SENDER) -> KvnetError | None:
    """What an honest hello on a connection of its own is refused with; None where it is answered."""
    async with raw_channel(key, pair.address, RECEIVER.public) as channel:
        return await hello_on(channel)


async def hello_on(channel: grpc.aio.Channel) -> KvnetError | None:
    try:
        await peer_pb2_grpc.PeerStub(channel).Hello(HELLO, metadata=NAMESPACE, timeout=SOON_S)
    except grpc.aio.AioRpcError as error:
        return wire.peer_status_to_error(error, peer="bob")
    return None


async def push_on(channel: grpc.aio.Channel) -> Any:
    """A call that is taken and says nothing."""
    call = peer_pb2_grpc.PeerStub(channel).Push(metadata=NAMESPACE)
    async with asyncio.timeout(SOON_S):
        await call.initial_metadata()
    return call


def dial(pair: Pair, source: str = "127.0.0.1") -> socket.socket:
    host, _, port = pair.address.rpartition(":")
    dialled = socket.create_connection((host, int(port)), source_address=(source, 0))
    dialled.setblocking(False)
    return dialled


async def closed_after(dialled: socket.socket) -> float:
    """Seconds until the other end closes."""
    began, loop = time.monotonic(), asyncio.get_running_loop()
    async with asyncio.timeout(SOON_S):
        try:
            while await loop.sock_recv(dialled, 65_536):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - began


async def shake_hands(pair: Pair, folder: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Alice's connection, on which she speaks HTTP/2 by hand."""
    leaf: LeafCertificate = issue_leaf(SENDER)
    (folder / "key").write_bytes(leaf.key_pem)
    (folder / "chain").write_bytes(leaf.chain_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(folder / "chain", folder / "key")
    context.set_alpn_protocols(["h2"])
    host, _, port = pair.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname="")
    writer.write(PREFACE)
    return reader, writer


async def test_socket_beyond_the_most_is_closed_at_once(pool: Executor) -> None:
    async with bounded(pool, max_sockets=8, handshake_deadline_s=5) as pair:
        async with raw_channel(SENDER, pair.address, RECEIVER.public) as channel:
            assert await hello_on(channel) is None
            taken = [dial(pair) for _ in range(7)]
            beyond = [dial(pair) for _ in range(4)]
            assert max(await asyncio.gather(*map(closed_after, beyond))) < 2.5
            assert await hello_on(channel) is None  # what was open goes on
        for dialled in (*taken, *beyond):
            dialled.close()


async def test_stranger_that_does_not_shake_hands_in_time_is_hung_up_on(pool: Executor) -> None:
    async with bounded(pool, handshake_deadline_s=1) as pair:
        silent, slow = dial(pair), dial(pair)
        slow.send(b"\x16\x03\x01\x02\x00")  # the first bytes of a TLS hello
        waited = await asyncio.gather(closed_after(silent), closed_after(slow))
        assert min(waited) > 0.5
        assert await hello(pair) is None
        silent.close()
        slow.close()


@pytest.mark.parametrize(
    ("limit", "most"),
    [("max_connections", 3), ("max_connections_per_ip", 3), ("max_connections_per_peer", 2)],
)
async def test_call_from_one_connection_too_many_is_refused(pool: Executor, limit: str, most: int) -> None:
    async with AsyncExitStack() as stack:
        pair = await stack.enter_async_context(bounded(pool, STRANGER, **{limit: most}))
        channels = []
        for _ in range(most):
            channels.append(
                await stack.enter_async_context(raw_channel(SENDER, pair.address, RECEIVER.public))
            )
            await push_on(channels[-1])
        assert isinstance(await hello(pair), TooBusy)
        assert await hello_on(channels[0]) is None  # on a connection that counts already
        if limit == "max_connections_per_peer":
            assert await hello(pair, STRANGER) is None


async def test_call_beyond_those_of_a_connection_waits_at_its_caller(pool: Executor) -> None:
    async with (
        bounded(pool, max_streams=2) as pair,
        raw_channel(SENDER, pair.address, RECEIVER.public) as channel,
    ):
        calls = [await push_on(channel) for _ in range(2)]
        third = peer_pb2_grpc.PeerStub(channel).Push(metadata=NAMESPACE)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await asyncio.shield(asyncio.ensure_future(third.initial_metadata()))
        assert await hello(pair) is None
        calls[0].cancel()
        async with asyncio.timeout(SOON_S):
            await third.initial_metadata()


@pytest.mark.parametrize("limit", ["max_calls", "max_calls_per_peer"])
async def test_call_beyond_those_that_are_dealt_with_is_refused(pool: Executor, limit: str) -> None:
    async with (
        bounded(pool, STRANGER, **{limit: 3}) as pair,
        raw_channel(SENDER, pair.address, RECEIVER.public) as channel,
    ):
        calls = [await push_on(channel) for _ in range(3)]
        assert isinstance(await hello_on(channel), TooBusy)
        assert isinstance(await hello(pair, STRANGER), TooBusy if limit == "max_calls" else type(None))
        calls[0].cancel()
        async with asyncio.timeout(SOON_S):
            while await hello_on(channel) is not None:  # noqa: ASYNC110  # the server has yet to hear of it
                await asyncio.sleep(0.01)


async def test_peer_that_calls_without_end_is_refused_and_another_is_answered(pool: Executor) -> None:
    async with (
        bounded(pool, STRANGER, max_calls_per_s=5, busy_pause_s=1, max_streams=64) as pair,
        raw_channel(SENDER, pair.address, RECEIVER.public) as channel,
    ):
        calling = asyncio.gather(*(hello_on(channel) for _ in range(40)))
        assert await hello(pair, STRANGER) is None
        ends = await calling
    assert {type(end) for end in ends} == {type(None), TooBusy}
    assert "calls a second" in str(next(end for end in ends if end is not None))
    assert ends.count(None) >= 10  # those of two seconds, at once


async def test_call_of_too_many_is_refused_late_or_has_its_turn() -> None:
    now = 100.0
    budget = CallBudget(PortLimits(max_calls_per_s=10, busy_pause_s=1), clock=lambda: now)
    waits = [budget._book(SENDER.public) for _ in range(100)]
    assert waits[:21] == [0.0] * 21  # two seconds' worth, and the one that begins the third
    assert waits[25] == pytest.approx(0.5)
    assert 1.0 < waits[-1] < 1.2  # and no longer, however many there were: they were refused
    assert budget._book(STRANGER.public) == 0.0
    began = time.monotonic()
    with pytest.raises(TooBusy):
        await budget.turn(SENDER.public)
    assert time.monotonic() - began > 0.9
    now += 10
    assert budget._book(SENDER.public) == 0.0


def test_callers_of_long_ago_are_forgotten() -> None:
    now = 0.0
    budget = CallBudget(PortLimits(), clock=lambda: now)
    for number in range(3 * MAX_REMEMBERED_CALLERS):
        now += 1
        budget._book(number.to_bytes(32))
    assert len(budget._paid_until) <= MAX_REMEMBERED_CALLERS


async def test_request_that_never_comes_ends_its_call(pool: Executor) -> None:
    async with (
        bounded(pool, unary_deadline_s=1) as pair,
        raw_channel(SENDER, pair.address, RECEIVER.public) as channel,
    ):
        half_said = channel.stream_unary("/kvnet.v1.Peer/Hello")(metadata=NAMESPACE)
        async with asyncio.timeout(SOON_S):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await half_said
        error = wire.peer_status_to_error(refused.value, peer="bob")
        assert (type(error), error.message) == (PeerUnreachable, "bob: the calling node: silent for 1 s")
        assert await hello_on(channel) is None


async def test_stream_that_is_silent_ends(pool: Executor) -> None:
    async with bounded(pool, idle_deadline_s=1) as pair:
        async with attack(pair) as alice:
            await alice.offer()
            assert isinstance(await alice.refusal(), PeerUnreachable)
        assert isinstance((await pair.bob.settled()).failures[0], PeerUnreachable)
        assert await hello(pair) is None


async def test_peer_that_pings_too_often_is_hung_up_on(pool: Executor, tmp_path: Path) -> None:
    async with bounded(pool) as pair:
        reader, writer = await shake_hands(pair, tmp_path)
        writer.write(PING * 10)
        async with asyncio.timeout(SOON_S):
            assert b"too_many_pings" in await reader.read()
        writer.close()
        assert await hello(pair) is None
    theirs, ours = PortLimits().min_ping_interval_s, PortLimits().keepalive_s
    assert theirs < ours  # no node of ours is


def test_keepalive_goes_into_the_options_as_it_is_set() -> None:
    limits = PortLimits(keepalive_s=7, keepalive_timeout_s=3)
    options = dict(limits.client_options())
    assert options["grpc.keepalive_time_ms"] == 7000
    assert options["grpc.keepalive_timeout_ms"] == 3000
    assert set(limits.client_options()) < set(limits.server_options())


@pytest.mark.parametrize(
    ("limit", "said"), [("connection_age_s", b"max_age"), ("connection_idle_s", b"idle")]
)
async def test_connection_ends_when_it_is_old_or_idle(
    pool: Executor, tmp_path: Path, limit: str, said: bytes
) -> None:
    async with bounded(pool, **{limit: 1}) as pair:
        reader, writer = await shake_hands(pair, tmp_path)
        async with asyncio.timeout(SOON_S):
            heard = b""
            while said not in heard and (more := await reader.read(4096)):
                heard += more
        assert said in heard
        writer.close()
        assert await hello(pair) is None


async def test_bytes_that_are_not_durable_wait_for_room_in_the_order_they_came() -> None:
    budget, took = ByteBudget(10), list[int]()

    async def take(nbytes: int) -> None:
        with budget.share() as share:
            await share.take(nbytes)
            took.append(nbytes)
            await asyncio.sleep(0.01)

    with budget.share() as first:
        await first.take(8)
        others = [asyncio.create_task(take(nbytes)) for nbytes in (5, 2, 30)]
        await asyncio.sleep(0.02)
        assert took == []  # also the two that would fit: whoever came first goes first
        others[1].cancel()
        first.give_back(4)
    await asyncio.wait(others)
    assert took == [5, 30]  # what is larger than all of it goes alone
    assert budget.taken_nbytes == 0


async def test_transfer_takes_no_more_memory_than_there_is_and_still_ends(pool: Executor) -> None:
    async with bounded(pool) as pair:
        pair.bob.unstored = ByteBudget(1)
        most = 0

        async def slow(self: Any, chunks: list[Any]) -> None:
            nonlocal most
            most = max(most, len(chunks))
            await asyncio.sleep(0.01)
            self._disk.update((chunk.envelope.key.index, chunk) for chunk in chunks)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr("tests.transport.backend.MemoryInbound.store", slow)
            await pair.push()
        assert (most, pair.bob.unstored.taken_nbytes) == (1, 0)


def test_refusals_of_the_budgets_are_capacity_errors() -> None:
    budget = CallBudget(PortLimits(max_calls=1))
    with budget.open(SENDER.public, "h", "c"), pytest.raises(CapacityError):
        budget.open(SENDER.public, "h", "c").__enter__()
    with budget.open(SENDER.public, "h", "c"):
        pass
