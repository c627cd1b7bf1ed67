"""list, show, forget: memories on this node."""

from __future__ import annotations

from collections.abc import Iterable

from kvnet.api import MemoryInfo
from kvnet.codec.presets import preset_name
from kvnet.compat import decide_tier, reach
from kvnet.model.reference.catalog import reference_basis
from kvnet.types import Scheme, Tier, sha256_hex
from kvnetd import chains
from kvnetd.alignments import leads_here
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord
from kvnetd.store.texts import has_text


async def list_memories(services: Services, *, encodings: bool = False) -> tuple[MemoryInfo, ...]:
    """Every memory in the store, oldest first, then those that cannot be read any more.

    Other codings that this node made of its own memories, to send them, are left out unless asked for.
    """
    names = await services.in_store(services.ledger.names)
    records = services.memories.all()
    shown = [r for r in records if encodings or r.id in names or not services.memories.is_encoding(r)]
    lacking = await _lacking_bases(services, shown)
    whole = [_info(services, record, names.get(record.id, ""), lacking) for record in shown]
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
    problem = services.memories.damaged.get(record.id, "")
    lacking = await _lacking_bases(services, [record])
    return _info(services, record, names.get(record.id, ""), lacking, problem=problem)


async def forget(services: Services, wanted: str) -> MemoryInfo:
    """Remove a memory, damaged or not, its name and its other codings; returns what it was."""
    named = await services.in_store(services.ledger.memory_named, wanted)
    memory = services.memories.resolve(named or wanted)
    if memory in services.memories.damaged:
        names = await services.in_store(services.ledger.names)
        info = _damaged(memory, names.get(memory, ""), services.memories.damaged[memory])
    else:
        info = await describe(services, services.memories.find(memory))

    def remove() -> None:
        named = services.ledger.names()
        encodings = services.memories.encodings_of(memory)
        services.memories.forget(memory)
        services.ledger.forget_memory(memory)
        for encoding in encodings:
            if encoding.id not in named:  # made in passing: nobody would miss it
                services.memories.forget(encoding.id)

    await services.in_store(remove)  # both or neither, also when the caller goes away meanwhile
    return info


async def _lacking_bases(services: Services, records: Iterable[MemoryRecord]) -> frozenset[str]:
    """Digests of calibrations that these memories were coded with and that this node does not have."""
    wanted = {record.header.coding.basis for record in records} - {""}
    if not wanted:
        return frozenset()

    def look() -> frozenset[str]:
        packaged = reference_basis(services.host.name)
        here = sha256_hex(packaged.read_bytes()) if packaged else ""
        return frozenset(d for d in wanted if d != here and services.bases.get(d) is None)

    return await services.in_pool(look)


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
        codec="",
        stored_nbytes=0,
        signed_by="",
        tier="",
        needs_basis="",
    )


def _info(
    services: Services, record: MemoryRecord, name: str, lacking: frozenset[str], *, problem: str = ""
) -> MemoryInfo:
    header, host = record.header, services.host
    tier = decide_tier(
        (header.fingerprint, header.geometry),
        (host.fingerprint, host.geometry),
        has_map=leads_here(services, header, record.head.w_matrix_reference),
        in_coordinates=header.coding.scheme is Scheme.PORT,
    )
    tier = reach(tier, has_text=has_text(services.memories, header))
    behind = next(chains.behind(services, record), "")
    if header.start_pos and (not behind or tier not in (Tier.EXACT, Tier.IDENTITY)):
        tier = Tier.REFUSED
    return MemoryInfo(
        id=record.id,
        name=name,
        tokens=header.seq_len,
        layers=header.geometry.num_layers,
        nbytes=header.raw_nbytes,
        model=header.fingerprint.model,
        origin=record.origin,
        created_at=record.stored_at,
        problem=problem,
        header=header,
        codec=preset_name(header.coding),
        stored_nbytes=record.head.sections_nbytes,
        signed_by=record.head.signed_by,
        tier=tier.value,
        needs_basis=header.coding.basis if header.coding.basis in lacking else "",
        start_pos=header.start_pos,
        behind=behind,
    )
