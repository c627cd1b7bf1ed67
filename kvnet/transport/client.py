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
from kvnet.errors import BadSignature, ReplayedMessage, WrongPeer
from kvnet.identity.keys import NodeKey, short_id
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import PROTOCOL_VERSION, Hello, open_sealed, require_protocol
from kvnet.transport.asking import Texts, ask_readings
from kvnet.transport.frames import CHANNEL_OPTIONS, FrameStream, ReadStream
from kvnet.transport.readings import Reading, ReadRequest
from kvnet.transport.receiving import Inbound, receive_memory
from kvnet.transport.sending import AckProgress, Outbound, Sent, send_memory
from kvnet.v1 import peer_pb2, peer_pb2_grpc

HELLO_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 10.0

InboundT = TypeVar("InboundT", bound=Inbound)
StreamT = TypeVar("StreamT", FrameStream, ReadStream)


class PeerClient:
    """A channel to one address. `public`, when given, is the only key that may answer there."""

    def __init__(self, address: str, *, public: bytes | None, peer: str) -> None:
        self._channel = grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        self._stub = peer_pb2_grpc.PeerStub(self._channel)
        self._public = public
        self._peer = peer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def hello(self, *, deadline_s: float = HELLO_DEADLINE_S) -> Hello:
        """Ask who answers. Raises WrongPeer when it is not the key that was dialled."""
        nonce = os.urandom(16)
        request = peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=nonce)
        try:
            reply = await self._stub.Hello(request, timeout=deadline_s)
        except grpc.RpcError as exc:
            raise wire.peer_status_to_error(exc, peer=self._peer) from exc
        return _check_hello(wire.message_from_wire(reply), nonce=nonce, public=self._public, peer=self._peer)

    async def push(
        self, outbound: Outbound, on_progress: Callable[[AckProgress], None] | None = None
    ) -> Sent:
        """Send a memory."""
        async with self._stream(FrameStream, self._stub.Push()) as stream:
            return await send_memory(stream, outbound, on_progress)

    async def pull(
        self,
        sealed_request: SignedMessage,
        open_inbound: Callable[[SignedMessage], Awaitable[InboundT]],
        pool: Executor,
    ) -> InboundT:
        """Fetch a memory: ask for it, then take the peer's offer as any other."""
        async with self._stream(FrameStream, self._stub.Pull()) as stream:
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
            return inbound

    async def read_texts(
        self, request: ReadRequest, texts: Texts, *, key: NodeKey, hello: Hello, pool: Executor
    ) -> AsyncGenerator[Reading, None]:
        """Let the peer read texts with its model; `hello` is its own. Raises as `ask_readings`.

        Leave the loop through `contextlib.aclosing`, or be cancelled: the peer stops reading at once.
        """
        async with self._stream(ReadStream, self._stub.Read()) as stream:
            readings = ask_readings(stream, request, texts, key=key, hello=hello, pool=pool)
            async with aclosing(readings):
                async for reading in readings:
                    yield reading

    @asynccontextmanager
    async def _stream(
        self, kind: type[StreamT], call: grpc.aio.StreamStreamCall[Any, Any]
    ) -> AsyncIterator[StreamT]:
        try:
            stream = kind(call, peer=self._peer)
            call.add_done_callback(stream.ended)
            yield stream
            # Let the server finish, else the stream ends as cancelled there. All that matters is done:
            # a link that dies now, by whatever exception grpcio has for it, must not undo it.
            with suppress(Exception):
                async with asyncio.timeout(CLOSE_DEADLINE_S):
                    await call.done_writing()
                    await call.code()
        finally:
            call.cancel()


def _check_hello(sealed: SignedMessage, *, nonce: bytes, public: bytes | None, peer: str) -> Hello:
    if public is not None and sealed.signer != public:
        raise WrongPeer(f"{peer}: another node answers at this address; check the address, or the id given")
    hello, verified = open_sealed(Hello, sealed, signer=public)
    if hello.node_id != verified.signer:
        raise BadSignature(f"{peer}: says it is {short_id(hello.node_id)} but signs as another key")
    if hello.nonce != nonce.hex():
        raise ReplayedMessage(f"{peer}: answered with a hello made for another caller")
    require_protocol(hello.protocol, who=peer)
    return hello
