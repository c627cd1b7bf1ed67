"""What is known of a stored memory: its file's header, and this node's notes. Reads folders, writes none."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kvnet.errors import KvnetError, MalformedMessage, StateCorrupt
from kvnet.format import strict_json
from kvnet.format.awkg import AwkgHeader
from kvnet.identity.seal import VerifiedHead, verify_head_bytes
from kvnet.transfer.sender import WireChunk
from kvnet.types import Compression, MemoryHeader, MemoryId

NOTES_VERSION = 1
HEAD_FILE = "head.awkg"
SECTIONS_FILE = "sections.bin"
SIGNATURE_FILE = "signature"
LOCAL_FILE = "local.json"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done to make a memory, as provenance tells it."""

    step: str  # inference, cache-extraction, encoding, received, imported
    model: str
    model_hash: str
    at: str
    duration_s: float
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LocalNotes:
    """What this node knows beyond the file. `origin` is the node id it came from, or "" for this node."""

    origin: str
    stored_at: str
    text_digest: str = ""  # of the text that was read here
    steps: tuple[Step, ...] = ()
    in_passing: bool = False  # encoded from another memory here to be sent, not because anyone asked for it
    source: str = ""  # node id that what this was encoded from here came from, "" for this node (`origins`)
    version: int = NOTES_VERSION

    def to_plain(self) -> dict[str, Any]:
        """As `local.json` holds it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Making:
    """How a memory that is made here is written down."""

    compression: Compression
    level: int
    created_by: str
    created_at: str  # as FORMAT.md §7.1 has it, whole seconds
    notes: LocalNotes
    domain: str = ""
    topic: str = ""
    language_hint: str = ""
    alignment: str = ""  # id of the map that made the coordinates of a port; "" in any other coding


@dataclass(frozen=True, slots=True)
class MemoryRecord:
    """A memory in the store."""

    head: AwkgHeader
    notes: LocalNotes

    @property
    def header(self) -> MemoryHeader:
        """What the memory is."""
        return self.head.memory

    @property
    def id(self) -> MemoryId:
        """The memory's id."""
        return self.head.memory.id

    @property
    def origin(self) -> str:
        """The node id it came from, or "" for this node."""
        return self.notes.origin

    @property
    def stored_at(self) -> str:
        """When it was stored here."""
        return self.notes.stored_at

    def wire_chunks(self) -> tuple[WireChunk, ...]:
        """The sections as the sender's session wants them."""
        return tuple(
            WireChunk(
                key=section.key,
                compression=section.compression,
                raw_nbytes=section.raw_nbytes,
                wire_nbytes=section.wire_nbytes,
                wire_digest=section.wire_digest,
            )
            for section in self.head.sections
        )


def read_record(folder: Path) -> MemoryRecord:
    """A stored memory's record; its head must be sealed and be that of the folder's name.

    Raises StateCorrupt.
    """
    head, path = read_head(folder), folder / LOCAL_FILE
    try:
        notes = strict_json.decode(LocalNotes, _read(path), what=str(path))
    except MalformedMessage as exc:
        raise StateCorrupt(exc.message) from exc
    if notes.version != NOTES_VERSION:
        raise StateCorrupt(f"{path}: version {notes.version}, this kvnet reads {NOTES_VERSION}")
    if head.memory_id != folder.name:
        raise StateCorrupt(f"{folder / HEAD_FILE}: does not describe the memory its folder is named for")
    return MemoryRecord(head.header, notes)


def read_head(folder: Path) -> VerifiedHead:
    """The sealed head of a stored memory. Raises StateCorrupt."""
    body, signature = _read(folder / HEAD_FILE), _read(folder / SIGNATURE_FILE)
    try:
        return verify_head_bytes(body, signature)
    except KvnetError as exc:
        raise StateCorrupt(f"{folder / HEAD_FILE}: {exc.message}") from exc


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise StateCorrupt(f"{path}: cannot be read ({exc.strerror})") from exc
