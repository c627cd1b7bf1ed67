"""send --mode: a memory's keys and values, its text, or both at once, and a change of mind on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Final

from kvnet.api import LayerProgress, SendReport
from kvnet.cost import Mode, should_switch, window_s
from kvnet.errors import NotPermitted, RequestError
from kvnetd.actions.estimate import Priced, price
from kvnetd.actions.send import beside_of, send
from kvnetd.outgoing import Beside, OutboundTransfer
from kvnetd.services import Services
from kvnetd.store.outbox import Parcel
from kvnetd.transfers import Transfers

LOOK_S: Final = 0.25  # how often a transfer's pace is looked at
_MAX_SAMPLES: Final = 4096
Steps = AsyncGenerator[LayerProgress | SendReport, None]


def mode_of(asked: str) -> Mode:
    """The mode that a call names; a plain transfer if none. Raises RequestError."""
    try:
        return Mode(asked or Mode.TRANSFER)
    except ValueError:
        raise RequestError(f"mode {asked!r:.40}: none of {', '.join(Mode)}") from None


def refuse_mode(asked: str) -> None:
    """Raise RequestError for a mode where only a transfer is possible."""
    if mode_of(asked) is not Mode.TRANSFER:
        raise RequestError(f"mode {asked}: is for one memory that goes to one peer; leave --mode out")


async def send_as(
    services: Services, transfers: Transfers, parcel: Parcel, mode: Mode, entry_id: str = ""
) -> Steps:
    """Send now, by a mode: `auto` is the way that is estimated to be fastest.

    A transfer that falls far behind ends, and the text is sent. `entry_id` is the entry of the outbox that
    goes on with a transfer of the whole if it breaks. Raises RequestError for a way that is closed, and what
    `send` raises.
    """
    way = partial(
        send,
        services,
        transfers,
        to=f"{parcel.peer_name}/{parcel.agent}",
        note=parcel.note,
        agent=parcel.sender_agent,
    )
    plain = partial(
        way,
        memory=parcel.memory,
        codec=parcel.codec,
        with_text=parcel.with_text,
        parcel=entry_id,
        beside=beside_of(parcel),
    )
    began = time.perf_counter()
    steps = plain() if mode is Mode.TRANSFER else _by_estimate(services, way, plain, parcel, mode)
    async with aclosing(steps):
        async for step in steps:
            if isinstance(step, SendReport):  # of everything that was tried
                yield replace(step, seconds=round(time.perf_counter() - began, 6))
            else:
                yield step


async def _by_estimate(
    services: Services, way: partial[Steps], plain: partial[Steps], parcel: Parcel, mode: Mode
) -> Steps:
    if parcel.with_text:
        raise RequestError(f"mode {mode}: sends the text as it needs to; leave --with-text out")
    priced = await price(services, memory=parcel.memory, to=parcel.peer_name, codec=parcel.codec)
    chosen = priced.costs.choice if mode is Mode.AUTO else mode
    if priced.costs.seconds(chosen) is None:
        raise RequestError(f"mode {mode}: {priced.why_not}; send it with `--mode transfer`")
    in_parts = partial(_in_parts, services, way, priced, parcel.codec)
    is_whole = chosen is Mode.TRANSFER
    try:
        async with aclosing(_watched(plain, priced) if is_whole else in_parts(chosen)) as steps:
            async for step in steps:
                yield step
    except (_TooSlow, NotPermitted) as failure:
        # It reads no texts for us, or the text would be there sooner than the rest.
        if isinstance(failure, NotPermitted) and (is_whole or mode is not Mode.AUTO):
            raise
        second = in_parts(Mode.TEXT) if is_whole else _watched(plain, priced, other_way=False)
    else:
        return
    async with aclosing(second):
        async for step in second:
            yield step


class _TooSlow(Exception):  # never leaves this module
    """The text would be there sooner than the rest of the transfer."""


async def _in_parts(services: Services, way: partial[Steps], priced: Priced, codec: str, mode: Mode) -> Steps:
    """The text of the head, and the keys and values of the tail: of the last token alone, if all is text."""
    from kvnetd.cutting import tail_of  # torch

    costs = priced.costs
    head = costs.split_tokens if mode is Mode.SPLIT else len(priced.token_ids) - 1
    tail = await tail_of(services, priced.record, priced.token_ids, head, codec)
    predicted_s = costs.seconds(mode) or 0.0
    told = partial(_tell, mode, predicted_s)
    beside = Beside(prefix_text=priced.text)
    steps = way(memory=tail.id, codec="exact", beside=beside, on_outbound=told)
    async with aclosing(steps):
        async for step in steps:
            yield _marked(step, mode, predicted_s)


async def _watched(plain: partial[Steps], priced: Priced, *, other_way: bool = True) -> Steps:
    """A transfer under watch. Raises _TooSlow, once it is ended, where the text would be faster by far."""
    outbound: list[OutboundTransfer] = []
    predicted_s, other_s = priced.costs.transfer_s, priced.costs.text_s if other_way else None

    def on_outbound(prepared: OutboundTransfer) -> None:
        outbound.append(prepared)
        _tell(Mode.TRANSFER, predicted_s, prepared)

    samples: list[tuple[float, float]] = []
    began = time.perf_counter()
    window = window_s(predicted_s, len(priced.coded.head.sections))
    async with aclosing(plain(on_outbound=on_outbound)) as steps:
        while True:
            following = asyncio.ensure_future(anext(steps, None))
            try:
                while not (await asyncio.wait({following}, timeout=LOOK_S))[0]:
                    if not outbound or other_s is None or len(samples) > _MAX_SAMPLES:
                        continue
                    session = outbound[-1].session
                    share = session.acked_count / len(session.plan)
                    samples.append((time.perf_counter() - began, share))
                    if should_switch(samples, window_s=window, other_s=other_s):
                        raise _TooSlow
            finally:
                if not following.done():
                    following.cancel()
                    await asyncio.wait({following})
            step = following.result()
            if step is None:
                return
            yield _marked(step, Mode.TRANSFER, predicted_s)


def _tell(mode: Mode, predicted_s: float, outbound: OutboundTransfer) -> None:
    outbound.tell(mode=mode.value, predicted_s=round(predicted_s, 6))


def _marked(step: LayerProgress | SendReport, mode: Mode, predicted_s: float) -> LayerProgress | SendReport:
    if isinstance(step, LayerProgress):
        return step
    return replace(step, mode=mode.value, predicted_s=round(predicted_s, 6))
