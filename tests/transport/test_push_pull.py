"""Real gRPC on a loopback port: honest nodes, cut links, taken ports."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Any

import grpc
import pytest

from kvnet import wire
from kvnet.errors import (
    IncompatibleModel,
    MalformedMessage,
    PeerUnreachable,
    PortInUse,
    ProtocolMismatch,
    UnknownMemory,
)
from kvnet.identity.signing import SignedMessage
from kvnet.plan import MAX_CHUNK_RAW_NBYTES
from kvnet.transfer.messages import (
    PROTOCOL_VERSION,
    PullRequest,
    Receipt,
    open_sealed,
    seal,
)
from kvnet.transport.budgets import ByteBudget
from kvnet.transport.sending import AckProgress
from kvnet.transport.server import PeerServer
from kvnet.types import MemoryId
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    make_basis,
    make_fingerprint,
    make_geometry,
    make_memory,
)
from tests.gates import NAMESPACE, gate_of, raw_channel
from tests.transport.backend import MEMORY, TOTAL, MemoryNode, Pair

LARGE = make_geometry(num_kv_heads=256, head_dim=1024)  # a token and layer is a chunk of a MiB


async def test_hello_says_who_answers(pair: Pair) -> None:
    async with pair.client() as client:
        hello = await client.hello()
    assert (hello.node_id, hello.fingerprint) == (RECEIVER.node_id, make_fingerprint())


async def test_pushed_memory_arrives_and_is_receipted(pair: Pair) -> None:
    progress: list[AckProgress] = []
    outbound = pair.alice.outgoing(MEMORY)
    async with pair.client() as client:
        sent = await client.push(outbound, progress.append)
    assert pair.bob.memories == {MEMORY.header.id: MEMORY}
    assert (sent.resumed_chunks, sent.receipt.tier) == (0, "exact")
    (sealed_receipt,) = outbound.receipts
    assert open_sealed(Receipt, sealed_receipt, signer=RECEIVER.public)[0] == sent.receipt
    assert [step.layer_idx for step in progress] == [0, 1, 2]
    assert (progress[-1].chunks_done, progress[-1].wire_nbytes) == (TOTAL, sent.wire_nbytes)
    assert (await pair.bob.settled()).failures == [None]


async def test_memory_with_attention_and_a_basis_arrives_and_is_receipted(pair: Pair) -> None:
    coding, basis = make_basis()
    memory = make_memory(coding=coding, attention_heads=4)
    outbound = pair.alice.outgoing(memory, basis=basis)
    async with pair.client() as client:
        sent = await client.push(outbound)
    assert sent.receipt.memory == memory.header.id
    assert outbound.sent == list(range(3 * 3 + 1))
    assert pair.bob.memories == {memory.header.id: memory}
    assert pair.bob.bases == {coding.basis: basis}


async def test_slow_disk_of_the_receiver_holds_the_sender_to_a_few_chunks(pair: Pair) -> None:
    # 48 chunks, every other one a MiB on the wire.
    memory = make_memory(seq_len=8, num_kv_heads=LARGE.num_kv_heads, head_dim=LARGE.head_dim)
    pair.bob.takes(geometry=LARGE, free_nbytes=1 << 30)
    pair.bob.unstored = ByteBudget(2 * MAX_CHUNK_RAW_NBYTES)
    outbound = pair.alice.outgoing(memory)
    pair.bob.disk_is_ready.clear()
    async with pair.client() as client:
        pushing = asyncio.create_task(client.push(outbound))
        sent = 0
        while not sent or sent < len(outbound.sent):  # until nothing more leaves
            sent = len(outbound.sent)
            await asyncio.sleep(0.3)
        assert sent <= len(outbound.session.plan) // 2
        pair.bob.disk_is_ready.set()
        assert (await pushing).receipt.memory == memory.header.id
    assert pair.bob.memories == {memory.header.id: memory}


async def test_push_again_sends_nothing_and_gets_a_receipt(pair: Pair) -> None:
    await pair.push()
    assert (await pair.push()).sent == []


def request(memory: MemoryId = MEMORY.header.id) -> SignedMessage:
    """Alice asks Bob for a memory."""
    return seal(SENDER, PullRequest(memory, SENDER.node_id, RECEIVER.node_id, NOW, "22" * 16))


async def test_pulled_memory_arrives(pair: Pair) -> None:
    pair.bob.memories[MEMORY.header.id] = MEMORY
    async with pair.client() as client:
        inbound = await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    assert pair.alice.memories == {MEMORY.header.id: MEMORY}
    assert (inbound.failures, pair.bob.outbound[0].failures) == ([None], [None])


async def test_pull_of_an_unknown_memory_says_so(pair: Pair) -> None:
    async with pair.client() as client:
        with pytest.raises(UnknownMemory, match="not here"):
            await client.pull(request(MemoryId("mem_x")), pair.alice.open_inbound, pair.alice.pool)


@pytest.mark.parametrize("arrived", [1, 4])
async def test_push_resumes_after_the_stream_was_cut(pair: Pair, arrived: int) -> None:
    dying = pair.alice.outgoing(MEMORY)
    dying.die_after = arrived
    async with pair.client() as client:
        with pytest.raises(ConnectionAbortedError):
            await client.push(dying)
    assert (await pair.bob.settled()).failures != [None]
    held = set(pair.bob.disks[dying.session.offer.transfer_id])
    assert held <= set(range(arrived))
    resumed = await pair.push()
    assert resumed.sent == sorted(set(range(TOTAL)) - held)


async def test_pull_resumes_after_the_stream_was_cut(pair: Pair) -> None:
    pair.bob.memories[MEMORY.header.id] = MEMORY
    disk = pair.alice.disks.setdefault(pair.alice.outgoing(MEMORY).session.offer.transfer_id, {})
    honest = await _all_but_the_last(pair)
    disk.update(honest)
    async with pair.client() as client:
        await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    assert pair.bob.outbound[-1].sent == [TOTAL - 1]
    assert pair.alice.memories == {MEMORY.header.id: MEMORY}


async def _all_but_the_last(pair: Pair) -> dict[int, Any]:
    async with pair.client() as client:
        await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    (disk,) = pair.alice.disks.values()
    pair.alice.memories.clear()
    del disk[TOTAL - 1]
    return disk


async def test_server_refuses_other_protocols_and_short_nonces(pair: Pair) -> None:
    async with raw_channel(SENDER, pair.address, RECEIVER.public) as channel:
        for hello, wanted in (
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION + 1, nonce=b"n" * 16), ProtocolMismatch),
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION - 1, nonce=b"n" * 16), ProtocolMismatch),
            (peer_pb2.HelloRequest(protocol=0, nonce=b"n" * 16), ProtocolMismatch),
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 15), MalformedMessage),
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION), MalformedMessage),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await peer_pb2_grpc.PeerStub(channel).Hello(hello, metadata=NAMESPACE)
            assert type(wire.status_to_error(refused.value, peer="bob")) is wanted


async def test_nobody_at_the_address_is_unreachable(pool: Executor) -> None:
    async with Pair(MemoryNode(SENDER, pool), MemoryNode(RECEIVER, pool), "127.0.0.1:1").client() as client:
        with pytest.raises(PeerUnreachable, match="bob"):
            await client.hello(deadline_s=2)


async def test_taken_port_is_refused(pair: Pair) -> None:
    port = int(pair.address.rpartition(":")[2])
    with pytest.raises(PortInUse, match="--listen"):
        await PeerServer(pair.bob, gate_of(RECEIVER)).start(host="127.0.0.1", port=port)


async def test_offer_of_another_model_is_refused_with_the_fields_that_differ(pool: Executor) -> None:
    bob = MemoryNode(RECEIVER, pool, fingerprint=make_fingerprint(tokenizer_digest="sha256:other"))
    server = PeerServer(bob, gate_of(RECEIVER, SENDER))
    port = await server.start(host="127.0.0.1", port=0)
    with pytest.raises(IncompatibleModel) as refused:
        await Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}").push()
    await server.stop(0)
    assert list(refused.value.details) == ["tokenizer_digest"]
