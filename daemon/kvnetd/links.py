"""Connections to peers that just answered, kept a moment for the call that follows.

Whoever means to send says hello first; to dial again would cost as much as a small memory. Knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from kvnet.transport.client import PeerClient

KEPT_S: Final = 1.0


class Links:
    """At most one kept connection for each peer and address. Lives on the event loop."""

    def __init__(self, kept_s: float = KEPT_S) -> None:
        self._kept_s = kept_s
        self._kept: dict[tuple[bytes, str], tuple[PeerClient, asyncio.TimerHandle]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def keep(self, public: bytes, address: str, client: PeerClient) -> None:
        """Have `take` find this open connection, unless it is closed before: soon, if nobody comes."""
        self._drop(public, address)
        timer = asyncio.get_running_loop().call_later(self._kept_s, self._drop, public, address)
        self._kept[public, address] = (client, timer)

    def take(self, public: bytes, address: str, dial: Callable[[], PeerClient]) -> PeerClient:
        """The kept connection, or else a new one; whoever asks closes it."""
        client, timer = self._kept.pop((public, address), (None, None))
        if timer is not None:
            timer.cancel()
        return client or dial()

    async def close(self) -> None:
        """Close what nobody took."""
        for public, address in tuple(self._kept):
            self._drop(public, address)
        if self._closing:
            await asyncio.wait(self._closing)

    def _drop(self, public: bytes, address: str) -> None:
        client, timer = self._kept.pop((public, address), (None, None))
        if client is not None and timer is not None:
            timer.cancel()
            closing = asyncio.get_running_loop().create_task(client.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
