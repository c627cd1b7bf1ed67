"""Drive a SenderSession over a frame stream: the same code for Push (caller) and Pull (callee)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from kvnet.errors import MalformedMessage
from kvnet.identity.keys import NodeKey, public_key_of
from kvnet.identity.signing import SignedChunk, SignedMessage, sign_chunk
from kvnet.plan import ChunkKey
from kvnet.transfer.messages import Accept, Receipt, open_sealed, seal
from kvnet.transfer.sender import Part, SenderSession, WireChunk
from kvnet.transport.frames import FrameStream, reading_deadline_s
from kvnet.transport.tasks import run_together

# Before its accept and its receipt, a receiver hashes all that it holds.
RECEIVER_WORK_DEADLINE_S = 300.0


class Outbound(Protocol):
    """A transfer that this node is about to send; the daemon's store stands behind it."""

    session: SenderSession
    sealed_offer: SignedMessage
    key: NodeKey

    def parts(self, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The chunks that the receiver lacks, each as soon as its wire bytes are there, in any order."""
        ...

    async def sealed_head(self) -> SignedMessage:
        """The maker's head of the memory, once all of its parts were given."""
        ...

    async def delivered(self, receipt: SignedMessage) -> None:
        """Keep the receiver's checked receipt; the transfer counts as done once this returns."""
        ...

    async def close(self, failure: BaseException | None) -> None:
        """Release what the transfer holds."""
        ...


@dataclass(frozen=True, slots=True)
class AckProgress:
    """A layer of the memory is durable at the receiver."""

    layer_idx: int
    chunks_done: int
    chunks_total: int
    wire_nbytes: int


@dataclass(frozen=True, slots=True)
class Sent:
    """A finished transfer, from the sender's side."""

    receipt: Receipt
    resumed_chunks: int
    wire_nbytes: int


async def send_memory(
    stream: FrameStream, outbound: Outbound, on_progress: Callable[[AckProgress], None] | None = None
) -> Sent:
    """Offer, wait for the accept, stream what is missing, commit and seal, check and keep the receipt."""
    session = outbound.session
    receiver_key = public_key_of(session.offer.receiver)
    await stream.write_control(outbound.sealed_offer)
    sealed_accept = await stream.read_control(deadline_s=RECEIVER_WORK_DEADLINE_S)
    accept, _ = open_sealed(Accept, sealed_accept, signer=receiver_key)
    missing = session.accepted(accept)
    if missing:
        await run_together(
            _write_chunks(stream, outbound, missing),
            _read_acks(stream, session, on_progress),
        )
    else:
        await _write_chunks(stream, outbound, missing)  # none: but the session hears of all of them
    await stream.write_control(seal(outbound.key, session.commit()))
    await stream.write_control(await outbound.sealed_head())
    sealed_receipt = await stream.read_control(deadline_s=RECEIVER_WORK_DEADLINE_S)
    receipt, _ = open_sealed(Receipt, sealed_receipt, signer=receiver_key)
    session.finish(receipt)
    await outbound.delivered(sealed_receipt)
    return Sent(receipt, session.resumed_count, session.wire_nbytes(key.index for key in missing))


async def _write_chunks(stream: FrameStream, outbound: Outbound, missing: Sequence[ChunkKey]) -> None:
    async with aclosing(outbound.parts(missing)) as parts:
        async for chunk, payload in parts:
            await stream.write_chunk(_bind(outbound, chunk, payload))


def _bind(outbound: Outbound, chunk: WireChunk, payload: bytes | memoryview) -> SignedChunk:
    return sign_chunk(outbound.key, outbound.session.envelope(chunk), payload)


async def _read_acks(
    stream: FrameStream, session: SenderSession, on_progress: Callable[[AckProgress], None] | None
) -> None:
    pending_layers = {key.layer_idx for key in session.plan}
    deadline_s = reading_deadline_s(session.offer.memory)
    acked_nbytes = 0
    complete = False
    while not complete:
        indices = await stream.read(deadline_s=deadline_s)
        if not isinstance(indices, list):
            raise MalformedMessage("expected acknowledgements, got another frame")
        complete = session.acked(indices)
        acked_nbytes += session.wire_nbytes(indices)
        done = sorted(layer for layer in pending_layers if session.layer_done(layer))
        pending_layers.difference_update(done)
        for layer_idx in done:
            if on_progress is not None:
                on_progress(AckProgress(layer_idx, session.acked_count, len(session.plan), acked_nbytes))
        await asyncio.sleep(0)
