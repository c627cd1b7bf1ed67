"""The layers of memories that others go on behind, read back one behind the other. Knows no transfers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from kvnet.model.arriving import ArrivingMemory
from kvnet.model.cache import LayerKV, join_layers
from kvnet.model.memory import Prefix, unpack_memory
from kvnet.plan import plan_memory
from kvnet.types import MemoryHeader, RawMemory
from kvnetd import encoding
from kvnetd.chains import links_before, links_of
from kvnetd.parties import require_may_ask
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord


async def prefix_before(services: Services, record: MemoryRecord) -> Prefix | None:
    """The layers before a stored memory; None if it begins at position 0.

    Raises MissingPrefix, NotPermitted, UnknownBasis, and as the store's `load`.
    """
    return await _prefix_of(services, await links_of(services, record))


async def prefix_through(services: Services, record: MemoryRecord) -> Prefix:
    """The layers of a stored memory and of all before it. Raises as `prefix_before`."""
    prefix = await _prefix_of(services, (*await links_of(services, record), record))
    if prefix is None:
        raise AssertionError("a memory has at least one token")
    return prefix


async def arriving_behind(services: Services, header: MemoryHeader, *, origin: str) -> ArrivingMemory:
    """A memory on its way in, used as it lands behind those that are here. Raises as `prefix_before`."""
    basis = await encoding.basis_of(services, header.coding)
    prefix = await _prefix_of(services, await links_before(services, header, origin=origin))
    host = services.host
    before = prefix.layers if prefix else ()
    return ArrivingMemory(header, basis=basis, dtype=host.geometry.dtype, device=host.device, before=before)


async def recalled(services: Services, record: MemoryRecord) -> ArrivingMemory:
    """A stored memory that goes on behind others, all of it there. Raises as `prefix_before`."""
    header, host = record.header, services.host
    prefix = await prefix_before(services, record)
    basis = await encoding.basis_of(services, header.coding)
    memory = await services.in_pool(services.memories.load, record)
    arriving = ArrivingMemory(
        header,
        basis=basis,
        dtype=host.geometry.dtype,
        device=host.device,
        before=prefix.layers if prefix else (),
    )
    await services.runner.run(_add_all, arriving, memory)
    return arriving


async def _prefix_of(services: Services, links: Sequence[MemoryRecord]) -> Prefix | None:
    parts: list[tuple[LayerKV, ...]] = []
    host = services.host
    for link in links:
        require_may_ask(services, link)
        basis = await encoding.basis_of(services, link.header.coding)
        memory = await services.in_pool(services.memories.load, link)
        unpack = partial(unpack_memory, basis=basis, dtype=host.geometry.dtype, device=host.device)
        parts.append(await services.runner.run(unpack, memory))
    if not parts:
        return None
    layers = parts[0] if len(parts) == 1 else await services.runner.run(join_layers, parts)
    return Prefix(layers, links[-1].header.through_digest)


def _add_all(arriving: ArrivingMemory, memory: RawMemory) -> None:
    for key, raw in zip(plan_memory(memory.header), memory.chunks, strict=True):
        arriving.add(key, raw)
