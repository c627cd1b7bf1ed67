"""export, import: memories as files, to and from whoever calls this node."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO

from kvnet.api import MemoryInfo
from kvnet.errors import RequestError
from kvnet.plan import MAX_BASIS_NBYTES
from kvnetd.actions.memories import describe, find
from kvnetd.services import Services, utc_now
from kvnetd.store.disk import full_disk_refused, require_room

_BLOCK_NBYTES = 1 << 20


async def export(services: Services, wanted: str, *, basis: bool) -> AsyncGenerator[bytes, None]:
    """A memory's `.awkg` file, or the calibration it is decoded with, in pieces of a MiB."""
    record = await find(services, wanted)
    if basis:
        data = await services.in_pool(services.bases.require, record.header.coding.basis)
        for start in range(0, len(data), _BLOCK_NBYTES):
            yield data[start : start + _BLOCK_NBYTES]
        return
    pieces = services.memories.export(record)
    while (piece := await services.in_pool(_next, pieces)) is not None:
        yield piece


async def import_(services: Services, pieces: AsyncIterator[tuple[str, bytes]]) -> MemoryInfo:
    """Take in an `.awkg` file, and the calibration it needs if that comes before it."""
    root = services.memories.root
    with tempfile.TemporaryDirectory(prefix=".import-", dir=root) as folder:
        path = Path(folder) / "memory.awkg"
        basis = bytearray()
        with path.open("wb") as out:
            async for kind, data in pieces:
                if kind == "basis":
                    basis += data
                    if len(basis) > MAX_BASIS_NBYTES:
                        raise RequestError(f"calibration: more than {MAX_BASIS_NBYTES} bytes; not imported")
                else:
                    await services.in_pool(_append, out, data, root)
        if basis:
            await services.in_store(services.bases.put, bytes(basis))
        record = await services.in_store(
            services.memories.import_file, path, own=services.key.node_id, stored_at=utc_now()
        )
    return await describe(services, record)


def _append(out: BinaryIO, data: bytes, root: Path) -> None:
    require_room(root, len(data), what="import")
    with full_disk_refused("import"):
        out.write(data)


def _next(pieces: Iterator[bytes]) -> bytes | None:
    return next(pieces, None)
