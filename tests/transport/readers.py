"""A node that reads without a model: memories from numbers, one slot for each word; and peers by hand."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc

from kvnet.errors import KvnetError, PeerNotAdded, RequestError
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Hello
from kvnet.transport.asking import Texts
from kvnet.transport.client import PeerClient
from kvnet.transport.frames import ReadStream
from kvnet.transport.readings import Asked, Reading, ReadRequest, open_request
from kvnet.transport.server import PeerServer
from kvnet.types import sha256_hex
from kvnet.v1 import peer_pb2_grpc
from tests.builders import NOW, RECEIVER, SENDER, make_memory
from tests.gates import NAMESPACE, gate_of, raw_channel
from tests.transport.backend import MemoryNode

TEXTS = ("the harbour opens", "a key", "one of them has read the letter", "salt")
CLOSING = " so."


def make_request(**changes: Any) -> ReadRequest:
    """SENDER asks RECEIVER to read TEXTS."""
    plain = ReadRequest(
        request_id="0123456789abcdef" * 2,
        sender=SENDER.node_id,
        receiver=RECEIVER.node_id,
        closing=CLOSING,
        num_texts=len(TEXTS),
        corpus_digest=sha256_hex(b"corpus"),
        created_at=NOW,
        expires_at=NOW + 600,
    )
    return replace(plain, **changes)


def make_reading(index: int, text: str, **geometry: Any) -> Reading:
    """What RECEIVER's model makes of a text and CLOSING: a sink, then a slot for each word."""
    spans = ((0, 0), *(word.span() for word in re.finditer(r"\S+", text + CLOSING)))
    return Reading(index, make_memory(index, seq_len=len(spans), **geometry), 1, spans)


class MemoryJob:
    """One request; `may_read` holds it up."""

    def __init__(self, asked: Asked, may_read: asyncio.Event, geometry: dict[str, Any]) -> None:
        self.asked = asked
        self.begun: list[int] = []
        self.failures: list[BaseException | None] = []
        self.closed = asyncio.Event()
        self.trusted_for = 1_000_000  # frames
        self._may_read = may_read
        self._geometry = geometry

    async def read(self, index: int, text: str) -> Reading:
        """As a model: after a while."""
        self.begun.append(index)
        await self._may_read.wait()
        if not text.strip():
            raise RequestError("the text is empty")
        return make_reading(index, text, **self._geometry)

    def withdrawn(self) -> KvnetError | None:
        """Trust that ends after so many frames."""
        self.trusted_for -= 1
        return PeerNotAdded("bob: was revoked") if self.trusted_for < 0 else None

    async def close(self, failure: BaseException | None) -> None:
        """Remember how it ended."""
        self.failures.append(failure)
        self.closed.set()


class MemoryReader:
    """Reads for SENDER."""

    def __init__(self, key: NodeKey, pool: Executor, **geometry: Any) -> None:
        self.key = key
        self.pool = pool
        self.jobs: list[MemoryJob] = []
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.trusted_for = 1_000_000  # frames of a job
        self._geometry = geometry

    async def open_reading(self, sealed_request: SignedMessage) -> MemoryJob:
        """Verify and begin."""
        asked = open_request(sealed_request, signer=SENDER.public)
        self.jobs.append(MemoryJob(asked, self.may_read, self._geometry))
        self.jobs[-1].trusted_for = self.trusted_for
        return self.jobs[-1]


@dataclass
class Reader:
    """Alice reads, under RECEIVER's key; Bob asks, under SENDER's."""

    address: str
    hello: Hello
    pool: Executor
    alice: MemoryReader

    def dial(self) -> PeerClient:
        """Bob's connection to Alice."""
        return PeerClient(self.address, public=RECEIVER.public, peer="alice", gate=gate_of(SENDER, RECEIVER))

    async def ask(self, texts: Texts = TEXTS, **changes: Any) -> list[Reading]:
        """Every reading of the texts."""
        async with self.dial() as client:
            readings = client.read_texts(
                make_request(**changes), texts, key=SENDER, hello=self.hello, pool=self.pool
            )
            async with aclosing(readings):
                return [reading async for reading in readings]

    async def ended(self) -> BaseException | None:
        """How Alice's latest job ended."""
        job = self.alice.jobs[-1]
        await asyncio.wait_for(job.closed.wait(), 5)
        (failure,) = job.failures
        return failure


@asynccontextmanager
async def reader_of(pool: Executor, **geometry: Any) -> AsyncIterator[Reader]:
    """Alice's server on a loopback port."""
    node, alice = MemoryNode(RECEIVER, pool), MemoryReader(RECEIVER, pool, **geometry)
    hello = node.hello(b"n" * 16)
    hello = replace(hello, geometry=replace(hello.geometry, **geometry))
    server = PeerServer(node, gate_of(RECEIVER, SENDER), alice)
    port = await server.start(host="127.0.0.1", port=0)
    yield Reader(f"127.0.0.1:{port}", hello, pool, alice)
    await server.stop(0)


Script = Callable[[ReadStream], Awaitable[None]]


@asynccontextmanager
async def rogue_reader(pool: Executor, script: Script) -> AsyncIterator[Reader]:
    """Alice's key and hello, but every frame by hand."""

    class Rogue(peer_pb2_grpc.PeerServicer):
        async def Read(self, request_iterator: Any, context: Any) -> None:  # type: ignore[override]
            await script(ReadStream(context, peer="bob"))

    server = grpc.aio.server()
    peer_pb2_grpc.add_PeerServicer_to_server(Rogue(), server)
    port = server.add_secure_port("127.0.0.1:0", gate_of(RECEIVER, SENDER).server_credentials())
    await server.start()
    hello = MemoryNode(RECEIVER, pool).hello(b"n" * 16)
    yield Reader(f"127.0.0.1:{port}", hello, pool, MemoryReader(RECEIVER, pool))
    await server.stop(0)


@asynccontextmanager
async def rogue_caller(reader: Reader) -> AsyncIterator[ReadStream]:
    """A stream to Alice, every frame by hand."""
    async with raw_channel(SENDER, reader.address, RECEIVER.public) as channel:
        call = peer_pb2_grpc.PeerStub(channel).Read(metadata=NAMESPACE)
        yield ReadStream(call, peer="alice", idle_deadline_s=5)
        call.cancel()
