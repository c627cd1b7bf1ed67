"""The peer API's server: who may call, and which driver answers. Knows gRPC; no store, no model."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from typing import Any, Protocol

import grpc

from kvnet import wire
from kvnet.errors import KvnetError, MalformedMessage, PortInUse, ProtocolMismatch
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import PROTOCOL_VERSION, Hello, seal
from kvnet.transport.frames import CHANNEL_OPTIONS, FrameStream
from kvnet.transport.receiving import Inbound, receive_memory
from kvnet.transport.sending import Outbound, send_memory
from kvnet.v1 import peer_pb2, peer_pb2_grpc

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
    def __init__(self, backend: PeerBackend) -> None:
        self._backend = backend

    async def Hello(  # the name is the proto's
        self, request: peer_pb2.HelloRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> peer_pb2.SignedMessage:
        try:
            if request.protocol != PROTOCOL_VERSION:
                raise ProtocolMismatch(
                    f"protocol {request.protocol}: this node speaks {PROTOCOL_VERSION}; "
                    "install the same kvnet on both"
                )
            if len(request.nonce) != NONCE_NBYTES:
                raise MalformedMessage(f"hello: a nonce of {len(request.nonce)} bytes, wanted {NONCE_NBYTES}")
            return wire.message_to_wire(seal(self._backend.key, self._backend.hello(request.nonce)))
        except KvnetError as error:
            await _abort(context, error)
            raise

    async def Push(  # type: ignore[override]  # a coroutine: read and write, not iterate
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        stream = FrameStream(context, peer=context.peer())
        inbound: Inbound | None = None
        failure: BaseException | None = None
        try:
            inbound = await self._backend.open_inbound(await stream.read_control())
            await receive_memory(stream, inbound, self._backend.pool)
        except BaseException as error:
            failure = error
            if not isinstance(error, KvnetError):
                raise
        finally:
            if inbound is not None:
                await inbound.close(failure)
        if isinstance(failure, KvnetError):
            await _abort(context, failure)

    async def Pull(  # type: ignore[override]
        self, request_iterator: AsyncIterator[peer_pb2.Frame], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        stream = FrameStream(context, peer=context.peer())
        outbound: Outbound | None = None
        failure: BaseException | None = None
        try:
            outbound = await self._backend.open_outbound(await stream.read_control())
            await send_memory(stream, outbound)
        except BaseException as error:
            failure = error
            if not isinstance(error, KvnetError):
                raise
        finally:
            if outbound is not None:
                await outbound.close(failure)
        if isinstance(failure, KvnetError):
            await _abort(context, failure)


async def serve_peers(backend: PeerBackend, *, host: str, port: int) -> tuple[grpc.aio.Server, int]:
    """Start the peer server; returns it with the port it got (asked-for 0 means any).

    Raises PortInUse.
    """
    server = grpc.aio.server(
        options=SERVER_OPTIONS,
        maximum_concurrent_rpcs=MAX_CONCURRENT_RPCS,
    )
    peer_pb2_grpc.add_PeerServicer_to_server(_PeerService(backend), server)
    shown = f"[{host}]" if ":" in host else host
    try:
        bound = server.add_insecure_port(f"{shown}:{port}")
    except RuntimeError as exc:
        raise PortInUse(
            f"peer port {shown}:{port}: cannot be bound; stop what uses it, or choose another with --listen"
        ) from exc
    await server.start()
    return server, bound


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: KvnetError) -> None:
    code, details, metadata = wire.error_to_status(error)
    await context.abort(code, details, metadata)
