"""send of a text: read it, and let each layer leave as soon as it is read."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from kvnet.api import LayerProgress, MemoryInfo, SendReport
from kvnet.compat import decide_tier
from kvnet.errors import RequestError
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.messages import MAX_NOTE_CHARS, Hello
from kvnet.types import Tier
from kvnetd.actions.dispatch import AWAY, Dispatcher
from kvnetd.actions.modes import refuse_mode
from kvnetd.actions.outbox import IfOff, Sending, send_or_queue, wish_of
from kvnetd.actions.remember import Reading, check_reading, remember
from kvnetd.actions.send import deliver, report_of, say_hello
from kvnetd.live import begin_reading
from kvnetd.outgoing import OutboundTransfer
from kvnetd.services import Services
from kvnetd.transfers import Transfers


async def send_text(
    services: Services, transfers: Transfers, dispatcher: Dispatcher, asked: Sending
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """Read and send in one go where the peer is there and takes it as it is; else read, then send or queue.

    Where the link breaks, the text is read once more, to be kept, and its memory waits in the outbox.
    Raises RequestError, what reading and `send_or_queue` raise.
    """
    reading = Reading(asked.text, name=asked.name, codec=asked.codec)
    check_reading(reading)
    refuse_mode(asked.mode)
    if asked.memory or len(asked.note) > MAX_NOTE_CHARS:
        raise RequestError(
            f"send: give a text or a memory, and a note of at most {MAX_NOTE_CHARS} characters"
        )
    peer = services.peers.find(asked.to.partition("/")[0])
    began = time.perf_counter()
    queued = await services.in_store(services.ledger.outbox.has_waiting, peer.node_id)
    found = None if queued else await _reachable(services, peer, asked)
    if found is None or not _fits(services, found[0]):
        async with aclosing(_read_then_send(services, transfers, dispatcher, asked, reading)) as steps:
            async for step in steps:
                yield step
        return
    outbound = await _begin(services, transfers, peer, asked)
    try:
        async with aclosing(deliver(services, peer, found[1], outbound)) as layers:
            async for layer in layers:
                if isinstance(layer, LayerProgress):
                    yield layer
                    continue
                report = report_of(outbound, layer, peer, seconds=time.perf_counter() - began)
                await _name(services, asked.name, report.memory)
                yield report
    except AWAY:
        if wish_of(asked.if_off) is IfOff.FAIL:
            raise
        async with aclosing(_read_then_send(services, transfers, dispatcher, asked, reading)) as steps:
            async for step in steps:
                yield step


async def _reachable(services: Services, peer: AddedPeer, asked: Sending) -> tuple[Hello, str] | None:
    try:
        hello, address, _ = await say_hello(services, peer)
    except AWAY:
        if wish_of(asked.if_off) is IfOff.FAIL:
            raise
        return None
    return hello, address


def _fits(services: Services, hello: Hello) -> bool:
    """Whether the peer's model takes what ours reads as it is: a map needs the whole memory first."""
    host = services.host
    tier = decide_tier((host.fingerprint, host.geometry), (hello.fingerprint, hello.geometry), has_map=False)
    return tier in (Tier.EXACT, Tier.IDENTITY)


async def _begin(
    services: Services, transfers: Transfers, peer: AddedPeer, asked: Sending
) -> OutboundTransfer:
    header, source = await begin_reading(services, asked.text, codec=asked.codec)
    try:
        return await transfers.prepare_reading(
            header,
            source,
            peer,
            note=asked.note,
            agents=(asked.agent, asked.to.partition("/")[2]),
            text=asked.text if asked.with_text else "",
        )
    except BaseException:
        source.release()
        raise


async def _read_then_send(
    services: Services, transfers: Transfers, dispatcher: Dispatcher, asked: Sending, reading: Reading
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    memory = ""
    # What is kept is exact; the codec is that of the wire.
    async with aclosing(remember(services, replace(reading, codec="", keep_text=asked.with_text))) as layers:
        async for layer in layers:
            if isinstance(layer, MemoryInfo):
                memory = layer.id
    later = replace(asked, text="", name="", memory=memory)
    async with aclosing(send_or_queue(services, transfers, dispatcher, later)) as rest:
        async for step in rest:
            yield step


async def _name(services: Services, name: str, memory: str) -> None:
    if name:
        await services.in_store(services.ledger.name, name, memory)
