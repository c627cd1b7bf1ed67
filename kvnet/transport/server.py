"""The peer API's server: which driver answers a call. Knows gRPC; no store, no model, no trust."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc

from kvnet import wire
from kvnet.errors import BadSignature, MalformedMessage, PeerError, PortInUse
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import Hello, require_protocol, seal
from kvnet.transport.answering import ReadBackend, ReadJob, answer_readings
from kvnet.transport.doorman import Doorman
from kvnet.transport.frames import PULL, PUSH, FrameStream, ReadStream
from kvnet.transport.gate import Gate
from kvnet.transport.receiving import Inbound, receive_memory
from kvnet.transport.security import caller_of
from kvnet.transport.sending import Outbound, send_memory
from kvnet.transport.tasks import Running
from kvnet.v1 import peer_pb2, peer_pb2_grpc

SERVICE = "kvnet.v1.Peer"
NONCE_NBYTES = 16
MAX_PROBE_NBYTES = 1 << 20


Context = grpc.aio.ServicerContext[Any, Any]


class PeerBackend(Protocol):
    """What the server asks of the daemon."""

    key: NodeKey
    pool: Executor

    def hello(self, nonce: bytes) -> Hello:
        """This node's hello, bound to the caller's nonce."""
        ...

    async def rotate(self, statement: bytes, caller: bytes) -> None:
        """Trust the caller's new key from now on, or raise why not."""
        ...

    async def open_inbound(self, sealed_offer: SignedMessage) -> Inbound:
        """Verify and admit an offer, or raise why not."""
        ...

    async def open_outbound(self, sealed_request: SignedMessage) -> Outbound:
        """Verify a pull request and prepare the transfer, or raise why not."""
        ...


class _PeerService(peer_pb2_grpc.PeerServicer):
    """Behind the doorman: whoever calls may, and what is raised here it tells the caller."""

    def __init__(self, backend: PeerBackend, reader: ReadBackend | None, *, idle_deadline_s: float) -> None:
        self._backend = backend
        self._reader = reader
        self._idle_deadline_s = idle_deadline_s

    async def Hello(self, request: peer_pb2.HelloRequest, context: Context) -> peer_pb2.SignedMessage:
        _check_hello(request)
        return wire.message_to_wire(seal(self._backend.key, self._backend.hello(request.nonce)))

    async def Rotate(self, request: peer_pb2.RotateRequest, context: Context) -> peer_pb2.RotateReply:
        await self._backend.rotate(request.statement, caller_of(context).public)
        return peer_pb2.RotateReply()

    async def Probe(self, request: peer_pb2.ProbeRequest, context: Context) -> peer_pb2.ProbeReply:
        if len(request.payload) > MAX_PROBE_NBYTES:
            raise MalformedMessage(
                f"probe: {len(request.payload)} bytes, at most {MAX_PROBE_NBYTES} are taken"
            )
        return peer_pb2.ProbeReply()

    async def Push(  # type: ignore[override]  # a coroutine: read and write, not iterate
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: Context
    ) -> None:
        stream = FrameStream(context, peer=context.peer(), idle_deadline_s=self._idle_deadline_s)
        inbound = await self._backend.open_inbound(_by_caller(await stream.read_control(), context))
        async with _closing(inbound):
            await receive_memory(stream, inbound, self._backend.pool)

    async def Pull(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: Context
    ) -> None:
        stream = FrameStream(context, peer=context.peer(), idle_deadline_s=self._idle_deadline_s)
        outbound = await self._backend.open_outbound(_by_caller(await stream.read_control(), context))
        async with _closing(outbound):
            await send_memory(stream, outbound)

    async def Read(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peer_pb2.ReadFrame], context: Context
    ) -> None:
        if self._reader is None:
            raise PeerError("this node reads for nobody")
        stream = ReadStream(context, peer=context.peer(), idle_deadline_s=self._idle_deadline_s)
        job = await self._reader.open_reading(_by_caller(await stream.read_control(), context))
        async with _closing(job):
            await answer_readings(stream, job, key=self._reader.key, pool=self._reader.pool)


class PeerServer:
    """The peer API on one port. Without `reader` it serves memories, and reads for nobody."""

    def __init__(self, backend: PeerBackend, gate: Gate, reader: ReadBackend | None = None) -> None:
        self._gate = gate
        self._running = Running()
        limits = gate.limits
        self._server = grpc.aio.server(
            interceptors=(Doorman(gate, self._running),), options=limits.server_options()
        )
        service = _PeerService(backend, reader, idle_deadline_s=limits.idle_deadline_s)
        peer_pb2_grpc.add_PeerServicer_to_server(service, self._server)
        self._server.add_registered_method_handlers(SERVICE, frames_as_bytes(service))  # in their places

    async def start(self, *, host: str, port: int) -> int:
        """Bind and serve; returns the port (asked-for 0 means any). Raises PortInUse."""
        shown = f"[{host}]" if ":" in host else host
        try:
            bound = self._server.add_secure_port(f"{shown}:{port}", self._gate.server_credentials())
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


def frames_as_bytes(service: peer_pb2_grpc.PeerServicer) -> dict[str, grpc.RpcMethodHandler[bytes, bytes]]:
    """The calls that move chunks, without gRPC's serializers: `wire.read_frame` copies less."""
    return {
        PUSH.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(service.Push),
        PULL.rpartition("/")[2]: grpc.stream_stream_rpc_method_handler(service.Pull),
    }


def _check_hello(request: peer_pb2.HelloRequest) -> None:
    require_protocol(request.protocol, who="the calling node")
    if len(request.nonce) != NONCE_NBYTES:
        raise MalformedMessage(f"hello: a nonce of {len(request.nonce)} bytes, wanted {NONCE_NBYTES}")


def _by_caller(sealed: SignedMessage, context: Context) -> SignedMessage:
    """A first message, if the key that signed it is the one that calls: nobody speaks for another."""
    if sealed.signer != caller_of(context).public:
        raise BadSignature(f"{sealed.type:.40}: signed by another key than that of the calling node")
    return sealed


@asynccontextmanager
async def _closing(transfer: Inbound | Outbound | ReadJob) -> AsyncIterator[None]:
    """Close a transfer, or a reading, with what ended it, whatever that is."""
    try:
        yield
    except BaseException as failure:
        await transfer.close(failure)
        raise
    await transfer.close(None)
