"""The peer API's server: who may call, and which driver answers. Knows gRPC; no store, no model."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc

from kvnet import wire
from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    OperatorError,
    PeerError,
    PortInUse,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Hello, require_protocol, seal
from kvnet.transport.answering import ReadBackend, ReadJob, answer_readings
from kvnet.transport.frames import CHANNEL_OPTIONS, FrameStream, ReadStream
from kvnet.transport.receiving import Inbound, receive_memory
from kvnet.transport.sending import Outbound, send_memory
from kvnet.transport.tasks import Running
from kvnet.v1 import peer_pb2, peer_pb2_grpc

_log = logging.getLogger(__name__)

MAX_CONCURRENT_RPCS = 64
NONCE_NBYTES = 16
SERVER_OPTIONS = (
    *CHANNEL_OPTIONS,
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a share
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),  # our clients ping every 20 s
)


class PeerBackend(Protocol):
    """What the server asks of the daemon."""

    key: NodeKey
    pool: Executor

    def hello(self, nonce: bytes) -> Hello:
        """This node's hello, bound to the caller's nonce."""
        ...

    async def open_inbound(self, sealed_offer: SignedMessage) -> Inbound:
        """Verify and admit an offer, or raise why not."""
        ...

    async def open_outbound(self, sealed_request: SignedMessage) -> Outbound:
        """Verify a pull request and prepare the transfer, or raise why not."""
        ...


class _PeerService(peer_pb2_grpc.PeerServicer):
    def __init__(self, backend: PeerBackend, reader: ReadBackend | None, running: Running) -> None:
        self._backend = backend
        self._reader = reader
        self._running = running

    async def Hello(
        self, request: peer_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.SignedMessage:
        try:
            _check_hello(request)
            return wire.message_to_wire(seal(self._backend.key, self._backend.hello(request.nonce)))
        except Exception as failure:
            await _abort(context, failure)
            raise

    async def Push(  # type: ignore[override]  # a coroutine: read and write, not iterate
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        stream = FrameStream(context, peer=context.peer())

        async def receive() -> None:
            inbound = await self._backend.open_inbound(await stream.read_control())
            async with _closing(inbound):
                await receive_memory(stream, inbound, self._backend.pool)

        await self._handle(receive(), context)

    async def Pull(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        stream = FrameStream(context, peer=context.peer())

        async def send() -> None:
            outbound = await self._backend.open_outbound(await stream.read_control())
            async with _closing(outbound):
                await send_memory(stream, outbound)

        await self._handle(send(), context)

    async def Read(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peer_pb2.ReadFrame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        stream = ReadStream(context, peer=context.peer())

        async def read() -> None:
            if self._reader is None:
                raise PeerError("this node reads for nobody")
            job = await self._reader.open_reading(await stream.read_control())
            async with _closing(job):
                # An abort sends them unless they are sent: twice, if a first write is just under way.
                await context.send_initial_metadata(())
                await answer_readings(stream, job, key=self._reader.key, pool=self._reader.pool)

        await self._handle(read(), context)

    async def _handle(
        self, work: Coroutine[Any, Any, None], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        with self._running.task():
            try:
                await work
            except Exception as failure:
                await _abort(context, failure)


class PeerServer:
    """The peer API on one port. Without `reader` it serves memories, and reads for nobody."""

    def __init__(self, backend: PeerBackend, reader: ReadBackend | None = None) -> None:
        self._running = Running()
        self._server = grpc.aio.server(options=SERVER_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS)
        peer_pb2_grpc.add_PeerServicer_to_server(_PeerService(backend, reader, self._running), self._server)

    async def start(self, *, host: str, port: int) -> int:
        """Bind and serve; returns the port (asked-for 0 means any). Raises PortInUse."""
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_insecure_port(f"{shown}:{port}")
        except RuntimeError as exc:
            raise PortInUse(
                f"peer port {shown}:{port}: cannot be bound; "
                "stop what uses it, or choose another with --listen"
            ) from exc
        await self._server.start()
        return bound

    async def stop(self, grace_s: float) -> None:
        """Let transfers finish within `grace_s`, end the others, and wait until they have ended."""
        await self._server.stop(grace_s)
        await self._running.drained()


def _check_hello(request: peer_pb2.HelloRequest) -> None:
    require_protocol(request.protocol, who="the calling node")
    if len(request.nonce) != NONCE_NBYTES:
        raise MalformedMessage(f"hello: a nonce of {len(request.nonce)} bytes, wanted {NONCE_NBYTES}")


@asynccontextmanager
async def _closing(transfer: Inbound | Outbound | ReadJob) -> AsyncIterator[None]:
    """Close a transfer, or a reading, with what ended it, whatever that is."""
    try:
        yield
    except BaseException as failure:
        await transfer.close(failure)
        raise
    await transfer.close(None)


async def _abort(context: grpc.aio.ServicerContext[Any, Any], failure: Exception) -> None:
    # A peer learns that something is wrong here, not what: those messages may hold paths.
    if isinstance(failure, OperatorError):
        _log.error("a call by a peer failed: %s", failure.message)
        failure = PeerError("the node cannot serve this now; its operator must look")
    elif not isinstance(failure, KvnetError):
        _log.error("a call by a peer failed by a bug", exc_info=failure)
        failure = KvnetError("the node met a bug")
    code, details, metadata = wire.error_to_status(failure)
    await context.abort(code, details, metadata)
