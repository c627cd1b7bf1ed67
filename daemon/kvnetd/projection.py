"""A memory projected into the port of a peer's model before it is sent: made once, and kept beside it.

A map amplifies what a wire loses, so what is mapped is mapped first and quantised after (DESIGN §7).
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Final

import torch

from kvnet.alignment import MapManifest
from kvnet.codec.basis import Basis
from kvnet.codec.finite import finite_peak
from kvnet.errors import AlignmentRefused
from kvnet.model.cache import export_layers
from kvnet.model.coordinates import memory_of_coordinates
from kvnet.model.host import ModelHost
from kvnet.model.slots import Slots, rows_of_layers, slots_of
from kvnet.types import Compression, MemoryHeader, RawMemory, Scheme
from kvnetd import encoding
from kvnetd.alignments import misuse_of, port_digest
from kvnetd.mapping import (
    LoadedMap,
    loaded_map,
    refuse_nothing_read,
    refuse_other_geometry,
    refuse_strange,
)
from kvnetd.services import Services, utc_now
from kvnetd.store.records import LocalNotes, MemoryRecord, Step

_COMPRESSION: Final = (Compression.ZSTD, 3)


async def project(
    services: Services, record: MemoryRecord, manifest: MapManifest, *, bits: int
) -> MemoryRecord:
    """The memory in coordinates of the port that a map ends in: the one made before, or a new one.

    Raises IncompatibleModel for a memory of another geometry than its model's, AlignmentRefused where the map
    was not admitted for it, finds nothing to send or was not fitted on such, NotFinite, UnknownAlignment, and
    as the store's `load` and `put`.
    """
    of_port = services.alignments.find(manifest.port)
    digest = await services.in_pool(port_digest, services, of_port)
    for known in services.memories.encodings_of(record.id):
        coding = known.header.coding
        same_port = (coding.scheme, coding.key_bits, coding.basis) == (Scheme.PORT, bits, digest)
        same_map = known.head.w_matrix_reference == manifest.id
        if same_port and same_map and known.id not in services.memories.damaged:
            return known
    refuse_other_geometry(record.header, manifest)
    began, at, codec = time.perf_counter(), utc_now(), f"{Scheme.PORT}{bits}"
    with services.log.span("encoding", model=manifest.source.model, codec=codec, map=manifest.id) as span:
        loaded = await loaded_map(services, manifest)
        memory = await services.in_pool(services.memories.load, record)
        basis = await encoding.basis_of(services, record.header.coding, record.header.geometry)
        port_file = (await services.in_pool(services.alignments.load, of_port)).encoded
        await services.in_store(services.bases.put, bytes(port_file))
        make = partial(_project, services.host, memory, basis, loaded)
        projected = await services.runner.run(make, bits=bits, port_digest=digest, port_nbytes=len(port_file))
        raw_nbytes = sum(len(chunk) for chunk in projected.chunks)
        span.add(memory=projected.header.id, tokens=projected.header.seq_len, raw_bytes=raw_nbytes)
    step = Step(
        "encoding",
        model=manifest.source.model,
        model_hash=manifest.source.digest,
        at=at,
        duration_s=round(time.perf_counter() - began, 6),
        details={"codec": codec, "from": record.id, "map": manifest.id},
    )
    notes = replace(record.notes, stored_at=utc_now(), steps=(*record.notes.steps, step))
    return await _keep(services, record, projected, notes, manifest)


async def _keep(
    services: Services,
    record: MemoryRecord,
    projected: RawMemory,
    notes: LocalNotes,
    manifest: MapManifest,
) -> MemoryRecord:
    making = encoding.new_making(services, notes, *_COMPRESSION)
    return await encoding.keep_encoding(services, record, projected, replace(making, alignment=manifest.id))


def _project(
    host: ModelHost,
    memory: RawMemory,
    basis: Basis | None,
    loaded: LoadedMap,
    *,
    bits: int,
    port_digest: str,
    port_nbytes: int,
) -> RawMemory:
    manifest, port = loaded.manifest, loaded.port
    if port is None:
        raise AssertionError("only a map that ends in a port projects")
    closing_ids = _readable_closing(host, memory.header, manifest)
    is_closed = bool(closing_ids) or not manifest.closing
    if problem := misuse_of(manifest, memory.header, closed=is_closed, bits=bits):
        raise AlignmentRefused(f"memory {memory.header.id}: {manifest.id} {problem}")
    slots = _slots_to_map(host, memory, basis, manifest, closing_ids)
    coordinates, at = loaded.alignment.encode(slots)
    refuse_nothing_read(len(at), memory.header.id, manifest)
    finite_peak(coordinates, f"memory {memory.header.id}, mapped,")
    refuse_strange(loaded, coordinates, memory.header.id)
    # The closing's slots count as the memory's own; that it was read is not the maker's word but the map's.
    header = replace(memory.header, seq_len=manifest.num_sinks + slots.span)
    made = memory_of_coordinates(
        header,
        port.quantize(coordinates, bits),
        at + manifest.num_sinks,
        bits=bits,
        port_digest=port_digest,
        port_nbytes=port_nbytes,
    )
    return RawMemory(replace(made.header, derived_from=memory.header.id), made.chunks)


def _slots_to_map(
    host: ModelHost, memory: RawMemory, basis: Basis | None, manifest: MapManifest, closing_ids: list[int]
) -> Slots:
    """What is mapped: the memory, and behind it the map's closing."""
    header, num_sinks = memory.header, manifest.num_sinks
    if not closing_ids:
        return slots_of(memory, num_sinks=num_sinks, basis=basis)
    seq_len = header.seq_len + len(closing_ids)
    cache = host.inject(memory, basis=basis)
    host.prefill(closing_ids, cache)
    positions = torch.arange(num_sinks, seq_len)
    rows = rows_of_layers(export_layers(cache), header.geometry, positions, seq_len=seq_len)
    return Slots(header.geometry, rows, positions - num_sinks, seq_len - num_sinks)


def _readable_closing(host: ModelHost, header: MemoryHeader, manifest: MapManifest) -> list[int]:
    """The closing's tokens if the model that reads them is here and has room for them; else none."""
    if host.fingerprint.digest != header.fingerprint.digest or header.seq_len <= manifest.num_sinks:
        return []
    closing_ids = _closing_ids(host, manifest.closing)
    return closing_ids if header.seq_len + len(closing_ids) <= host.max_seq_len else []


def _closing_ids(host: ModelHost, closing: str) -> list[int]:
    """The closing's tokens as they follow a sentence: many tokenizers put a blank before what begins."""
    if not closing:
        return []
    lead, whole = host.tokenize_context("."), host.tokenize_context(f".{closing}")
    if whole[: len(lead)] == lead:
        return whole[len(lead) :]
    return host.tokenize_context(closing)[host.num_sinks :]
