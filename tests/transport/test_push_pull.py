"""Real gRPC on a loopback port: honest nodes, cut links, and peers that follow no rules."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import grpc
import pytest

from kvnet import wire
from kvnet.errors import (
    BadSignature,
    CapacityError,
    ConflictingChunk,
    IncompatibleModel,
    KvnetError,
    MalformedChunk,
    MalformedMessage,
    PeerError,
    PeerUnreachable,
    PortInUse,
    ProtocolMismatch,
    ReplayedMessage,
    TransferIncomplete,
    UnknownMemory,
    WrongPeer,
)
from kvnet.identity.signing import SignedChunk, SignedMessage, sign_chunk
from kvnet.transfer.messages import (
    PROTOCOL_VERSION,
    Accept,
    Commit,
    PullRequest,
    Receipt,
    chunks_digest,
    open_sealed,
    pack_bitmap,
    seal,
)
from kvnet.transport.client import PeerClient
from kvnet.transport.frames import MAX_MESSAGE_NBYTES, FrameStream
from kvnet.transport.sending import AckProgress
from kvnet.transport.server import serve_peers
from kvnet.types import Compression, MemoryId, TransferId
from kvnet.v1 import peer_pb2, peer_pb2_grpc
from tests.builders import (
    NOW,
    RECEIVER,
    SENDER,
    STRANGER,
    make_fingerprint,
    make_memory,
    wire_chunks,
)
from tests.transport.backend import MemoryNode, MemoryOutbound

MEMORY = make_memory()
TOTAL = 6
OTHER_TRANSFER = TransferId("fedcba9876543210" * 2)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(1) as found:
        yield found


@dataclass
class Pair:
    """Bob listens; Alice knows his address and his key."""

    alice: MemoryNode
    bob: MemoryNode
    address: str

    def client(self, **changes: Any) -> PeerClient:
        """Alice's connection to Bob."""
        return PeerClient(self.address, **{"public": RECEIVER.public, "peer": "bob", **changes})

    async def push(self, outbound: MemoryOutbound | None = None) -> MemoryOutbound:
        """Send MEMORY from Alice to Bob, who has it then."""
        outbound = outbound or self.alice.outgoing(MEMORY)
        async with self.client() as client:
            sent = await client.push(outbound)
        assert sent.receipt.memory == MEMORY.header.id
        assert self.bob.memories[MEMORY.header.id] == MEMORY
        return outbound


@pytest.fixture
async def pair(pool: Executor) -> AsyncIterator[Pair]:
    bob = MemoryNode(RECEIVER, pool)
    server, port = await serve_peers(bob, host="127.0.0.1", port=0)
    yield Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}")
    await server.stop(0)


async def test_hello_says_who_answers(pair: Pair) -> None:
    async with pair.client() as client:
        hello = await client.hello()
    assert (hello.node_id, hello.fingerprint) == (RECEIVER.node_id, make_fingerprint())


async def test_pushed_memory_arrives_and_is_receipted(pair: Pair) -> None:
    progress: list[AckProgress] = []
    outbound = pair.alice.outgoing(MEMORY)
    async with pair.client() as client:
        sent = await client.push(outbound, progress.append)
    assert pair.bob.memories == {MEMORY.header.id: MEMORY}
    assert (sent.resumed_chunks, sent.receipt.tier) == (0, "exact")
    assert open_sealed(Receipt, sent.sealed_receipt, signer=RECEIVER.public)[0] == sent.receipt
    assert [step.layer_idx for step in progress] == [0, 1, 2]
    assert (progress[-1].chunks_done, progress[-1].wire_nbytes) == (TOTAL, sent.wire_nbytes)
    assert (await pair.bob.settled()).failures == [None]


async def test_push_again_sends_nothing_and_gets_a_receipt(pair: Pair) -> None:
    await pair.push()
    assert (await pair.push()).sent == []


def request(memory: MemoryId = MEMORY.header.id) -> SignedMessage:
    """Alice asks Bob for a memory."""
    return seal(SENDER, PullRequest(memory, SENDER.node_id, RECEIVER.node_id, NOW, "22" * 16))


async def test_pulled_memory_arrives(pair: Pair) -> None:
    pair.bob.memories[MEMORY.header.id] = MEMORY
    async with pair.client() as client:
        inbound = await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    assert pair.alice.memories == {MEMORY.header.id: MEMORY}
    assert (inbound.failures, pair.bob.outbound[0].failures) == ([None], [None])


async def test_pull_of_an_unknown_memory_says_so(pair: Pair) -> None:
    async with pair.client() as client:
        with pytest.raises(UnknownMemory, match="not here"):
            await client.pull(request(MemoryId("mem_x")), pair.alice.open_inbound, pair.alice.pool)


@pytest.mark.parametrize("arrived", [1, 4])
async def test_push_resumes_after_the_stream_was_cut(pair: Pair, arrived: int) -> None:
    dying = pair.alice.outgoing(MEMORY)
    dying.die_after = arrived
    async with pair.client() as client:
        with pytest.raises(ConnectionAbortedError):
            await client.push(dying)
    assert (await pair.bob.settled()).failures != [None]
    held = set(pair.bob.disks[dying.session.offer.transfer_id])
    assert held <= set(range(arrived))
    resumed = await pair.push()
    assert resumed.sent == sorted(set(range(TOTAL)) - held)


async def test_pull_resumes_after_the_stream_was_cut(pair: Pair) -> None:
    pair.bob.memories[MEMORY.header.id] = MEMORY
    disk = pair.alice.disks.setdefault(pair.alice.outgoing(MEMORY).session.offer.transfer_id, {})
    honest = await _all_but_the_last(pair)
    disk.update(honest)
    async with pair.client() as client:
        await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    assert pair.bob.outbound[-1].sent == [TOTAL - 1]
    assert pair.alice.memories == {MEMORY.header.id: MEMORY}


async def _all_but_the_last(pair: Pair) -> dict[int, Any]:
    async with pair.client() as client:
        await client.pull(request(), pair.alice.open_inbound, pair.alice.pool)
    (disk,) = pair.alice.disks.values()
    pair.alice.memories.clear()
    del disk[TOTAL - 1]
    return disk


# What a hostile sender may write after an honest offer.


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
            changes |= {"wire_nbytes": len(sent), "wire_digest": hashlib.sha256(sent).digest()}
        envelope = replace(self.session.envelope(self.session.chunks[index]), **changes)
        return sign_chunk(SENDER, envelope, sent)

    async def send(self, *indices: int) -> None:
        """Honest chunks."""
        for index in indices:
            await self.stream.write_chunk(self.chunk(index))

    async def raw(self, frame: peer_pb2.Frame) -> None:
        """Any frame at all."""
        await self.stream._write(frame)

    async def refusal(self) -> KvnetError:
        """Read until the server gives up."""
        try:
            while True:
                await self.stream.read()
        except KvnetError as error:
            return error


@asynccontextmanager
async def attack(pair: Pair, outbound: MemoryOutbound | None = None) -> AsyncIterator[Attacker]:
    async with grpc.aio.insecure_channel(
        pair.address, options=(("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1))
    ) as channel:
        call = peer_pb2_grpc.PeerStub(channel).Push()
        stream = FrameStream(call, peer="bob", idle_deadline_s=5)
        yield Attacker(stream, outbound or pair.alice.outgoing(MEMORY))
        call.cancel()


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
    # 64 KiB of payload that unpack to 16 MiB, in an envelope that says what the plan says.
    bomb = b"\x1f\x00\x01\x00" + b"\xff" * 10
    await alice.stream.write_chunk(alice.chunk(0, bomb, compression=Compression.LZ4))
    digests = [chunk.wire_digest for chunk in alice.session.chunks]
    digests[0] = hashlib.sha256(bomb).digest()
    await alice.send(*range(1, TOTAL))
    commit = replace(alice.session.commit(), chunks_digest=chunks_digest(digests))
    await alice.stream.write_control(seal(SENDER, commit))


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
    async with attack(pair) as alice:
        await alice.offer()
        await hostile(alice)
        assert type(await alice.refusal()) is wanted
    failures = (await pair.bob.settled()).failures
    assert len(failures) == 1
    assert failures != [None]
    assert pair.bob.memories == {}
    await pair.push(pair.alice.outgoing(MEMORY, transfer_id=OTHER_TRANSFER))


async def offer_signed_by_another(alice: Attacker) -> None:
    await alice.stream.write_control(seal(STRANGER, alice.session.offer))


async def offer_altered_on_the_way(alice: Attacker) -> None:
    sealed = alice.outbound.sealed_offer
    await alice.stream.write_control(replace(sealed, body=sealed.body.replace(b'"note":""', b'"note":"x"')))


async def offer_that_is_a_commit(alice: Attacker) -> None:
    await alice.stream.write_control(seal(SENDER, alice.session.commit()))


async def chunk_before_the_offer(alice: Attacker) -> None:
    await alice.send(0)


async def offer_for_another_receiver(alice: Attacker) -> None:
    await alice.stream.write_control(seal(SENDER, replace(alice.session.offer, receiver=STRANGER.node_id)))


async def offer_of_yesterday(alice: Attacker) -> None:
    offer = replace(alice.session.offer, created_at=NOW - 86_400, expires_at=NOW - 85_800)
    await alice.stream.write_control(seal(SENDER, offer))


async def offer_of_another_model(alice: Attacker) -> None:
    header = replace(MEMORY.header, fingerprint=make_fingerprint(architecture="Other"))
    await alice.stream.write_control(seal(SENDER, replace(alice.session.offer, memory=header)))


async def control_message_of_nothing(alice: Attacker) -> None:
    await alice.raw(peer_pb2.Frame(control=peer_pb2.SignedMessage()))


async def nothing_at_all(alice: Attacker) -> None:
    await alice.stream._call.done_writing()  # type: ignore[attr-defined]


BAD_OFFERS: dict[Callable[[Attacker], Awaitable[None]], type[KvnetError]] = {
    offer_signed_by_another: PeerError,
    offer_altered_on_the_way: BadSignature,
    offer_that_is_a_commit: MalformedMessage,
    chunk_before_the_offer: MalformedMessage,
    offer_for_another_receiver: ReplayedMessage,
    offer_of_yesterday: ReplayedMessage,
    offer_of_another_model: IncompatibleModel,
    control_message_of_nothing: MalformedMessage,
    nothing_at_all: TransferIncomplete,
}


@pytest.mark.parametrize(
    ("hostile", "wanted"), BAD_OFFERS.items(), ids=[hostile.__name__ for hostile in BAD_OFFERS]
)
async def test_bad_offers_open_nothing_and_the_next_transfer_succeeds(
    pair: Pair, hostile: Callable[[Attacker], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    async with attack(pair) as alice:
        alice.session.accepted(
            Accept(alice.session.offer.transfer_id, alice.session._offer_digest.hex(), "00" * 16, "AA==")
        )
        await hostile(alice)
        assert type(await alice.refusal()) is wanted
    assert pair.bob.inbound == []
    assert pair.bob.disks == {}
    await pair.push()


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
        receipt, _ = open_sealed(Receipt, await alice.stream.read_control(), signer=RECEIVER.public)
        alice.session.finish(receipt)
    assert pair.bob.memories == {MEMORY.header.id: MEMORY}


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


async def test_server_refuses_other_protocols_and_short_nonces(pair: Pair) -> None:
    async with grpc.aio.insecure_channel(pair.address) as channel:
        for hello, wanted in (
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION + 1, nonce=b"n" * 16), ProtocolMismatch),
            (peer_pb2.HelloRequest(protocol=0, nonce=b"n" * 16), ProtocolMismatch),
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION, nonce=b"n" * 15), MalformedMessage),
            (peer_pb2.HelloRequest(protocol=PROTOCOL_VERSION), MalformedMessage),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await peer_pb2_grpc.PeerStub(channel).Hello(hello)
            assert type(wire.status_to_error(refused.value, peer="bob")) is wanted


async def test_nobody_at_the_address_is_unreachable() -> None:
    async with PeerClient("127.0.0.1:1", public=None, peer="bob") as client:
        with pytest.raises(PeerUnreachable, match="bob"):
            await client.hello(deadline_s=2)


async def test_taken_port_is_refused(pair: Pair) -> None:
    with pytest.raises(PortInUse, match="--listen"):
        await serve_peers(pair.bob, host="127.0.0.1", port=int(pair.address.rpartition(":")[2]))


async def test_offer_of_another_model_is_refused_with_the_fields_that_differ(pool: Executor) -> None:
    bob = MemoryNode(RECEIVER, pool, fingerprint=make_fingerprint(tokenizer_digest="sha256:other"))
    server, port = await serve_peers(bob, host="127.0.0.1", port=0)
    with pytest.raises(IncompatibleModel) as refused:
        await Pair(MemoryNode(SENDER, pool), bob, f"127.0.0.1:{port}").push()
    await server.stop(0)
    assert list(refused.value.details) == ["tokenizer_digest"]


# What a hostile node may answer.


class Rogue(peer_pb2_grpc.PeerServicer):
    """Answers at Bob's address, by a script."""

    def __init__(self, script: Callable[[FrameStream], Awaitable[None]] | None = None) -> None:
        self.script = script
        self.reply = SignedMessage("", b"", b"", b"")

    async def Hello(self, request: peer_pb2.HelloRequest, context: Any) -> peer_pb2.SignedMessage:
        return wire.message_to_wire(self.reply)

    async def Push(self, request_iterator: Any, context: Any) -> None:
        assert self.script is not None
        await self.script(FrameStream(context, peer="alice"))

    Pull = Push


@asynccontextmanager
async def rogue_at(rogue: Rogue) -> AsyncIterator[str]:
    server = grpc.aio.server()
    peer_pb2_grpc.add_PeerServicer_to_server(rogue, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(0)


async def test_hello_of_another_key_is_the_wrong_peer(pair: Pair) -> None:
    async with pair.client(public=STRANGER.public) as client:
        with pytest.raises(WrongPeer):
            await client.hello()


@pytest.mark.parametrize(
    ("signer", "changes", "wanted"),
    [
        (STRANGER, {}, WrongPeer),
        (RECEIVER, {"nonce": "00" * 16}, ReplayedMessage),
        (RECEIVER, {"node_id": STRANGER.node_id}, BadSignature),
        (RECEIVER, {"protocol": PROTOCOL_VERSION + 1}, ProtocolMismatch),
    ],
)
async def test_lying_hello_is_refused(
    pool: Executor, signer: Any, changes: dict[str, Any], wanted: type[KvnetError], monkeypatch: Any
) -> None:
    monkeypatch.setattr("kvnet.transport.client.os.urandom", lambda size: b"n" * size)
    rogue = Rogue()
    rogue.reply = seal(signer, replace(MemoryNode(RECEIVER, pool).hello(b"n" * 16), **changes))
    async with rogue_at(rogue) as address, PeerClient(address, public=RECEIVER.public, peer="bob") as client:
        with pytest.raises(wanted):
            await client.hello()


async def test_altered_hello_is_refused(pool: Executor) -> None:
    rogue = Rogue()
    sealed = seal(RECEIVER, MemoryNode(RECEIVER, pool).hello(b"n" * 16))
    rogue.reply = replace(sealed, body=sealed.body.replace(b'"node"', b'"evil"'))
    async with rogue_at(rogue) as address, PeerClient(address, public=RECEIVER.public, peer="bob") as client:
        with pytest.raises(BadSignature):
            await client.hello()


async def _accept(stream: FrameStream, signer: Any = RECEIVER, **changes: Any) -> None:
    sealed = await stream.read_control()
    digest = hashlib.sha256(sealed.body).hexdigest()
    accept = Accept(TransferId("0123456789abcdef" * 2), digest, "11" * 16, pack_bitmap(set(), TOTAL))
    await stream.write_control(seal(signer, replace(accept, **changes)))


async def accept_by_another(stream: FrameStream) -> None:
    await _accept(stream, STRANGER)


async def accept_of_another_offer(stream: FrameStream) -> None:
    await _accept(stream, offer_digest="00" * 32)


async def accept_with_a_short_nonce(stream: FrameStream) -> None:
    await _accept(stream, nonce="11")


async def ack_beyond_the_last_chunk(stream: FrameStream) -> None:
    await _accept(stream)
    await stream.write_ack([TOTAL])
    await asyncio.sleep(5)


async def chunk_instead_of_acks(stream: FrameStream) -> None:
    await _accept(stream)
    await stream.write_chunk(SignedChunk(b"", b"", b""))
    await asyncio.sleep(5)


async def receipt_for_other_contents(stream: FrameStream) -> None:
    await _accept(stream, held=pack_bitmap(set(range(TOTAL)), TOTAL))
    commit, _ = open_sealed(Commit, await stream.read_control(), signer=SENDER.public)
    digests = (commit.offer_digest, "sha256:0")
    receipt = Receipt(commit.transfer_id, *digests, MEMORY.header.id, "exact", NOW)
    await stream.write_control(seal(RECEIVER, receipt))


async def hang_up(stream: FrameStream) -> None:
    await stream.read()


@pytest.mark.parametrize(
    ("script", "wanted"),
    [
        (accept_by_another, BadSignature),
        (accept_of_another_offer, ReplayedMessage),
        (accept_with_a_short_nonce, MalformedMessage),
        (ack_beyond_the_last_chunk, MalformedMessage),
        (chunk_instead_of_acks, MalformedMessage),
        (receipt_for_other_contents, BadSignature),
        (hang_up, TransferIncomplete),
    ],
)
async def test_lying_receiver_is_refused(
    pool: Executor, script: Callable[[FrameStream], Awaitable[None]], wanted: type[KvnetError]
) -> None:
    async with (
        rogue_at(Rogue(script)) as address,
        PeerClient(address, public=RECEIVER.public, peer="bob") as client,
    ):
        with pytest.raises(wanted):
            await client.push(MemoryNode(SENDER, pool).outgoing(MEMORY))


async def test_peer_that_keeps_the_stream_open_after_its_receipt_does_not_hold_us(
    pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kvnet.transport.client.CLOSE_DEADLINE_S", 0.2)
    alice = MemoryNode(SENDER, pool)
    outbound = alice.outgoing(MEMORY)

    async def receipt_then_silence(stream: FrameStream) -> None:
        await _accept(stream, held=pack_bitmap(set(range(TOTAL)), TOTAL))
        await stream.read_control()
        commit = outbound.session.commit()
        receipt = Receipt(
            commit.transfer_id, commit.offer_digest, commit.chunks_digest, MEMORY.header.id, "exact", NOW
        )
        await stream.write_control(seal(RECEIVER, receipt))
        await asyncio.sleep(30)

    async with (
        rogue_at(Rogue(receipt_then_silence)) as address,
        PeerClient(address, public=RECEIVER.public, peer="bob") as client,
    ):
        sent = await asyncio.wait_for(client.push(outbound), 5)
    assert sent.receipt.memory == MEMORY.header.id


class Silent:
    """The other end of a stream that neither reads nor writes."""

    async def read(self) -> Any:
        await asyncio.sleep(30)

    async def write(self, message: Any) -> None:
        await asyncio.sleep(30)


async def test_silent_peer_is_unreachable_after_the_idle_deadline() -> None:
    stream = FrameStream(Silent(), peer="bob", idle_deadline_s=0.2)
    for act in (stream.read, stream.read_control, lambda: stream.write_ack([1])):
        began = time.monotonic()
        with pytest.raises(PeerUnreachable, match="bob: silent"):
            await act()
        assert 0.15 < time.monotonic() - began < 2


async def test_silent_peer_over_grpc_is_unreachable_after_the_idle_deadline() -> None:
    async def silence(stream: FrameStream) -> None:
        await asyncio.sleep(5)

    async with rogue_at(Rogue(silence)) as address, grpc.aio.insecure_channel(address) as channel:
        call = peer_pb2_grpc.PeerStub(channel).Push()
        with pytest.raises(PeerUnreachable):
            await FrameStream(call, peer="bob", idle_deadline_s=0.2).read()
        call.cancel()


