"""Drive a ReceiverSession over a frame stream: the same code for Push (callee) and Pull (caller)."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Protocol

from kvnet.errors import MalformedMessage
from kvnet.identity.keys import NodeKey, public_key_of
from kvnet.identity.seal import VerifiedHead, verify_head
from kvnet.identity.signing import SignedChunk, SignedMessage, VerifiedChunk, verify_chunk
from kvnet.transfer.messages import Commit, open_sealed, seal
from kvnet.transfer.receiver import AlreadyHeld, ReceiverSession, StoreChunk
from kvnet.transport.budgets import ByteBudget, ByteShare
from kvnet.transport.frames import FrameStream, reading_deadline_s
from kvnet.transport.tasks import run_together

MAX_WAITING_CHUNKS = 8  # that are being verified, and as many that wait for the disk


class Inbound(Protocol):
    """An admitted transfer on its way in; the daemon's store stands behind it."""

    session: ReceiverSession
    key: NodeKey
    unstored: ByteBudget  # of all that is on its way in and not durable

    async def use(self, chunk: VerifiedChunk) -> None:
        """Let whoever uses the memory meanwhile have a new chunk: verified, and not durable yet."""
        ...

    async def store(self, chunks: list[VerifiedChunk]) -> None:
        """Make chunks durable; they are on disk when this returns."""
        ...

    async def finish(self, head: VerifiedHead) -> SignedMessage:
        """Turn the complete transfer into a memory under this head, durably; returns the sealed receipt."""
        ...

    async def close(self, error: BaseException | None) -> None:
        """Release what the transfer holds; what is durable stays for a resume."""
        ...


_Verifying = asyncio.Future[VerifiedChunk]


async def receive_memory(stream: FrameStream, inbound: Inbound, pool: Executor) -> None:
    """Accept, take chunks until all are durable, check commit and seal, answer with the receipt."""
    session = inbound.session
    await stream.write_control(seal(inbound.key, session.accept()))
    waiting: asyncio.Queue[_Verifying | None] = asyncio.Queue(maxsize=MAX_WAITING_CHUNKS)
    admitted: asyncio.Queue[StoreChunk | AlreadyHeld | None] = asyncio.Queue(maxsize=MAX_WAITING_CHUNKS)
    commits: list[SignedMessage] = []
    with inbound.unstored.share() as share:
        try:
            await run_together(
                _read_chunks(stream, session, waiting, commits, pool, share),
                _admit_chunks(inbound, waiting, admitted),
                _store_chunks(stream, inbound, admitted, share),
            )
        finally:
            while not waiting.empty():
                _forsake(waiting.get_nowait())
    commit, _ = open_sealed(Commit, commits[0], signer=public_key_of(session.offer.sender))
    session.commit(commit)
    sealed_head = await stream.read_control()
    # A head of a MiB takes longer to parse than a turn of the loop may.
    head = await asyncio.get_running_loop().run_in_executor(pool, verify_head, sealed_head)
    session.check_seal(head)
    await stream.write_control(await inbound.finish(head))


async def _read_chunks(
    stream: FrameStream,
    session: ReceiverSession,
    waiting: asyncio.Queue[_Verifying | None],
    commits: list[SignedMessage],
    pool: Executor,
    share: ByteShare,
) -> None:
    loop = asyncio.get_running_loop()
    deadline_s = reading_deadline_s(session.offer.memory)
    while not commits:
        frame = await stream.read(deadline_s=deadline_s)
        if isinstance(frame, SignedMessage):
            commits.append(frame)
        elif isinstance(frame, SignedChunk):
            # While there is no room nothing more is read, and HTTP/2 has the sender wait.
            await share.take(len(frame.payload))
            # Hashing a MiB takes longer than a turn of the loop may; the next one is read meanwhile.
            await waiting.put(loop.run_in_executor(pool, verify_chunk, frame, session.binding))
        else:
            raise MalformedMessage("expected a chunk or a commit, got acknowledgements")
    await waiting.put(None)


async def _admit_chunks(
    inbound: Inbound,
    waiting: asyncio.Queue[_Verifying | None],
    admitted: asyncio.Queue[StoreChunk | AlreadyHeld | None],
) -> None:
    """Decide on each chunk as it is verified, and have it used at once: the disk is slower."""
    while (item := await waiting.get()) is not None:
        decided = inbound.session.receive(await item)
        if isinstance(decided, StoreChunk):
            await inbound.use(decided.chunk)
        await admitted.put(decided)
    await admitted.put(None)


async def _store_chunks(
    stream: FrameStream,
    inbound: Inbound,
    admitted: asyncio.Queue[StoreChunk | AlreadyHeld | None],
    share: ByteShare,
) -> None:
    """Store what came as it came: everything that waits is one batch, so that one sync serves all of it."""
    session, ended = inbound.session, False
    while not ended:
        batch: list[StoreChunk | AlreadyHeld] = []
        item = await admitted.get()
        while item is not None:
            batch.append(item)
            if admitted.empty() or len(batch) == MAX_WAITING_CHUNKS:
                break
            item = admitted.get_nowait()
        ended = item is None
        fresh = [decided.chunk for decided in batch if isinstance(decided, StoreChunk)]
        repeated = [decided for decided in batch if isinstance(decided, AlreadyHeld)]
        if fresh:
            await inbound.store(fresh)
        share.give_back(sum(chunk.envelope.wire_nbytes for chunk in fresh))
        share.give_back(sum(again.wire_nbytes for again in repeated))
        for chunk in fresh:
            session.durable(chunk.envelope.key.index)
        if batch:
            indices = [chunk.envelope.key.index for chunk in fresh]
            await stream.write_ack(indices + [again.index for again in repeated])


def _forsake(verifying: _Verifying | None) -> None:
    """Nobody waits for it any more: it is not begun if it can be helped, and its failure is nobody's."""
    if verifying is not None and not verifying.cancel():
        verifying.add_done_callback(lambda done: done.cancelled() or done.exception())
