"""Maps as the daemon uses them: which one leads from a memory's model to another, and a memory as slots."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import torch

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.alignment import MapManifest
from kvnet.codec.basis import Basis
from kvnet.codec.finite import finite_peak
from kvnet.errors import IncompatibleModel, MalformedChunk, StateCorrupt, UnknownAlignment
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.coordinates import coordinates_of
from kvnet.model.slots import Slots, slots_of
from kvnet.types import Fingerprint, Geometry, MemoryHeader, RawMemory, Scheme, Tier, sha256_hex
from kvnetd import encoding
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentRecord, AlignmentStore
from kvnetd.store.records import MemoryRecord

MAPPED = (Tier.MAPPED, Tier.MAPPED_TOKENS)
_MOST_LOADED: Final = 4


@dataclass(frozen=True, slots=True)
class LoadedMap:
    """A map ready to be applied, and the port it ends in, if it ends in one."""

    manifest: MapManifest
    alignment: AlignmentMap
    port: Port | None


@dataclass(slots=True)
class _Known:
    """What was read of a store's files before: digests of ports by id and signer, and the last maps used."""

    digests: dict[tuple[str, str], str] = field(default_factory=dict)
    maps: OrderedDict[str, LoadedMap] = field(default_factory=OrderedDict)


_known: Final[WeakKeyDictionary[AlignmentStore, _Known]] = WeakKeyDictionary()


def map_for(services: Services, header: MemoryHeader, reference: str = "") -> MapManifest | None:
    """The admitted map from a memory's model to the one that is hosted here.

    Of a memory in coordinates it is the one that made them: `reference`, which its head names. Before the
    head is here, it may be any that ends in the port that the header names.
    """
    if header.coding.scheme is not Scheme.PORT:
        return known_map(services, header.fingerprint, services.host.fingerprint)
    for record in services.alignments.maps_to(services.host.fingerprint):
        manifest = record.manifest
        if (
            isinstance(manifest, MapManifest)
            and manifest.source.digest == header.fingerprint.digest
            and reference in ("", manifest.id)
            and _is_port(services, manifest.port, header)
        ):
            return manifest
    return None


def leads_here(services: Services, header: MemoryHeader, reference: str = "") -> bool:
    """Whether a memory can be mapped to the model that is hosted here; `reference` as for `map_for`."""
    return map_for(services, header, reference) is not None


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


def require_made_by(services: Services, record: MemoryRecord) -> None:
    """That a memory in coordinates was made by a map that can be used here. Raises UnknownAlignment."""
    if map_for(services, record.header, record.head.w_matrix_reference) is None:
        raise UnknownAlignment(
            f"memory {record.id}: made by {record.head.w_matrix_reference:.60}, which is not here with its "
            f"port or not admitted to {services.host.name}; import that map and its port from the sender"
        )


async def slots_for(services: Services, record: MemoryRecord, tier: Tier, found: MapManifest | None) -> Slots:
    """A stored memory as slots of the hosted model, mapped by `found` where the tier says so.

    Raises UnknownAlignment, IncompatibleModel for a memory of another geometry than its model's, NotFinite,
    MalformedChunk for coordinates that are none, and as the store's `load`.
    """
    if tier in MAPPED and found is None:
        raise UnknownAlignment(f"memory {record.id}: no map can be applied here; ask for the text instead")
    memory = await services.in_pool(services.memories.load, record)
    if tier not in MAPPED or found is None:
        basis = await encoding.basis_of(services, record.header.coding, record.header.geometry)
        return await services.runner.run(slots_of, memory, num_sinks=services.host.num_sinks, basis=basis)
    loaded = await loaded_map(services, found)
    if record.header.coding.scheme is Scheme.PORT:
        return await services.runner.run(_expand, memory, loaded)
    refuse_other_geometry(record.header, found)
    basis = await encoding.basis_of(services, record.header.coding, record.header.geometry)
    return await services.runner.run(_apply, memory, loaded, basis)


async def loaded_map(services: Services, manifest: MapManifest) -> LoadedMap:
    """A map and its port, read once and kept while they are among the last used.

    Raises UnknownAlignment, StateCorrupt, and MalformedFile for numbers that are none of a map.
    """
    store = services.alignments
    maps = _known.setdefault(store, _Known()).maps
    if manifest.id in maps:
        maps.move_to_end(manifest.id)
        return maps[manifest.id]
    files = [await services.in_pool(store.load, store.find(manifest.id))]
    if manifest.port:
        files.append(await services.in_pool(store.load, store.find(manifest.port)))
    loaded = await services.runner.run(partial(_load, manifest), *files)
    maps[manifest.id] = loaded
    while len(maps) > _MOST_LOADED:
        maps.popitem(last=False)
    return loaded


def _load(
    manifest: MapManifest, of_map: VerifiedAlignment, of_port: VerifiedAlignment | None = None
) -> LoadedMap:
    port = load_port(of_port) if of_port is not None else None
    return LoadedMap(manifest, load_map(of_map, port), port)


def _apply(memory: RawMemory, loaded: LoadedMap, basis: Basis | None) -> Slots:
    slots = slots_of(memory, num_sinks=loaded.manifest.num_sinks, basis=basis)
    return _refuse_not_finite(loaded.alignment.apply(slots, loaded.port), memory)


def _expand(memory: RawMemory, loaded: LoadedMap) -> Slots:
    """The slots that coordinates stand for; of the sender's sinks there are none (FORMAT.md §8.5)."""
    header, num_sinks, port = memory.header, loaded.manifest.num_sinks, loaded.port
    if port is None:
        raise AssertionError("a memory in coordinates goes by a map that ends in a port")
    codes, slot_indices = coordinates_of(memory, port.rank)
    if not len(codes) or int(slot_indices[0]) < num_sinks:
        raise MalformedChunk(
            f"memory {header.id}: sends {len(codes)} slots, wanted one or more and none of its first "
            f"{num_sinks}; ask for it again"
        )
    rows = port.to_rows(port.dequantize(codes, header.coding.key_bits))
    geometry = loaded.manifest.receiver_geometry
    slots = Slots(geometry, rows, slot_indices - num_sinks, header.seq_len - num_sinks)
    return _refuse_not_finite(slots, memory)


def _refuse_not_finite(slots: Slots, memory: RawMemory) -> Slots:
    if slots.num_slots:
        finite_peak(slots.rows.to(torch.float32), f"memory {memory.header.id}, mapped,")
    return slots


def refuse_other_geometry(header: MemoryHeader, manifest: MapManifest) -> None:
    """The dtype is free: quantized weights compute in another."""
    wanted, got = manifest.source_geometry, replace(header.geometry, dtype=manifest.source_geometry.dtype)
    if got != wanted:
        raise IncompatibleModel(
            f"memory {header.id}: says it is of {header.fingerprint.model} with {_shape(got)}, the map "
            f"knows that model with {_shape(wanted)}; ask for it again"
        )


def _shape(geometry: Geometry) -> str:
    rope = f"{geometry.rope.rope_type} rope of theta {geometry.rope.rope_theta:g}"
    return f"{geometry.num_layers} layers of [{geometry.num_kv_heads}, {geometry.head_dim}] and {rope}"


def _is_port(services: Services, port: str, header: MemoryHeader) -> bool:
    """Whether a map's port is the file that a memory's coding names."""
    if not port:
        return False
    try:
        record = services.alignments.find(port)
        is_as_long = record.head.file_nbytes == header.coding.basis_nbytes
        return is_as_long and port_digest(services, record) == header.coding.basis
    except StateCorrupt:
        return False  # damaged: as good as not here


def port_digest(services: Services, record: AlignmentRecord) -> str:
    """sha256:<hex> of a port's file, read once: a signer makes one file of one manifest."""
    digests = _known.setdefault(services.alignments, _Known()).digests
    name = (record.id, record.signer)
    if name not in digests:
        digests[name] = sha256_hex(bytes(services.alignments.load(record).encoded))
    return digests[name]
