"""What a hostile node may answer: other keys, other nonces, other contents, or nothing at all."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from kvnet import wire
from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedMessage,
    PeerUnreachable,
    ProtocolMismatch,
    ReplayedMessage,
    TransferIncomplete,
    WrongPeer,
)
from kvnet.identity.signing import SignedChunk, SignedMessage
from kvnet.transfer.messages import (
    PROTOCOL_VERSION,
    Accept,
    Commit,
    Receipt,
    open_sealed,
    pack_bitmap,
    seal,
)
from kvnet.transfer.sender import SPARE_ACKS
from kvnet.transport.client import PeerClient
from kvnet.transport.frames import PUSH, FrameStream
from kvnet.transport.server import SERVICE, frames_as_bytes
from kvnet.types import TransferId
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    STRANGER,
)
from tests.gates import gate_of, raw_channel
from tests.transport.backend import MEMORY, TOTAL, MemoryNode, Pair


class Rogue(peer_pb2_grpc.PeerServicer):
    """Answers at Bob's address, by a script."""

    def __init__(self, script: Callable[[FrameStream], Awaitable[None]] | None = None) -> None:
        self.script = script
        self.reply = SignedMessage("", b"", b"", b"")

    async def Hello(self, request: peer_pb2.HelloRequest, context: Any) -> peer_pb2.SignedMessage:
        return wire.message_to_wire(self.reply)

    async def Push(self, request_iterator: Any, context: Any) -> None:
        assert self.script is not None
        await self.script(FrameStream(context, peer="alice"))

    Pull = Push


def dial(address: str) -> PeerClient:
    """As Alice, who means Bob."""
    return PeerClient(address, public=RECEIVER.public, peer="bob", gate=gate_of(SENDER, RECEIVER))


@asynccontextmanager
async def rogue_at(rogue: Rogue) -> AsyncIterator[str]:
    server = grpc.aio.server()
    peer_pb2_grpc.add_PeerServicer_to_server(rogue, server)
    server.add_registered_method_handlers(SERVICE, frames_as_bytes(rogue))
    port = server.add_secure_port("127.0.0.1:0", gate_of(RECEIVER, SENDER).server_credentials())
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_hello_of_another_key_is_the_wrong_peer(pair: Pair) -> None:
    async with pair.client(public=STRANGER.public) as client:
        with pytest.raises(WrongPeer):
            await client.hello()


@pytest.mark.parametrize(
    ("signer", "changes", "wanted"),
    [
        (STRANGER, {}, WrongPeer),
        (RECEIVER, {"nonce": "00" * 16}, ReplayedMessage),
        (RECEIVER, {"node_id": STRANGER.node_id}, BadSignature),
        (RECEIVER, {"protocol": PROTOCOL_VERSION + 1}, ProtocolMismatch),
        (RECEIVER, {"protocol": PROTOCOL_VERSION - 1}, ProtocolMismatch),
    ],
)
async def test_lying_hello_is_refused(
    pool: Executor, signer: Any, changes: dict[str, Any], wanted: type[KvnetError], monkeypatch: Any
) -> None:
    monkeypatch.setattr("kvnet.transport.client.os.urandom", lambda size: b"n" * size)
    rogue = Rogue()
    rogue.reply = seal(signer, replace(MemoryNode(RECEIVER, pool).hello(b"n" * 16), **changes))
    async with rogue_at(rogue) as address, dial(address) as client:
        with pytest.raises(wanted):
            await client.hello()


async def test_altered_hello_is_refused(pool: Executor) -> None:
    rogue = Rogue()
    sealed = seal(RECEIVER, MemoryNode(RECEIVER, pool).hello(b"n" * 16))
    rogue.reply = replace(sealed, body=sealed.body.replace(b'"node"', b'"evil"'))
    async with rogue_at(rogue) as address, dial(address) as client:
        with pytest.raises(BadSignature):
            await client.hello()


async def _accept(stream: FrameStream, signer: Any = RECEIVER, **changes: Any) -> None:
    sealed = await stream.read_control()
    digest = hashlib.sha256(sealed.body).hexdigest()
    accept = Accept(TransferId("0123456789abcdef" * 2), digest, "11" * 16, pack_bitmap(set(), TOTAL))
    await stream.write_control(seal(signer, replace(accept, **changes)))


async def accept_by_another(stream: FrameStream) -> None:
    await _accept(stream, STRANGER)


async def accept_of_another_offer(stream: FrameStream) -> None:
    await _accept(stream, offer_digest="00" * 32)


async def accept_with_a_short_nonce(stream: FrameStream) -> None:
    await _accept(stream, nonce="11")


async def ack_beyond_the_last_chunk(stream: FrameStream) -> None:
    await _accept(stream)
    await stream.write_ack([TOTAL])
    await asyncio.sleep(5)


async def acks_of_nothing_without_end(stream: FrameStream) -> None:
    await _accept(stream)
    for _ in range(TOTAL + SPARE_ACKS + 1):
        await stream.write_ack([])
    await asyncio.sleep(5)


async def same_ack_without_end(stream: FrameStream) -> None:
    await _accept(stream)
    for _ in range(1 + TOTAL + SPARE_ACKS + 1):
        await stream.write_ack([0])
    await asyncio.sleep(5)


async def chunk_instead_of_acks(stream: FrameStream) -> None:
    await _accept(stream)
    await stream.write_chunk(SignedChunk(b"", b"", b""))
    await asyncio.sleep(5)


async def receipt_for_other_contents(stream: FrameStream) -> None:
    await _accept(stream, held=pack_bitmap(set(range(TOTAL)), TOTAL))
    commit, _ = open_sealed(Commit, await stream.read_control(), signer=SENDER.public)
    digests = (commit.offer_digest, "sha256:0")
    receipt = Receipt(commit.transfer_id, *digests, MEMORY.header.id, "exact", NOW)
    await stream.write_control(seal(RECEIVER, receipt))


async def hang_up(stream: FrameStream) -> None:
    await stream.read()


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (accept_by_another, BadSignature),
        (accept_of_another_offer, ReplayedMessage),
        (accept_with_a_short_nonce, MalformedMessage),
        (ack_beyond_the_last_chunk, MalformedMessage),
        (acks_of_nothing_without_end, MalformedMessage),
        (same_ack_without_end, MalformedMessage),
        (chunk_instead_of_acks, MalformedMessage),
        (receipt_for_other_contents, BadSignature),
        (hang_up, TransferIncomplete),
    ],
)
async def test_lying_receiver_is_refused(
    pool: Executor, script: Callable[[FrameStream], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    async with (
        rogue_at(Rogue(script)) as address,
        dial(address) as client,
    ):
        with pytest.raises(wanted):
            await client.push(MemoryNode(SENDER, pool).outgoing(MEMORY))


async def test_peer_that_keeps_the_stream_open_after_its_receipt_does_not_hold_us(
    pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnet.transport.client.CLOSE_DEADLINE_S", 0.2)
    alice = MemoryNode(SENDER, pool)
    outbound = alice.outgoing(MEMORY)

    async def receipt_then_silence(stream: FrameStream) -> None:
        await _accept(stream, held=pack_bitmap(set(range(TOTAL)), TOTAL))
        await stream.read_control()
        commit = outbound.session.commit()
        receipt = Receipt(
            commit.transfer_id, commit.offer_digest, commit.chunks_digest, MEMORY.header.id, "exact", NOW
        )
        await stream.write_control(seal(RECEIVER, receipt))
        await asyncio.sleep(30)

    async with (
        rogue_at(Rogue(receipt_then_silence)) as address,
        dial(address) as client,
    ):
        sent = await asyncio.wait_for(client.push(outbound), 5)
    assert sent.receipt.memory == MEMORY.header.id


class Silent:
    """The other end of a stream that neither reads nor writes."""

    async def read(self) -> Any:
        await asyncio.sleep(30)

    async def write(self, message: Any) -> None:
        await asyncio.sleep(30)


async def test_silent_peer_is_unreachable_after_the_idle_deadline() -> None:
    stream = FrameStream(Silent(), peer="bob", idle_deadline_s=0.2)
    for act in (stream.read, stream.read_control, lambda: stream.write_ack([1])):
        began = time.monotonic()
        with pytest.raises(PeerUnreachable, match="bob: silent"):
            await act()
        assert 0.15 < time.monotonic() - began < 2


async def test_silent_peer_over_grpc_is_unreachable_after_the_idle_deadline() -> None:
    async def silence(stream: FrameStream) -> None:
        await asyncio.sleep(5)

    async with rogue_at(Rogue(silence)) as address, raw_channel(SENDER, address, RECEIVER.public) as channel:
        call = channel.stream_stream(PUSH)()
        with pytest.raises(PeerUnreachable):
            await FrameStream(call, peer="bob", idle_deadline_s=0.2).read()
        call.cancel()
