"""ask --stream-to: what an answer adds to a memory follows to a peer while it is generated.

Every few tokens a memory behind the last one, stored here and sent; both ends call the newest by one name.
Generation never waits: what the link does not take in time becomes a larger segment.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Final

from kvnet.api import Answer, SendReport
from kvnet.codec.basis import Basis
from kvnet.errors import KvnetError, RequestError
from kvnet.format.compress import DEFAULT_LEVELS
from kvnet.identity.peers import AddedPeer
from kvnet.model.memory import encode_memory, pack_memory
from kvnet.model.segments import Segment, joined
from kvnet.transfer.admission import MAX_LABEL_CHARS
from kvnet.types import Compression, RawMemory, Tier
from kvnetd import chains, encoding
from kvnetd.actions.ask import Question, ask
from kvnetd.actions.dispatch import Dispatcher
from kvnetd.actions.outbox import IfOff, Sending, send_or_queue
from kvnetd.actions.recall import Recalled
from kvnetd.outgoing import Beside
from kvnetd.services import Services, utc_now
from kvnetd.store.records import LocalNotes, MemoryRecord, Step
from kvnetd.transfers import Transfers

SEGMENT_TOKENS: Final = 16
DEFAULT_NAME: Final = "live"
_OWN: Final = (Tier.EXACT, Tier.NONE)


async def ask_live(
    services: Services, transfers: Transfers, dispatcher: Dispatcher, question: Question
) -> AsyncGenerator[str | Answer, None]:
    """`ask`, while the peer gets what comes of it; the Answer names the newest memory, once all was sent.

    Where the link is lost, the rest waits in the outbox. Raises RequestError, UnknownPeer, and as `ask`.
    """
    if question.peer:
        raise RequestError("ask: --peer and --stream-to contradict each other; give one")
    stream = LiveStream(services, transfers, dispatcher, question)
    sending: asyncio.Task[None] | None = None
    try:
        async with aclosing(ask(services, question, stream)) as steps:
            async for step in steps:
                sending = sending or asyncio.create_task(stream.send())
                if isinstance(step, Answer):
                    stream.end()
                    await sending
                    step = replace(step, memory=stream.newest, live_problem=stream.problem)
                yield step
    finally:
        if sending is not None:
            sending.cancel()
            await asyncio.wait({sending})


class LiveStream:
    """Implements `ask.Live`. `newest` is the id of the last memory that was kept here."""

    segment_tokens = SEGMENT_TOKENS

    def __init__(
        self, services: Services, transfers: Transfers, dispatcher: Dispatcher, question: Question
    ) -> None:
        """Raises UnknownPeer, and RequestError for a name that cannot be one."""
        self.newest = ""
        self.problem = ""  # why not all of it is there, or ""
        self._services = services
        self._transfers = transfers
        self._dispatcher = dispatcher
        self._question = question
        self._peer: AddedPeer = services.peers.find(question.stream_to.partition("/")[0])
        self._name = question.name or DEFAULT_NAME
        if len(self._name) > MAX_LABEL_CHARS or not self._name.isprintable() or self._name[:4] == "mem_":
            raise RequestError(
                f"name {self._name!r:.80}: at most {MAX_LABEL_CHARS} printable characters, "
                "not starting with mem_"
            )
        self._through = ""  # digest of all tokens before the next segment
        self._after = ""  # id of the memory that ends there
        self._waiting: list[Segment] = []  # never more than the answer is long
        self._arrived = asyncio.Event()
        self._is_over = False
        self._preset = "exact"
        self._basis: Basis | None = None

    async def begin(self, recalled: Recalled) -> None:
        """Prepare before the model is busy. Raises RequestError, UnknownBasis."""
        services, codec = self._services, self._question.codec
        whole = recalled.memory.header if recalled.memory else None
        header = recalled.arriving.header if recalled.arriving else whole
        if recalled.slots is not None or recalled.text is not None or recalled.tier not in _OWN:
            raise RequestError(
                "stream-to: goes on behind one memory that the hosted model read itself, or behind nothing; "
                "this one is mapped, joined, of another model, or read as its text"
            )
        if header is not None:
            self._through, self._after = header.through_digest, recalled.memory_ids
        self._preset = await encoding.resolve(services, codec or services.config.codec)
        self._basis = await encoding.basis_for(services, self._preset)

    def take(self, segment: Segment) -> None:
        """Let it follow when the link is free."""
        self._waiting.append(segment)
        self._arrived.set()

    def end(self) -> None:
        """Nothing more comes."""
        self._is_over = True
        self._arrived.set()

    async def send(self) -> None:
        """Keep and send what comes until it ends. What fails is told in `problem`, and ends no answer."""
        last: MemoryRecord | None = None
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            is_over, waiting = self._is_over, self._waiting
            self._waiting = []
            if waiting:
                last = await self._keep(joined(waiting))
            if last is not None and (waiting or is_over):
                await self._pass_on(last, is_last=is_over)
            if is_over:
                return

    async def _keep(self, segment: Segment) -> MemoryRecord:
        """Store a segment as a memory behind the last one; returns it as it shall travel."""
        services = self._services
        raw = await services.in_pool(self._pack, segment)
        compression = Compression[services.config.compression.upper()]
        level = DEFAULT_LEVELS.get(compression, 0)
        making = encoding.new_making(services, self._notes(), compression, level)
        record = await services.in_store(services.memories.put, raw, making, services.key)
        await services.in_store(services.ledger.name, self._name, record.id)
        self._through, self._after = raw.header.through_digest, record.id
        self.newest = record.id
        if self._preset == "exact":
            return record
        # In the pool: the model's own thread is generating.
        coded = await services.in_pool(encode_memory, raw, self._preset, basis=self._basis)
        compression, level = encoding.compression_for(coded.header.coding, self._preset)
        making = encoding.new_making(services, record.notes, compression, level)
        return await encoding.keep_encoding(services, record, coded, making)

    def _pack(self, segment: Segment) -> RawMemory:
        host = self._services.host
        return pack_memory(
            segment.layers,
            fingerprint=host.fingerprint,
            geometry=host.geometry,
            token_ids=segment.token_ids,
            base=(segment.start, self._through),
        )

    def _notes(self) -> LocalNotes:
        host, now = self._services.host, utc_now()
        details = {chains.AFTER: self._after} if self._after else {}
        step = Step("inference", host.name, host.fingerprint.digest, now, 0.0, details)
        return LocalNotes(origin="", stored_at=now, steps=(step,))

    async def _pass_on(self, record: MemoryRecord, *, is_last: bool) -> None:
        question = self._question
        asked = Sending(
            record.id,
            f"{self._peer.name}/{question.stream_to.partition('/')[2]}",
            "",
            "",
            "exact",
            with_text=False,
            if_off=IfOff.QUEUE,
        )
        beside = Beside(quiet=not is_last, label=self._name)
        steps = send_or_queue(self._services, self._transfers, self._dispatcher, asked, beside=beside)
        try:
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, SendReport) and step.queued:
                        self.problem = f"{self._peer.name} is off; the rest waits in the outbox"
        except KvnetError as refused:
            self.problem = refused.message
