"""remember: let the model read a text, and keep what it read."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from kvnet.api import MemoryInfo, Progress
from kvnet.codec.presets import AUTO, CODECS, PRESETS
from kvnet.compat import decide_tier
from kvnet.errors import RequestError
from kvnet.format.compress import DEFAULT_LEVELS
from kvnet.model.cache import LayerKV
from kvnet.model.memory import Prefix
from kvnet.types import Compression, DType, RawMemory, Scheme, Tier
from kvnetd import chains, encoding, prefixes
from kvnetd.actions.memories import describe, find
from kvnetd.parties import require_may_ask
from kvnetd.services import Services, utc_now
from kvnetd.store.records import LocalNotes, Making, MemoryRecord, Step
from kvnetd.store.texts import attach_text

MAX_NAME_CHARS = 64
MAX_WORDS_CHARS = 200
MAX_LEVEL = 19


@dataclass(frozen=True, slots=True)
class Reading:
    """What to read, and how to keep it; empty means the daemon's own way."""

    text: str
    name: str = ""
    codec: str = ""
    dtype: str = ""
    compression: str = ""
    level: int = 0
    attention: bool = False
    prune: bool = False
    domain: str = ""
    topic: str = ""
    language: str = ""
    keep_text: bool | None = None  # the daemon's setting if None
    after: str = ""  # the memory here behind which it is read


async def remember(services: Services, reading: Reading) -> AsyncGenerator[Progress | MemoryInfo, None]:
    """Read a text into a memory; yields a Progress per layer and the MemoryInfo last."""
    check_reading(reading)
    if reading.codec == AUTO:
        reading = replace(reading, codec=await encoding.resolve(services, AUTO))
    compression, level = _compression(services, reading)
    base = await _base(services, reading)
    prefix = await prefixes.prefix_through(services, base) if base else None
    dtype = DType(reading.dtype) if reading.dtype else None
    with services.log.span("prefill", model=services.host.name) as span:
        memory: RawMemory | None = None
        began, began_at = time.perf_counter(), utc_now()
        # Closed at once, not when it is collected: a caller that leaves ends the reading.
        async with aclosing(_read(services, reading, prefix)) as steps:
            async for step in steps:
                if isinstance(step, RawMemory):
                    memory = step
                else:
                    yield step
        if memory is None:
            raise AssertionError("the reading ended without a memory")
        notes = _notes(services, reading.text, began_at, time.perf_counter() - began, base)
        memory, notes = await encoding.encode(
            services, memory, notes, codec=reading.codec, dtype=dtype, prune=reading.prune
        )
        making = encoding.new_making(services, notes, compression, level)
        record = await _keep(services, memory, making, reading)
        if not (reading.after or reading.attention or reading.prune or reading.codec or reading.dtype):
            seconds = time.perf_counter() - began
            digest, num_tokens = services.host.fingerprint.digest, record.header.seq_len
            await services.in_store(services.rates.read, digest, num_tokens, seconds)
        span.add(memory=record.id, tokens=record.header.seq_len, raw_bytes=record.header.raw_nbytes)
    yield await describe(services, record)


async def _base(services: Services, reading: Reading) -> MemoryRecord | None:
    """The memory behind which the text is read. Raises UnknownMemory, NotPermitted, RequestError."""
    if not reading.after:
        return None
    record = await find(services, reading.after)
    require_may_ask(services, record)
    header, host = record.header, services.host
    tier = decide_tier((header.fingerprint, header.geometry), (host.fingerprint, host.geometry))
    if tier is not Tier.EXACT or header.coding.scheme is Scheme.PORT:
        raise RequestError(
            f"after {record.id}: is of {header.fingerprint.model}, and only the model that read it goes on "
            f"behind it; {host.name} has to read the whole text"
        )
    if reading.attention or reading.prune:
        raise RequestError("after: attention metadata is of whole texts; leave --attention and --prune out")
    return record


async def _read(
    services: Services, reading: Reading, prefix: Prefix | None
) -> AsyncGenerator[Progress | RawMemory, None]:
    total = services.host.geometry.num_layers
    layers: asyncio.Queue[int] = asyncio.Queue(total)
    loop = asyncio.get_running_loop()

    def on_layer(layer: LayerKV) -> None:
        loop.call_soon_threadsafe(layers.put_nowait, layer.layer_idx + 1)

    abandoned = threading.Event()
    capture = partial(
        services.host.capture,
        reading.text,
        on_layer=on_layer,
        attention=reading.attention or reading.prune,
        cancelled=abandoned.is_set,
        prefix=prefix,
    )
    capturing = asyncio.create_task(services.runner.run(capture))
    step: asyncio.Task[int] | None = None
    try:
        for _ in range(total):
            step = asyncio.create_task(layers.get())
            await asyncio.wait({capturing, step}, return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                break
            yield Progress(step.result(), total)
        yield await capturing
    finally:
        abandoned.set()
        capturing.cancel()
        if step is not None:
            step.cancel()


async def _keep(services: Services, memory: RawMemory, making: Making, reading: Reading) -> MemoryRecord:
    making = replace(making, domain=reading.domain, topic=reading.topic, language_hint=reading.language)
    record = await services.in_store(services.memories.put, memory, making, services.key)
    if services.config.keep_text if reading.keep_text is None else reading.keep_text:
        await services.in_store(attach_text, services.memories, record.header, reading.text)
    if reading.name:
        await services.in_store(services.ledger.name, reading.name, record.id)
    return record


def _compression(services: Services, reading: Reading) -> tuple[Compression, int]:
    """How the chunks are compressed: as asked for, as suits the codec, or as the daemon is set.

    Raises RequestError for a level where there is none to choose.
    """
    if reading.codec and not reading.compression:
        preset = PRESETS[reading.codec]
        compression, level = preset.compression, preset.level
    else:
        compression, level = Compression[(reading.compression or services.config.compression).upper()], 0
    if reading.level and compression not in DEFAULT_LEVELS:
        raise RequestError(
            f"level {reading.level}: compression {compression.name.lower()} has none; "
            f"ask for one of {', '.join(choice.name.lower() for choice in DEFAULT_LEVELS)}, or leave it out"
        )
    return compression, reading.level or level


def _notes(
    services: Services, text: str, began_at: str, duration_s: float, base: MemoryRecord | None
) -> LocalNotes:
    """What really happened, as a package's provenance will tell it."""
    host = services.host
    step = partial(Step, model=host.name, model_hash=host.fingerprint.digest)
    layers = {"layer_range": [0, host.geometry.num_layers - 1]}
    return LocalNotes(
        origin="",
        stored_at=utc_now(),
        text_digest="sha256:" + hashlib.sha256(text.encode()).hexdigest(),
        steps=(
            step(
                "inference",
                at=began_at,
                duration_s=round(duration_s, 6),
                details={chains.AFTER: base.id} if base else {},
            ),
            # Layer by layer inside the same pass: it takes no time of its own.
            step("cache-extraction", at=utc_now(), duration_s=0.0, details=layers),
        ),
    )


def check_reading(reading: Reading) -> None:
    """Raise RequestError for what no reading can be asked for."""
    name = reading.name
    if len(name) > MAX_NAME_CHARS or name.startswith("mem_") or (name and not name.isprintable()):
        raise RequestError(
            f"name {name!r:.80}: at most {MAX_NAME_CHARS} printable characters, not starting with mem_"
        )
    choices = {
        "codec": ("", *CODECS),
        "dtype": ("", *(dtype.value for dtype in DType)),
        "compression": ("", *(choice.name.lower() for choice in Compression)),
    }
    for field, allowed in choices.items():
        found = getattr(reading, field)
        if found not in allowed:
            raise RequestError(f"{field} {found!r:.40}: none of {', '.join(filter(None, allowed))}")
    if reading.level > MAX_LEVEL:
        raise RequestError(f"level {reading.level}: at most {MAX_LEVEL}")
    for field in ("domain", "topic", "language"):
        if len(getattr(reading, field)) > MAX_WORDS_CHARS:
            raise RequestError(f"{field}: at most {MAX_WORDS_CHARS} characters")
