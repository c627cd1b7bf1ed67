"""remember, list, show, forget: memories on this node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator
from functools import partial

from kvnet.api import MemoryInfo, Progress
from kvnet.errors import RequestError
from kvnet.model.cache import LayerKV
from kvnet.types import Compression
from kvnetd.services import Services, utc_now
from kvnetd.store.memories import MemoryRecord

MAX_NAME_CHARS = 64


async def remember(
    services: Services, text: str, *, name: str, compression: str
) -> AsyncGenerator[Progress | MemoryInfo, None]:
    """Read a text into a memory; yields a Progress per layer and the MemoryInfo last."""
    _check_name(name)
    wanted = _compression(compression or services.config.compression)
    total = services.host.geometry.num_layers
    layers: asyncio.Queue[int] = asyncio.Queue(total)
    loop = asyncio.get_running_loop()

    def on_layer(layer: LayerKV) -> None:
        loop.call_soon_threadsafe(layers.put_nowait, layer.layer_idx + 1)

    with services.log.span("prefill", model=services.host.name) as span:
        abandoned = threading.Event()
        capture = partial(services.host.capture, text, on_layer=on_layer, cancelled=abandoned.is_set)
        reading = asyncio.create_task(services.runner.run(capture))
        step: asyncio.Task[int] | None = None
        try:
            for _ in range(total):
                step = asyncio.create_task(layers.get())
                await asyncio.wait({reading, step}, return_when=asyncio.FIRST_COMPLETED)
                if not step.done():
                    break
                yield Progress(step.result(), total)
            memory = await reading
        finally:
            abandoned.set()
            reading.cancel()
            if step is not None:
                step.cancel()
        created_at = utc_now()
        record = await services.in_store(services.memories.put, memory, wanted=wanted, created_at=created_at)
        if name:
            await services.in_store(services.ledger.name, name, record.id)
        span.add(memory=record.id, tokens=record.header.seq_len, raw_bytes=record.header.raw_nbytes)
    yield await describe(services, record)


async def list_memories(services: Services) -> tuple[MemoryInfo, ...]:
    """Every memory in the store, oldest first, then those that cannot be read any more."""
    names = await services.in_store(services.ledger.names)
    whole = [_info(record, names.get(record.id, "")) for record in services.memories.all()]
    damaged = dict(services.memories.damaged)
    listed = [info for info in whole if info.id not in damaged]
    return (*listed, *(_damaged(memory, names.get(memory, ""), why) for memory, why in damaged.items()))


async def find(services: Services, wanted: str) -> MemoryRecord:
    """A memory by name, id, or start of an id. Raises UnknownMemory."""
    named = await services.in_store(services.ledger.memory_named, wanted)
    return services.memories.find(named or wanted)


async def describe(services: Services, record: MemoryRecord) -> MemoryInfo:
    """A stored memory as callers see it."""
    names = await services.in_store(services.ledger.names)
    return _info(record, names.get(record.id, ""), problem=services.memories.damaged.get(record.id, ""))


async def forget(services: Services, wanted: str) -> MemoryInfo:
    """Remove a memory, damaged or not, and its name; returns what it was."""
    named = await services.in_store(services.ledger.memory_named, wanted)
    memory = services.memories.resolve(named or wanted)
    if memory in services.memories.damaged:
        names = await services.in_store(services.ledger.names)
        info = _damaged(memory, names.get(memory, ""), services.memories.damaged[memory])
    else:
        info = await describe(services, services.memories.find(memory))

    def remove() -> None:
        services.memories.forget(memory)
        services.ledger.forget_memory(memory)

    await services.in_store(remove)  # both or neither, also when the caller goes away meanwhile
    return info


def _damaged(memory: str, name: str, why: str) -> MemoryInfo:
    return MemoryInfo(
        id=memory,
        name=name,
        tokens=0,
        layers=0,
        nbytes=0,
        model="",
        origin="",
        created_at="",
        problem=why,
        header=None,
    )


def _info(record: MemoryRecord, name: str, *, problem: str = "") -> MemoryInfo:
    header = record.header
    return MemoryInfo(
        id=record.id,
        name=name,
        tokens=header.seq_len,
        layers=header.geometry.num_layers,
        nbytes=header.raw_nbytes,
        model=header.fingerprint.model,
        origin=record.origin,
        created_at=record.created_at,
        problem=problem,
        header=header,
    )


def _compression(name: str) -> Compression:
    try:
        return Compression[name.upper()]
    except KeyError as exc:
        known = ", ".join(choice.name.lower() for choice in Compression)
        raise RequestError(f"compression {name!r:.40}: none of {known}") from exc


def _check_name(name: str) -> None:
    if len(name) > MAX_NAME_CHARS or name.startswith("mem_") or (name and not name.isprintable()):
        raise RequestError(
            f"name {name!r:.80}: at most {MAX_NAME_CHARS} printable characters, not starting with mem_"
        )
