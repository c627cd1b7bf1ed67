"""Read texts for a peer: the callee's half of `Read`. Knows frames and queues; no models."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor
from typing import Final, Protocol

from kvnet.errors import CapacityError, KvnetError, MalformedMessage, PeerError, RequestError
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import seal
from kvnet.transport.frames import READING_DEADLINE_S, ReadStream
from kvnet.transport.readings import PIECE_NBYTES, WINDOW, Asked, Reading, encode_reading, open_text
from kvnet.transport.tasks import run_together

LEAVE_DEADLINE_S: Final = 10.0
MAX_UNSENT: Final = 2  # readings that wait for a slow caller, beside the one on its way


class ReadJob(Protocol):
    """An admitted request; the daemon's model stands behind it."""

    asked: Asked

    async def read(self, index: int, text: str) -> Reading:
        """Read a text and the request's closing. Raises TextTooLong, RequestError, PeerNotAdded."""
        ...

    def withdrawn(self) -> KvnetError | None:
        """Why this caller is read for no longer: trust or permission that it lost meanwhile."""
        ...

    async def close(self, failure: BaseException | None) -> None:
        """Release what the request holds."""
        ...


class ReadBackend(Protocol):
    """What the server asks of the daemon."""

    key: NodeKey
    pool: Executor

    async def open_reading(self, sealed_request: SignedMessage) -> ReadJob:
        """Verify and admit a request, or raise why not."""
        ...


_Read = tuple[Reading, str] | KvnetError


async def answer_readings(stream: ReadStream, job: ReadJob, *, key: NodeKey, pool: Executor) -> None:
    """Take texts, read them and send the readings, each while the others go on."""
    texts: asyncio.Queue[str] = asyncio.Queue(WINDOW)
    readings: asyncio.Queue[_Read] = asyncio.Queue(MAX_UNSENT)
    await run_together(
        _take_texts(stream, job.asked, texts),
        _read_texts(job, texts, readings),
        _send_readings(stream, job, readings, key, pool),
    )


async def _take_texts(stream: ReadStream, asked: Asked, texts: asyncio.Queue[str]) -> None:
    for index in range(asked.request.num_texts):
        sealed = await stream.read_control(deadline_s=READING_DEADLINE_S)
        text = open_text(sealed, asked, index)
        try:
            texts.put_nowait(text)
        except asyncio.QueueFull:
            raise MalformedMessage(f"text {index}: more than {WINDOW} are without an answer") from None


async def _read_texts(job: ReadJob, texts: asyncio.Queue[str], readings: asyncio.Queue[_Read]) -> None:
    for index in range(job.asked.request.num_texts):
        text = await texts.get()
        try:
            reading = await job.read(index, text)
        except (RequestError, PeerError, CapacityError) as error:
            await readings.put(type(error)(f"text {index}: {error.message}"))
            return
        await readings.put((reading, text))


async def _send_readings(
    stream: ReadStream, job: ReadJob, readings: asyncio.Queue[_Read], key: NodeKey, pool: Executor
) -> None:
    loop = asyncio.get_running_loop()
    for _ in range(job.asked.request.num_texts):
        read = await readings.get()
        if isinstance(read, KvnetError):
            await _refuse(stream, read)
            raise read
        reading, text = read
        # Hashing a MiB takes longer than a turn of the loop may.
        head, payload = await loop.run_in_executor(pool, encode_reading, reading, job.asked, text)
        await _go_on(stream, job)
        await stream.write_control(seal(key, head))
        for start in range(0, len(payload), PIECE_NBYTES):
            await _go_on(stream, job)
            await stream.write_payload(payload[start : start + PIECE_NBYTES])


async def _go_on(stream: ReadStream, job: ReadJob) -> None:
    """Before each frame, as a stream that is cut ends later than the trust in its caller (doorman)."""
    withdrawn = job.withdrawn()
    if withdrawn is not None:
        await _refuse(stream, withdrawn)
        raise withdrawn


async def _refuse(stream: ReadStream, error: KvnetError) -> None:
    await stream.write_refusal(error)
    # The caller leaves when it comes to this. A status now could overtake what it has not taken in: to
    # grpcio, a write that finds the stream gone is the end of what was still to be read.
    await asyncio.sleep(LEAVE_DEADLINE_S)
