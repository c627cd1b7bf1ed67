"""What a hostile sender may write: refused by its code, and the next honest transfer succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

import pytest

from kvnet.errors import (
    BadSignature,
    CapacityError,
    ConflictingChunk,
    KvnetError,
    MalformedChunk,
    MalformedMessage,
    ReplayedMessage,
    TransferIncomplete,
)
from kvnet.identity.seal import seal_head
from kvnet.identity.signing import SignedChunk
from kvnet.transfer.messages import (
    Receipt,
    open_sealed,
    seal,
)
from kvnet.transfer.receiver import SPARE_REPEATS
from kvnet.transport.frames import MAX_MESSAGE_NBYTES
from kvnet.types import Compression, chunk_digest, chunks_digest
from kvnet.v1 import peer_pb2
from tests.builders import (
    RECEIVER,
    SENDER,
    STRANGER,
    make_head,
)
from tests.transport.attacker import Attacker, attack, expect_refusal
from tests.transport.backend import MEMORY, TOTAL, Pair

HEAD = make_head(MEMORY)


async def flipped_payload_byte(alice: Attacker) -> None:
    chunk = alice.chunk(1)
    payload = bytes(chunk.payload)
    await alice.stream.write_chunk(replace(chunk, payload=bytes([payload[0] ^ 1]) + payload[1:]))


async def truncated_payload(alice: Attacker) -> None:
    chunk = alice.chunk(1)
    await alice.stream.write_chunk(replace(chunk, payload=bytes(chunk.payload)[:-1]))


async def flipped_envelope_bit(alice: Attacker) -> None:
    chunk = alice.chunk(1)
    await alice.stream.write_chunk(replace(chunk, envelope=chunk.envelope[:-1] + b"\x00"))


async def envelope_of_noise(alice: Attacker) -> None:
    await alice.stream.write_chunk(SignedChunk(b"noise", b"", b""))


async def chunk_signed_by_another(alice: Attacker) -> None:
    chunk = alice.chunk(0)
    await alice.stream.write_chunk(replace(chunk, signature=STRANGER.sign(chunk.envelope)))


async def chunk_for_another_receiver(alice: Attacker) -> None:
    await alice.stream.write_chunk(alice.chunk(0, receiver_key=STRANGER.public))


async def chunk_of_another_transfer(alice: Attacker) -> None:
    await alice.stream.write_chunk(alice.chunk(0, transfer_id=b"x" * 16))


async def chunk_of_an_earlier_attempt(alice: Attacker) -> None:
    await alice.stream.write_chunk(alice.chunk(0, nonce=b"x" * 16))


async def chunk_beyond_the_last(alice: Attacker) -> None:
    key = replace(alice.session.chunks[0].key, index=TOTAL)
    await alice.stream.write_chunk(alice.chunk(0, key=key))


async def chunk_in_another_place(alice: Attacker) -> None:
    await alice.stream.write_chunk(alice.chunk(1, key=alice.session.chunks[3].key))
    await alice.send(3)


async def same_chunk_other_contents(alice: Attacker) -> None:
    await alice.send(1)
    other = bytes(alice.session.chunks[1].raw_nbytes)
    await alice.stream.write_chunk(alice.chunk(1, other, compression=Compression.NONE))


async def same_chunk_without_end(alice: Attacker) -> None:
    # The server may hang up in the middle of it.
    with suppress(KvnetError):
        for _ in range(1 + TOTAL + SPARE_REPEATS + 1):
            await alice.send(1)


async def empty_frame(alice: Attacker) -> None:
    await alice.raw(peer_pb2.Frame())


async def ack_instead_of_a_chunk(alice: Attacker) -> None:
    await alice.stream.write_ack([0])


async def commit_too_early(alice: Attacker) -> None:
    await alice.send(0, 1, 2)
    await alice.stream.write_control(seal(SENDER, alice.session.commit()))


async def commit_by_another(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    await alice.stream.write_control(seal(STRANGER, alice.session.commit()))


async def commit_to_other_chunks(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    commit = replace(alice.session.commit(), chunks_digest=chunks_digest([b"x" * 32]))
    await alice.stream.write_control(seal(SENDER, commit))


async def commit_of_an_earlier_attempt(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    await alice.stream.write_control(seal(SENDER, replace(alice.session.commit(), nonce="00" * 16)))


async def offer_instead_of_a_commit(alice: Attacker) -> None:
    await alice.send(*range(TOTAL))
    await alice.stream.write_control(alice.outbound.sealed_offer)


async def lz4_bomb(alice: Attacker) -> None:
    # One run that unpacks to 2.5 KiB, in an envelope that says 160 bytes, as the plan does.
    bomb = b"\x1f\x00\x01\x00" + b"\xff" * 10
    await alice.stream.write_chunk(alice.chunk(0, bomb, compression=Compression.LZ4))
    digests = [chunk.wire_digest for chunk in alice.session.chunks]
    digests[0] = chunk_digest(bomb)
    await alice.send(*range(1, TOTAL))
    commit = replace(alice.session.commit(), chunks_digest=chunks_digest(digests))
    await alice.stream.write_control(seal(SENDER, commit))
    sections = list(HEAD.header.sections)
    sections[0] = replace(sections[0], wire_nbytes=len(bomb), wire_digest=digests[0])
    shift = len(bomb) - HEAD.header.sections[0].wire_nbytes
    sections[1:] = [replace(section, offset=section.offset + shift) for section in sections[1:]]
    await alice.stream.write_control(
        seal_head(SENDER, replace(HEAD.header, sections=tuple(sections), repeated=None))
    )


async def stream_ended_early(alice: Attacker) -> None:
    await alice.send(0)
    await alice.stream._call.done_writing()  # type: ignore[attr-defined]


async def oversize_message(alice: Attacker) -> None:
    await alice.raw(peer_pb2.Frame(chunk=peer_pb2.Chunk(payload=bytes(MAX_MESSAGE_NBYTES))))


ATTACKS: dict[Callable[[Attacker], Awaitable[None]], type[KvnetError]] = {
    flipped_payload_byte: BadSignature,
    truncated_payload: MalformedChunk,
    flipped_envelope_bit: BadSignature,
    envelope_of_noise: MalformedChunk,
    chunk_signed_by_another: BadSignature,
    chunk_for_another_receiver: ReplayedMessage,
    chunk_of_another_transfer: ReplayedMessage,
    chunk_of_an_earlier_attempt: ReplayedMessage,
    chunk_beyond_the_last: MalformedChunk,
    chunk_in_another_place: ConflictingChunk,
    same_chunk_other_contents: ConflictingChunk,
    same_chunk_without_end: MalformedChunk,
    empty_frame: MalformedMessage,
    ack_instead_of_a_chunk: MalformedMessage,
    commit_too_early: TransferIncomplete,
    commit_by_another: BadSignature,
    commit_to_other_chunks: BadSignature,
    commit_of_an_earlier_attempt: ReplayedMessage,
    offer_instead_of_a_commit: MalformedMessage,
    lz4_bomb: MalformedChunk,
    stream_ended_early: TransferIncomplete,
    oversize_message: CapacityError,
}


@pytest.mark.parametrize(
    ("hostile", "wanted"), ATTACKS.items(), ids=[hostile.__name__ for hostile in ATTACKS]
)
async def test_hostile_frames_are_refused_and_the_next_transfer_succeeds(
    pair: Pair, hostile: Callable[[Attacker], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    await expect_refusal(pair, hostile, wanted)


async def test_reordered_and_repeated_chunks_are_allowed(pair: Pair) -> None:
    async with attack(pair) as alice:
        await alice.offer()
        await alice.send(5, 3, 3, 1, 5, 0, 2, 4, 0)
        acked: list[int] = []
        while set(acked) != set(range(TOTAL)) or len(acked) < 9:
            indices = await alice.stream.read()
            assert isinstance(indices, list)
            acked += indices
        await alice.stream.write_control(seal(SENDER, alice.session.commit()))
        await alice.stream.write_control(alice.outbound.head.sealed)
        receipt, _ = open_sealed(Receipt, await alice.stream.read_control(), signer=RECEIVER.public)
        alice.session.finish(receipt)
    assert pair.bob.memories == {MEMORY.header.id: MEMORY}


async def test_no_chunk_is_acknowledged_before_it_is_stored(pair: Pair) -> None:
    pair.bob.disk_is_ready.clear()
    async with attack(pair) as alice:
        await alice.offer()
        await alice.send(0, 1, 0)
        reading = asyncio.ensure_future(alice.stream.read())
        await asyncio.sleep(0.1)
        assert not reading.done()
        pair.bob.disk_is_ready.set()
        acked = await reading
        assert isinstance(acked, list)
        assert acked[0] == 0


async def test_recorded_frames_replayed_in_a_new_attempt_are_refused(pair: Pair) -> None:
    async with attack(pair) as alice:
        await alice.offer()
        recorded = alice.chunk(0)
        await alice.stream.write_chunk(recorded)
        assert await alice.stream.read() == [0]
    await pair.bob.settled()
    async with attack(pair) as mallory:
        await mallory.offer()
        await mallory.stream.write_chunk(recorded)
        assert type(await mallory.refusal()) is ReplayedMessage
    await pair.push()
