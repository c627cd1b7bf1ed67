"""The peer API's client: dial a node, be sure it is that node, push to it, pull from it, let it read."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import aclosing, asynccontextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc

from kvnet import wire
from kvnet.errors import BadSignature, KvnetError, PeerNotAdded, ReplayedMessage, WrongPeer
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import PROTOCOL_VERSION, Hello, open_sealed, require_protocol
from kvnet.transport.asking import Texts, ask_readings
from kvnet.transport.doorman import NAMESPACE_KEY
from kvnet.transport.frames import PULL, PUSH, FrameStream, ReadStream
from kvnet.transport.gate import Gate
from kvnet.transport.readings import Reading, ReadRequest
from kvnet.transport.receiving import Inbound, receive_memory
from kvnet.transport.security import who_answers
from kvnet.transport.sending import AckProgress, Outbound, Sent, send_memory
from kvnet.v1 import peer_pb2, peer_pb2_grpc

CLOSE_DEADLINE_S = 10.0
PROBE_DEADLINE_S = 30.0

InboundT = TypeVar("InboundT", bound=Inbound)
StreamT = TypeVar("StreamT", FrameStream, ReadStream)


class PeerClient:
    """A channel to one address, where `public` is the only key that may answer."""

    def __init__(self, address: str, *, public: bytes, peer: str, gate: Gate) -> None:
        self._address = address
        self._public = public
        self._peer = peer
        self._gate = gate
        self._metadata = ((NAMESPACE_KEY, gate.namespace.encode()),)
        self._channel = gate.channel(address, public)
        self._stub = peer_pb2_grpc.PeerStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the connection and every call on it."""
        await self._channel.close()

    async def hello(self, *, deadline_s: float = 0.0) -> Hello:
        """Ask who answers; without a deadline of its own within that of every call that is no stream.

        Raises WrongPeer when it is not the key that was dialled, PeerNotAdded when that node does not let
        this one in, WrongNamespace, PeerUnreachable.
        """
        deadline_s = deadline_s or self._gate.limits.unary_deadline_s
        try:
            return await self._hello(deadline_s)
        except _NoConnection as broken:
            shown = await who_answers(self._address)
            if shown is None:
                raise broken.error from broken.__cause__
        if shown.public != self._public:
            raise WrongPeer(
                f"{self._peer}: another node answers at this address; check the address, or the id given"
            )
        # It is there, and TLS has no words for a refusal. It may only just have come up: once more, anew.
        await self._channel.close()
        self._channel = self._gate.channel(self._address, self._public)
        self._stub = peer_pb2_grpc.PeerStub(self._channel)
        try:
            return await self._hello(deadline_s)
        except _NoConnection as broken:
            raise PeerNotAdded(
                f"{self._peer}: does not let this node in; "
                f"run there: kvnet peer add HOST:PORT --id {self._gate.node_id}"
            ) from broken.__cause__

    async def _hello(self, deadline_s: float) -> Hello:
        nonce = os.urandom(16)
        request = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=nonce)
        try:
            reply = await self._stub.Hello(request, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as exc:
            error = wire.peer_status_to_error(exc, peer=self._peer)
            if exc.code() is grpc.StatusCode.UNAVAILABLE and not wire.carries_error(exc):
                raise _NoConnection(error) from exc
            raise error from exc
        sealed = wire.message_from_wire(reply)
        hello = _check_hello(sealed, nonce=nonce, public=self._public, peer=self._peer)
        self._gate.check_namespace(hello.namespace, who=self._peer)
        return hello

    async def rotate(self, statement: bytes) -> None:
        """Show the peer what this node's old key, under which it calls, has signed for its new one."""
        request = peer_pb2.RotateRequest(statement=statement)
        try:
            deadline_s = self._gate.limits.unary_deadline_s
            await self._stub.Rotate(request, timeout=deadline_s, metadata=self._metadata)
        except grpc.RpcError as exc:
            raise wire.peer_status_to_error(exc, peer=self._peer) from exc

    async def probe(self, payload: bytes) -> None:
        """Send at most a MiB that means nothing; returns when the peer has it. Raises PeerUnreachable."""
        request = peer_pb2.ProbeRequest(payload=payload)
        try:
            await self._stub.Probe(request, timeout=PROBE_DEADLINE_S, metadata=self._metadata)
        except grpc.RpcError as exc:
            raise wire.peer_status_to_error(exc, peer=self._peer) from exc

    async def push(
        self, outbound: Outbound, on_progress: Callable[[AckProgress], None] | None = None
    ) -> Sent:
        """Send a memory."""
        async with self._stream(FrameStream, self._frames(PUSH)) as stream:
            return await send_memory(stream, outbound, on_progress)

    async def pull(
        self,
        sealed_request: SignedMessage,
        open_inbound: Callable[[SignedMessage], Awaitable[InboundT]],
        pool: Executor,
    ) -> InboundT:
        """Fetch a memory: ask for it, then take the peer's offer as any other."""
        async with self._stream(FrameStream, self._frames(PULL)) as stream:
            await stream.write_control(sealed_request)
            inbound = await open_inbound(await stream.read_control())
            failure: BaseException | None = None
            try:
                await receive_memory(stream, inbound, pool)
            except BaseException as error:
                failure = error
                raise
            finally:
                await inbound.close(failure)
                failure = None  # else it and this frame hold one another, and the call, until a collection
            return inbound

    async def read_texts(
        self, request: ReadRequest, texts: Texts, *, key: NodeKey, hello: Hello, pool: Executor
    ) -> AsyncGenerator[Reading, None]:
        """Let the peer read texts with its model; `hello` is its own. Raises as `ask_readings`.

        Leave the loop through `contextlib.aclosing`, or be cancelled: the peer stops reading at once.
        """
        async with self._stream(ReadStream, self._stub.Read(metadata=self._metadata)) as stream:
            readings = ask_readings(stream, request, texts, key=key, hello=hello, pool=pool)
            async with aclosing(readings):
                async for reading in readings:
                    yield reading

    def _frames(self, method: str) -> grpc.aio.StreamStreamCall[bytes, bytes]:
        return self._channel.stream_stream(method)(metadata=self._metadata)

    @asynccontextmanager
    async def _stream(
        self, kind: type[StreamT], call: grpc.aio.StreamStreamCall[Any, Any]
    ) -> AsyncIterator[StreamT]:
        stream = kind(call, peer=self._peer, idle_deadline_s=self._gate.limits.idle_deadline_s)
        call.add_done_callback(stream.ended)

        def cut() -> None:
            stream.cut(PeerNotAdded(f"{self._peer}: is trusted no longer; this call was ended"))
            call.cancel()

        try:
            with self._gate.open(self._public, cut):
                yield stream
            # Let the server finish, else the stream ends as cancelled there. All that matters is done:
            # a link that dies now, by whatever exception grpcio has for it, must not undo it.
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await call.done_writing()
                    await call.code()
        finally:
            call.cancel()
            stream.let_go()


class _NoConnection(Exception):  # never leaves this module
    """No connection came about; `error` says what gRPC knows of it."""

    def __init__(self, error: KvnetError) -> None:
        super().__init__(error.message)
        self.error = error


def _check_hello(sealed: SignedMessage, *, nonce: bytes, public: bytes, peer: str) -> Hello:
    if sealed.signer != public:
        raise WrongPeer(f"{peer}: another node answers at this address; check the address, or the id given")
    hello, verified = open_sealed(Hello, sealed, signer=public)
    if hello.node_id != verified.signer:
        raise BadSignature(f"{peer}: says it is {short_id(hello.node_id)} but signs as another key")
    if hello.nonce != nonce.hex():
        raise ReplayedMessage(f"{peer}: answered with a hello made for another caller")
    require_protocol(hello.protocol, who=peer)
    return hello
