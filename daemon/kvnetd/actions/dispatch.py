"""Delivers what waits in the outbox: to each peer one memory at a time, in the order it was asked for.

A peer that is off is tried again after half a second, then ever later up to a quarter of a minute, and at
once when mDNS shows it. A memory for which the peer has no room is tried again so too, by itself: those
behind it pass, so the order holds among those that can go. What only the caller can mend is marked as failed.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Final

from kvnet.api import LayerProgress, OutboxEntry, SendReport
from kvnet.errors import (
    CapacityError,
    KvnetError,
    PeerNotAdded,
    PeerUnreachable,
    ReplayedMessage,
    StoreFull,
    TransferIncomplete,
    UnknownOutboxEntry,
    UnknownPeer,
)
from kvnetd.actions.send import beside_of, send
from kvnetd.services import Services, utc_now
from kvnetd.transfers import Transfers

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 15.0
MAX_DELIVERIES: Final = 4  # at once, to as many peers

# The peer is off, its link broke, it is busy, or an offer from before is not taken any more. A link that
# breaks twice behind the handshake looks like a peer that lets us not in, and that may change as well.
AWAY: Final = (PeerUnreachable, TransferIncomplete)
_LATER: Final = (*AWAY, PeerNotAdded, CapacityError, ReplayedMessage)
_log = logging.getLogger(__name__)

Deliver = Callable[[OutboxEntry, str], AsyncGenerator[LayerProgress | SendReport, None]]


class Dispatcher:
    """The one who looks after the outbox. Everything but `run` returns at once."""

    def __init__(self, services: Services, transfers: Transfers, deliver: Deliver | None = None) -> None:
        """`deliver` sends an entry to the peer of this name now."""
        self._services = services
        self._transfers = transfers
        self._deliver = deliver or self._send
        self._wake = asyncio.Event()
        self._failures: dict[str, int] = defaultdict(int)  # by peer, one behind the other
        self._due_at: dict[str, float] = {}  # by peer, on the loop's clock
        self._too_large: dict[str, tuple[int, float]] = {}  # by entry: refusals, and when it is due again
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}  # by peer: entry, its delivery
        self._waiting: dict[str, list[asyncio.Future[SendReport]]] = defaultdict(list)  # by entry

    async def run(self) -> None:
        """Deliver until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    pause_s = await self._begin_due()
                except KvnetError:
                    _log.exception("the outbox cannot be read; trying again")
                    pause_s = LONGEST_PAUSE_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
        finally:
            deliveries = [delivery for _, delivery in self._running.values()]
            for delivery in deliveries:
                delivery.cancel()
            await asyncio.gather(*deliveries, return_exceptions=True)

    def notice(self, peer: str, entry_id: str = "") -> None:
        """Something waits for this peer, or it was seen: try now, be it an entry that was too large."""
        self._too_large.pop(entry_id, None)
        self._due_at.pop(peer, None)
        self._failures.pop(peer, None)
        self._wake.set()

    def delivery(self, entry: OutboxEntry) -> asyncio.Future[SendReport]:
        """How an entry ends: its report, or why it failed, expired or was removed."""
        ending: asyncio.Future[SendReport] = asyncio.get_running_loop().create_future()
        self._waiting[entry.id].append(ending)
        return ending

    def removed(self, entry: OutboxEntry) -> None:
        """An entry was taken out: break off its delivery."""
        entry_id, delivery = self._running.get(entry.peer, ("", None))
        if delivery is not None and entry_id == entry.id:
            delivery.cancel()
        self._end(entry.id, UnknownOutboxEntry(f"outbox entry {entry.id}: was removed"))

    async def _begin_due(self) -> float:
        """Begin what is due; returns how long nothing else will be."""
        services, loop = self._services, asyncio.get_running_loop()
        busy = {entry_id for entry_id, _ in self._running.values()}
        for entry in await services.in_store(services.ledger.outbox.expire, now=utc_now(), busy=busy):
            self._failed(entry, KvnetError(f"outbox entry {entry.id}: {entry.problem}"))
        pauses = [LONGEST_PAUSE_S]
        for entry in await services.in_store(services.ledger.outbox.waiting):
            if entry.peer in self._running or len(self._running) >= MAX_DELIVERIES:
                continue  # whoever ends wakes us
            _, due_at = self._too_large.get(entry.id, (0, 0.0))
            due_in_s = max(due_at, self._due_at.get(entry.peer, 0.0)) - loop.time()
            if due_in_s > 0:
                pauses.append(due_in_s)
                continue
            delivery = asyncio.create_task(self._attempt(entry))
            self._running[entry.peer] = (entry.id, delivery)
        return min(pauses)

    async def _attempt(self, entry: OutboxEntry) -> None:
        services, began = self._services, time.perf_counter()
        try:
            report = await self._report(entry)
        except StoreFull as failure:
            refusals, _ = self._too_large.get(entry.id, (0, 0.0))
            self._too_large[entry.id] = (refusals + 1, _after(refusals))
            await self._keep(services.ledger.outbox.tried, entry, failure)
        except _LATER as failure:
            self._put_off(entry.peer, at_once=isinstance(failure, ReplayedMessage))
            await self._keep(services.ledger.outbox.tried, entry, failure)
        except KvnetError as failure:
            if await self._keep(services.ledger.outbox.fail, entry, failure):
                self._failed(entry, failure)
        except Exception:  # a bug met by one entry must not hold up the others, nor be tried for ever
            _log.exception("an entry of the outbox met a bug")
            bug = KvnetError("the daemon met a bug; its log tells more, please report it")
            if await self._keep(services.ledger.outbox.fail, entry, bug):
                self._failed(entry, bug)
        else:
            # The row went with the receipt, in one transaction.
            self._failures.pop(entry.peer, None)
            duration_s = round(time.perf_counter() - began, 6)
            self._tell("delivered", entry, attempts=entry.attempts + 1, duration_s=duration_s)
            self._end(entry.id, report)
        finally:
            self._running.pop(entry.peer, None)
            self._wake.set()

    async def _keep(self, act: Callable[..., None], entry: OutboxEntry, failure: KvnetError) -> bool:
        """Write down how an attempt ended. Where the disk refuses that, its peer is put off."""
        try:
            await self._services.in_store(act, entry.id, problem=failure.message)
        except KvnetError:
            _log.exception("the outbox cannot be written; trying again")
            self._put_off(entry.peer, at_once=False)
            return False
        return True

    async def _report(self, entry: OutboxEntry) -> SendReport:
        async with aclosing(self._deliver(entry, self._peer_name(entry))) as steps:
            async for step in steps:
                if isinstance(step, SendReport):
                    return step
        raise AssertionError("a delivery ended without a report")

    def _send(self, entry: OutboxEntry, peer: str) -> AsyncGenerator[LayerProgress | SendReport, None]:
        return send(
            self._services,
            self._transfers,
            memory=entry.memory,
            to=f"{peer}/{entry.agent}",
            note=entry.note,
            agent=entry.sender_agent,
            codec=entry.codec,
            with_text=entry.with_text,
            parcel=entry.id,
            beside=beside_of(entry),
        )

    def _peer_name(self, entry: OutboxEntry) -> str:
        """The peer it is for, which may have got another name or key since."""
        peer = self._services.peers.ever(entry.peer)
        if peer is None:
            raise UnknownPeer(
                f"peer {entry.peer_name}: was removed; add it and `kvnet outbox retry {entry.id}`"
            )
        return peer.name

    def _put_off(self, peer: str, *, at_once: bool) -> None:
        failures = self._failures[peer]
        self._failures[peer] += 1
        if at_once and failures == 0:
            return  # the offer of before is gone now, the next one is fresh
        self._due_at[peer] = _after(failures)

    def _failed(self, entry: OutboxEntry, failure: KvnetError) -> None:
        self._tell("failed", entry, error=failure.code, message=failure.message, attempts=entry.attempts)
        self._end(entry.id, failure)

    def _end(self, entry_id: str, ending: SendReport | KvnetError) -> None:
        self._too_large.pop(entry_id, None)
        for future in self._waiting.pop(entry_id, ()):
            if future.done():
                continue  # whoever waited has gone
            if isinstance(ending, KvnetError):
                future.set_exception(ending)
            else:
                future.set_result(ending)

    def _tell(self, what: str, entry: OutboxEntry, **fields: str | int | float) -> None:
        self._services.log.write(
            f"outbox.{what}", entry=entry.id, peer=entry.peer_name, memory=entry.memory, **fields
        )


def _after(failures: int) -> float:
    """When to try again after so many failures before this one, on the loop's clock."""
    pause_s: float = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 10))
    # Jitter, so that nodes which lost each other at one time do not meet at one time for ever.
    jitter = random.uniform(0.5, 1.0)  # noqa: S311  # no secret
    return asyncio.get_running_loop().time() + pause_s * jitter
