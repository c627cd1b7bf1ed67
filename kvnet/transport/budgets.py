"""What is in use of the peer port's limits: calls and connections by caller, and bytes on their way to disk.

Knows no gRPC: a connection is the text that names its other end. For one event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kvnet.errors import TooBusy
from kvnet.transport.limits import PortLimits

MAX_REMEMBERED_CALLERS = 512
_AT_ONCE_S = 2.0  # so many seconds' worth of calls may come at once


class CallBudget:
    """Calls and connections, by who calls."""

    def __init__(self, limits: PortLimits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._paid_until: dict[
            bytes, float
        ] = {}  # by key: when its calls until now are its share of the time
        self._calls: Counter[tuple[bytes, str, str]] = Counter()  # by key, host and connection

    async def turn(self, public: bytes) -> None:
        """Wait until it is this caller's turn. Raises TooBusy, late, where that would be too late.

        Late, for a caller that begins again as soon as it is refused must not be worth an answer every time.
        """
        wait_s = self._book(public)
        await asyncio.sleep(min(wait_s, self._limits.busy_pause_s))
        if wait_s > self._limits.busy_pause_s:
            raise TooBusy(
                f"the calling node: more than {self._limits.max_calls_per_s} calls a second; call less often"
            )

    @contextmanager
    def open(self, public: bytes, host: str, connection: str) -> Iterator[None]:
        """Count a call while it is dealt with. Raises TooBusy."""
        self._require_room(public, host, connection)
        caller = (public, host, connection)
        self._calls[caller] += 1
        try:
            yield
        finally:
            self._calls[caller] -= 1
            if not self._calls[caller]:
                del self._calls[caller]

    def _book(self, public: bytes) -> float:
        """Seconds until it is this caller's turn, which it has then had if they are not too many."""
        now = self._clock()
        if len(self._paid_until) >= MAX_REMEMBERED_CALLERS:
            self._paid_until = {who: until for who, until in self._paid_until.items() if until > now}
        until = max(now, self._paid_until.get(public, now))
        wait_s = max(0.0, until - now - _AT_ONCE_S)
        if wait_s <= self._limits.busy_pause_s:
            self._paid_until[public] = until + 1 / self._limits.max_calls_per_s
        return wait_s

    def _require_room(self, public: bytes, host: str, connection: str) -> None:
        limits, calls = self._limits, self._calls
        its_own = [count for (key, _, _), count in calls.items() if key == public]
        bounds = [
            ("calls at once", sum(calls.values()), limits.max_calls),
            ("calls of one node at once", sum(its_own), limits.max_calls_per_peer),
        ]
        if (public, host, connection) not in calls:
            from_there = sum(1 for _, where, _ in calls if where == host)
            bounds += [
                ("connections", len(calls), limits.max_connections),
                ("connections of one address", from_there, limits.max_connections_per_ip),
                ("connections of one node", len(its_own), limits.max_connections_per_peer),
            ]
        for what, count, most in bounds:
            if count >= most:
                raise TooBusy(
                    f"the node that was called: deals with {count} {what}; try again in a few seconds"
                )


class ByteBudget:
    """Bytes that may be in memory and not yet on disk, over all transfers; whoever came first goes first."""

    def __init__(self, nbytes: int) -> None:
        self._most = nbytes
        self._line = asyncio.Lock()
        self._room = asyncio.Event()
        self.taken_nbytes = 0

    @contextmanager
    def share(self) -> Iterator[ByteShare]:
        """One transfer's part; what it still has at the end of the block is given back."""
        share = ByteShare(self)
        try:
            yield share
        finally:
            share.give_back(share.taken_nbytes)

    async def take(self, nbytes: int) -> None:
        """Wait until there is room. What is larger than all of it goes alone."""
        async with self._line:
            while self.taken_nbytes and self.taken_nbytes + nbytes > self._most:
                self._room.clear()
                await self._room.wait()
            self.taken_nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        """These bytes are on disk, or given up."""
        self.taken_nbytes -= nbytes
        self._room.set()


class ByteShare:
    """What one transfer has taken of a ByteBudget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.taken_nbytes = 0

    async def take(self, nbytes: int) -> None:
        """As ByteBudget's."""
        await self._budget.take(nbytes)
        self.taken_nbytes += nbytes

    def give_back(self, nbytes: int) -> None:
        """As ByteBudget's."""
        self.taken_nbytes -= nbytes
        self._budget.give_back(nbytes)
