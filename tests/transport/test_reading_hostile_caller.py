"""What a peer that wants to be read for may do wrong: refused by its code, and the next one is read for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import pytest

from kvnet.errors import (
    BadSignature,
    KvnetError,
    MalformedMessage,
    ReplayedMessage,
    StoreFull,
    TransferIncomplete,
)
from kvnet.identity.signing import sign_message
from kvnet.transfer.messages import PullRequest, seal
from kvnet.transport.frames import ReadStream
from kvnet.transport.readings import (
    MAX_CLOSING_NBYTES,
    MAX_TEXT_NBYTES,
    MAX_TEXTS,
    WINDOW,
    ReadText,
    sign_request,
    sign_text,
)
from kvnet.types import MemoryId, canonical_json
from kvnet.v1 import peer_pb2
from tests.builders import NOW, RECEIVER, SENDER, STRANGER
from tests.transport.readers import TEXTS, Reader, make_reading, make_request, reader_of, rogue_caller

SEALED, ASKED = sign_request(SENDER, make_request(num_texts=100))
Act = Callable[[ReadStream], Awaitable[None]]


@pytest.fixture
async def reader(pool: Executor) -> AsyncIterator[Reader]:
    async with reader_of(pool) as found:
        yield found


async def refusal(stream: ReadStream) -> KvnetError:
    """Read until Alice gives up."""
    try:
        while True:
            await stream._read(deadline_s=5)
    except KvnetError as error:
        return error


@pytest.mark.parametrize(
    ("signer", "changes", "wanted"),
    [
        (STRANGER, {}, BadSignature),
        (SENDER, {"closing": "x" * (MAX_CLOSING_NBYTES + 1)}, MalformedMessage),
        (SENDER, {"closing": "é" * (MAX_CLOSING_NBYTES // 2 + 1)}, MalformedMessage),
        (SENDER, {"num_texts": 0}, MalformedMessage),
        (SENDER, {"num_texts": MAX_TEXTS + 1}, MalformedMessage),
    ],
)
async def test_request_that_breaks_a_rule_is_refused(
    reader: Reader, signer: Any, changes: dict[str, Any], wanted: type[KvnetError]
) -> None:
    async with rogue_caller(reader) as bob:
        await bob.write_control(seal(signer, make_request(**changes)))
        assert type(await refusal(bob)) is wanted
    assert reader.alice.jobs == []


async def test_another_message_than_a_request_is_refused(reader: Reader) -> None:
    pull = PullRequest(MemoryId("mem_x"), SENDER.node_id, RECEIVER.node_id, NOW, "22" * 16)
    altered = replace(SEALED, body=SEALED.body.replace(b'"num_texts":100', b'"num_texts":101'))
    text = sign_text(SENDER, ASKED, 0, "salt")
    wanted = {seal(SENDER, pull): MalformedMessage, altered: BadSignature, text: MalformedMessage}
    for sealed, error in wanted.items():
        async with rogue_caller(reader) as bob:
            await bob.write_control(sealed)
            assert type(await refusal(bob)) is error
    assert reader.alice.jobs == []


async def payload_instead_of_a_text(bob: ReadStream) -> None:
    await bob.write_payload(b"salt")


async def empty_frame(bob: ReadStream) -> None:
    await bob._write(peer_pb2.ReadFrame())


async def refusal_instead_of_a_text(bob: ReadStream) -> None:
    await bob.write_refusal(StoreFull("no room"))


async def request_again(bob: ReadStream) -> None:
    await bob.write_control(SEALED)


async def text_by_another(bob: ReadStream) -> None:
    await bob.write_control(sign_text(STRANGER, ASKED, 0, "salt"))


async def text_altered_on_the_way(bob: ReadStream) -> None:
    sealed = sign_text(SENDER, ASKED, 0, "salt")
    await bob.write_control(replace(sealed, body=sealed.body.replace(b"salt", b"gold")))


async def text_of_another_request(bob: ReadStream) -> None:
    await bob.write_control(seal(SENDER, ReadText("00" * 16, 0, "salt")))


async def text_out_of_order(bob: ReadStream) -> None:
    await bob.write_control(sign_text(SENDER, ASKED, 1, "salt"))


async def text_twice(bob: ReadStream) -> None:
    for _ in range(2):
        await bob.write_control(sign_text(SENDER, ASKED, 0, "salt"))


async def text_too_long(bob: ReadStream) -> None:
    await bob.write_control(seal(SENDER, ReadText(ASKED.request.request_id, 0, "x" * (MAX_TEXT_NBYTES + 1))))


async def text_of_many_bytes_in_few_characters(bob: ReadStream) -> None:
    text = "東" * (MAX_TEXT_NBYTES // 2)
    await bob.write_control(seal(SENDER, ReadText(ASKED.request.request_id, 0, text)))


async def text_over_the_bound_of_a_message(bob: ReadStream) -> None:
    await bob.write_control(sign_message(SENDER, ReadText.TYPE, b" " * (1 << 20)))


async def text_with_half_a_surrogate(bob: ReadStream) -> None:
    body = canonical_json({"request_id": ASKED.request.request_id, "index": 0, "text": "salt"})
    await bob.write_control(sign_message(SENDER, ReadText.TYPE, body.replace(b"salt", b"\\ud800")))


@pytest.mark.parametrize(
    ("act", "wanted"),
    [
        (payload_instead_of_a_text, MalformedMessage),
        (empty_frame, MalformedMessage),
        (refusal_instead_of_a_text, MalformedMessage),
        (request_again, MalformedMessage),
        (text_by_another, BadSignature),
        (text_altered_on_the_way, BadSignature),
        (text_of_another_request, ReplayedMessage),
        (text_out_of_order, MalformedMessage),
        (text_twice, MalformedMessage),
        (text_too_long, MalformedMessage),
        (text_of_many_bytes_in_few_characters, MalformedMessage),
        (text_over_the_bound_of_a_message, MalformedMessage),
        (text_with_half_a_surrogate, MalformedMessage),
    ],
)
async def test_text_that_breaks_a_rule_ends_the_reading(
    reader: Reader, act: Act, wanted: type[KvnetError]
) -> None:
    async with rogue_caller(reader) as bob:
        await bob.write_control(SEALED)
        await act(bob)
        assert type(await refusal(bob)) is wanted
    assert type(await reader.ended()) is wanted
    assert await reader.ask() == [make_reading(index, text) for index, text in enumerate(TEXTS)]


async def test_more_texts_than_the_window_end_the_reading(reader: Reader) -> None:
    reader.alice.may_read.clear()
    async with rogue_caller(reader) as bob:
        await bob.write_control(SEALED)
        for index in range(WINDOW + 2):  # one is being read
            await bob.write_control(sign_text(SENDER, ASKED, index, "salt"))
        error = await refusal(bob)
    assert type(error) is MalformedMessage
    assert f"more than {WINDOW} are without an answer" in error.message
    assert type(await reader.ended()) is MalformedMessage


async def test_caller_that_ends_its_texts_early_ends_the_reading(reader: Reader) -> None:
    async with rogue_caller(reader) as bob:
        await bob.write_control(SEALED)
        await bob._call.done_writing()  # type: ignore[attr-defined]
        assert type(await refusal(bob)) is TransferIncomplete
    assert type(await reader.ended()) is TransferIncomplete
