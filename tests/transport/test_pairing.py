"""Pairing over real sockets: an honest pair, everybody else, and what a stranger costs."""

from __future__ import annotations

import asyncio
import os
import struct
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import pytest
import spake2
from spake2.ed25519_basic import ElementOfUnknownGroup

from kvnet.errors import (
    KvnetError,
    MalformedMessage,
    PairingClosed,
    PairingDeclined,
    PairingExpired,
    PeerUnreachable,
    PortInUse,
    RequestError,
    TooBusy,
    WrongCode,
)
from kvnet.identity.codes import PairingCode
from kvnet.identity.keys import NodeKey
from kvnet.identity.pairing import LIFE_S, MAX_GUESSES, Invitation, Joining
from kvnet.identity.pairing_messages import (
    MAX_MESSAGE_NBYTES,
    Introduction,
    Join,
    Refusal,
    Refused,
    pack,
    unpack,
)
from kvnet.transport import pairing
from kvnet.transport.pairing import MAX_CONNECTIONS, PairingLink, PairingListener, WrongGuess, dial
from tests.builders import RECEIVER, SENDER, STRANGER
from tests.identity.test_pairing import ALICE, BOB, CODE, OTHER_CODE

HERE = "127.0.0.1"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pool() -> Iterator[Executor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@asynccontextmanager
async def inviting(
    pool: Executor, *, clock: Clock | None = None, compares: bool = False
) -> AsyncIterator[tuple[PairingListener, int]]:
    """SENDER shows CODE; the listener and its port."""
    clock = clock or Clock()
    invitation = Invitation(SENDER, CODE, now=clock(), compares=compares)
    listener = PairingListener(invitation, pool=pool, clock=clock)
    port = await listener.start(HERE)
    try:
        yield listener, port
    finally:
        listener.close()


async def join(
    port: int, pool: Executor, *, code: PairingCode = CODE, key: NodeKey = RECEIVER
) -> PairingLink:
    return await dial(HERE, port, Joining(key, code), pool=pool)


async def outcome(listener: PairingListener) -> WrongGuess | PairingLink:
    """The next one."""
    async with aclosing(listener.outcomes()) as outcomes:
        return await anext(outcomes)


async def linked(listener: PairingListener) -> PairingLink:
    found = await outcome(listener)
    assert isinstance(found, PairingLink), found
    return found


class Stranger:
    """Somebody with a socket and bytes of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Stranger:
        self.reader, self.writer = await asyncio.open_connection(HERE, self._port)
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.writer.close()
        with suppress(OSError):
            await self.writer.wait_closed()

    async def say(self, message: bytes) -> None:
        self.writer.write(struct.pack("<I", len(message)) + message)
        await self.writer.drain()

    async def hear(self) -> bytes:
        (nbytes,) = struct.unpack("<I", await self.reader.readexactly(4))
        return await self.reader.readexactly(nbytes)

    async def refused(self) -> int:
        """The reason of the refusal that comes next, and that nothing comes behind it."""
        message = await self.hear()
        assert await self.reader.read() == b""
        return unpack(message, Refused, who="the inviter").reason


async def test_two_nodes_pair_and_introduce_themselves(pool: Executor) -> None:
    async with inviting(pool) as (listener, port):
        joiner, inviter = await asyncio.gather(join(port, pool), linked(listener))
        async with joiner, inviter:
            heard = await asyncio.gather(inviter.introduce(ALICE), joiner.introduce(BOB))
            assert heard == [BOB, ALICE]
            assert inviter.confirmed.peer_public == RECEIVER.public
            assert joiner.confirmed.peer_public == SENDER.public
            assert inviter.host == joiner.host == HERE
            await asyncio.gather(inviter.agreed(), joiner.agree())
            await asyncio.gather(inviter.agree(), joiner.agreed())


async def test_code_that_was_used_opens_nothing(pool: Executor) -> None:
    async with inviting(pool) as (listener, port):
        async with await join(port, pool), await linked(listener):
            pass
        async with Stranger(port) as stranger:
            assert await stranger.refused() == Refusal.CLOSED
        with pytest.raises((PairingClosed, PeerUnreachable)):
            await join(port, pool, key=STRANGER)
        listener.close()
        with pytest.raises(PeerUnreachable, match="nobody pairs there now"):
            await join(port, pool, key=STRANGER)


async def test_of_two_that_prove_the_code_at_once_one_is_let_in(pool: Executor) -> None:
    async with inviting(pool) as (listener, port):
        both = await asyncio.gather(join(port, pool), join(port, pool, key=STRANGER), return_exceptions=True)
        (failure,) = (one for one in both if isinstance(one, BaseException))
        (link,) = (one for one in both if isinstance(one, PairingLink))
        assert isinstance(failure, PairingClosed)
        async with link, await linked(listener) as inviter:
            assert inviter.confirmed.peer_public in (RECEIVER.public, STRANGER.public)


async def test_wrong_code_is_told_to_both_sides_and_the_right_one_still_counts(pool: Executor) -> None:
    async with inviting(pool) as (listener, port):
        with pytest.raises(WrongCode, match="try once more"):
            await join(port, pool, code=OTHER_CODE)
        wrong = await outcome(listener)
        assert isinstance(wrong, WrongGuess)
        assert (wrong.host, wrong.guesses_left) == (HERE, MAX_GUESSES - 1)
        assert isinstance(wrong.error, WrongCode)
        async with await join(port, pool), await linked(listener):
            pass


async def test_third_wrong_guess_closes_the_pairing(pool: Executor) -> None:
    async with inviting(pool) as (listener, port):
        for _ in range(MAX_GUESSES):
            with pytest.raises(WrongCode):
                await join(port, pool, code=OTHER_CODE)
        found = [await outcome(listener) for _ in range(MAX_GUESSES)]
        assert [one.guesses_left for one in found if isinstance(one, WrongGuess)] == [2, 1, 0]
        with pytest.raises(PairingClosed, match="3 wrong guesses"):
            await outcome(listener)
        with pytest.raises(PairingClosed, match="guessed too often"):
            await join(port, pool)


async def test_guess_without_a_proof_counts(pool: Executor) -> None:
    """Else one could hear as many answers as one likes."""
    async with inviting(pool) as (listener, port):
        for left in (2, 1, 0):
            async with Stranger(port) as stranger:
                await stranger.say(pack(Joining(STRANGER, OTHER_CODE).join))
                await stranger.hear()
            wrong = await outcome(listener)
            assert isinstance(wrong, WrongGuess)
            assert wrong.guesses_left == left
        with pytest.raises(PairingClosed):
            await outcome(listener)


async def test_code_expires_for_both_sides(pool: Executor) -> None:
    clock = Clock()
    async with inviting(pool, clock=clock) as (listener, port):
        clock.now = LIFE_S
        with pytest.raises(PairingExpired, match="older than two minutes"):
            await join(port, pool)
        with pytest.raises(PairingExpired, match="nobody used the code"):
            await outcome(listener)


async def test_inviter_that_gives_up_lets_nobody_finish(pool: Executor) -> None:
    async with inviting(pool) as (listener, port), Stranger(port) as slow:
        joining = Joining(RECEIVER, CODE)
        await slow.say(pack(joining.join))
        answer = unpack(await slow.hear(), pairing.Answer, who="the inviter")
        listener.close()
        await slow.say(pack(joining.prove(answer)[0]))
        assert await slow.refused() == Refusal.CLOSED


async def test_node_that_dials_itself_is_told_so(pool: Executor) -> None:
    async with inviting(pool) as (_, port):
        with pytest.raises(RequestError, match="this very node"):
            await join(port, pool, key=SENDER)


async def test_relay_with_its_own_keys_gets_nowhere(pool: Executor) -> None:
    """Between two honest nodes it puts its own key into both first messages; all else it passes on."""
    async with inviting(pool) as (listener, port):

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with Stranger(port) as beyond:
                beyond.writer.write(with_key(await reader.readexactly(4 + 1 + 2 + 32 + 33 + 32)))
                writer.write(with_key(await beyond.reader.readexactly(4 + 1 + 2 + 32 + 33 + 16)))
                beyond.writer.write(await reader.readexactly(4 + 1 + 16 + 32))
                writer.write(await beyond.reader.read())
            writer.close()

        def with_key(message: bytes) -> bytes:
            start = 4 + 1 + 2
            return message[:start] + STRANGER.public + message[start + 32 :]

        middle = await asyncio.start_server(relay, HERE, 0)
        async with middle:
            with pytest.raises(WrongCode):
                await join(middle.sockets[0].getsockname()[1], pool)
        wrong = await outcome(listener)
        assert isinstance(wrong, WrongGuess)
        assert isinstance(wrong.error, WrongCode)


@pytest.mark.parametrize("ends_as", ["declined", "gone"])
async def test_side_that_does_not_agree_leaves_the_other_without_a_peer(pool: Executor, ends_as: str) -> None:
    async with inviting(pool, compares=True) as (listener, port):
        joiner, inviter = await asyncio.gather(join(port, pool), linked(listener))
        assert joiner.confirmed.short_auth_string == inviter.confirmed.short_auth_string
        if ends_as == "gone":
            async with joiner:
                pass
        else:
            with pytest.raises(KeyError):
                async with joiner:
                    raise KeyError("the person said no")
        async with inviter:
            with pytest.raises(PairingDeclined if ends_as == "declined" else PeerUnreachable):
                await inviter.agreed()


async def test_port_of_an_address_that_is_not_ours_cannot_be_listened_on(pool: Executor) -> None:
    invitation = Invitation(SENDER, CODE, now=0.0)
    with pytest.raises(PortInUse, match=r"192\.0\.2\.1"):
        await PairingListener(invitation, pool=pool).start("192.0.2.1")


NOISE = {
    "nothing": b"",
    "TLS": bytes.fromhex("16030100f8010000f40303") + os.urandom(64),
    "HTTP": b"GET / HTTP/1.1\r\nHost: kvnet\r\n\r\n",
    "length of zero": struct.pack("<I", 0),
    "length of 4 GiB": struct.pack("<I", 0xFFFFFFFF),
    "length over the limit": struct.pack("<I", MAX_MESSAGE_NBYTES + 1) + b"x" * 100,
    "other message": struct.pack("<I", 33) + bytes([4]) + b"m" * 32,
    "join cut short": struct.pack("<I", 100) + pack(Joining(STRANGER, CODE).join)[:50],
    "longest frame": struct.pack("<I", MAX_MESSAGE_NBYTES) + b"\1\1" * (MAX_MESSAGE_NBYTES // 2),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
async def test_noise_uses_up_no_guess_and_ends_the_connection(
    pool: Executor, noise: bytes, no_arithmetic: None
) -> None:
    async with inviting(pool) as (listener, port):
        async with Stranger(port) as stranger:
            stranger.writer.write(noise)
            stranger.writer.write_eof()
            with suppress(ConnectionError):
                await stranger.reader.read()
        assert listener._invitation.guesses_left == MAX_GUESSES


@pytest.fixture
def no_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scalar multiplication is a failure."""

    def fail(*arguments: object) -> Any:
        raise AssertionError("a stranger made this node compute")

    monkeypatch.setattr(spake2.SPAKE2_A, "start", fail)
    monkeypatch.setattr(spake2.SPAKE2_A, "finish", fail)


async def test_flood_of_strangers_costs_five_multiplications_a_guess_and_three_guesses(
    pool: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A multiplication is about a millisecond and a half: under ten for each of the three, whoever comes."""
    joins = [pack(Joining(STRANGER, OTHER_CODE).join) for _ in range(5)]
    answered, real = 0, ElementOfUnknownGroup.scalarmult
    multiplications: list[int] = []
    element = spake2.ed25519_basic.Element

    def counted(cls: type[Any]) -> Any:
        real = cls.scalarmult
        return lambda self, scalar: multiplications.append(1) or real(self, scalar)

    assert real is not element.scalarmult
    for cls in (ElementOfUnknownGroup, element):
        monkeypatch.setattr(cls, "scalarmult", counted(cls))
    async with inviting(pool) as (_, port):
        for number in range(60):
            async with Stranger(port) as stranger:
                with suppress(OSError, EOFError):
                    await stranger.say(joins[number % 5] if number % 2 else os.urandom(100))
                    answered += unpack_kind(await stranger.hear()) == pairing.Answer.KIND
    assert answered == MAX_GUESSES
    assert len(multiplications) == 5 * MAX_GUESSES


def unpack_kind(message: bytes) -> int:
    return message[0]


async def test_stranger_that_sends_much_is_held_in_little_memory(pool: Executor) -> None:
    """Four at once that send without end and never finish a message; all that this process holds for them."""
    async with inviting(pool) as (_, port):
        frame = struct.pack("<I", MAX_MESSAGE_NBYTES) + b"x" * 1000
        strangers = [Stranger(port) for _ in range(MAX_CONNECTIONS)]
        for stranger in strangers:
            await stranger.__aenter__()
        await asyncio.sleep(0.05)
        tracemalloc.start()
        try:
            for stranger in strangers:
                stranger.writer.transport.set_write_buffer_limits(high=0)
                stranger.writer.write(frame)
            await asyncio.sleep(0.2)
            _, peak_nbytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        for stranger in strangers:
            await stranger.__aexit__()
    assert peak_nbytes < 1 << 20


async def test_fifth_connection_at_once_is_sent_away(pool: Executor) -> None:
    async with inviting(pool) as (_, port):
        silent = [Stranger(port) for _ in range(MAX_CONNECTIONS)]
        for stranger in silent:
            await stranger.__aenter__()
        await asyncio.sleep(0.05)
        with pytest.raises(TooBusy, match="try again"):
            await join(port, pool)
        for stranger in silent:
            await stranger.__aexit__()


async def test_silent_stranger_is_cut_off(pool: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairing, "MESSAGE_DEADLINE_S", 0.05)
    monkeypatch.setattr(pairing._Wire.receive, "__kwdefaults__", {"deadline_s": 0.05})
    async with inviting(pool) as (listener, port), Stranger(port) as stranger:
        await stranger.refused()
        assert listener._invitation.guesses_left == MAX_GUESSES


@pytest.mark.parametrize("answer", [b"", struct.pack("<I", 5000), struct.pack("<I", 3) + b"\2\2\0"])
async def test_joiner_survives_whoever_answers(pool: Executor, answer: bytes) -> None:
    async def rogue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4 + 1 + 2 + 32 + 33 + 32)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(rogue, HERE, 0)
    async with server:
        with pytest.raises((PeerUnreachable, MalformedMessage)):
            await join(server.sockets[0].getsockname()[1], pool)


async def test_what_pairs_is_not_what_was_sent_in_clear(pool: Executor) -> None:
    """Names travel in boxes: a listener on the wire sees keys, points and noise."""
    seen = bytearray()
    async with inviting(pool) as (listener, port):

        async def tap(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            async with Stranger(port) as beyond:
                await asyncio.gather(copy(reader, beyond.writer), copy(beyond.reader, writer))

        async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while data := await reader.read(4096):
                seen.extend(data)
                writer.write(data)
            writer.close()

        middle = await asyncio.start_server(tap, HERE, 0)
        async with middle:
            at = middle.sockets[0].getsockname()[1]
            joiner, inviter = await asyncio.gather(join(at, pool), linked(listener))
            said = Introduction("canary-name", "canary-space", 1)
            async with joiner, inviter:
                await asyncio.gather(inviter.introduce(said), joiner.introduce(said))
            await asyncio.sleep(0.05)
    assert RECEIVER.public in seen
    assert b"canary" not in seen
    assert all(word.encode() not in seen for word in CODE.words)


def test_refusals_are_all_that_a_stranger_can_hear() -> None:
    """Of each reason there is one byte: no path, no name, no count of guesses."""
    assert all(len(pack(Refused(reason))) == 2 for reason in Refusal)
    assert issubclass(WrongCode, KvnetError)
    assert Join.LAYOUT.size + 1 < MAX_MESSAGE_NBYTES
