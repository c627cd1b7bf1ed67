"""send, and outbox ls, retry, rm: what shall reach a peer, whether it is there now or later."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from kvnet.api import LayerProgress, OutboxEntry, SendReport
from kvnet.codec.presets import preset_name
from kvnet.errors import RequestError
from kvnet.transfer.messages import MAX_NOTE_CHARS
from kvnet.types import base32
from kvnetd.actions.dispatch import AWAY, Dispatcher
from kvnetd.actions.memories import find
from kvnetd.actions.modes import mode_of, send_as
from kvnetd.outgoing import Beside
from kvnetd.services import Services, utc_now
from kvnetd.store.outbox import Parcel
from kvnetd.store.records import MemoryRecord
from kvnetd.transfers import Transfers


class IfOff(StrEnum):
    """What to do with a memory whose peer is off."""

    QUEUE = "queue"
    WAIT = "wait"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Sending:
    """What `send` was asked for; `to` is a peer, or one agent there."""

    memory: str
    to: str
    note: str
    agent: str
    codec: str
    with_text: bool
    if_off: str  # of IfOff, QUEUE if empty
    text: str = ""  # instead of `memory`: read it, and send each layer as it is read (actions.send_text)
    name: str = ""  # of the memory that comes of it
    mode: str = ""  # of kvnet.cost.Mode: transfer if empty; what waits in the outbox is transferred


async def send_or_queue(
    services: Services,
    transfers: Transfers,
    dispatcher: Dispatcher,
    asked: Sending,
    *,
    beside: Beside | None = None,
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """Send; where the peer is off, or others wait for it, the memory waits in the outbox behind them.

    With `queue` the report says under which id and why, with `wait` it comes once the memory is delivered,
    with `fail` nothing waits and nobody is waited for. `beside` is of a part of a live memory.
    Raises RequestError, what `send` raises, and with `wait` what the entry failed with.
    """
    wish = wish_of(asked.if_off)
    record = await find(services, asked.memory)
    parcel = _parcel(services, record, asked, beside or Beside())
    outbox = services.ledger.outbox
    # Before the first attempt, so that what was begun now is what the outbox goes on with.
    entry_id = "" if wish is IfOff.FAIL else "out_" + base32(os.urandom(16))
    problem = ""
    if wish is IfOff.FAIL or not await services.in_store(outbox.has_waiting, parcel.peer):
        try:
            async with aclosing(send_as(services, transfers, parcel, mode_of(asked.mode), entry_id)) as steps:
                async for step in steps:
                    yield step
        except AWAY as failure:
            if wish is IfOff.FAIL:
                raise
            problem = failure.message
        else:
            return
    entry = await _queue(services, entry_id, parcel, problem)
    ending = dispatcher.delivery(entry) if wish is IfOff.WAIT else None
    dispatcher.notice(parcel.peer)
    problem = problem or f"others wait for {parcel.peer_name} already, and it goes in its turn"
    yield await ending if ending is not None else _queued(record, entry, problem)


async def list_outbox(services: Services) -> tuple[OutboxEntry, ...]:
    """What waits and what failed, in the order in which it was asked for."""
    return await services.in_store(services.ledger.outbox.all)


async def retry(services: Services, dispatcher: Dispatcher, wanted: str) -> OutboxEntry:
    """Try an entry now, and let one that failed wait again. Raises UnknownOutboxEntry."""
    outbox = services.ledger.outbox
    entry = await services.in_store(outbox.find, wanted)
    entry = await services.in_store(outbox.retry, entry.id, expires_at=_expiry(services))
    dispatcher.notice(entry.peer, entry.id)
    return entry


async def remove(services: Services, dispatcher: Dispatcher, wanted: str) -> OutboxEntry:
    """Take an entry out; a delivery in progress is broken off. Raises UnknownOutboxEntry."""
    outbox = services.ledger.outbox
    entry = await services.in_store(outbox.find, wanted)
    await services.in_store(outbox.remove, entry.id)
    dispatcher.removed(entry)
    services.log.write("outbox.removed", entry=entry.id, peer=entry.peer_name, memory=entry.memory)
    return entry


def wish_of(if_off: str) -> IfOff:
    """What a caller wishes for. Raises RequestError."""
    try:
        return IfOff(if_off or IfOff.QUEUE)
    except ValueError:
        allowed = ", ".join(IfOff)
        raise RequestError(f"if_off: {if_off!r:.40} is none of {allowed}") from None


def _parcel(services: Services, record: MemoryRecord, asked: Sending, beside: Beside) -> Parcel:
    if len(asked.note) > MAX_NOTE_CHARS:
        raise RequestError(
            f"note: {len(asked.note)} characters, at most {MAX_NOTE_CHARS}; put it in the memory"
        )
    name, _, agent = asked.to.partition("/")
    peer = services.peers.find(name)
    return Parcel(
        peer=peer.node_id,
        peer_name=peer.name,
        agent=agent,
        sender_agent=asked.agent,
        memory=record.id,
        note=asked.note,
        codec=asked.codec,
        with_text=asked.with_text,
        label=beside.label,
        quiet=beside.quiet,
    )


async def _queue(services: Services, entry_id: str, parcel: Parcel, problem: str) -> OutboxEntry:
    entry = await services.in_store(
        services.ledger.outbox.add,
        entry_id,
        parcel,
        now=utc_now(),
        expires_at=_expiry(services),
        most=services.config.limits.max_outbox_entries,
    )
    if problem:
        await services.in_store(services.ledger.outbox.tried, entry.id, problem=problem)
    services.log.write(
        "outbox.queued", entry=entry.id, peer=entry.peer_name, memory=entry.memory, agent=entry.agent
    )
    return entry


def _expiry(services: Services) -> str:
    until = datetime.now(UTC) + timedelta(seconds=services.config.outbox_life_s)
    return until.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _queued(record: MemoryRecord, entry: OutboxEntry, problem: str) -> SendReport:
    return SendReport(
        transfer_id="",
        memory=record.id,
        peer=entry.peer_name,
        chunks=0,
        raw_bytes=record.header.raw_nbytes,
        wire_bytes=0,
        seconds=0.0,
        tier="",
        resumed_chunks=0,
        codec=entry.codec or preset_name(record.header.coding),
        queued=entry.id,
        problem=problem,
    )
