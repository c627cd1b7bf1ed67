"""The peer server: what it does when it stops, when it fails, and when the other side does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any

import grpc
import pytest

from kvnet import wire
from kvnet.errors import KvnetError, NotRunning, PeerError, StateCorrupt
from kvnet.transfer.messages import PROTOCOL_VERSION
from kvnet.transport.server import PeerServer
from kvnet.transport.tasks import Running
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import RECEIVER, SENDER
from tests.gates import NAMESPACE, gate_of, raw_channel
from tests.transport.attacker import attack
from tests.transport.backend import MEMORY, MemoryInbound, MemoryNode, MemoryOutbound, Pair


async def test_stop_waits_until_handlers_have_ended(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    bob = MemoryNode(RECEIVER, pool)
    server = PeerServer(bob, gate_of(RECEIVER, SENDER))
    port = await server.start(host="127.0.0.1", port=0)
    steps: list[str] = []

    async def slow_close(inbound: MemoryInbound, error: BaseException | None) -> None:
        steps.append("closing")
        try:
            await asyncio.sleep(0.3)
        finally:  # gRPC may cancel a handler once more
            steps.append("closed")

    monkeypatch.setattr(MemoryInbound, "close", slow_close)
    async with attack(Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}")) as alice:
        await alice.offer()
        assert steps == []
        await server.stop(0)
        assert steps == ["closing", "closed"]


async def test_drained_waits_for_every_task_inside_and_no_longer() -> None:
    running, ended = Running(), []

    async def work(seconds: float) -> None:
        with running.task():
            await asyncio.sleep(seconds)
        ended.append(seconds)

    await running.drained()
    tasks = [asyncio.create_task(work(seconds)) for seconds in (0.05, 0.1)]
    await asyncio.sleep(0)
    await running.drained()
    await asyncio.sleep(0)
    assert ended == [0.05, 0.1]
    tasks.append(asyncio.create_task(work(30)))
    await asyncio.sleep(0)
    began = time.monotonic()
    await running.drained(timeout_s=0.05)
    assert time.monotonic() - began < 5
    tasks[-1].cancel()
    await asyncio.wait(tasks)
    await running.drained()


def with_a_bug(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("/home/bob/.kvnet/secret")


async def once(frame: peer_pb2.Frame) -> AsyncIterator[peer_pb2.Frame]:
    yield frame


@pytest.mark.parametrize("broken", ["hello", "open_inbound", "open_outbound"])
async def test_bug_in_a_handler_reaches_a_peer_as_internal_without_its_text_and_the_server_goes_on(
    pair: Pair, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frame = peer_pb2.Frame(control=wire.message_to_wire(pair.alice.outgoing(MEMORY).sealed_offer))
    async with raw_channel(SENDER, pair.address, RECEIVER.public) as channel:
        stub = peer_pb2_grpc.PeerStub(channel)
        hello = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 16)
        calls: dict[str, Any] = {
            "hello": lambda: stub.Hello(hello, metadata=NAMESPACE),
            "open_inbound": lambda: stub.Push(once(frame), metadata=NAMESPACE).read(),
            "open_outbound": lambda: stub.Pull(once(frame), metadata=NAMESPACE).read(),
        }
        with monkeypatch.context() as patched:
            patched.setattr(pair.bob, broken, with_a_bug)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await calls[broken]()
    error = wire.status_to_error(refused.value, peer="bob")
    assert (type(error), error.code, error.message) == (KvnetError, "internal", "the node met a bug")
    assert "secret" not in str(refused.value)
    assert "secret" in caplog.text  # here it is: for whoever runs the node
    await pair.push()


async def test_trouble_of_the_operator_reaches_a_peer_without_its_paths(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise StateCorrupt("/home/bob/.kvnet/secret: not what was stored")

    with monkeypatch.context() as patched:
        patched.setattr(pair.bob, "hello", broken)
        async with pair.client() as client:
            with pytest.raises(PeerError, match="its operator must look") as refused:
                await client.hello()
    assert "secret" not in refused.value.message
    assert "secret" in caplog.text
    await pair.push()


async def test_bug_in_the_middle_of_a_transfer_ends_that_transfer_alone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(MemoryInbound, "store", with_a_bug)
        # Many times: a write that finds the stream gone must not win over the reason it is gone for.
        for _ in range(20):
            with pytest.raises(PeerError, match="bob: the node met a bug") as refused:
                await pair.push()
            assert type(refused.value) is PeerError
    assert [type(failure) for failure in (await pair.bob.settled()).failures] == [RuntimeError]
    await pair.push()


@pytest.mark.parametrize("error", [StateCorrupt("ledger: damaged"), NotRunning("kvnet up")])
async def test_peer_that_says_that_this_node_is_broken_is_not_believed(
    pair: Pair, error: KvnetError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> Any:
        raise error

    with monkeypatch.context() as patched:
        # A node of ours keeps such errors to itself; this peer does not.
        patched.setattr("kvnet.transport.doorman.OperatorError", ())
        for name in ("hello", "open_inbound"):
            patched.setattr(pair.bob, name, refuse)
        async with pair.client() as client:
            for act in (client.hello, lambda: client.push(pair.alice.outgoing(MEMORY))):
                with pytest.raises(PeerError) as refused:
                    await act()
                assert type(refused.value) is PeerError
                assert refused.value.message == f"bob: {error.message}"


async def test_receipt_that_cannot_be_kept_fails_the_push(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(outbound: MemoryOutbound, receipt: Any) -> None:
        raise StateCorrupt("ledger: damaged")

    with monkeypatch.context() as patched:
        patched.setattr(MemoryOutbound, "delivered", full)
        with pytest.raises(StateCorrupt):
            await pair.push()
    await pair.push()
