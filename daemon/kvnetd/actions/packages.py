"""What a package tells of a memory: how it came to be, and how good a lossy coding of it is, as measured."""

from __future__ import annotations

from kvnet.files.documents import Measurement, ProcessingStep, SourceInput
from kvnet.files.lineage import Lineage
from kvnet.files.package import PACKAGE_TYPE, check_listing
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.types import MemoryId, Scheme
from kvnetd import encoding
from kvnetd.actions.memories import find
from kvnetd.services import Services, utc_seconds
from kvnetd.store.records import MemoryRecord, Step


async def coded(services: Services, wanted: str, codec: str) -> MemoryRecord:
    """A memory as it lies here, or encoded as it would be to be sent with a codec that is named."""
    record = await find(services, wanted)
    return await encoding.record_to_send(services, record, codec) if codec else record


async def lineage(services: Services, wanted: str, *, measured: bool) -> Lineage:
    """What this node knows of a memory's making. Only what happened here, and what is in its file."""
    record = await find(services, wanted)
    notes = record.notes
    text = SourceInput(
        type="text",
        description=f"text read by {record.header.fingerprint.model}",
        hash=notes.text_digest,
        token_count=record.header.seq_len,
    )
    measurements = await _measurements(services, record) if measured else ()
    return Lineage(
        creation_method="received" if record.origin else "direct-extraction",
        created_by=record.head.created_by,
        created_at=utc_seconds(),
        source_inputs=(text,) if notes.text_digest else (),
        processing_steps=(*map(_told, notes.steps), *(_assessed(services, found) for found in measurements)),
        measurements=measurements,
    )


def sign(services: Services, body: bytes) -> SignedMessage:
    """This node's signature under a package's list of files, and under nothing else.

    Raises MalformedPackage for other bytes.
    """
    check_listing(body)
    return sign_message(services.key, PACKAGE_TYPE, body)


async def _measurements(services: Services, record: MemoryRecord) -> tuple[Measurement, ...]:
    source = record.header.derived_from
    if record.header.coding.scheme is Scheme.PORT:
        return ()  # its measure is its map's, by the model the port belongs to
    known = next((r for r in services.memories.all() if r.id == MemoryId(source)), None)
    if known is None or record.header.fingerprint != services.host.fingerprint:
        return ()  # nothing to measure against, or no model to measure with: then nothing is told
    from kvnet.model.quality import measure_quality  # torch

    coded, plain = [await services.in_pool(services.memories.load, r) for r in (record, known)]
    bases = [await encoding.basis_of(services, r.header.coding) for r in (record, known)]
    found = await services.runner.run(
        measure_quality, services.host, coded, plain, basis=bases[0], plain_basis=bases[1]
    )
    if found is None:
        return ()
    return (
        Measurement(
            kl=found.kl,
            top1=found.top1,
            tokens_checked=found.tokens_checked,
            against=known.id,
            probe=found.probe_digest,
            measured_at=utc_seconds(),
            measured_by=services.config.name,
        ),
    )


def _assessed(services: Services, found: Measurement) -> ProcessingStep:
    return ProcessingStep(
        step="quality-assessment",
        timestamp=found.measured_at,
        model=services.host.name,
        model_hash=services.host.fingerprint.digest,
        details={"kl": found.kl, "top1": found.top1, "against": found.against},
    )


def _told(step: Step) -> ProcessingStep:
    return ProcessingStep(
        step=step.step,
        timestamp=step.at[:19] + "Z",
        model=step.model,
        model_hash=step.model_hash,
        duration_s=step.duration_s,
        details=step.details,
    )
