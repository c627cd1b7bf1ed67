"""A sender that holds a good key and follows no rules: every frame by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from kvnet.errors import (
    KvnetError,
)
from kvnet.identity.signing import SignedChunk, sign_chunk
from kvnet.transfer.messages import (
    Accept,
    open_sealed,
)
from kvnet.transport.frames import PUSH, FrameStream
from kvnet.types import TransferId, chunk_digest
from kvnet.v1 import peer_pb2
from tests.builders import (
    RECEIVER,
    SENDER,
    wire_chunks,
)
from tests.gates import NAMESPACE, raw_channel
from tests.transport.backend import MEMORY, MemoryOutbound, Pair

OTHER_TRANSFER = TransferId("fedcba9876543210" * 2)


class Attacker:
    """Alice's key and offer, but every frame by hand."""

    def __init__(self, stream: FrameStream, outbound: MemoryOutbound) -> None:
        self.stream = stream
        self.outbound = outbound
        self.session = outbound.session
        _, self.payloads = wire_chunks(MEMORY)

    async def offer(self) -> None:
        """As an honest sender."""
        await self.stream.write_control(self.outbound.sealed_offer)
        accept, _ = open_sealed(Accept, await self.stream.read_control(), signer=RECEIVER.public)
        self.session.accepted(accept)

    def chunk(self, index: int, payload: bytes | None = None, **changes: Any) -> SignedChunk:
        """Signed as it should be, whatever it claims."""
        sent = self.payloads[index] if payload is None else payload
        if payload is not None:
            changes |= {"wire_nbytes": len(sent), "wire_digest": chunk_digest(sent)}
        envelope = replace(self.session.envelope(self.session.chunks[index]), **changes)
        return sign_chunk(SENDER, envelope, sent)

    async def send(self, *indices: int) -> None:
        """Honest chunks."""
        for index in indices:
            await self.stream.write_chunk(self.chunk(index))

    async def raw(self, frame: peer_pb2.Frame) -> None:
        """Any frame at all."""
        await self.stream._write(frame.SerializeToString())

    async def refusal(self) -> KvnetError:
        """Read until the server gives up."""
        try:
            while True:
                await self.stream.read()
        except KvnetError as error:
            return error


@asynccontextmanager
async def attack(pair: Pair, outbound: MemoryOutbound | None = None) -> AsyncIterator[Attacker]:
    async with raw_channel(SENDER, pair.address, RECEIVER.public) as channel:
        call = channel.stream_stream(PUSH)(metadata=NAMESPACE)
        stream = FrameStream(call, peer="bob", idle_deadline_s=5)
        yield Attacker(stream, outbound or pair.alice.outgoing(MEMORY))
        call.cancel()


async def expect_refusal(
    pair: Pair, hostile: Callable[[Attacker], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    """After an honest offer, what is hostile ends the transfer with this error; another one succeeds."""
    async with attack(pair) as alice:
        await alice.offer()
        await hostile(alice)
        assert type(await alice.refusal()) is wanted
    failures = (await pair.bob.settled()).failures
    assert len(failures) == 1
    assert failures != [None]
    assert pair.bob.memories == {}
    await pair.push(pair.alice.outgoing(MEMORY, transfer_id=OTHER_TRANSFER))
