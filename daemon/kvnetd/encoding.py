"""Codings as the daemon uses them: encode a memory, find or make a coding to send, calibrate, choose.

What a coding does to numbers is kvnet.codec's business; this is when and for whom.
"""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from kvnet.api import Calibration
from kvnet.codec.presets import AUTO, CODECS, PRESETS, preset_name
from kvnet.errors import MalformedMessage, RequestError, UnknownBasis
from kvnet.format import strict_json
from kvnet.format.attention import unpack_attention
from kvnet.model.reference.catalog import reference_basis
from kvnet.plan import plan_memory
from kvnet.types import (
    AttentionMetadata,
    Coding,
    Compression,
    DType,
    Geometry,
    Kind,
    MemoryHeader,
    RawMemory,
    Scheme,
    sha256_hex,
)
from kvnetd.no_model import NONE
from kvnetd.services import Services, utc_now, utc_seconds
from kvnetd.store.bases import BasisStore
from kvnetd.store.origins import source_of
from kvnetd.store.records import LocalNotes, Making, MemoryRecord, Step

if TYPE_CHECKING:  # what has torch is imported where it is used: a node without a model never loads it
    from kvnet.codec.basis import Basis
    from kvnet.model.quality import Choice

# The calibration each store was last asked for: a model answers many questions with the same one.
_last_parsed: Final[WeakKeyDictionary[BasisStore, Basis]] = WeakKeyDictionary()


async def encode(
    services: Services,
    memory: RawMemory,
    notes: LocalNotes,
    *,
    codec: str,
    dtype: DType | None = None,
    prune: bool = False,
) -> tuple[RawMemory, LocalNotes]:
    """A memory in another coding, and its notes with what was done; the same ones if nothing is asked for."""
    services.require_model()
    from kvnet.model.memory import encode_memory
    from kvnet.model.pruning import prunable_heads

    preset = await resolve(services, codec)
    pruned = (
        prunable_heads(attention_of(memory), num_kv_heads=memory.header.geometry.num_kv_heads)
        if prune
        else ()
    )
    same_dtype = dtype is None or dtype is memory.header.geometry.dtype
    if PRESETS[preset].coding == memory.header.coding and same_dtype and not pruned:
        return memory, notes
    basis = await basis_for(services, preset)
    source_basis = await basis_of(services, memory.header.coding)
    began, at = time.perf_counter(), utc_now()
    act = partial(
        encode_memory,
        memory,
        preset,
        basis=basis,
        source_basis=source_basis,
        dtype=dtype,
        pruned_heads=pruned,
    )
    with services.log.span("encoding", model=services.host.name, codec=preset) as span:
        encoded = await services.runner.run(act)
        raw_nbytes = sum(len(chunk) for chunk in encoded.chunks)
        span.add(memory=encoded.header.id, tokens=encoded.header.seq_len, raw_bytes=raw_nbytes)
    step = Step(
        "encoding",
        model=services.host.name,
        model_hash=services.host.fingerprint.digest,
        at=at,
        duration_s=round(time.perf_counter() - began, 6),
        details=_details(preset, memory.header, encoded.header),
    )
    return encoded, replace(notes, stored_at=utc_now(), steps=(*notes.steps, step))


def _details(preset: str, source: MemoryHeader, encoded: MemoryHeader) -> dict[str, Any]:
    details: dict[str, Any] = {"codec": preset, "from": source.id}
    if encoded.geometry.dtype is not source.geometry.dtype:
        details["dtype"] = encoded.geometry.dtype.value
    if encoded.coding.pruned_heads:
        details["pruned_heads"] = [list(pair) for pair in encoded.coding.pruned_heads]
    return details


async def preset_to_send(services: Services, record: MemoryRecord, codec: str) -> str | None:
    """The preset that a memory has to be encoded with to be sent; None where it travels as it lies here.

    What is coded already stays as it is unless another coding is asked for by name, and `exact` is what
    lies here: nothing is lost, and nothing is written twice.
    """
    is_coded = record.header.coding.scheme is not Scheme.RAW
    if is_coded and codec in ("", preset_name(record.header.coding)):
        return None
    if services.config.model == NONE and not codec:
        return None  # what it was given it passes on as it is
    preset = await resolve(services, codec or services.config.codec)
    return None if preset == "exact" else preset


async def record_to_send(services: Services, record: MemoryRecord, codec: str) -> MemoryRecord:
    """The memory in the coding that shall travel: `record` itself, or another one of the same memory."""
    preset = await preset_to_send(services, record, codec)
    return record if preset is None else await _coded(services, record, preset, record.header.geometry.dtype)


async def record_to_map(services: Services, record: MemoryRecord) -> MemoryRecord:
    """The memory as it shall travel to be mapped there: as it lies here, but float32 as float16.

    A map amplifies what a coarse coding loses (DESIGN §7), and halves lose less than a map does.
    """
    header = record.header
    if header.coding.scheme is not Scheme.RAW or header.geometry.dtype is not DType.FLOAT32:
        return record
    return await _coded(services, record, "exact", DType.FLOAT16)


async def _coded(services: Services, record: MemoryRecord, preset: str, dtype: DType) -> MemoryRecord:
    """An encoding of a memory, made before or now; it is kept as one that was made in passing."""
    known = await _encoding_of(services, record, preset, dtype)
    if known is not None:
        return known
    memory = await services.in_pool(services.memories.load, record)
    encoded, notes = await encode(services, memory, record.notes, codec=preset, dtype=dtype)
    compression, level = compression_for(encoded.header.coding, preset)
    return await keep_encoding(services, record, encoded, new_making(services, notes, compression, level))


async def keep_encoding(
    services: Services, record: MemoryRecord, encoded: RawMemory, making: Making
) -> MemoryRecord:
    """Store what was made of `record` to be sent: hidden beside it, and gone with it."""
    words = record.head.metadata
    in_passing = replace(
        making,
        notes=replace(making.notes, origin="", in_passing=True, source=source_of(services.memories, record)),
        domain=words.domain,
        topic=words.topic,
        language_hint=words.language_hint,
    )
    return await services.in_store(services.memories.put, encoded, in_passing, services.key)


async def _encoding_of(
    services: Services, record: MemoryRecord, preset: str, dtype: DType
) -> MemoryRecord | None:
    """An encoding made before, unless it is damaged or the model was calibrated anew since."""
    basis = await basis_for(services, preset)
    for known in services.memories.encodings_of(record.id):
        same_basis = known.header.coding.basis == (basis.digest if basis else "")
        same_dtype = known.header.geometry.dtype is dtype
        same_heads = known.header.coding.pruned_heads == record.header.coding.pruned_heads
        same_place = known.header.start_pos == record.header.start_pos
        same_coding = preset_name(known.header.coding) == preset and same_basis and same_heads
        same = same_coding and same_dtype and same_place
        if same and known.id not in services.memories.damaged:
            return known
    return None


async def resolve(services: Services, codec: str) -> str:
    """The preset that a name means: itself, or what `auto` finds for the hosted model."""
    if codec == AUTO:
        choice = await chosen(services)
        return choice.preset
    if codec and codec not in PRESETS:
        raise RequestError(f"codec {codec!r:.40}: none of {', '.join(CODECS)}")
    return codec or "exact"


async def chosen(services: Services) -> Choice:
    """The cheapest preset whose measured KL is under the bound, measured once per model and remembered."""
    fingerprint = services.host.fingerprint.digest
    basis = await basis_for(services, "compact", required=False)
    digest = basis.digest if basis else ""
    known = _noted_choice(services.models.get(fingerprint).get("auto"), digest)
    if known is not None:
        return known
    from kvnet.model.quality import choose_preset

    choice = await services.runner.run(choose_preset, services.host, basis=basis)
    noted = {"basis": digest, "choice": asdict(choice)}
    await services.in_store(services.models.note, fingerprint, auto=noted)
    return choice


def _noted_choice(noted: object, basis: str) -> Choice | None:
    """What was noted for the model with this calibration; None for anything else, which is measured again."""
    if not isinstance(noted, dict) or noted.get("basis") != basis:
        return None
    from kvnet.model.quality import Choice

    try:
        choice = strict_json.from_plain(Choice, noted.get("choice"), what="models.json")
    except MalformedMessage:
        return None
    return choice if choice.preset in PRESETS else None


async def calibrate(services: Services, texts: tuple[str, ...]) -> Calibration:
    """Learn a basis for the hosted model from texts, keep it, and encode with it from now on."""
    from kvnet.model.calibration import calibrate as learn_basis

    began = time.perf_counter()
    with services.log.span("calibration", model=services.host.name) as span:
        found = await services.runner.run(learn_basis, services.host, texts)
        span.add(tokens=found.num_tokens)
    data = found.basis.to_bytes()

    def keep() -> str:
        """Both in one go, so that none is cleared away before a note names it."""
        digest = services.bases.put(data)
        services.models.note(services.host.fingerprint.digest, basis=digest)
        return digest

    digest = await services.in_store(keep)
    return Calibration(
        model=services.host.name,
        basis=digest,
        nbytes=len(data),
        components=found.basis.num_components,
        tokens=found.num_tokens,
        weighted=found.weighted,
        seconds=round(time.perf_counter() - began, 3),
    )


async def basis_for(services: Services, preset: str, *, required: bool = True) -> Basis | None:
    """The calibration that the hosted model encodes a preset with; None where the preset needs none.

    Raises UnknownBasis if there is none yet.
    """
    if PRESETS[preset].coding.scheme is not Scheme.TRANSFORM:
        return None
    host = services.host
    digest = services.models.basis(host.fingerprint.digest)
    packaged = reference_basis(host.name) if not digest else None
    if packaged is not None:
        digest = await services.in_store(services.bases.put, await services.in_pool(packaged.read_bytes))
    if not digest:
        if not required:
            return None
        raise UnknownBasis(
            f"codec {preset}: {host.name} was not calibrated yet; run `kvnet calibrate` with texts like yours"
        )
    return await _read_basis(services, digest)  # from disk: what it encodes needs the file from then on


async def basis_of(services: Services, coding: Coding, geometry: Geometry | None = None) -> Basis | None:
    """The calibration that a memory was coded with; None where it needs none. Raises UnknownBasis.

    `geometry` is the memory's, where it may be of another model than the hosted one.
    """
    if coding.scheme is not Scheme.TRANSFORM:
        return None
    last = _last_parsed.get(services.bases)
    if last is not None and last.digest == coding.basis:
        return last
    return await _read_basis(services, coding.basis, geometry)


async def basis_bytes(services: Services, digest: str) -> bytes:
    """A calibration from the store, or from the hosted model's package. Raises UnknownBasis."""
    data = await services.in_pool(services.bases.get, digest)
    if data is None:
        data = await services.in_pool(_packaged, services.host.name, digest)
    return data if data is not None else await services.in_pool(services.bases.require, digest)


async def _read_basis(services: Services, digest: str, geometry: Geometry | None = None) -> Basis:
    from kvnet.codec.basis import Basis

    data = await basis_bytes(services, digest)
    basis = await services.runner.run(Basis.from_bytes, data, geometry or services.host.geometry)
    _last_parsed[services.bases] = basis
    return basis


def _packaged(model: str, digest: str) -> bytes | None:
    """The calibration that comes with a reference model, if it is the one with this digest."""
    path = reference_basis(model)
    data = path.read_bytes() if path else b""
    return data if sha256_hex(data) == digest else None


def attention_of(memory: RawMemory) -> tuple[AttentionMetadata, ...]:
    """The attention metadata in a memory, one for each layer, if it has any."""
    pairs = zip(plan_memory(memory.header), memory.chunks, strict=True)
    return tuple(
        unpack_attention(bytes(data), memory.header, key.layer_idx)
        for key, data in pairs
        if key.kind is Kind.ATTENTION
    )


def compression_for(coding: Coding, preset: str) -> tuple[Compression, int]:
    """The byte compression, and its level, that goes with a preset or a coding."""
    found = PRESETS.get(preset) or PRESETS[preset_name(coding)]
    return found.compression, found.level


def new_making(services: Services, notes: LocalNotes, compression: Compression, level: int) -> Making:
    """How something made here now is written down."""
    return Making(compression, level, services.config.name, utc_seconds(), notes)
