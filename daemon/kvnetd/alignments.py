"""Maps as the daemon uses them: which one leads from a memory's model to another, and a memory as slots."""

from __future__ import annotations

from kvnet.alignment import MapManifest
from kvnet.errors import UnknownAlignment
from kvnet.model.slots import Slots, slots_of
from kvnet.types import Fingerprint, MemoryHeader, Tier
from kvnetd import encoding
from kvnetd.services import Services
from kvnetd.store.records import MemoryRecord

MAPPED = (Tier.MAPPED, Tier.MAPPED_TOKENS)


def map_for(services: Services, header: MemoryHeader) -> MapManifest | None:
    """The admitted map from a memory's model to the one that is hosted here."""
    return known_map(services, header.fingerprint, services.host.fingerprint)


def leads_here(services: Services, header: MemoryHeader) -> bool:
    """Whether a memory can be mapped to the model that is hosted here."""
    return map_for(services, header) is not None


def known_map(services: Services, source: Fingerprint, receiver: Fingerprint) -> MapManifest | None:
    """The admitted map from one model to another that this node would use."""
    record = services.alignments.find_map(source, receiver)
    return record.manifest if record and isinstance(record.manifest, MapManifest) else None


def mapped_sources(services: Services) -> tuple[str, ...]:
    """Fingerprint digests of the models whose memories this node can map to the one hosted here."""
    manifests = (record.manifest for record in services.alignments.maps_to(services.host.fingerprint))
    return tuple(dict.fromkeys(m.source.digest for m in manifests if isinstance(m, MapManifest)))


def map_used(services: Services, header: MemoryHeader, tier: Tier) -> str:
    """The id of the map that an offered memory of this tier would be used with, or ""."""
    found = map_for(services, header) if tier in MAPPED else None
    return found.id if found else ""


async def slots_for(services: Services, record: MemoryRecord, tier: Tier, found: MapManifest | None) -> Slots:
    """A stored memory as slots of the hosted model, mapped by `found` where the tier says so.

    Raises UnknownAlignment, and as the store's `load`.
    """
    if tier in MAPPED:
        raise UnknownAlignment(f"memory {record.id}: no map can be applied here; ask for the text instead")
    memory = await services.in_pool(services.memories.load, record)
    basis = await encoding.basis_of(services, record.header.coding)
    return await services.runner.run(slots_of, memory, num_sinks=services.host.num_sinks, basis=basis)
