"""The faulty proxy does what it says, and nothing else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from tests.lan.proxy import FaultProxy, Faults

_PAYLOAD = bytes(range(256)) * 1024


@pytest.fixture
async def echo_port() -> AsyncIterator[int]:
    """A server that sends back what it gets."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                writer.write(chunk)
                await writer.drain()
        except ConnectionError:
            pass  # what the cut tests are about
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


async def _round_trip(port: int, payload: bytes = _PAYLOAD, timeout_s: float = 5.0) -> bytes:
    """Send `payload` and read until the end, a reset or the timeout; returns what came back."""
    received = bytearray()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(payload)
        await writer.drain()
        writer.write_eof()

    async def receive() -> None:
        while chunk := await reader.read(65536):
            received.extend(chunk)

    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.gather(send(), receive(), return_exceptions=True)
    except TimeoutError:
        pass
    finally:
        writer.close()
    return bytes(received)


async def test_without_faults_everything_passes(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port) as proxy:
        assert await _round_trip(proxy.port) == _PAYLOAD


async def test_a_cut_passes_exactly_so_many_bytes_and_spares_the_retry(echo_port: int) -> None:
    faults = Faults(cut_after_nbytes=70_001)
    async with FaultProxy("127.0.0.1", echo_port, to_client=faults, num_faulty=1) as proxy:
        cut = await _round_trip(proxy.port)
        # A reset may overtake the last bytes in the receiver's own kernel, never add one.
        assert _PAYLOAD.startswith(cut)
        assert len(cut) <= 70_001
        assert proxy.num_cut == 1
        assert await _round_trip(proxy.port) == _PAYLOAD


async def test_one_bit_of_one_byte_is_flipped_and_the_seed_says_which(echo_port: int) -> None:
    async def flipped(seed: int) -> bytes:
        faults = Faults(flip_at=100_000)
        async with FaultProxy("127.0.0.1", echo_port, to_server=faults, seed=seed) as proxy:
            return await _round_trip(proxy.port)

    first, second = await flipped(7), await flipped(7)
    assert first == second
    different = [index for index in range(len(_PAYLOAD)) if first[index] != _PAYLOAD[index]]
    assert different == [100_000]
    assert (first[100_000] ^ _PAYLOAD[100_000]).bit_count() == 1


async def test_a_delay_applies_per_direction_and_does_not_throttle(echo_port: int) -> None:
    async with FaultProxy(
        "127.0.0.1", echo_port, to_server=Faults(delay_s=0.2), to_client=Faults(delay_s=0.1, jitter_s=0.05)
    ) as proxy:
        start = time.monotonic()
        assert await _round_trip(proxy.port) == _PAYLOAD
        assert 0.3 <= time.monotonic() - start < 1.0


async def test_a_stall_ends_when_healed(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port, to_server=Faults(stall_after_nbytes=1000)) as proxy:
        whole = asyncio.create_task(_round_trip(proxy.port))
        assert len(await _round_trip(proxy.port, timeout_s=0.3)) == 1000
        proxy.heal()
        assert await whole == _PAYLOAD


async def test_cutting_by_hand_ends_every_connection(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()


async def test_an_absent_server_looks_like_a_reset() -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    async with FaultProxy("127.0.0.1", port) as proxy:
        assert await _round_trip(proxy.port, b"x") == b""


async def test_faults_armed_later_hit_the_connections_after_and_are_counted(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port, num_faulty=0) as proxy:
        assert await _round_trip(proxy.port) == _PAYLOAD
        proxy.arm(to_server=Faults(cut_after_nbytes=1000), num_faulty=1)
        assert await _round_trip(proxy.port) != _PAYLOAD
        assert await _round_trip(proxy.port) == _PAYLOAD
        assert (proxy.num_struck, proxy.num_cut) == (1, 1)


async def test_nothing_passes_an_isolated_proxy_until_it_rejoins(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port, num_faulty=0) as proxy:
        proxy.isolate()
        assert await _round_trip(proxy.port, timeout_s=0.3) == b""
        proxy.rejoin()
        assert await _round_trip(proxy.port) == _PAYLOAD


async def test_who_is_refused_is_reset_at_once(echo_port: int) -> None:
    async with FaultProxy("127.0.0.1", echo_port, num_faulty=0) as proxy:
        proxy.refuses = True
        assert await _round_trip(proxy.port) == b""
        proxy.refuses = False
        assert await _round_trip(proxy.port) == _PAYLOAD
