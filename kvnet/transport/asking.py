"""Let a peer read texts: the caller's half of `Read`. Knows frames and deadlines; no models."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from concurrent.futures import Executor
from contextlib import aclosing, contextmanager

from kvnet.errors import MalformedChunk, MalformedMessage, PeerError, PeerUnreachable
from kvnet.identity.keys import NodeKey
from kvnet.transfer.messages import Hello
from kvnet.transport.frames import READING_DEADLINE_S, ReadStream
from kvnet.transport.readings import (
    PIECE_NBYTES,
    WINDOW,
    Asked,
    Reading,
    ReadingHead,
    ReadRequest,
    check_source,
    decode_reading,
    open_head,
    sign_request,
    sign_text,
)

Texts = Iterable[str] | AsyncIterable[str]


async def ask_readings(
    stream: ReadStream, request: ReadRequest, texts: Texts, *, key: NodeKey, hello: Hello, pool: Executor
) -> AsyncGenerator[Reading, None]:
    """The readings of `texts`, in order; as many as the request says, and at most 8 texts ahead.

    `hello` is the peer's. Every reading is verified but for its numbers, which may be NaN or infinite.
    Raises what `open_head` and `decode_reading` raise, naming the peer; RequestError for a text that cannot
    be sent, ValueError where there are fewer texts than requested.
    """
    with _naming(stream.peer):
        check_source(hello)
    sealed, asked = sign_request(key, request)
    await stream.write_control(sealed)
    unanswered: deque[str] = deque()
    num_sent, num_sinks = 0, None
    async with aclosing(_iterate(texts)) as supply:
        for index in range(request.num_texts):
            while num_sent < request.num_texts and len(unanswered) < WINDOW:
                text = await anext(supply, None)
                if text is None:
                    raise ValueError(f"{num_sent} texts, the request says {request.num_texts}")
                # Nothing is read meanwhile: the peer takes in as many without waiting for us.
                await stream.write_control(sign_text(key, asked, num_sent, text))
                unanswered.append(text)
                num_sent += 1
            reading = await _take_reading(stream, asked, index, unanswered.popleft(), hello, pool)
            if num_sinks not in (None, reading.num_sinks):
                raise MalformedMessage(
                    f"{stream.peer}: reading {index}: {reading.num_sinks} sinks, the others had {num_sinks}"
                )
            num_sinks = reading.num_sinks
            yield reading


async def _take_reading(
    stream: ReadStream, asked: Asked, index: int, text: str, hello: Hello, pool: Executor
) -> Reading:
    try:
        async with asyncio.timeout(READING_DEADLINE_S):
            sealed = await stream.read_answer()
            with _naming(stream.peer):
                head = open_head(sealed, asked, index, text, hello)
            payload = await _take_payload(stream, head)
    except TimeoutError as exc:
        raise PeerUnreachable(
            f"{stream.peer}: no whole reading of text {index} within {READING_DEADLINE_S:.0f} s; ask again"
        ) from exc
    num_chars = len(text) + len(asked.request.closing)
    with _naming(stream.peer):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(pool, decode_reading, head, payload, num_chars)


async def _take_payload(stream: ReadStream, head: ReadingHead) -> bytearray:
    payload = bytearray()  # grows by what comes, not by what is promised
    while len(payload) < head.payload_nbytes:
        piece = await stream.read_payload()
        wanted = min(PIECE_NBYTES, head.payload_nbytes - len(payload))
        if len(piece) != wanted:
            raise MalformedChunk(
                f"{stream.peer}: reading {head.index}: a piece of {len(piece)} bytes, wanted {wanted}"
            )
        payload += piece
    return payload


async def _iterate(texts: Texts) -> AsyncGenerator[str, None]:
    if isinstance(texts, AsyncIterable):
        async for text in texts:
            yield text
        return
    for text in texts:
        yield text


@contextmanager
def _naming(peer: str) -> Iterator[None]:
    """Whoever lied is named."""
    try:
        yield
    except PeerError as error:
        raise type(error)(f"{peer}: {error.message}", details=error.details) from error
