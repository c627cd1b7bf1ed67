"""A memory that leaves while it is read: each layer is coded, stored and given to the transfer as it fills.

The model's thread reads, the pool codes and compresses, the event loop sends: three layers at a time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS, Preset
from kvnet.errors import RequestError
from kvnet.format.awkg.sections import pack_section, raw_digest
from kvnet.identity.signing import SignedMessage
from kvnet.model.cache import LayerKV
from kvnet.model.memory import digest_tokens, encode_piece, open_header
from kvnet.plan import ChunkKey, plan_memory
from kvnet.transfer.sender import Part, SenderSession, WireChunk
from kvnet.types import Compression, Kind, MemoryHeader, sha256_hex
from kvnetd import encoding
from kvnetd.holding import refuse_held
from kvnetd.outgoing import basis_chunks
from kvnetd.services import Services, utc_now
from kvnetd.store.growing import GrowingMemory
from kvnetd.store.records import LocalNotes, Making, MemoryRecord, Step

MAX_CODED_AHEAD: Final = 4  # chunks that wait for the wire
_T = TypeVar("_T")
TOKEN_BLOCK: Final = 1024  # tokens of a pass, at least, so that early tokens of a long text leave early


@dataclass(frozen=True, slots=True)
class ToRead:
    """What is about to be read, and how it is written down."""

    header: MemoryHeader  # open
    token_ids: Sequence[int]  # all of them, those before `header.start_pos` too
    making: Callable[[MemoryHeader], Making]
    compression: Compression
    level: int
    basis: Basis | None = None
    before: Sequence[LayerKV] = ()  # layers of the first tokens, which are not read again


@dataclass(frozen=True, slots=True)
class _Coded:
    """A chunk that is ready to travel and to be stored."""

    chunk: WireChunk
    wire: bytes | memoryview
    raw_digest: bytes


async def begin_reading(
    services: Services, text: str, *, codec: str, start_pos: int = 0, in_passing: bool = False
) -> tuple[MemoryHeader, LiveSource]:
    """Get ready to read a text and to send what is behind its first `start_pos` tokens, coded as it is read.

    Read `in_passing`, for a peer, the memory goes when the transfer ends, unless somebody here has asked for
    it meanwhile: a peer that is let ask must not fill this disk.
    Raises RequestError, TextTooLong, StoreFull, and UnknownBasis for a codec without a calibration.
    """
    refuse_held(services)
    name = await encoding.resolve(services, codec or services.config.codec)
    preset, basis = PRESETS[name], await encoding.basis_for(services, name)
    host = services.host
    token_ids = host.tokenize_context(text)
    if not text.strip() or start_pos >= len(token_ids):
        raise RequestError(
            f"text of {len(token_ids)} tokens: nothing is behind its first {start_pos}; give more text"
        )
    host.refuse_too_long(token_ids)
    prefix = digest_tokens(token_ids[:start_pos]) if start_pos else ""
    header = open_header(
        host.fingerprint,
        host.geometry,
        token_ids[start_pos:],
        preset,
        basis=basis,
        base=(start_pos, prefix),
    )
    wanted = ToRead(
        header,
        token_ids,
        partial(_making, services, text, preset, in_passing),
        preset.compression,
        preset.level,
        basis,
    )
    growing = await services.take_from_store(GrowingMemory, GrowingMemory.discard, services.memories, header)
    return header, LiveSource(services, wanted, growing)


def _making(services: Services, text: str, preset: Preset, in_passing: bool, header: MemoryHeader) -> Making:
    host = services.host
    step = Step("inference", host.name, host.fingerprint.digest, utc_now(), 0.0, {"codec": preset.name})
    digest = sha256_hex(text.encode())
    notes = LocalNotes(
        origin="", stored_at=utc_now(), text_digest=digest, steps=(step,), in_passing=in_passing
    )
    return encoding.new_making(services, notes, preset.compression, preset.level)


class LiveSource:
    """Implements `outgoing.Source`: parts as the model makes them, and in the end a stored memory."""

    def __init__(self, services: Services, wanted: ToRead, growing: GrowingMemory) -> None:
        self._services = services
        self._wanted = wanted
        self._growing = growing
        self._basis_raw = wanted.basis.raw if wanted.basis else b""
        self._abandoned = threading.Event()
        self._finished: tuple[MemoryRecord, SignedMessage] | None = None

    def know(self, session: SenderSession) -> None:
        """Nothing but the basis is known before it is read."""
        for chunk in basis_chunks(self._wanted.header, self._basis_raw):
            session.know(chunk)

    async def parts(self, session: SenderSession, missing: Sequence[ChunkKey]) -> AsyncGenerator[Part, None]:
        """The basis, if it is missing, and then each chunk as soon as it is read and coded."""
        known = {chunk.key.index: chunk for chunk in session.chunks}
        lacking = {key.index for key in missing}
        for key in missing:
            if key.kind is Kind.BASIS:
                yield known[key.index], self._basis_raw[key.start : key.stop]
        coded: asyncio.Queue[asyncio.Task[_Coded]] = asyncio.Queue(MAX_CODED_AHEAD)
        reading = asyncio.create_task(self._read(coded))
        try:
            while (task := await _next(coded, reading)) is not None:
                one = await task
                session.know(one.chunk)
                if one.chunk.key.index in lacking:
                    yield one.chunk, one.wire
                await self._services.in_pool(self._growing.write, one.chunk, one.wire, one.raw_digest)
            await reading  # raises what ended it
        finally:
            self._abandoned.set()
            reading.cancel()
            await asyncio.wait({reading})
            while not coded.empty():
                coded.get_nowait().cancel()

    async def finished(self) -> tuple[MemoryRecord, SignedMessage]:
        """The memory, stored and signed."""
        if self._finished is None:
            self._finished = await self._services.in_store(self._finish)
        return self._finished

    def _finish(self) -> tuple[MemoryRecord, SignedMessage]:
        # In one go on the store's thread: what was read in passing for another peer too goes with that one.
        memories = self._services.memories
        record = self._growing.finish(self._wanted.making, self._services.key)
        sealed, sections = memories.open_stored(record)
        sections.close()
        return record, sealed

    def release(self) -> None:
        """Stop reading; remove what never became a memory, or was one for the peer alone. Twice is once."""
        self._abandoned.set()
        if self._finished is None:
            self._growing.discard()
        else:
            self._services.store_thread.submit(self._services.memories.drop_passing, self._finished[0].id)

    async def _read(self, coded: asyncio.Queue[asyncio.Task[_Coded]]) -> None:
        """Let the model read, and have every chunk coded once its tokens are there, in that order."""
        ready: asyncio.Queue[tuple[ChunkKey, LayerKV]] = asyncio.Queue()  # bounded by the plan
        capturing = asyncio.create_task(self._capture(ready))
        try:
            while (item := await _next(ready, capturing)) is not None:
                await coded.put(asyncio.create_task(self._services.in_pool(self._code, *item)))
            await capturing
        finally:
            self._abandoned.set()
            capturing.cancel()
            await asyncio.wait({capturing})

    async def _capture(self, ready: asyncio.Queue[tuple[ChunkKey, LayerKV]]) -> None:
        loop = asyncio.get_running_loop()
        wanted = self._wanted
        to_come = [key for key in plan_memory(wanted.header) if key.kind in (Kind.KEY, Kind.VALUE)]

        def on_update(layer: LayerKV) -> None:
            nonlocal to_come
            num_read = layer.keys.shape[-2] - wanted.header.start_pos
            done = [key for key in to_come if key.layer_idx == layer.layer_idx and key.stop <= num_read]
            to_come = [key for key in to_come if key not in done]
            for key in done:
                loop.call_soon_threadsafe(ready.put_nowait, (key, layer))

        read = partial(
            self._services.host.read_open,
            wanted.token_ids,
            on_update,
            before=wanted.before,
            token_block=_block_of(wanted.header),
            cancelled=self._abandoned.is_set,
        )
        await self._services.runner.run(read)

    def _code(self, key: ChunkKey, layer: LayerKV) -> _Coded:
        wanted = self._wanted
        raw = encode_piece(layer, key, wanted.header, wanted.basis)
        facts, wire = pack_section(wanted.header, key, raw, wanted=wanted.compression, level=wanted.level)
        chunk = WireChunk(key, facts.compression, facts.raw_nbytes, facts.wire_nbytes, facts.wire_digest)
        return _Coded(chunk, wire, raw_digest(facts, raw))


async def _next(items: asyncio.Queue[_T], maker: asyncio.Task[None]) -> _T | None:
    """The next item, or None once its maker has ended and all of its items were taken."""
    if not items.empty():
        return items.get_nowait()
    getting = asyncio.ensure_future(items.get())
    try:
        await asyncio.wait({getting, maker}, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        getting.cancel()


def _block_of(header: MemoryHeader) -> int | None:
    """Tokens of one pass: as many whole chunks as make a block; None reads everything at once."""
    step = next(key.stop for key in plan_memory(header))
    block = -(-TOKEN_BLOCK // step) * step
    return block if block < header.seq_len else None
