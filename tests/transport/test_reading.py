"""Reading for a peer between honest nodes: what comes, how far texts run ahead, and how it is broken off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import aclosing
from typing import Any

import pytest

from kvnet.errors import PeerError, PeerNotAdded, PeerUnreachable, RequestError, TransferIncomplete
from kvnet.transport.frames import ReadStream
from kvnet.transport.readings import MAX_TEXT_NBYTES, PIECE_NBYTES, WINDOW
from kvnet.transport.server import PeerServer
from tests.builders import RECEIVER, SENDER
from tests.gates import gate_of
from tests.transport.backend import MemoryNode
from tests.transport.readers import TEXTS, Reader, make_reading, make_request, reader_of

LEFT = (asyncio.CancelledError, TransferIncomplete, PeerUnreachable)  # whichever the server sees first


@pytest.fixture
async def reader(pool: Executor) -> AsyncIterator[Reader]:
    async with reader_of(pool) as found:
        yield found


async def test_readings_come_in_the_order_of_the_texts(reader: Reader) -> None:
    assert await reader.ask() == [make_reading(index, text) for index, text in enumerate(TEXTS)]
    assert await reader.ended() is None


async def test_reading_of_several_pieces_arrives_whole(pool: Executor) -> None:
    wide = {"num_kv_heads": 64, "head_dim": 256}
    async with reader_of(pool, **wide) as reader:
        (found,) = await reader.ask([TEXTS[2]], num_texts=1)
    assert found == make_reading(0, TEXTS[2], **wide)
    assert found.memory.header.raw_nbytes > 2 * PIECE_NBYTES


@pytest.mark.parametrize("frames", [0, 1, 2])
async def test_not_a_frame_is_sent_once_trust_has_ended_be_it_within_a_reading(
    pool: Executor, monkeypatch: pytest.MonkeyPatch, frames: int
) -> None:
    written: list[str] = []
    real = ReadStream._write

    async def write(stream: ReadStream, frame: Any, **options: Any) -> None:
        written.append(frame.WhichOneof("frame"))
        await real(stream, frame, **options)

    monkeypatch.setattr(ReadStream, "_write", write)
    async with reader_of(pool, num_kv_heads=64, head_dim=256) as reader:
        reader.alice.trusted_for = frames
        with pytest.raises(PeerNotAdded, match=r"alice.*bob: was revoked"):
            await reader.ask([TEXTS[2]], num_texts=1)
    assert written == ["control", "control", *["control", "payload", "payload"][:frames], "refusal"]


async def test_texts_may_come_from_an_async_iterable_without_an_end(reader: Reader) -> None:
    async def supply() -> AsyncIterator[str]:
        while True:
            yield "salt"

    found = await reader.ask(supply(), num_texts=30)
    assert [reading.index for reading in found] == list(range(30))


async def test_longest_texts_fill_the_window_without_a_deadlock(reader: Reader) -> None:
    words = ("salt " * MAX_TEXT_NBYTES)[:MAX_TEXT_NBYTES].rstrip()
    reader.alice.may_read.clear()
    texts = [words] * (WINDOW + 2)
    reading = asyncio.create_task(reader.ask(texts, num_texts=len(texts)))
    await asyncio.sleep(0.05)
    reader.alice.may_read.set()
    # As long as the model of the hello takes it; what counts is that it was read at all.
    with pytest.raises(PeerError, match="context holds 64"):
        await asyncio.wait_for(reading, 10)


async def test_no_more_texts_than_the_window_go_ahead(reader: Reader) -> None:
    reader.alice.may_read.clear()
    taken: list[int] = []

    async def supply() -> AsyncIterator[str]:
        for number in range(3 * WINDOW):
            taken.append(number)
            yield "salt"

    reading = asyncio.create_task(reader.ask(supply(), num_texts=3 * WINDOW))
    await asyncio.sleep(0.2)
    assert taken == list(range(WINDOW))
    reader.alice.may_read.set()
    assert len(await reading) == 3 * WINDOW


async def test_leaving_the_loop_ends_the_reading_at_the_peer(reader: Reader) -> None:
    request = make_request(num_texts=1000)
    async with reader.dial() as client:
        readings = client.read_texts(
            request, ["salt"] * 1000, key=SENDER, hello=reader.hello, pool=reader.pool
        )
        async with aclosing(readings):
            assert (await anext(readings)).index == 0
            reader.alice.may_read.clear()
        assert isinstance(await reader.ended(), LEFT)
    assert len(reader.alice.jobs[-1].begun) < 100


async def test_caller_that_is_cancelled_ends_the_reading_at_the_peer(reader: Reader) -> None:
    reader.alice.may_read.clear()
    asking = asyncio.create_task(reader.ask())
    await asyncio.sleep(0.1)
    asking.cancel()
    assert isinstance(await reader.ended(), LEFT)


async def test_text_that_cannot_be_sent_ends_the_reading_and_says_which(reader: Reader) -> None:
    for bad, why in (
        ("\ud800", "text 1: is not UTF-8"),
        ("x" * (MAX_TEXT_NBYTES + 1), "text 1: 65537 bytes"),
    ):
        with pytest.raises(RequestError, match=why):
            await reader.ask(["salt", bad], num_texts=2)


async def test_readings_before_a_text_that_cannot_be_read_arrive_and_then_the_reason(
    pool: Executor,
) -> None:
    wide = {"num_kv_heads": 64, "head_dim": 256}  # so that much is still on its way
    async with (
        reader_of(pool, **wide) as reader,
        reader.dial() as client,
    ):
        texts = [*TEXTS, " ", *TEXTS]
        request = make_request(num_texts=len(texts))
        readings = client.read_texts(request, texts, key=SENDER, hello=reader.hello, pool=pool)
        async with aclosing(readings):
            found = [await anext(readings) for _ in TEXTS]
            with pytest.raises(PeerError, match="alice: text 4: the text is empty"):
                await anext(readings)
    assert found == [make_reading(index, text, **wide) for index, text in enumerate(TEXTS)]


async def test_fewer_texts_than_requested_are_a_bug_of_the_caller(reader: Reader) -> None:
    with pytest.raises(ValueError, match="4 texts, the request says 5"):
        await reader.ask(num_texts=5)


async def test_peer_that_is_too_slow_is_unreachable(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    reader.alice.may_read.clear()
    monkeypatch.setattr("kvnet.transport.asking.READING_DEADLINE_S", 0.2)
    with pytest.raises(PeerUnreachable, match="alice: no whole reading of text 0"):
        await reader.ask()


async def test_node_without_a_reader_says_so(pool: Executor) -> None:
    node = MemoryNode(RECEIVER, pool)
    server = PeerServer(node, gate_of(RECEIVER, SENDER))
    port = await server.start(host="127.0.0.1", port=0)
    async with reader_of(pool) as other:
        other.address = f"127.0.0.1:{port}"
        with pytest.raises(PeerError, match="alice: this node reads for nobody"):
            await other.ask()
    await server.stop(0)
