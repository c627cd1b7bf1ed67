"""export, import: memories as files, to and from whoever calls this node."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator

from kvnet.api import MemoryInfo
from kvnet.errors import MalformedFile, RequestError
from kvnet.identity.seal import VerifiedHead
from kvnet.plan import MAX_BASIS_NBYTES
from kvnet.types import Coding, sha256_hex
from kvnetd import encoding
from kvnetd.actions.memories import describe, find
from kvnetd.own_keys import own_ids
from kvnetd.services import Services, utc_now
from kvnetd.store.records import MemoryRecord
from kvnetd.store.upload import Upload

_BLOCK_NBYTES = 1 << 20


async def export(services: Services, wanted: str, *, basis: bool) -> AsyncGenerator[bytes, None]:
    """A memory's `.awkg` file, or the calibration it is decoded with, in pieces of a MiB."""
    record = await find(services, wanted)
    if basis:
        if not record.header.coding.basis:
            raise RequestError(f"memory {record.id}: coded without a calibration, there is none to export")
        data = await encoding.basis_bytes(services, record.header.coding.basis)
        for start in range(0, len(data), _BLOCK_NBYTES):
            yield data[start : start + _BLOCK_NBYTES]
        return
    pieces = services.memories.export(record)
    while (piece := await services.in_pool(_next, pieces)) is not None:
        yield piece


async def import_(services: Services, pieces: AsyncIterator[tuple[str, bytes]]) -> MemoryInfo:
    """Take in an `.awkg` file, and the calibration it needs if that comes along.

    Raises MalformedFile, UnsupportedFormat, BadSignature, MalformedChunk, StoreFull.
    """
    upload = await services.in_pool(Upload, services.memories)
    basis = bytearray()
    try:
        async for kind, data in pieces:
            if kind == "basis":
                basis += data
                if len(basis) > MAX_BASIS_NBYTES:
                    raise RequestError(f"calibration: more than {MAX_BASIS_NBYTES} bytes; not imported")
            else:
                await services.in_pool(upload.write, data)
        head = await services.in_pool(upload.verify)
        if basis:
            await services.in_pool(_check_basis, bytes(basis), head.header.memory.coding)
        record = await services.in_store(_keep, services, upload, head, bytes(basis))
    finally:
        # On the store's thread: behind `_keep`, should the caller go away while it runs.
        await services.in_store(upload.discard)
    return await describe(services, record)


def _check_basis(basis: bytes, coding: Coding) -> None:
    found = sha256_hex(basis)
    if (found, len(basis)) != (coding.basis, coding.basis_nbytes):
        needed = f"needs {coding.basis}" if coding.basis else "needs none"
        raise MalformedFile(f"calibration: {found}, but the memory {needed}; import them as they came")


def _keep(services: Services, upload: Upload, head: VerifiedHead, basis: bytes) -> MemoryRecord:
    """Both or neither in one go, so that no calibration is cleared away before its memory is there."""
    if basis:
        services.bases.put(basis)
    own = own_ids(services.config.home, services.key)
    return upload.finish(services.memories, head, own=own, stored_at=utc_now())


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
