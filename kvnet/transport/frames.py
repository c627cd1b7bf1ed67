"""Bidirectional streams of frames with a deadline on every read and write, alike on both ends."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, ClassVar, Final, Protocol

import grpc

from kvnet import wire
from kvnet.errors import KvnetError, MalformedMessage, PeerUnreachable, TransferIncomplete
from kvnet.identity.signing import SignedChunk, SignedMessage
from kvnet.types import MemoryHeader
from kvnet.v1 import peer_pb2

IDLE_DEADLINE_S: Final = 20.0
READING_DEADLINE_S: Final = 120.0  # one text, from the reading before it to its own
MAX_MESSAGE_NBYTES = 4 << 20

# The calls whose messages are frames, as bytes.
PUSH = "/kvnet.v1.Peer/Push"
PULL = "/kvnet.v1.Peer/Pull"

CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_NBYTES),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # a peer on the LAN is never behind the web's proxy
)


def reading_deadline_s(memory: MemoryHeader) -> float:
    """How long a peer may take for the next part of a memory: one that is still read comes as it is read.

    0 is the stream's own deadline.
    """
    return READING_DEADLINE_S if memory.is_open else 0.0


class Call(Protocol):
    """What grpc.aio's client call and servicer context have in common."""

    async def read(self) -> Any: ...

    async def write(self, message: Any) -> None: ...


class _Stream:
    """Frames out and in. Errors of the transport leave as KvnetError; `_again` says what to do then."""

    _again: ClassVar[str]

    def __init__(self, call: Call, *, peer: str, idle_deadline_s: float = IDLE_DEADLINE_S) -> None:
        self.peer = peer
        self._call = call
        self._idle_deadline_s = idle_deadline_s
        self._end: KvnetError | None = None
        self._cut: KvnetError | None = None

    def cut(self, reason: KvnetError) -> None:
        """From now on every read and write raises `reason`; whoever calls this cancels the call."""
        self._cut = reason

    def let_go(self) -> None:
        """Hold the call no longer: it holds `ended`, and both would keep the connection till a collection."""
        del self._call

    def ended(self, call: Any) -> None:
        """Done callback of a client's call: keep the reason that the peer gave for ending it.

        A write that finds the stream gone puts INTERNAL over that status (grpc/grpc#36066).
        """
        try:
            call.trailing_metadata().send(None)  # the status is here: nothing is waited for
        except StopIteration as found:
            self._end = self._end or wire.peer_refusal(found.value, peer=self.peer)

    async def _read(self, *, deadline_s: float) -> Any:
        frame = await self._within(deadline_s, self._call.read())
        if frame is grpc.aio.EOF:
            raise TransferIncomplete(f"{self.peer}: ended the stream early; {self._again}")
        return frame

    async def _write(self, frame: Any, *, deadline_s: float = 0.0) -> None:
        await self._within(deadline_s, self._call.write(frame))

    async def _within(self, deadline_s: float, step: Awaitable[Any]) -> Any:
        wait_s = max(deadline_s, self._idle_deadline_s)
        try:
            async with asyncio.timeout(wait_s):
                return await step
        except TimeoutError as exc:
            raise self._silence(wait_s) from exc
        except asyncio.CancelledError:
            if self._cut is None:
                raise
            raise self._cut from None  # the call was cancelled, not the task
        except grpc.RpcError as exc:
            raise self._cut or self._end or wire.peer_status_to_error(exc, peer=self.peer) from exc
        except (asyncio.InvalidStateError, grpc.aio.InternalError) as exc:  # the latter in a server's write
            gone = PeerUnreachable(f"{self.peer}: closed the stream; {self._again}")
            raise self._cut or self._end or gone from exc

    def _silence(self, wait_s: float) -> KvnetError:
        return PeerUnreachable(f"{self.peer}: silent for {wait_s:.0f} s; check the link and {self._again}")


class FrameStream(_Stream):
    """The frames of a transfer. Its call hands over bytes as they are, without gRPC's serializers."""

    _again = "send again to resume"

    async def write_control(self, message: SignedMessage) -> None:
        """Send a signed control message."""
        await self._write(wire.frame_of_control(message))

    async def write_chunk(self, chunk: SignedChunk) -> None:
        """Send a signed chunk."""
        await self._write(wire.frame_of_chunk(chunk))

    async def write_ack(self, indices: list[int]) -> None:
        """Tell the sender which chunks are durable."""
        await self._write(wire.frame_of_ack(indices))

    async def read(self, *, deadline_s: float = 0.0) -> SignedMessage | SignedChunk | list[int]:
        """The next frame: a control message, a chunk, or acknowledged indices.

        Raises TransferIncomplete when the other side ends the stream, PeerUnreachable on silence.
        """
        found = wire.read_frame(await self._read(deadline_s=deadline_s))
        if found is None:
            raise MalformedMessage(f"{self.peer}: sent an empty frame")
        return found

    async def read_control(self, *, deadline_s: float = 0.0) -> SignedMessage:
        """The next frame, which must be a control message."""
        frame = await self.read(deadline_s=deadline_s)
        if not isinstance(frame, SignedMessage):
            raise MalformedMessage(f"{self.peer}: expected a control message, got another frame")
        return frame


class ReadStream(_Stream):
    """The frames of a reading. Writes wait long: between two readings the other side computes."""

    _again = "ask again"

    async def write_control(self, message: SignedMessage) -> None:
        """Send a signed control message."""
        frame = peer_pb2.ReadFrame(control=wire.message_to_wire(message))
        await self._write(frame, deadline_s=READING_DEADLINE_S)

    async def write_payload(self, piece: bytes) -> None:
        """Send a piece of a payload."""
        await self._write(peer_pb2.ReadFrame(payload=piece), deadline_s=READING_DEADLINE_S)

    async def read_control(self, *, deadline_s: float = 0.0) -> SignedMessage:
        """The next frame, which must be a control message. Raises as FrameStream's."""
        return self._control(await self._read(deadline_s=deadline_s))

    async def write_refusal(self, error: KvnetError) -> None:
        """Say why there will be no more readings."""
        _, _, ((_, packed),) = wire.error_to_status(error)
        await self._write(peer_pb2.ReadFrame(refusal=packed), deadline_s=READING_DEADLINE_S)

    async def read_answer(self) -> SignedMessage:
        """What a peer says of the next text: `read_control` with time to read it, or its refusal, raised."""
        return self._control(self._unless_refused(await self._read(deadline_s=READING_DEADLINE_S)))

    async def read_payload(self) -> bytes:
        """The next frame, which must be a piece of a payload; a refusal is raised. Else as FrameStream's."""
        frame = self._unless_refused(await self._read(deadline_s=0.0))
        if frame.WhichOneof("frame") != "payload":
            raise MalformedMessage(f"{self.peer}: expected a piece of a payload, got another frame")
        piece: bytes = frame.payload
        return piece

    def _unless_refused(self, frame: peer_pb2.ReadFrame) -> peer_pb2.ReadFrame:
        if frame.WhichOneof("frame") == "refusal":
            said = wire.peer_refusal(((wire.ERROR_METADATA_KEY, frame.refusal),), peer=self.peer)
            raise said or MalformedMessage(f"{self.peer}: sent a refusal that is none")
        return frame

    def _control(self, frame: peer_pb2.ReadFrame) -> SignedMessage:
        if frame.WhichOneof("frame") != "control":
            raise MalformedMessage(f"{self.peer}: expected a control message, got another frame")
        return wire.message_from_wire(frame.control)
