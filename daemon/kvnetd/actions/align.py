"""align ls, show, export, import, rm: maps and ports as files, to and from whoever calls this node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from kvnet.alignment import PortManifest
from kvnet.api import AlignmentInfo
from kvnet.errors import AlignmentRefused, MalformedFile
from kvnet.files.alignments import MAX_ALIGNMENT_NBYTES, VerifiedAlignment, read_alignment
from kvnet.identity.keys import grouped, public_key_of
from kvnetd.services import Services
from kvnetd.store.alignments import AlignmentRecord

_BLOCK_NBYTES = 1 << 20
_NOTHING = AlignmentInfo(
    id="",
    kind="",
    source="",
    source_digest="",
    receiver="",
    receiver_digest="",
    port="",
    rank=0,
    method="",
    pairing="",
    layer_strategy="",
    source_layers=(),
    num_sinks=0,
    window=(),
    far_window=(),
    far_layers=(),
    closing="",
    relative_lambda=0.0,
    corpus_digest="",
    num_contexts=0,
    num_rows=0,
    created_at="",
    nbytes=0,
    signed_by="",
    packaged=False,
    problem="",
    gate=None,
)


def list_alignments(services: Services) -> tuple[AlignmentInfo, ...]:
    """Every map and port, oldest first, then those that cannot be read."""
    whole = [describe(services, record) for record in services.alignments.all()]
    damaged = [_damaged(name, why) for name, why in sorted(services.alignments.damaged.items())]
    return (*whole, *damaged)


def show(services: Services, wanted: str) -> AlignmentInfo:
    """A map or port by id, or start of one, damaged or not. Raises UnknownAlignment."""
    store = services.alignments
    name = store.resolve(wanted)
    if name in store.damaged:
        return _damaged(name, store.damaged[name])
    return describe(services, store.find(name))


async def export(services: Services, wanted: str) -> AsyncGenerator[bytes, None]:
    """A map's or port's file, every byte verified, in pieces of a MiB."""
    record = services.alignments.find(wanted)
    found = await services.in_pool(services.alignments.load, record)
    for start in range(0, len(found.encoded), _BLOCK_NBYTES):
        yield bytes(found.encoded[start : start + _BLOCK_NBYTES])


async def import_(services: Services, pieces: AsyncIterator[bytes | bool]) -> AlignmentInfo:
    """Take in a map's or port's file; a truth among the pieces says to trust whoever signed it.

    Raises MalformedFile, UnsupportedFormat, BadSignature, StoreFull, and AlignmentRefused for one signed by
    a key that this node has no reason to trust.
    """
    encoded, is_trusted = bytearray(), False
    async for piece in pieces:
        if isinstance(piece, bool):
            is_trusted = piece
            continue
        encoded += piece
        if len(encoded) > MAX_ALIGNMENT_NBYTES:
            raise MalformedFile(f"alignment file: more than {MAX_ALIGNMENT_NBYTES} bytes; not imported")
    found = await services.in_pool(read_alignment, memoryview(encoded))
    if not is_trusted:
        _require_trust(services, found)
    record = await services.in_store(services.alignments.put, found)
    return describe(services, record)


async def remove(services: Services, wanted: str) -> AlignmentInfo:
    """Remove a map or port, damaged or not; returns what it was."""
    info = show(services, wanted)
    await services.in_store(services.alignments.remove, info.id)
    return info


def describe(services: Services, record: AlignmentRecord) -> AlignmentInfo:
    """A map or port as callers see it."""
    manifest = record.manifest
    lacks_port = services.alignments.lacks_port(manifest)
    info = replace(
        _NOTHING,
        id=record.id,
        kind=record.kind.value,
        receiver=manifest.receiver.model,
        receiver_digest=manifest.receiver.digest,
        rank=record.head.rank,
        corpus_digest=manifest.corpus_digest,
        num_rows=manifest.num_rows,
        created_at=manifest.created_at,
        nbytes=record.head.file_nbytes,
        signed_by=record.signer,
        packaged=record.packaged,
    )
    if isinstance(manifest, PortManifest):
        return info
    return replace(
        info,
        source=manifest.source.model,
        source_digest=manifest.source.digest,
        port=manifest.port,
        method=manifest.method.value,
        pairing=manifest.pairing.value,
        layer_strategy=manifest.layer_strategy.value,
        source_layers=manifest.source_layers,
        num_sinks=manifest.num_sinks,
        window=manifest.window,
        far_window=manifest.far_window or (),
        far_layers=manifest.far_layers,
        closing=manifest.closing,
        relative_lambda=manifest.relative_lambda,
        num_contexts=manifest.num_contexts,
        problem=f"the port it ends in, {manifest.port}, is not here" if lacks_port else "",
        gate=manifest.gate,
    )


def _require_trust(services: Services, found: VerifiedAlignment) -> None:
    """Own, an added peer's, or one of those that came with kvnet.

    The last by their ids: everyone has the key that signs them (kvnet.model.reference.signer).
    """
    signer = found.signer
    if services.alignments.is_own(signer) or services.peers.trusted(public_key_of(signer)) is not None:
        return
    if not services.alignments.is_packaged(found.manifest.id):
        raise AlignmentRefused(
            f"{found.manifest.id}: signed by {grouped(signer)}, which is no added peer of this node; "
            "add that peer, or import it with --trust if you know who that is"
        )


def _damaged(name: str, why: str) -> AlignmentInfo:
    return replace(_NOTHING, id=name, problem=why)
