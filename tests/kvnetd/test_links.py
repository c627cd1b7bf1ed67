"""Connections that are kept a moment: taken once, closed if nobody comes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kvnetd.links import Links

from kvnet.transport.gate import Gate
from tests.builders import make_memory
from tests.kvnetd.exchange import send_memory
from tests.kvnetd.nodes import Node


class Client:
    """A connection that remembers whether it was closed."""

    def __init__(self) -> None:
        self.is_closed = False

    async def close(self) -> None:
        """Remember it."""
        await asyncio.sleep(0)
        self.is_closed = True


@pytest.fixture
def clients() -> list[Any]:
    return [Client(), Client(), Client()]


async def test_kept_connection_is_taken_once_by_peer_and_address(clients: list[Any]) -> None:
    links, (kept, new, _) = Links(), clients
    links.keep(b"bob", "here:1", kept)
    assert links.take(b"bob", "here:2", lambda: new) is new
    assert links.take(b"eve", "here:1", lambda: new) is new
    assert links.take(b"bob", "here:1", lambda: new) is kept
    assert links.take(b"bob", "here:1", lambda: new) is new
    await links.close()
    assert not kept.is_closed  # it is its taker's


async def test_connection_that_nobody_takes_is_closed_soon(clients: list[Any]) -> None:
    links = Links(kept_s=0.02)
    links.keep(b"bob", "here:1", clients[0])
    await asyncio.sleep(0.1)
    assert clients[0].is_closed
    assert links.take(b"bob", "here:1", lambda: clients[1]) is clients[1]


async def test_newer_connection_takes_the_place_of_the_one_before_and_close_ends_all(
    clients: list[Any],
) -> None:
    links = Links()
    links.keep(b"bob", "here:1", clients[0])
    links.keep(b"bob", "here:1", clients[1])
    links.keep(b"eve", "here:1", clients[2])
    await links.close()
    assert [client.is_closed for client in clients] == [True, True, True]


async def test_memory_goes_over_the_connection_that_said_hello(
    alice: Node, bob: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels: list[str] = []
    channel = Gate.channel

    def counted(self: Gate, address: str, public: bytes) -> Any:
        channels.append(address)
        return channel(self, address, public)

    monkeypatch.setattr(Gate, "channel", counted)
    alice.remember(make_memory(seed=3))
    report = await send_memory(alice, memory=make_memory(seed=3).header.id)
    assert (report.peer, len(channels)) == ("bob", 1)
