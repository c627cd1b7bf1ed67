"""The bytes behind a section table, in clear or sealed: read one, check it, undo its compression.

`sections.sealed` holds a frame of the vault's for each section, in the order of the table, `sections.bin` the
bare bytes: what an earlier kvnet wrote, or one that was told not to seal.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Self

from kvnet.errors import StateCorrupt
from kvnet.format.awkg import Section, SectionFacts, make_sections
from kvnet.format.awkg.sections import pack_section
from kvnet.plan import plan_memory
from kvnet.types import Compression, MemoryHeader, chunk_digest
from kvnetd.store.records import SECTIONS_FILE
from kvnetd.store.vault import SEAL_NBYTES, SEALED_SUFFIX, Vault

SEALED_SECTIONS_FILE: Final = str(Path(SECTIONS_FILE).with_suffix(SEALED_SUFFIX))
_SEALED_AS: Final = "sections"
_COPY_NBYTES = 1 << 20


class SectionsFile:
    """An open file of sections: their wire bytes one behind the other, or each in a frame of the vault's.

    Reads may come from any thread.
    """

    def __init__(self, handle: int, path: Path, vault: Vault) -> None:
        self._handle = handle
        self._vault = vault
        self.name = str(path)
        self.closed = False
        self._lock = threading.Lock()
        self._num_readers = 0
        self._is_sealed = path.name == SEALED_SECTIONS_FILE

    def reopened(self) -> SectionsFile:
        """The same file under a handle of its own."""
        return SectionsFile(os.dup(self._handle), Path(self.name), self._vault)

    def frame_nbytes(self, wire_nbytes: int) -> int:
        """What a section of so many wire bytes takes in the file."""
        return wire_nbytes + (SEAL_NBYTES if self._is_sealed else 0)

    def start_of(self, section: Section) -> int:
        """Where the frame of a memory's section begins."""
        return section.offset + section.key.index * self.frame_nbytes(0)

    def read(self, start: int, wire_nbytes: int) -> bytes:
        """The wire bytes of the frame at `start`; fewer where the file ends. Raises StateCorrupt, OSError."""
        with self._reading():
            frame = os.pread(self._handle, self.frame_nbytes(wire_nbytes), start)
        return self._vault.open(frame, what=_SEALED_AS) if self._is_sealed else frame

    def write(self, start: int, wire: bytes | memoryview) -> int:
        """Put the frame of these wire bytes at `start`; returns where it ends."""
        frame = self._vault.seal(wire, what=_SEALED_AS) if self._is_sealed else wire
        view = memoryview(frame)
        while view:
            written = os.pwrite(self._handle, view, start)
            view, start = view[written:], start + written
        return start

    def sync(self) -> None:
        """Make what was written durable."""
        os.fdatasync(self._handle)

    def drop_from_cache(self, start: int, end: int) -> None:
        """Let the system forget a range that is durable: it is read from disk when somebody wants it."""
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(self._handle, start, end - start, os.POSIX_FADV_DONTNEED)

    def truncate(self, nbytes: int) -> None:
        """Cut off what lies behind."""
        os.ftruncate(self._handle, nbytes)

    def copy(self, start: int, nbytes: int, out: BinaryIO) -> None:
        """Append a range, frames as they are, to another file, a MiB at a time. Raises StateCorrupt."""
        end = start + nbytes
        while start < end:
            data = os.pread(self._handle, min(_COPY_NBYTES, end - start), start)
            if not data:
                raise StateCorrupt(f"{self.name}: ends at {start}, {end} was expected")
            out.write(data)
            start += len(data)

    def close(self) -> None:
        """Close the file, once nobody reads any more; twice is once."""
        with self._lock:
            is_last = not self.closed and not self._num_readers
            self.closed = True
        if is_last:
            os.close(self._handle)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """The number of a closed file may be another file's: it stays open while a thread reads."""
        with self._lock:
            if self.closed:
                raise StateCorrupt(f"{self.name}: was closed meanwhile")
            self._num_readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_readers -= 1
                is_last = self.closed and not self._num_readers
            if is_last:
                os.close(self._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()


def sections_place(folder: Path) -> Path:
    """The sections' file of a folder: the sealed one if there is one."""
    sealed = folder / SEALED_SECTIONS_FILE
    return sealed if sealed.exists() else folder / SECTIONS_FILE


def open_sections(folder: Path, vault: Vault) -> SectionsFile:
    """The sections of a stored memory, to be read. Raises OSError."""
    path = sections_place(folder)
    return SectionsFile(os.open(path, os.O_RDONLY), path, vault)


def make_sections_file(folder: Path, vault: Vault) -> SectionsFile:
    """The sections of a folder, to be written and read: those that are there, in their way, or new ones."""
    path = sections_place(folder)
    if vault.seals and not path.exists():
        path = folder / SEALED_SECTIONS_FILE
    return SectionsFile(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), path, vault)


def read_section(sections: SectionsFile, section: Section) -> bytes:
    """One section's wire bytes, checked against its digest. Raises StateCorrupt."""
    return read_frame(sections, section, sections.start_of(section))


def read_frame(sections: SectionsFile, section: Section, start: int) -> bytes:
    """`read_section` where the frame lies somewhere else than in a whole memory."""
    try:
        data = sections.read(start, section.wire_nbytes)
    except OSError as exc:
        raise StateCorrupt(f"{sections.name}: cannot be read ({exc.strerror})") from exc
    except StateCorrupt as exc:
        raise StateCorrupt(_told(sections, start, exc.message)) from exc
    if chunk_digest(data) != section.wire_digest:
        raise StateCorrupt(_told(sections, start, "not what was stored"))
    return data


def _told(sections: SectionsFile, start: int, what: str) -> str:
    return f"{sections.name}: {what} at {start}; forget the memory and have it made or sent again"


def write_sections(
    folder: Path,
    memory: MemoryHeader,
    chunks: Iterable[bytes | memoryview],
    *,
    vault: Vault,
    wanted: Compression,
    level: int,
) -> tuple[Section, ...]:
    """Compress chunks in plan order into a folder's file, durably; returns the table."""
    facts: list[SectionFacts] = []
    end = 0
    with make_sections_file(folder, vault) as out:
        for key, raw in zip(plan_memory(memory), chunks, strict=True):
            told, wire = pack_section(memory, key, raw, wanted=wanted, level=level)
            end = out.write(end, wire)
            facts.append(told)
        out.sync()
    return make_sections(memory, facts)
