"""Maps as the daemon uses them: which one leads from a memory's model to another, and may be used on it.

Knows what maps say of themselves; `mapping` has their numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final
from weakref import WeakKeyDictionary

from kvnet.alignment import MapManifest, admits
from kvnet.codec.presets import preset_name
from kvnet.errors import AlignmentRefused, UnknownAlignment
from kvnet.transfer.messages import HeldMap
from kvnet.types import Fingerprint, MemoryHeader, Scheme, Tier, sha256_hex
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
PORT_BITS: Final = {"": 8, "port8": 8, "port4": 4}  # codec -> bits of a coordinate

# What was read of a store's files before: digests of ports by id and signer.
_digests: Final[WeakKeyDictionary[AlignmentStore, dict[tuple[str, str], str]]] = WeakKeyDictionary()


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


def map_into_port(
    services: Services, source: Fingerprint, receiver: Fingerprint, *, held: Collection[str]
) -> MapManifest | None:
    """The first admitted map of this node from one model into a port of the other, which is here too.

    It is one of those that the receiver has as well, `held` by id: coordinates say nothing without it.
    """
    for record in services.alignments.maps_to(receiver):
        manifest = record.manifest
        if (
            isinstance(manifest, MapManifest)
            and manifest.port
            and manifest.source.digest == source.digest
            and manifest.id in held
        ):
            return manifest
    return None


def port_digest(services: Services, record: AlignmentRecord) -> str:
    """sha256:<hex> of a port's file, read once: a signer makes one file of one manifest. Blocks."""
    digests = _digests.setdefault(services.alignments, {})
    name = (record.id, record.signer)
    if name not in digests:
        digests[name] = sha256_hex(bytes(services.alignments.load(record).encoded))
    return digests[name]
