"""Pairing over TCP: the listener for whoever was told the code, and the one that dials it.

Source: FORMAT.md §13. In clear, for neither side knows the other's certificate yet: what is not for others is
in boxes. Before its proof a stranger gets a few frames of at most 4 KiB and, three times in all, an answer.
Knows sockets and frames; what is said, `kvnet.identity.pairing` decides.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from kvnet.errors import KvnetError, MalformedMessage, PairingDeclined, PeerUnreachable, PortInUse, TooBusy
from kvnet.identity.pairing import LIFE_S, Confirmed, Invitation, Joining
from kvnet.identity.pairing_messages import (
    MAX_MESSAGE_NBYTES,
    Answer,
    Introduction,
    InviterProof,
    Join,
    JoinerProof,
    M,
    Message,
    Sealed,
    error_to_refusal,
    pack,
    unpack,
)

MESSAGE_DEADLINE_S: Final = 10.0
MAX_CONNECTIONS: Final = 4
_LENGTH: Final = struct.Struct("<I")
# What the kernel may hold for a stranger, and so what one read can bring here.
_RECEIVE_BUFFER_NBYTES: Final = 2 * MAX_MESSAGE_NBYTES


@dataclass(frozen=True, slots=True)
class WrongGuess:
    """Somebody dialled and did not prove the code."""

    host: str
    guesses_left: int
    error: KvnetError


class _Wire:
    """One connection, as messages."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, who: str) -> None:
        self._reader = reader
        self._writer = writer
        self.who = who

    @property
    def host(self) -> str:
        """The address of the other end."""
        name = self._writer.get_extra_info("peername") or ("",)
        return str(name[0])

    async def send(self, message: Message) -> None:
        """Write a message within the deadline. Raises PeerUnreachable."""
        data = pack(message)
        try:
            async with asyncio.timeout(MESSAGE_DEADLINE_S):
                self._writer.write(_LENGTH.pack(len(data)) + data)
                await self._writer.drain()
        except OSError as exc:  # a timeout is one
            raise self._broke_off() from exc

    async def receive(self, wanted: type[M], *, deadline_s: float = MESSAGE_DEADLINE_S) -> M:
        """The next message, which must be of this kind. Raises PeerUnreachable, and what `unpack` does."""
        try:
            async with asyncio.timeout(deadline_s):
                (nbytes,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                if not 0 < nbytes <= MAX_MESSAGE_NBYTES:  # before a byte of it is read
                    raise MalformedMessage(
                        f"{self.who}: a message of {nbytes} bytes, at most {MAX_MESSAGE_NBYTES} are read"
                    )
                data = await self._reader.readexactly(nbytes)
        except (OSError, EOFError) as exc:
            raise self._broke_off() from exc
        return unpack(data, wanted, who=self.who)

    def refuse(self, error: BaseException) -> None:
        """Say in a word why this side ends it, and close."""
        data = pack(error_to_refusal(error))
        with suppress(OSError):
            self._writer.write(_LENGTH.pack(len(data)) + data)
        self.close()

    def close(self) -> None:
        """Close once what was written is out."""
        self._writer.close()

    def _broke_off(self) -> PeerUnreachable:
        return PeerUnreachable(f"{self.who}: broke off the pairing, or was silent; run `kvnet pair` again")


class PairingLink:
    """A connection to a node that has proved the code. Leaving the `async with` closes it."""

    def __init__(self, wire: _Wire, confirmed: Confirmed) -> None:
        self._wire = wire
        self.confirmed = confirmed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._wire.close()
        else:
            self.decline()

    @property
    def host(self) -> str:
        """The address that the other node has from here."""
        return self._wire.host

    def decline(self) -> None:
        """End it without agreement; what went wrong here is not for others."""
        self._wire.refuse(PairingDeclined("pairing: ended after the proof"))

    async def introduce(self, own: Introduction) -> Introduction:
        """Say who this node is and hear who the other one is."""
        await self._wire.send(self.confirmed.seal(own))
        return self.confirmed.open(await self._wire.receive(Sealed))

    async def agree(self) -> None:
        """Tell the other side that this one keeps it."""
        await self._wire.send(self.confirmed.agree())

    async def agreed(self) -> None:
        """Wait until the other side keeps this one; as long as people take where they compare.

        Raises PairingDeclined, PeerUnreachable.
        """
        deadline_s = LIFE_S if self.confirmed.compares else MESSAGE_DEADLINE_S
        self.confirmed.require_agreement(await self._wire.receive(Sealed, deadline_s=deadline_s))


class PairingListener:
    """Answers, on a port of its own, whoever may know one code; until one does, or the code is closed."""

    def __init__(
        self, invitation: Invitation, *, pool: Executor, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._invitation = invitation
        self._pool = pool
        self._clock = clock
        self._server: asyncio.Server | None = None
        # At most one entry for each guess, and the end.
        self._outcomes: asyncio.Queue[WrongGuess | PairingLink | KvnetError] = asyncio.Queue()
        self._num_connections = 0
        self._num_guessing = 0

    async def start(self, host: str) -> int:
        """Listen on a free port of `host` and return it. Raises PortInUse."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_NBYTES)
            listening.bind((host, 0))
            self._server = await asyncio.start_server(
                self._serve, sock=listening, limit=MAX_MESSAGE_NBYTES, backlog=MAX_CONNECTIONS
            )
        except OSError as exc:
            listening.close()
            raise PortInUse(f"pairing: no port of {host} can be listened on ({exc.strerror})") from exc
        return int(listening.getsockname()[1])

    async def outcomes(self) -> AsyncGenerator[WrongGuess | PairingLink, None]:
        """Every wrong guess as it happens, then the link to the node that proved the code, once.

        Raises PairingExpired, PairingClosed, or why the link broke after the proof.
        """
        while True:
            try:
                async with asyncio.timeout(self._invitation.expires_at - self._clock()):
                    outcome = await self._outcomes.get()
            except TimeoutError:
                self._invitation.require_open(self._clock())
                continue
            if isinstance(outcome, KvnetError):
                raise outcome
            yield outcome
            if isinstance(outcome, PairingLink):
                return

    def close(self) -> None:
        """Listen no more, and let nobody finish who has begun; a link that was taken goes on."""
        with suppress(KvnetError):
            self._invitation.use(self._clock())
        if self._server is not None:
            self._server.close()
        while not self._outcomes.empty():
            left = self._outcomes.get_nowait()
            if isinstance(left, PairingLink):
                left.decline()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = _Wire(reader, writer, who="the node that dials")
        if self._num_connections >= MAX_CONNECTIONS:
            wire.refuse(TooBusy("pairing: too many dial at once"))
            return
        self._num_connections += 1
        try:
            await self._answer(wire)
        except KvnetError as error:
            wire.refuse(error)
        except BaseException as failure:
            wire.refuse(failure)
            raise
        finally:
            self._num_connections -= 1

    async def _answer(self, wire: _Wire) -> None:
        self._invitation.require_open(self._clock())
        join = await wire.receive(Join)
        self._invitation.take_guess(self._clock())
        self._num_guessing += 1
        try:
            confirmed, proof = await self._guess(wire, join)
            self._invitation.use(self._clock())
        except KvnetError as error:
            self._num_guessing -= 1
            self._outcomes.put_nowait(WrongGuess(wire.host, self._invitation.guesses_left, error))
            if self._invitation.guesses_left == self._num_guessing == 0:
                self._outcomes.put_nowait(self._invitation.too_many_guesses())
            raise
        try:
            await wire.send(proof)
        except KvnetError as error:  # the code is used up: nothing else can come
            self._outcomes.put_nowait(error)
            raise
        self._outcomes.put_nowait(PairingLink(wire, confirmed))

    async def _guess(self, wire: _Wire, join: Join) -> tuple[Confirmed, InviterProof]:
        loop = asyncio.get_running_loop()
        answered = await loop.run_in_executor(self._pool, self._invitation.answer, join)
        await wire.send(answered.answer)
        return answered.check(await wire.receive(JoinerProof))


async def dial(
    host: str,
    port: int,
    joining: Joining,
    *,
    pool: Executor,
    proving: Callable[[], object] = lambda: None,
) -> PairingLink:
    """Join the pairing at an address. Raises PeerUnreachable, WrongCode, and whatever it is refused for.

    `proving` is called before the proof is given away: whoever gets it has tried one code.
    """
    who = f"{host}:{port}"
    try:
        async with asyncio.timeout(MESSAGE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(host, port, limit=MAX_MESSAGE_NBYTES)
    except OSError as exc:
        raise PeerUnreachable(
            f"{who}: nobody pairs there now; run `kvnet pair` there, its code lives two minutes"
        ) from exc
    wire = _Wire(reader, writer, who=who)
    try:
        return PairingLink(wire, await _join(wire, joining, pool, proving))
    except BaseException as error:
        wire.refuse(error if isinstance(error, KvnetError) else PairingDeclined("pairing: cancelled"))
        raise


async def _join(wire: _Wire, joining: Joining, pool: Executor, proving: Callable[[], object]) -> Confirmed:
    await wire.send(joining.join)
    answer = await wire.receive(Answer)
    loop = asyncio.get_running_loop()
    proof, proved = await loop.run_in_executor(pool, joining.prove, answer)
    proving()
    await wire.send(proof)
    return proved.check(await wire.receive(InviterProof))
