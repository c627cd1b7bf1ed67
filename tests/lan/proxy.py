"""A TCP proxy that misbehaves on purpose, repeatably for a seed. Knows bytes and time only.

Stands between a client and a server where the kernel has no netem: delay, cut, flipped bits, stall.
Offsets count the bytes of one direction of one connection; with TLS inside they are ciphertext.

    async with FaultProxy("127.0.0.1", port, to_server=Faults(cut_after_nbytes=5000), seed=1) as proxy:
        ... connect to ("127.0.0.1", proxy.port) ...

Inside a namespace it runs as a program: `proxy.py SERVER_HOST SERVER_PORT LISTEN_HOST OPTIONS`, where
OPTIONS is JSON like `{"to_server": {"delay_s": 0.1}, "num_faulty": 1, "seed": 7}`. It prints its port;
SIGUSR1 heals, SIGUSR2 cuts, SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import struct
import sys
from dataclasses import dataclass
from types import TracebackType
from typing import Self

_READ_NBYTES = 64 * 1024
_QUEUE_CHUNKS = 64
_CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to one direction; the default is nothing."""

    delay_s: float = 0.0
    jitter_s: float = 0.0  # up to this much more, never out of order
    cut_after_nbytes: int | None = None  # pass so many, then reset the connection
    flip_at: int | None = None  # flip one bit of the byte at this offset
    stall_after_nbytes: int | None = None  # pass so many, then nothing until `heal`


_NONE = Faults()


@dataclass(slots=True)
class _Pipe:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    faults: Faults
    random: random.Random  # its own, so that what one direction draws does not depend on the other
    flip_mask: int
    healed: asyncio.Event  # of when it began: `arm` begins a new one
    num_passed: int = 0


class FaultProxy:
    """Listens on 127.0.0.1 (or `host`) and passes everything on to one server, with faults.

    The first `num_faulty` connections suffer them (None: all do), so that a retry can succeed.
    """

    def __init__(
        self,
        server_host: str,
        server_port: int,
        *,
        to_server: Faults = _NONE,
        to_client: Faults = _NONE,
        num_faulty: int | None = None,
        seed: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.port = 0
        self.num_connections = 0
        self.num_cut = 0
        self.num_struck = 0  # cut, flipped or stalled, by what `Faults` says
        self.refuses = False  # then whoever connects is reset at once
        self._server_address = (server_host, server_port)
        self._host = host
        self._to_server, self._to_client = to_server, to_client
        self._num_faulty = num_faulty
        self._seed = seed
        self._healed = asyncio.Event()
        self._joined = asyncio.Event()
        self._joined.set()
        self._listener: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._serve, self._host, 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.close()
        self.cut()
        if self._connections:
            await asyncio.wait(self._connections, timeout=5)

    def heal(self) -> None:
        """No more faults: what stalled flows on, what comes next passes untouched."""
        self._num_faulty = 0
        self._healed.set()

    def arm(self, *, to_server: Faults = _NONE, to_client: Faults = _NONE, num_faulty: int) -> None:
        """The next `num_faulty` connections suffer these; those there are go on as they were."""
        self._to_server, self._to_client = to_server, to_client
        self._num_faulty = self.num_connections + num_faulty
        self._healed = asyncio.Event()

    def isolate(self) -> None:
        """Nothing passes, in either direction and on any connection, and nobody is told."""
        self._joined.clear()

    def rejoin(self) -> None:
        """Inverse of `isolate`: what was held back flows on."""
        self._joined.set()

    def cut(self) -> None:
        """Reset every connection there is now."""
        for task in self._connections:
            task.cancel()
        for writer in tuple(self._writers):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        number = self.num_connections
        self.num_connections += 1
        self._writers.add(writer)
        try:
            if self.refuses:
                _reset(writer)
                return
            await self._join(reader, writer, number)
        except asyncio.CancelledError:
            _reset(writer)  # ends here, by `cut`: asyncio would log a cancelled handler as an error
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                server_reader, server_writer = await asyncio.open_connection(*self._server_address)
        except OSError:
            _reset(writer)
            return
        self._writers.add(server_writer)
        is_faulty = self._num_faulty is None or number < self._num_faulty
        up = self._pipe(reader, server_writer, self._to_server if is_faulty else _NONE, f"{number} up")
        down = self._pipe(server_reader, writer, self._to_client if is_faulty else _NONE, f"{number} down")
        try:
            async with asyncio.TaskGroup() as pipes:
                pipes.create_task(self._pump(up))
                pipes.create_task(self._pump(down))
        except* OSError:
            for end in (writer, server_writer):
                _reset(end)
        finally:
            self._writers.discard(server_writer)
            server_writer.close()

    def _pipe(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, faults: Faults, name: str
    ) -> _Pipe:
        own_random = random.Random(f"{self._seed} {name}")
        return _Pipe(reader, writer, faults, own_random, 1 << own_random.randrange(8), self._healed)

    async def _pump(self, pipe: _Pipe) -> None:
        """Pass one direction on until its end; a delay holds bytes back without slowing them down."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_QUEUE_CHUNKS)
        async with asyncio.TaskGroup() as ends:
            ends.create_task(self._fill(pipe, queue))
            ends.create_task(self._drain(pipe, queue))

    async def _fill(self, pipe: _Pipe, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            chunk = await pipe.reader.read(_READ_NBYTES)
            wait_s = pipe.faults.delay_s + pipe.random.uniform(0, pipe.faults.jitter_s)
            await queue.put((clock() + wait_s, chunk))
            if not chunk:
                return

    async def _drain(self, pipe: _Pipe, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due, chunk = await queue.get()
            if not pipe.healed.is_set():
                await asyncio.sleep(due - clock())
            await self._joined.wait()
            if not chunk:
                pipe.writer.write_eof()
                return
            await self._pass(pipe, chunk)

    async def _pass(self, pipe: _Pipe, chunk: bytes) -> None:
        faults = _NONE if pipe.healed.is_set() else pipe.faults
        start, stop = pipe.num_passed, pipe.num_passed + len(chunk)
        if faults.flip_at is not None and start <= faults.flip_at < stop:
            flipped = bytearray(chunk)
            flipped[faults.flip_at - start] ^= pipe.flip_mask
            chunk = bytes(flipped)
            self.num_struck += 1
        if faults.stall_after_nbytes is not None and stop > faults.stall_after_nbytes:
            passed = max(0, faults.stall_after_nbytes - start)
            self.num_struck += 1
            await self._write(pipe, chunk[:passed])
            await pipe.healed.wait()
            await self._write(pipe, chunk[passed:])
        elif faults.cut_after_nbytes is not None and stop > faults.cut_after_nbytes:
            await self._write(pipe, chunk[: max(0, faults.cut_after_nbytes - start)])
            self.num_cut += 1
            self.num_struck += 1
            raise ConnectionResetError
        else:
            await self._write(pipe, chunk)

    async def _write(self, pipe: _Pipe, chunk: bytes) -> None:
        pipe.num_passed += len(chunk)
        pipe.writer.write(chunk)
        await pipe.writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a TCP reset, as a crashed machine or a firewall does."""
    found = writer.get_extra_info("socket")
    if found is not None and found.fileno() >= 0:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _run(server_host: str, server_port: int, host: str, options: dict[str, object]) -> None:
    faults = {key: Faults(**options.pop(key, {})) for key in ("to_server", "to_client")}  # type: ignore[arg-type]
    stopped = asyncio.Event()
    async with FaultProxy(server_host, server_port, host=host, **faults, **options) as proxy:  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, proxy.heal)
        loop.add_signal_handler(signal.SIGUSR2, proxy.cut)
        loop.add_signal_handler(signal.SIGTERM, stopped.set)
        print(proxy.port, flush=True)
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4])))
