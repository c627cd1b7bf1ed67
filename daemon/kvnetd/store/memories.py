"""Memories at rest: one folder each, `memory.json` beside `sections.bin`, moved into place whole.

One that came from a peer keeps its signed chunk envelopes (`chunks.log`) and its offer beside them.

A memory is read back only after its header and the digest of every section agree.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from kvnet.errors import KvnetError, MalformedChunk, RequestError, StateCorrupt, UnknownMemory
from kvnet.format import strict_json
from kvnet.format.compress import compress, decompress
from kvnet.transfer.sender import WireChunk
from kvnet.types import (
    ChunkKey,
    Compression,
    MemoryHeader,
    MemoryId,
    RawMemory,
    canonical_json,
    content_digest,
    plan_chunks,
)
from kvnetd.store.disk import full_disk_refused, require_room, sync_folder, write_durably

RECORD_VERSION = 1
MAX_RECORD_NBYTES = 64 << 20
HEADER_FILE = "memory.json"
SECTIONS_FILE = "sections.bin"


@dataclass(frozen=True, slots=True)
class Section:
    """Where a chunk lies in `sections.bin` and what it must hash to."""

    offset: int
    compression: int
    wire_nbytes: int
    wire_digest: str  # hex


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """What `memory.json` holds. `origin` is the node id it came from, or "" for this node."""

    version: int
    header: MemoryHeader
    created_at: str
    origin: str
    sections: tuple[Section, ...]

    @property
    def id(self) -> MemoryId:
        """The memory's id."""
        return self.header.id

    @property
    def plan(self) -> tuple[ChunkKey, ...]:
        """The chunks in order."""
        return plan_chunks(self.header.geometry, self.header.seq_len)

    def wire_chunks(self) -> tuple[WireChunk, ...]:
        """The sections as the sender's session wants them."""
        return tuple(
            WireChunk(
                key=key,
                compression=Compression(section.compression),
                raw_nbytes=key.raw_nbytes(self.header.geometry),
                wire_nbytes=section.wire_nbytes,
                wire_digest=bytes.fromhex(section.wire_digest),
            )
            for key, section in zip(self.plan, self.sections, strict=True)
        )


class MemoryStore:
    """The folder of memories. Ids name folders; nothing a peer says ever names a path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.damaged: dict[str, str] = {}
        self._records: dict[MemoryId, MemoryRecord] = {}
        for folder in sorted(root.iterdir()):
            self._scan(folder)

    def all(self) -> tuple[MemoryRecord, ...]:
        """Every readable memory, oldest first."""
        return tuple(sorted(list(self._records.values()), key=lambda record: record.created_at))

    def get(self, memory: MemoryId) -> MemoryRecord:
        """The memory with exactly this id: what a peer may name. Raises UnknownMemory, telling nothing."""
        record = self._records.get(memory)
        if record is None:
            raise UnknownMemory("no such memory here")
        return record

    def find(self, wanted: str) -> MemoryRecord:
        """The memory with this id, or the only one whose id starts so (8 characters or more).

        Raises UnknownMemory, RequestError, and StateCorrupt for one that cannot be read.
        """
        memory = self.resolve(wanted)
        record = self._records.get(memory)
        if record is None:
            raise StateCorrupt(f"memory {memory}: {self.damaged.get(memory, 'was removed meanwhile')}")
        return record

    def resolve(self, wanted: str) -> MemoryId:
        """The id that `wanted` is or starts, of a memory whole or damaged. Raises as `find`."""
        known: set[str] = {*list(self._records), *list(self.damaged)}
        if wanted in known:
            return MemoryId(wanted)
        found = [memory for memory in known if len(wanted) >= 8 and memory.startswith(wanted)]
        if len(found) > 1:
            raise RequestError(f"memory {wanted}: {len(found)} ids start so; use more of the id")
        if not found:
            raise UnknownMemory(
                f"memory {wanted:.60}: not in this node's store of {len(self._records)}; see `kvnet mem ls`"
            )
        return MemoryId(found[0])

    def put(self, memory: RawMemory, *, wanted: Compression, created_at: str) -> MemoryRecord:
        """Store a memory captured here. The same contents again are a success and change nothing."""
        known = self._records.get(memory.header.id)
        if known is not None and self._is_intact(known):
            return known
        require_room(self.root, memory.header.raw_nbytes, what="remember")
        folder = self.root / f".{memory.header.id}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        try:
            with full_disk_refused("remember"):
                sections = _write_sections(folder / SECTIONS_FILE, memory.chunks, wanted)
                record = MemoryRecord(RECORD_VERSION, memory.header, created_at, "", sections)
                return self.adopt(folder, record)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def adopt(self, folder: Path, record: MemoryRecord) -> MemoryRecord:
        """Write the record into a folder that already holds the sections, and move it into place.

        A copy that is here already stays if it is whole, and gives way if it is not.
        """
        known = self._records.get(record.id)
        if known is not None and self._is_intact(known):
            shutil.rmtree(folder)
            return known
        write_durably(folder / HEADER_FILE, canonical_json(asdict(record)))
        self._remove(record.id)
        folder.rename(self.root / record.id)
        sync_folder(self.root)
        self._records[record.id] = record
        return record

    def forget(self, memory: MemoryId) -> None:
        """Remove a memory from disk, damaged or not. Raises UnknownMemory."""
        if not self._remove(memory):
            raise UnknownMemory(f"memory {memory:.60}: was removed meanwhile")

    def _remove(self, memory: MemoryId) -> bool:
        gone = self.root / f".{memory}.gone"
        there = True
        try:
            (self.root / memory).rename(gone)
            sync_folder(self.root)  # what was forgotten must not come back after a power cut
        except FileNotFoundError:
            there = False
        self._records.pop(memory, None)  # after the rename: a failed one leaves the memory where it was
        self.damaged.pop(memory, None)
        if not there:
            return False
        if gone.is_dir():
            shutil.rmtree(gone)
        else:
            gone.unlink()  # a stray file, listed as damaged
        return True

    def _is_intact(self, record: MemoryRecord) -> bool:
        """Whether every section is what was stored; keeps none of them in memory."""
        try:
            with self.open_sections(record) as sections:
                for section in record.sections:
                    read_section(sections, section)
        except KvnetError as exc:
            self.damaged[record.id] = exc.message
            return False
        return True

    def open_sections(self, record: MemoryRecord) -> BinaryIO:
        """The file behind a memory's sections; reads may come from any thread by `os.pread`."""
        try:
            return (self.root / record.id / SECTIONS_FILE).open("rb")
        except OSError as exc:
            if not (self.root / record.id).exists():
                raise UnknownMemory(f"memory {record.id}: was removed meanwhile") from exc
            raise StateCorrupt(f"memory {record.id}: its sections cannot be read ({exc.strerror})") from exc

    def load(self, record: MemoryRecord) -> RawMemory:
        """Read a whole memory back, every digest checked. Raises StateCorrupt, and remembers that."""
        try:
            with self.open_sections(record) as sections:
                pairs = zip(record.wire_chunks(), record.sections, strict=True)
                chunks = [
                    decompress(read_section(sections, section), chunk.compression, chunk.raw_nbytes)
                    for chunk, section in pairs
                ]
        except (StateCorrupt, MalformedChunk) as exc:
            if self._records.get(record.id) == record:  # not replaced meanwhile
                self.damaged[record.id] = exc.message
            raise StateCorrupt(exc.message) from exc
        self.damaged.pop(record.id, None)
        return RawMemory(record.header, tuple(chunks))

    @property
    def nbytes(self) -> int:
        """Bytes of all sections."""
        return sum(s.wire_nbytes for record in self.all() for s in record.sections)

    def _scan(self, folder: Path) -> None:
        if folder.name.startswith("."):
            # A capture, arrival or removal that never finished; nothing was promised for it.
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            record = _read_record(folder)
        except KvnetError as exc:
            self.damaged[folder.name] = exc.message
        else:
            self._records[record.id] = record


def read_section(sections: BinaryIO, section: Section) -> bytes:
    """One section's bytes, checked against its digest. Raises StateCorrupt."""
    try:
        data = os.pread(sections.fileno(), section.wire_nbytes, section.offset)
    except OSError as exc:
        raise StateCorrupt(f"{sections.name}: cannot be read ({exc.strerror})") from exc
    if hashlib.sha256(data).hexdigest() != section.wire_digest:
        raise StateCorrupt(
            f"{sections.name}: not what was stored at {section.offset}; "
            "forget the memory and have it made or sent again"
        )
    return data


def content_digest_of(record: MemoryRecord, sections: BinaryIO) -> str:
    """The content digest of what lies on disk, to be compared with the header's."""
    digests = []
    for chunk, section in zip(record.wire_chunks(), record.sections, strict=True):
        if chunk.compression is Compression.NONE:
            digests.append(chunk.wire_digest)  # raw and wire bytes are the same
        else:
            raw = decompress(read_section(sections, section), chunk.compression, chunk.raw_nbytes)
            digests.append(hashlib.sha256(raw).digest())
    return content_digest(digests)


def _write_sections(
    path: Path, chunks: Iterable[bytes | memoryview], wanted: Compression
) -> tuple[Section, ...]:
    sections: list[Section] = []
    offset = 0
    with path.open("wb") as out:
        for raw in chunks:
            used, wire = compress(raw, wanted)
            out.write(wire)
            sections.append(Section(offset, int(used), len(wire), hashlib.sha256(wire).hexdigest()))
            offset += len(wire)
        out.flush()
        os.fsync(out.fileno())
    return tuple(sections)


def _read_record(folder: Path) -> MemoryRecord:
    path = folder / HEADER_FILE
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise StateCorrupt(f"{path}: cannot be read ({exc.strerror})") from exc
    record = strict_json.decode(MemoryRecord, data, what=str(path), max_nbytes=MAX_RECORD_NBYTES)
    if record.version != RECORD_VERSION:
        raise StateCorrupt(f"{path}: version {record.version}, this kvnet reads {RECORD_VERSION}")
    if record.id != folder.name or len(record.sections) != len(record.plan):
        raise StateCorrupt(f"{path}: does not describe the memory its folder is named for")
    try:
        fits = all(chunk.wire_nbytes <= chunk.raw_nbytes for chunk in record.wire_chunks())
    except ValueError:
        fits = False
    if not fits:
        raise StateCorrupt(f"{path}: its section table is not one that kvnet wrote")
    return record
