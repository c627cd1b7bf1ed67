"""What a peer that reads may lie about: each lie ends the reading with its code and the peer's name."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import pytest

from kvnet.errors import (
    BadSignature,
    IncompatibleModel,
    KvnetError,
    MalformedChunk,
    MalformedMessage,
    PeerError,
    PeerUnreachable,
    ReplayedMessage,
    StateCorrupt,
    TransferIncomplete,
)
from kvnet.identity.keys import NodeKey
from kvnet.identity.signing import SignedMessage
from kvnet.transfer.messages import PullRequest, seal
from kvnet.transport.frames import ReadStream
from kvnet.transport.readings import (
    MAX_ADDED_TOKENS,
    MAX_READING_NBYTES,
    Asked,
    Reading,
    ReadingHead,
    encode_reading,
    open_request,
    open_text,
)
from kvnet.types import DType, KeySpace, Rope, sha256_hex
from kvnet.v1 import peer_pb2
from tests.builders import INT8, NOW, RECEIVER, SENDER, STRANGER, make_memory
from tests.transport.readers import CLOSING, TEXTS, make_reading, rogue_reader

NUM_CHARS = len(TEXTS[0] + CLOSING)


class Liar:
    """Alice, after she took the request and the first text; every frame by hand."""

    def __init__(self, stream: ReadStream, asked: Asked, text: str) -> None:
        self.stream = stream
        self.asked = asked
        self.text = text
        self.reading = make_reading(0, text)
        self.head, self.payload = encode_reading(self.reading, asked, text)

    async def say(self, key: NodeKey = RECEIVER, **changes: Any) -> None:
        """A head that is signed as it should be, whatever it claims, and the honest payload."""
        await self.send(seal(key, replace(self.head, **changes)), self.payload)

    async def say_memory(self, **changes: Any) -> None:
        """`say`, of another memory."""
        await self.say(memory=replace(self.head.memory, **changes))

    async def say_payload(self, payload: bytes, **changes: Any) -> None:
        """A payload that is signed as it should be, whatever is in it."""
        head = replace(self.head, payload_digest=sha256_hex(payload), payload_nbytes=len(payload), **changes)
        await self.send(seal(RECEIVER, head), payload)

    async def say_spans(self, *spans: tuple[int, int]) -> None:
        """Other spans, in the place of the true ones."""
        packed = b"".join(struct.pack("<II", *span) for span in spans)
        await self.say_payload(packed + self.payload[len(packed) :])

    async def send(self, head: SignedMessage, *pieces: bytes) -> None:
        """Any frames."""
        await self.stream.write_control(head)
        for piece in pieces:
            await self.stream.write_payload(piece)

    async def read(self, index: int, **changes: Any) -> None:
        """An honest reading of a later text, but for the changes."""
        text = open_text(await self.stream.read_control(), self.asked, index)
        reading: Reading = replace(make_reading(index, text), **changes)
        head, payload = encode_reading(reading, self.asked, text)
        await self.send(seal(RECEIVER, head), payload)


Lie = Callable[[Liar], Awaitable[None]]


def lying(act: Lie) -> Callable[[ReadStream], Awaitable[None]]:
    """What Alice's server does: take the request and the first text, lie, and wait for the end."""

    async def script(stream: ReadStream) -> None:
        asked = open_request(await stream.read_control(), signer=SENDER.public)
        await act(Liar(stream, asked, open_text(await stream.read_control(), asked, 0)))
        await asyncio.sleep(5)

    return script


async def altered_on_the_way(alice: Liar) -> None:
    sealed = seal(RECEIVER, alice.head)
    body = sealed.body.replace(b'"num_sinks":1', b'"num_sinks":2')
    await alice.send(replace(sealed, body=body), alice.payload)


async def another_message(alice: Liar) -> None:
    pull = PullRequest(alice.head.memory.id, SENDER.node_id, RECEIVER.node_id, NOW, "22" * 16)
    await alice.send(seal(RECEIVER, pull))


async def another_geometry(alice: Liar) -> None:
    await alice.say_memory(geometry=replace(alice.head.memory.geometry, num_layers=4))


async def another_dtype(alice: Liar) -> None:
    await alice.say_memory(geometry=replace(alice.head.memory.geometry, dtype=DType.FLOAT16))


async def another_rope(alice: Liar) -> None:
    await alice.say_memory(geometry=replace(alice.head.memory.geometry, rope=Rope("default", 500.0)))


async def another_model(alice: Liar) -> None:
    digest = sha256_hex(b"other weights")
    await alice.say_memory(fingerprint=replace(alice.head.memory.fingerprint, weights_digest=digest))


async def longer_than_is_taken(alice: Liar) -> None:
    nbytes = MAX_READING_NBYTES + 1
    await alice.say(payload_nbytes=nbytes)


async def flipped_payload_byte(alice: Liar) -> None:
    payload = alice.payload[:-1] + bytes([alice.payload[-1] ^ 1])
    await alice.send(seal(RECEIVER, alice.head), payload)


async def contents_of_another_memory(alice: Liar) -> None:
    await alice.say_payload(alice.payload[:-1] + bytes([alice.payload[-1] ^ 1]))


async def piece_too_short(alice: Liar) -> None:
    await alice.send(seal(RECEIVER, alice.head), alice.payload[:-1])


async def piece_too_long(alice: Liar) -> None:
    await alice.send(seal(RECEIVER, alice.head), alice.payload + b"x")


async def empty_piece(alice: Liar) -> None:
    await alice.send(seal(RECEIVER, alice.head), b"")


async def no_payload(alice: Liar) -> None:
    await alice.send(seal(RECEIVER, alice.head))
    await alice.read(1)


async def payload_without_a_head(alice: Liar) -> None:
    await alice.stream.write_payload(alice.payload)


async def refusal_of_noise(alice: Liar) -> None:
    await alice.stream._write(peer_pb2.ReadFrame(refusal=b"noise"))


async def refusal_in_the_middle_of_a_payload(alice: Liar) -> None:
    await alice.send(seal(RECEIVER, alice.head))
    await alice.stream.write_refusal(PeerError("why"))


async def refusal_that_blames_this_node(alice: Liar) -> None:
    await alice.stream.write_refusal(StateCorrupt("your disk"))


async def empty_frame(alice: Liar) -> None:
    await alice.stream._write(peer_pb2.ReadFrame())


async def same_reading_twice(alice: Liar) -> None:
    await alice.say()
    await alice.say()


async def sinks_that_change(alice: Liar) -> None:
    await alice.say()
    await alice.read(1, num_sinks=0)


async def last_slot_beyond_the_text(alice: Liar) -> None:
    await alice.say_spans(*alice.reading.spans[:-1], (NUM_CHARS - 1, NUM_CHARS + 1))


async def spans_that_go_back(alice: Liar) -> None:
    first, second, third, *others = alice.reading.spans
    await alice.say_spans(first, third, second, *others)


SAY: dict[str, tuple[dict[str, Any], type[KvnetError]]] = {
    "signed by another key": ({"key": STRANGER}, BadSignature),
    "of another request": ({"request_id": "00" * 16}, ReplayedMessage),
    "of this request with another closing": ({"request_digest": "00" * 32}, ReplayedMessage),
    "out of order": ({"index": 1}, MalformedMessage),
    "of another text": ({"text_digest": sha256_hex(b"sugar")}, MalformedMessage),
    "sinks and nothing else": ({"num_sinks": 5}, MalformedMessage),
    "spans for half of the slots": ({"num_spans": 2}, MalformedMessage),
    "a longer payload": ({"payload_nbytes": 1 << 29}, MalformedMessage),
    "no payload": ({"payload_nbytes": 0}, MalformedMessage),
    "another payload": ({"payload_digest": sha256_hex(b"")}, BadSignature),
}
MEMORY: dict[str, dict[str, Any]] = {
    "no slots": {"seq_len": 0},
    "more slots than the context": {"seq_len": 65},
    "slots without end": {"seq_len": (1 << 63) - 1},
    "a later position": {"start_pos": 1},
    "another coding": {"coding": INT8},
    "content space": {"key_space": KeySpace.CONTENT},
    "attention metadata": {"attention_heads": 4},
    "a memory before it": {"derived_from": "mem_x"},
}
ACTS: tuple[tuple[Lie, type[KvnetError]], ...] = (
    (altered_on_the_way, BadSignature),
    (another_message, MalformedMessage),
    (another_geometry, IncompatibleModel),
    (another_dtype, IncompatibleModel),
    (another_rope, IncompatibleModel),
    (another_model, IncompatibleModel),
    (longer_than_is_taken, MalformedMessage),
    (flipped_payload_byte, BadSignature),
    (contents_of_another_memory, MalformedChunk),
    (piece_too_short, MalformedChunk),
    (piece_too_long, MalformedChunk),
    (empty_piece, MalformedChunk),
    (no_payload, MalformedMessage),
    (payload_without_a_head, MalformedMessage),
    (empty_frame, MalformedMessage),
    (refusal_of_noise, MalformedMessage),
    (refusal_in_the_middle_of_a_payload, PeerError),
    (refusal_that_blames_this_node, PeerError),
    (same_reading_twice, MalformedMessage),
    (sinks_that_change, MalformedMessage),
    (last_slot_beyond_the_text, MalformedChunk),
    (spans_that_go_back, MalformedChunk),
)
SPANS: tuple[tuple[tuple[int, int], ...], ...] = (
    ((0, 3),),  # of the sink
    ((0, 0), (3, 2)),
    ((0, 0), (0, NUM_CHARS + 1)),
    ((0, 0), ((1 << 32) - 1, (1 << 32) - 1)),
)


async def expect_refusal(pool: Executor, act: Lie, wanted: type[KvnetError]) -> None:
    async with rogue_reader(pool, lying(act)) as reader:
        with pytest.raises(wanted) as refused:
            await reader.ask()
    assert type(refused.value) is wanted
    assert refused.value.message.startswith("alice: ")


@pytest.mark.parametrize("name", SAY)
async def test_head_that_lies_is_refused(pool: Executor, name: str) -> None:
    changes, wanted = SAY[name]
    await expect_refusal(pool, lambda alice: alice.say(**changes), wanted)


@pytest.mark.parametrize("name", MEMORY)
async def test_memory_that_is_no_plain_reading_is_refused(pool: Executor, name: str) -> None:
    await expect_refusal(pool, lambda alice: alice.say_memory(**MEMORY[name]), MalformedMessage)


@pytest.mark.parametrize(("act", "wanted"), ACTS)
async def test_lie_of_a_reader_is_refused(pool: Executor, act: Lie, wanted: type[KvnetError]) -> None:
    await expect_refusal(pool, act, wanted)


@pytest.mark.parametrize("spans", SPANS)
async def test_spans_outside_of_the_text_are_refused(
    pool: Executor, spans: tuple[tuple[int, int], ...]
) -> None:
    await expect_refusal(pool, lambda alice: alice.say_spans(*spans), MalformedChunk)


async def test_more_slots_than_the_text_has_bytes_are_refused_before_any_payload_is_taken(
    pool: Executor,
) -> None:
    most = len((TEXTS[0] + CLOSING).encode()) + MAX_ADDED_TOKENS

    def of(seq_len: int) -> Lie:
        async def long(alice: Liar) -> None:
            reading = Reading(0, make_memory(seq_len=seq_len), 1, ())
            head, payload = encode_reading(reading, alice.asked, alice.text)
            await alice.send(seal(RECEIVER, head), payload)

        return long

    async with rogue_reader(pool, lying(of(most + 1))) as reader:
        with pytest.raises(MalformedMessage, match=f"{most + 1} slots, its text has {most} at most"):
            await reader.ask()
    async with rogue_reader(pool, lying(of(most))) as reader:
        (found,) = await reader.ask(TEXTS[:1], num_texts=1)
    assert found.memory.header.seq_len == most


async def test_liar_of_these_tests_is_believed_when_she_is_honest(pool: Executor) -> None:
    async def honest(alice: Liar) -> None:
        await alice.say()
        for index in range(1, len(TEXTS)):
            await alice.read(index)

    async with rogue_reader(pool, lying(honest)) as reader:
        assert await reader.ask() == [make_reading(index, text) for index, text in enumerate(TEXTS)]


async def test_difference_of_models_is_told_field_by_field(pool: Executor) -> None:
    async with rogue_reader(pool, lying(another_geometry)) as reader:
        with pytest.raises(IncompatibleModel) as refused:
            await reader.ask()
    assert refused.value.details == {"num_layers": ["4", "3"]}


async def test_stream_that_ends_in_the_middle_is_incomplete(pool: Executor) -> None:
    async def script(stream: ReadStream) -> None:
        for _ in ("the request", *TEXTS):
            await stream.read_control()

    async with rogue_reader(pool, script) as reader:
        with pytest.raises(TransferIncomplete, match="alice: ended the stream early; ask again"):
            await reader.ask()


async def test_payload_that_stops_is_unreachable(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    async def half(alice: Liar) -> None:
        await alice.send(seal(RECEIVER, alice.head))

    monkeypatch.setattr("kvnet.transport.asking.READING_DEADLINE_S", 0.2)
    async with rogue_reader(pool, lying(half)) as reader:
        with pytest.raises(PeerUnreachable, match="alice: no whole reading of text 0"):
            await reader.ask()


@pytest.mark.parametrize(("name", "value"), [("num_layers", 513), ("num_kv_heads", 0), ("head_dim", 1 << 40)])
async def test_hello_of_a_model_that_cannot_be_planned_is_refused_before_anything_is_sent(
    pool: Executor, name: str, value: int
) -> None:
    asked: list[ReadingHead] = []

    async def script(stream: ReadStream) -> None:
        asked.append(await stream.read_control())  # type: ignore[arg-type]

    async with rogue_reader(pool, script) as reader:
        reader.hello = replace(reader.hello, geometry=replace(reader.hello.geometry, **{name: value}))
        with pytest.raises(MalformedMessage, match=f"alice: hello: {name} {value}"):
            await reader.ask()
    assert asked == []
