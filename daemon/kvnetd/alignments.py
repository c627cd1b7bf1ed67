"""Maps as the daemon uses them: which one leads from a memory's model to another, and a memory as slots."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import torch

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.alignment import MapManifest, admits, intake_of
from kvnet.codec.basis import Basis
from kvnet.codec.finite import finite_peak
from kvnet.codec.presets import preset_name
from kvnet.errors import AlignmentRefused, IncompatibleModel, MalformedChunk, UnknownAlignment
from kvnet.files.alignments import VerifiedAlignment
from kvnet.model.coordinates import coordinates_of
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, slots_of
from kvnet.rotary import same_rope
from kvnet.transfer.messages import HeldMap
from kvnet.types import Fingerprint, Geometry, MemoryHeader, RawMemory, Scheme, Tier, sha256_hex
from kvnetd import encoding
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentRecord, AlignmentStore
from kvnetd.store.records import MemoryRecord

_REMEDY_4_BITS: Final = "send it with `--codec port8`"
_REMEDY_UNCLOSED: Final = (
    "give the map to the node that hosts the memory's model (`kvnet align export`), "
    "which then sends it in coordinates"
)
MAPPED = (Tier.MAPPED, Tier.MAPPED_TOKENS)
UNMAPPED: Final = "unmapped"  # a detail of refusals: no map can say what this memory holds
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


def map_for(services: Services, header: MemoryHeader, reference: str) -> MapManifest | None:
    """The map from a memory's model to the one that is hosted here, if its gate admitted what it is used for.

    Of a memory in coordinates it is the one that made them: `reference`, which its head and its offer name.
    A map names its port by an id that covers every number, so no file is looked at.
    """
    if header.coding.scheme is not Scheme.PORT:
        return map_of_rows(services, header, services.host.fingerprint)
    for record in services.alignments.maps_to(services.host.fingerprint):
        manifest = record.manifest
        if (
            isinstance(manifest, MapManifest)
            and manifest.id == reference
            and manifest.port
            and manifest.source.digest == header.fingerprint.digest
            and _admits_bits(manifest, header.coding.key_bits)
        ):
            return manifest
    return None


def map_of_rows(services: Services, header: MemoryHeader, receiver: Fingerprint) -> MapManifest | None:
    """The first map to this model that may be used on a memory of keys and values as it stands."""
    found = _maps_between(services, header.fingerprint, receiver)
    return next((one for one in found if not misuse_of(one, header)), None)


def misuse_of(manifest: MapManifest, header: MemoryHeader, *, closed: bool = False, bits: int = 8) -> str:
    """Why a map may not be used on a memory of keys and values: a clause with what to do; "" if it may.

    What is used must have been judged (FORMAT.md §10.1). `closed`: its closing is read behind the memory.
    """
    coding = header.coding
    if coding.scheme is not Scheme.RAW or coding.pruned_heads:
        lacking = "lacks heads" if coding.pruned_heads else f"is in coding {preset_name(coding)}"
        return (
            f"is judged on exact memories, and this one {lacking}; "
            "ask for it with `kvnet send --codec exact`, or for its text with --with-text"
        )
    if admits(manifest, closed=closed, bits=bits):
        return ""
    return (
        f"was not admitted for memories {'with' if closed else 'without'} its closing text"
        f"{' in coordinates of 4 bits' if bits == 4 else ''}; "
        f"{_REMEDY_4_BITS if bits == 4 else _REMEDY_UNCLOSED}, or send the text along with --with-text"
    )


def why_not(services: Services, header: MemoryHeader, receiver: Fingerprint) -> str:
    """Why a map that is here is not used on a memory of keys and values; "" where one is, or none is here."""
    if header.coding.scheme is Scheme.PORT or map_of_rows(services, header, receiver) is not None:
        return ""
    found = next(iter(_maps_between(services, header.fingerprint, receiver)), None)
    return f"{found.id} leads to {receiver.model}, but it {misuse_of(found, header)}" if found else ""


def refuse_unjudged(services: Services, header: MemoryHeader) -> None:
    """Raise AlignmentRefused for a memory to which a map leads that was not judged for its like."""
    if problem := why_not(services, header, services.host.fingerprint):
        raise AlignmentRefused(f"memory {header.id}: {problem}")


def leads_here(services: Services, header: MemoryHeader, reference: str) -> bool:
    """Whether a memory can be mapped to the model that is hosted here; `reference` as for `map_for`."""
    return map_for(services, header, reference) is not None


def known_map(services: Services, source: Fingerprint, receiver: Fingerprint) -> MapManifest | None:
    """The admitted map from one model to another that this node would use."""
    record = services.alignments.find_map(source, receiver)
    return record.manifest if record and isinstance(record.manifest, MapManifest) else None


def _maps_between(services: Services, source: Fingerprint, receiver: Fingerprint) -> Iterator[MapManifest]:
    """The admitted ones, in the order in which they are chosen."""
    for record in services.alignments.maps_to(receiver):
        if isinstance(record.manifest, MapManifest) and record.manifest.source.digest == source.digest:
            yield record.manifest


def _admits_bits(manifest: MapManifest, bits: int) -> bool:
    """Whether a closing was read behind a memory in coordinates is for its sender to heed: it has the map."""
    return any(admits(manifest, closed=closed, bits=bits) for closed in (True, False))


def held_maps(services: Services) -> tuple[HeldMap, ...]:
    """The maps to the model hosted here that this node would use, in the order in which it chooses them."""
    manifests = (record.manifest for record in services.alignments.maps_to(services.host.fingerprint))
    return tuple(HeldMap(m.source.digest, m.id) for m in manifests if isinstance(m, MapManifest))


def map_used(services: Services, header: MemoryHeader, tier: Tier, reference: str) -> str:
    """The id of the map that an offered memory of this tier would be used with, or ""."""
    found = map_for(services, header, reference) if tier in MAPPED else None
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
        return await services.runner.run(_expand, services.host, memory, loaded)
    refuse_other_geometry(record.header, found)
    basis = await encoding.basis_of(services, record.header.coding, record.header.geometry)
    return await services.runner.run(_apply, services.host, memory, loaded, basis)


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


def port_digest(services: Services, record: AlignmentRecord) -> str:
    """sha256:<hex> of a port's file, read once: a signer makes one file of one manifest. Blocks."""
    digests = _known.setdefault(services.alignments, _Known()).digests
    name = (record.id, record.signer)
    if name not in digests:
        digests[name] = sha256_hex(bytes(services.alignments.load(record).encoded))
    return digests[name]
