"""Maps that are applied: their numbers, read once, and a memory as slots of the hosted model.

`alignments` says which map it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import torch

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.alignment import MapManifest, intake_of
from kvnet.codec.basis import Basis
from kvnet.codec.finite import finite_peak
from kvnet.errors import AlignmentRefused, IncompatibleModel, MalformedChunk, UnknownAlignment
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.coordinates import coordinates_of
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, slots_of
from kvnet.rotary import same_rope
from kvnet.types import Geometry, MemoryHeader, RawMemory, Scheme, Tier
from kvnetd import encoding
from kvnetd.alignments import MAPPED, UNMAPPED
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentStore
from kvnetd.store.records import MemoryRecord

_MOST_LOADED: Final = 4


@dataclass(frozen=True, slots=True)
class LoadedMap:
    """A map ready to be applied, and the port it ends in, if it ends in one."""

    manifest: MapManifest
    alignment: AlignmentMap
    port: Port | None


# The last maps used, by id.
_loaded: Final[WeakKeyDictionary[AlignmentStore, OrderedDict[str, LoadedMap]]] = WeakKeyDictionary()


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
        return await services.runner.run(_expand, services.host, memory, loaded)
    refuse_other_geometry(record.header, found)
    basis = await encoding.basis_of(services, record.header.coding, record.header.geometry)
    return await services.runner.run(_apply, services.host, memory, loaded, basis)


async def loaded_map(services: Services, manifest: MapManifest) -> LoadedMap:
    """A map and its port, read once and kept while they are among the last used.

    Raises UnknownAlignment, StateCorrupt, and MalformedFile for numbers that are none of a map.
    """
    store = services.alignments
    maps = _loaded.setdefault(store, OrderedDict())
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


def _apply(host: ModelHost, memory: RawMemory, loaded: LoadedMap, basis: Basis | None) -> Slots:
    slots = slots_of(memory, num_sinks=loaded.manifest.num_sinks, basis=basis)
    refuse_other_intake(host, loaded)
    encoded, at = loaded.alignment.encode(slots)
    refuse_nothing_read(len(at), memory.header.id, loaded.manifest)
    finite_peak(encoded, f"memory {memory.header.id}, mapped,")
    refuse_strange(loaded, encoded, memory.header.id)
    mapped = loaded.alignment.finish(slots, encoded, at, loaded.port, rows_of=host.rows_of)
    return _refuse_not_finite(mapped, memory)


def _expand(host: ModelHost, memory: RawMemory, loaded: LoadedMap) -> Slots:
    """The slots that coordinates stand for; of the sender's sinks there are none (FORMAT.md §8.5)."""
    header, num_sinks, port = memory.header, loaded.manifest.num_sinks, loaded.port
    if port is None:
        raise AssertionError("a memory in coordinates goes by a map that ends in a port")
    refuse_other_intake(host, loaded)
    codes, slot_indices = coordinates_of(memory, port.rank)
    if not len(codes) or int(slot_indices[0]) < num_sinks:
        raise MalformedChunk(
            f"memory {header.id}: sends {len(codes)} slots, wanted one or more and none of its first "
            f"{num_sinks}; ask for it again"
        )
    coordinates = port.dequantize(codes, header.coding.key_bits)
    refuse_strange(loaded, coordinates, header.id)
    taken = port.to_taken(coordinates)
    geometry = loaded.manifest.receiver_geometry
    slots = Slots(
        geometry, host.rows_of(port.intake, taken), slot_indices - num_sinks, header.seq_len - num_sinks
    )
    return _refuse_not_finite(slots, memory)


def refuse_other_intake(host: ModelHost, loaded: LoadedMap) -> None:
    """Raise AlignmentRefused for a map to the hosted model that makes what this one does not take.

    A fingerprint is its signer's word, and what a model takes is in no fingerprint.
    """
    intake = loaded.port.intake if loaded.port else intake_of(loaded.manifest)
    own = host.intake(intake.state_layers)
    if (intake.state_layers, intake.hidden_size) != (own.state_layers, own.hidden_size):
        raise AlignmentRefused(
            f"{loaded.manifest.id}: ends in states of {intake.hidden_size} numbers in layers "
            f"{list(intake.state_layers)}, which {host.name} does not take; fit it again"
        )


def refuse_strange(loaded: LoadedMap, encoded: torch.Tensor, memory: str) -> None:
    """Raise AlignmentRefused for a memory of things that the map was not fitted on: it would make them up."""
    strangeness = loaded.alignment.strangeness(encoded)
    if not strangeness <= 1:  # nor is NaN within reach
        raise AlignmentRefused(
            f"memory {memory}: holds what {loaded.manifest.id} was not fitted on (it lies {strangeness:.1f} "
            "times as far out as the map goes); use its text: send it with `--with-text`",
            details={UNMAPPED: [f"{strangeness:.1f} times too far out"]},
        )


def refuse_nothing_read(num_slots: int, memory: str, manifest: MapManifest) -> None:
    """Raise AlignmentRefused where a map found no slot of a memory to send."""
    if not num_slots:
        raise AlignmentRefused(
            f"memory {memory}: {manifest.id} was fitted on slots that answers read, and finds none in it; "
            "use its text: send it with `--with-text`",
            details={UNMAPPED: ["nothing to send"]},
        )


def _refuse_not_finite(slots: Slots, memory: RawMemory) -> Slots:
    finite_peak(slots.rows.to(torch.float32), f"memory {memory.header.id}, mapped,")
    return slots


def refuse_other_geometry(header: MemoryHeader, manifest: MapManifest) -> None:
    """The dtype is free: quantized weights compute in another."""
    wanted, got = manifest.source_geometry, replace(header.geometry, dtype=manifest.source_geometry.dtype)
    if replace(got, rope=wanted.rope) != wanted or not same_rope(got.rope, wanted.rope):
        raise IncompatibleModel(
            f"memory {header.id}: says it is of {header.fingerprint.model} with {_shape(got)}, the map "
            f"knows that model with {_shape(wanted)}; ask for it again"
        )


def _shape(geometry: Geometry) -> str:
    rope = f"{geometry.rope.rope_type} rope of theta {geometry.rope.rope_theta:g}"
    return f"{geometry.num_layers} layers of [{geometry.num_kv_heads}, {geometry.head_dim}] and {rope}"
