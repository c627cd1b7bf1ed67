"""Writing memory files: beside the target, synced, then renamed, so that no reader meets half a file.

A file is made from wire bytes that exist already, or from raw chunks as they come, one in memory at a time.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from kvnet.durable import sync_folder
from kvnet.errors import RequestError, StoreFull
from kvnet.format.awkg import AwkgHeader, Metadata, SectionFacts, make_sections
from kvnet.format.awkg.sections import pack_section, raw_digest
from kvnet.format.compress import effective_level
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import VerifiedHead, seal_head, verify_head
from kvnet.identity.signing import SignedMessage
from kvnet.plan import plan_memory, raw_nbytes_range
from kvnet.types import Compression, MemoryHeader, chunk_digest, content_digest

_COPY_NBYTES: Final = 1 << 20
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_memory_file(
    path: Path | str, sealed: SignedMessage, wire_chunks: Iterable[bytes | memoryview]
) -> VerifiedHead:
    """Write a sealed head, the wire bytes of its sections in order, and the signature. Replaces a file.

    Raises what `verify_head` raises, ValueError for chunks that are not those of the head's table, and
    StoreFull or RequestError where the disk does not take the file. Nothing is left behind then.
    """
    path = Path(path)
    head = verify_head(sealed)
    with replacing(path) as write:
        write(sealed.body)
        for section, wire in zip(head.header.sections, wire_chunks, strict=True):
            if len(wire) != section.wire_nbytes or chunk_digest(wire) != section.wire_digest:
                raise ValueError(f"wire chunk {section.key.index} is not the one in the head's table")
            write(wire)
        write(sealed.signature)
    return head


class MemoryFileWriter:
    """Makes a memory file from raw chunks in plan order: `add` each, then `finish`. One chunk in memory.

    The sections wait in a file beside the target, since the head that names them comes first: for a
    moment the disk holds them twice. Leaving the `with` block without `finish` leaves nothing behind.
    """

    def __init__(
        self, path: Path | str, memory: MemoryHeader, compression: Compression, *, level: int = 0
    ) -> None:
        """`memory.content_digest` may be empty: `finish` fills it in. `level` is that of `compress`."""
        self._path = Path(path)
        self._memory = memory
        self._compression = compression
        self._level = effective_level(compression, level)
        self._plan = plan_memory(memory)
        self._facts: list[SectionFacts] = []
        self._raw_digests: list[bytes] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        _, self._spool = self._stack.enter_context(_temporary(self._path))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def add(self, raw: bytes | memoryview) -> None:
        """Take the next chunk's raw bytes. Raises ValueError for a chunk too many or of another length."""
        if len(self._facts) == len(self._plan):
            raise ValueError(f"all {len(self._plan)} chunks of the memory were added already")
        key = self._plan[len(self._facts)]
        allowed = raw_nbytes_range(self._memory, key)
        if len(raw) not in allowed:
            raise ValueError(f"chunk {key.index} has {len(raw)} bytes, allowed are {allowed}")
        facts, wire = pack_section(self._memory, key, raw, wanted=self._compression, level=self._level)
        with _disk_errors(self._path):
            self._spool.write(wire)
        self._raw_digests.append(raw_digest(facts, raw))
        self._facts.append(facts)

    def finish(
        self,
        key: NodeKey,
        *,
        created_at: str,
        created_by: str,
        metadata: Metadata,
        w_matrix_reference: str = "",
        alignment: Mapping[str, Any] | None = None,
    ) -> VerifiedHead:
        """Sign the head and put the file in place. `created_at` is `YYYY-MM-DDThh:mm:ssZ`.

        `w_matrix_reference` is the id of the map that made the memory, if its coding is that of a port.
        Raises ValueError while chunks are missing or when the contents are not those of the memory's digest,
        RequestError for a memory of too many chunks for one file, StoreFull where the disk is full.
        """
        if len(self._facts) != len(self._plan):
            raise ValueError(f"{len(self._facts)} of {len(self._plan)} chunks were added")
        found = content_digest(self._raw_digests)
        if self._memory.content_digest not in ("", found):
            raise ValueError("the chunks that were added are not those of the memory's content digest")
        memory = replace(self._memory, content_digest=found)
        header = AwkgHeader(
            memory=memory,
            sections=make_sections(memory, self._facts),
            compression=self._compression,
            compression_level=self._level,
            created_at=created_at,
            created_by=created_by,
            signed_by=key.node_id,
            metadata=metadata,
            w_matrix_reference=w_matrix_reference,
            alignment=alignment or {},
        )
        sealed = seal_head(key, header)
        with replacing(self._path) as write:
            write(sealed.body)
            with _disk_errors(self._path):
                self._spool.seek(0)
            while block := self._spool.read(_COPY_NBYTES):
                write(block)
            write(sealed.signature)
        return verify_head(sealed)


@contextmanager
def replacing(path: Path, *, only_new: bool = False) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Yields what writes to a fresh file, which takes the place of `path` once it is whole and on disk.

    A device, a link or a folder is never replaced, with `only_new` no file either: RequestError.
    """
    _require_free(path, only_new=only_new)
    with _temporary(path) as (fresh, out):

        def write(data: bytes | memoryview) -> None:
            with _disk_errors(path):
                out.write(data)

        yield write
        with _disk_errors(path):
            out.flush()
            os.fsync(out.fileno())
            _require_free(path, only_new=only_new)  # it may have come meanwhile
            fresh.replace(path)
            sync_folder(path.parent)


def _require_free(path: Path, *, only_new: bool) -> None:
    """Refuse a place where something is that a file must not take the place of."""
    with _disk_errors(path):
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
    if not stat.S_ISREG(mode):
        raise RequestError(f"{path}: cannot be written, it is no regular file; choose another name")
    if only_new:
        raise RequestError(f"{path}: exists already, wanted a name that is free")


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A fresh file in the folder of `path`, for the owner's eyes only, removed unless it was renamed."""
    fresh = path.parent / f".kvnet-{secrets.token_hex(8)}.part"
    with _disk_errors(path):
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    out = os.fdopen(fd, "w+b")
    try:
        yield fresh, out
    finally:
        fresh.unlink(missing_ok=True)
        with suppress(OSError):  # a full disk, told of already: what is kept was synced before
            out.close()


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno in _NO_ROOM:
            raise StoreFull(f"{path}: the disk has no room for it ({exc.strerror}); make room") from exc
        raise RequestError(f"{path}: cannot be written ({exc.strerror}); check the folder") from exc
