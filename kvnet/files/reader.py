"""Reading a memory file, section by section. Source: FORMAT.md §7.2, of which it applies rules 1 to 11.

Knows files; what the sections mean is for those who decode them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from kvnet.errors import BadSignature, MalformedChunk, MalformedFile, RequestError
from kvnet.format.awkg import PRELUDE_NBYTES, SIGNATURE_NBYTES, AwkgHeader, read_prelude
from kvnet.format.awkg.sections import raw_digest, unpack_section
from kvnet.identity.seal import VerifiedHead, verify_head_bytes
from kvnet.types import MemoryId, chunk_digest, content_digest


class MemoryFile:
    """An open memory file whose head is verified. Any thread may read; each read takes one section of memory.

    Its sections are verified as they are read, never before: `verify` reads them all.
    """

    __slots__ = ("_fd", "head", "path")

    def __init__(self, path: Path, fd: int, head: VerifiedHead) -> None:
        self.path = path
        self.head = head
        self._fd = fd

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a file and check its head, its signature and its length: rules 1 to 8.

        Raises MalformedFile, UnsupportedFormat, BadSignature; RequestError where it cannot be read.
        """
        path = Path(path)
        fd = _open_regular(path)
        try:
            return cls(path, fd, _read_head(path, fd))
        except BaseException:
            os.close(fd)
            raise

    def close(self) -> None:
        """Close the file; no thread may be reading it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def header(self) -> AwkgHeader:
        """What the file says it holds."""
        return self.head.header

    @property
    def memory_id(self) -> MemoryId:
        """The id of the memory in the file."""
        return self.head.memory_id

    def layer(self, layer_idx: int) -> Iterator[int]:
        """Indices of the sections of one layer, in the order of the plan."""
        return (s.key.index for s in self.header.sections if s.key.layer_idx == layer_idx)

    def read(self, index: int) -> bytes:
        """The wire bytes of one section. Raises BadSignature if they are not those that were signed."""
        section = self.header.sections[index]
        at = len(self.head.sealed.body) + section.offset
        wire = _pread(self.path, self._fd, section.wire_nbytes, at)
        if chunk_digest(wire) != section.wire_digest:
            raise BadSignature(f"{self.path}: section {index} is not what was signed; get the file again")
        return wire

    def raw(self, index: int) -> bytes | memoryview:
        """The raw bytes of one section (FORMAT.md §8). Raises BadSignature and MalformedChunk."""
        return self._decompress(index, self.read(index))

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check every section and the content digest, one section in memory at a time.

        `on_progress` is called after each section with the section bytes done and the total.
        Raises BadSignature and MalformedChunk.
        """
        header = self.header
        total_nbytes, done_nbytes = header.sections_nbytes, 0
        raw_digests = []
        for section in header.sections:
            wire = self.read(section.key.index)
            raw_digests.append(raw_digest(section, self._decompress(section.key.index, wire)))
            done_nbytes += len(wire)
            if on_progress is not None:
                on_progress(done_nbytes, total_nbytes)
        if content_digest(raw_digests) != header.memory.content_digest:
            raise BadSignature(f"{self.path}: its contentDigest is not that of its contents")

    def _decompress(self, index: int, wire: bytes) -> bytes | memoryview:
        try:
            return unpack_section(self.header.memory, self.header.sections[index], wire)
        except MalformedChunk as exc:
            raise MalformedChunk(f"{self.path}: section {index}: {exc.message}") from exc


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file; anything else is not even opened, as that may block or act."""
    try:
        _require_regular(path, path.stat().st_mode)
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    try:
        _require_regular(path, os.fstat(fd).st_mode)  # it may have been replaced meanwhile
    except MalformedFile:
        os.close(fd)
        raise
    return fd


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise MalformedFile(f"{path}: not a regular file; a memory is one file of its own")


def _read_head(path: Path, fd: int) -> VerifiedHead:
    nbytes = os.fstat(fd).st_size
    head_nbytes = PRELUDE_NBYTES + read_prelude(_pread(path, fd, PRELUDE_NBYTES, 0))
    if nbytes < head_nbytes + SIGNATURE_NBYTES:
        raise MalformedFile(
            f"{path}: {nbytes} bytes, its head and signature alone have {head_nbytes + SIGNATURE_NBYTES}; "
            "it was cut short"
        )
    signature = _pread(path, fd, SIGNATURE_NBYTES, nbytes - SIGNATURE_NBYTES)
    head = verify_head_bytes(_pread(path, fd, head_nbytes, 0), signature)
    if nbytes != head.file_nbytes:
        raise MalformedFile(f"{path}: {nbytes} bytes, its head says {head.file_nbytes}; get the file again")
    return head


def _pread(path: Path, fd: int, nbytes: int, at: int) -> bytes:
    try:
        return os.pread(fd, nbytes, at)
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> RequestError:
    return RequestError(f"{path}: cannot be read ({exc.strerror}); check the path and its permissions")
