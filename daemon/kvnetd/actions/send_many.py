"""send to several receivers: one copy leaves this node, and the receivers pass it on among themselves.

Each receiver gets the message from this node itself, so receipts, the inbox and the outbox are what they
always are; what it holds already, from a relay, is not sent again. A relay that fails costs time only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Final

from kvnet.api import LayerProgress, MemoryInfo, SendReport
from kvnet.errors import BadSignature, KvnetError, RequestError
from kvnet.identity.peers import AddedPeer
from kvnet.transfer.fanout import Candidate, plan
from kvnet.transfer.messages import MAX_RELAYED
from kvnet.types import NodeId
from kvnetd.actions.dispatch import AWAY, Dispatcher
from kvnetd.actions.memories import find
from kvnetd.actions.modes import refuse_mode
from kvnetd.actions.outbox import Sending, send_or_queue, wish_of
from kvnetd.actions.send import say_hello, send
from kvnetd.services import Services
from kvnetd.transfers import Transfers

MAX_RECEIVERS: Final = MAX_RELAYED + 1
MAX_AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class _Receiver:
    to: str  # a peer, or one agent there
    peer: AddedPeer


def receivers_of(to: str) -> tuple[str, ...]:
    """The receivers that `bob,carol/reviewer` names. Raises RequestError for none, too many, or one twice."""
    named = tuple(part.strip() for part in to.split(","))
    if not all(named):
        raise RequestError(f"to: {to!r:.80} has an empty name; give bob, or bob,carol,dave/reviewer")
    if len(named) > MAX_RECEIVERS:
        raise RequestError(f"to: {len(named)} receivers, at most {MAX_RECEIVERS} at once; send twice")
    twice = next((name for name in named if named.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"to: {twice:.60} is named twice; name each receiver once")
    return named


async def send_many(
    services: Services, transfers: Transfers, dispatcher: Dispatcher, asked: Sending
) -> AsyncGenerator[LayerProgress | SendReport, None]:
    """Send to all that `asked.to` names; yields progress over all of them, and a report for each.

    A receiver that cannot be served has its problem in its report, and does not keep the others from theirs.
    Raises RequestError, UnknownPeer, UnknownMemory, and what reading a text raises, before anything is sent.
    """
    receivers = [_Receiver(to, services.peers.find(to.partition("/")[0])) for to in receivers_of(asked.to)]
    wish_of(asked.if_off)
    refuse_mode(asked.mode)
    refuse_mode(asked.mode)
    if asked.text:
        asked = replace(asked, text="", name="", memory=await _read(services, asked))
    record = await find(services, asked.memory)
    fan = _Fan(services, transfers, dispatcher, replace(asked, memory=record.id), len(receivers))
    working = asyncio.create_task(fan.serve(receivers))
    try:
        while (event := await fan.events.get()) is not None:
            yield event
        await working
    finally:
        working.cancel()
        await asyncio.wait({working})


async def _read(services: Services, asked: Sending) -> str:
    """Have a text read and kept; what is read is passed on by many only once all of it is there."""
    services.require_model()
    from kvnetd.actions.remember import Reading, remember  # torch

    # What is kept is exact; the codec is that of the wire.
    reading = Reading(asked.text, name=asked.name, keep_text=asked.with_text)
    async with aclosing(remember(services, reading)) as steps:
        async for step in steps:
            if isinstance(step, MemoryInfo):
                return step.id
    raise AssertionError("the reading ended without a memory")


@dataclass(slots=True)
class _Fan:
    """One sending to many at work."""

    services: Services
    transfers: Transfers
    dispatcher: Dispatcher
    asked: Sending
    num_receivers: int
    # Bounded by what there is to tell: a layer, or the report, of a receiver.
    events: asyncio.Queue[LayerProgress | SendReport | None] = field(default_factory=asyncio.Queue)
    _later: list[_Receiver] = field(default_factory=list)  # were there, and went away
    _at_once: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_AT_ONCE))
    _chunks_done: dict[str, int] = field(default_factory=dict)  # by receiver
    _wire_nbytes: dict[str, int] = field(default_factory=dict)

    async def serve(self, receivers: Sequence[_Receiver]) -> None:
        """Everybody; `events` ends with None."""
        try:
            kinds = await asyncio.gather(*(self._kind(receiver) for receiver in receivers))
            candidates: dict[NodeId, tuple[_Receiver, str]] = {}
            alone: list[_Receiver] = []  # off, or served already under another of its agents
            for receiver, kind in zip(receivers, kinds, strict=True):
                if kind and receiver.peer.node_id not in candidates:
                    candidates[receiver.peer.node_id] = (receiver, kind)
                else:
                    alone.append(receiver)
            planned = plan([Candidate(node_id, kind) for node_id, (_, kind) in candidates.items()])
            await asyncio.gather(
                *(
                    self._branch([candidates[node_id][0] for node_id in (branch.head, *branch.behind)])
                    for branch in planned
                ),
                *(self._alone(receiver) for receiver in alone),
            )
            await asyncio.gather(*(self._alone(receiver) for receiver in self._later))
        finally:
            self.events.put_nowait(None)

    async def _kind(self, receiver: _Receiver) -> str:
        """What it hosts, or "" for one that does not answer now, or for which others wait in the outbox."""
        services = self.services
        if await services.in_store(services.ledger.outbox.has_waiting, receiver.peer.node_id):
            return ""
        async with self._at_once:
            try:
                hello, _, _ = await say_hello(services, receiver.peer)
            except KvnetError:
                return ""
        return hello.fingerprint.digest

    async def _branch(self, nodes: list[_Receiver]) -> None:
        """The first is to pass it on to all others; the second shows whether that came about."""
        tried = False  # whether anybody was asked to pass it on
        while nodes:
            head, *nodes = nodes
            behind = tuple(receiver.peer.node_id for receiver in nodes)
            served = await self._one(head, behind or (() if tried else None))
            tried = True
            if served is None or not nodes:
                continue
            second, *nodes = nodes
            report = await self._one(second, ())
            if report is not None and report.resumed_chunks == report.chunks:
                await asyncio.gather(*(self._one(receiver, ()) for receiver in nodes))
                return

    async def _one(self, receiver: _Receiver, relay_to: tuple[NodeId, ...] | None) -> SendReport | None:
        """Send to one of a branch, and report it; None where it could not be served."""
        try:
            async with self._at_once:
                try:
                    report = await self._send(receiver, relay_to)
                except BadSignature:
                    if relay_to is None:
                        raise
                    # What a relay brought there is not what it said to be, and is gone now.
                    report = await self._send(receiver, None)
        except AWAY:
            self._later.append(receiver)
            return None
        except KvnetError as problem:
            self.events.put_nowait(self._failed(receiver, problem))
            return None
        self.events.put_nowait(report)
        return report

    async def _alone(self, receiver: _Receiver) -> None:
        """Send to one as if it were the only one: it may wait in the outbox, or whatever else was wished."""
        asked = replace(self.asked, to=receiver.to)
        steps = send_or_queue(self.services, self.transfers, self.dispatcher, asked)
        try:
            async with aclosing(steps):
                async for step in steps:
                    self.events.put_nowait(self._seen(receiver, step))
        except KvnetError as problem:
            self.events.put_nowait(self._failed(receiver, problem))

    async def _send(self, receiver: _Receiver, relay_to: tuple[NodeId, ...] | None) -> SendReport:
        asked = self.asked
        steps = send(
            self.services,
            self.transfers,
            memory=asked.memory,
            to=receiver.to,
            note=asked.note,
            agent=asked.agent,
            codec=asked.codec,
            with_text=asked.with_text,
            relay_to=relay_to,
        )
        async with aclosing(steps):
            async for step in steps:
                if isinstance(step, SendReport):
                    return step
                self.events.put_nowait(self._seen(receiver, step))
        raise AssertionError("a transfer ended without a report")

    def _seen(self, receiver: _Receiver, step: LayerProgress | SendReport) -> LayerProgress | SendReport:
        """Progress of one as progress of all."""
        if isinstance(step, SendReport):
            return step
        self._chunks_done[receiver.to] = step.chunks_done
        self._wire_nbytes[receiver.to] = step.wire_bytes
        done, sent = sum(self._chunks_done.values()), sum(self._wire_nbytes.values())
        return LayerProgress(step.layer_idx, done, step.chunks_total * self.num_receivers, sent)

    def _failed(self, receiver: _Receiver, problem: KvnetError) -> SendReport:
        return SendReport(
            transfer_id="",
            memory=self.asked.memory,
            peer=receiver.peer.name,
            chunks=0,
            raw_bytes=0,
            wire_bytes=0,
            seconds=0.0,
            tier="",
            resumed_chunks=0,
            codec=self.asked.codec,
            problem=f"{problem.message} [{problem.code}]",
        )
