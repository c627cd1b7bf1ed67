"""A memory file on its way in from whoever calls this node, piece by piece, verified before it is a memory.

Its sections go straight to where they will stay. Never takes more than the head says. Blocks; may be
called from any thread, one call at a time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from kvnet.errors import BadSignature, MalformedChunk, MalformedFile
from kvnet.format.awkg import PRELUDE_NBYTES, SIGNATURE_NBYTES, read_prelude, unpack_head
from kvnet.identity.seal import VerifiedHead, verify_head_bytes
from kvnet.plan import MAX_CHUNK_RAW_NBYTES
from kvnet.types import NodeId
from kvnetd.store.disk import full_disk_refused, require_room
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE, LocalNotes, MemoryRecord, Step
from kvnetd.store.sections import Contents

_WHAT = "memory file"


class Upload:
    """A folder among the memories, hidden until it is one; the next start clears away what never was."""

    def __init__(self, root: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=".import-", dir=root))
        self._sections = (self.folder / SECTIONS_FILE).open("w+b")
        self._start = bytearray()  # what came before the head was complete
        self._head = b""
        self._tail = bytearray()  # the last bytes so far: a signature, once all is here
        self._room_nbytes = 0  # how much may still come

    def write(self, data: bytes) -> None:
        """The next bytes of the file.

        Raises MalformedFile and UnsupportedFormat as soon as it can be none, StoreFull.
        """
        if not self._head:
            self._start += data
            data = self._split_head()
        if len(data) > self._room_nbytes:
            raise MalformedFile(f"{_WHAT}: goes on behind what its head says; get the file again")
        self._room_nbytes -= len(data)
        self._tail += data
        settled = max(0, len(self._tail) - SIGNATURE_NBYTES)
        with full_disk_refused("import"):
            self._sections.write(self._tail[:settled])
        del self._tail[:settled]

    def _split_head(self) -> bytes:
        """Take the head from the start, once it is whole; returns what came behind it."""
        if len(self._start) < PRELUDE_NBYTES:
            return b""
        head_nbytes = PRELUDE_NBYTES + read_prelude(bytes(self._start[:PRELUDE_NBYTES]))
        if len(self._start) < head_nbytes:
            return b""
        head, behind = bytes(self._start[:head_nbytes]), bytes(self._start[head_nbytes:])
        # Claims yet, as the signature comes last: what is beyond any section is not believed.
        claims = (section.wire_nbytes for section in unpack_head(head).sections)
        sections_nbytes = sum(min(nbytes, MAX_CHUNK_RAW_NBYTES) for nbytes in claims)
        require_room(self.folder, sections_nbytes, what="import")
        self._room_nbytes = sections_nbytes + SIGNATURE_NBYTES
        self._head, self._start = head, bytearray()
        return behind

    def verify(self) -> VerifiedHead:
        """The head of the file that came, once all of it is verified and durable: FORMAT.md §7.2, 1 to 11.

        Raises MalformedFile, UnsupportedFormat, BadSignature and MalformedChunk.
        """
        if not self._head:
            read_prelude(bytes(self._start[:PRELUDE_NBYTES]))
            raise MalformedFile(f"{_WHAT}: ends within its head; it was cut short")
        if len(self._tail) < SIGNATURE_NBYTES:
            raise MalformedFile(f"{_WHAT}: ends before its signature; it was cut short")
        head = verify_head_bytes(self._head, bytes(self._tail))
        with full_disk_refused("import"):
            self._sections.flush()
            os.fsync(self._sections.fileno())
        nbytes = os.fstat(self._sections.fileno()).st_size
        if nbytes != head.header.sections_nbytes:
            wanted = head.header.sections_nbytes
            raise MalformedFile(f"{_WHAT}: {nbytes} bytes of sections, its head says {wanted}; get it again")
        self._check_contents(head)
        return head

    def _check_contents(self, head: VerifiedHead) -> None:
        contents = Contents(head.header.memory)
        for section in head.header.sections:
            index = section.key.index
            wire = os.pread(self._sections.fileno(), section.wire_nbytes, section.offset)
            if hashlib.sha256(wire).digest() != section.wire_digest:
                raise BadSignature(f"{_WHAT}: section {index} is not what was signed; get the file again")
            try:
                contents.add(section, wire)
            except MalformedChunk as exc:
                raise MalformedChunk(f"{_WHAT}: section {index}: {exc.message}") from exc
        if contents.checksum != head.header.checksum:
            raise BadSignature(f"{_WHAT}: its checksum is not that of its sections")
        if contents.content_digest != head.header.memory.content_digest:
            raise BadSignature(f"{_WHAT}: its contentDigest is not that of its contents")

    def finish(
        self, memories: MemoryStore, head: VerifiedHead, *, own: NodeId, stored_at: str
    ) -> MemoryRecord:
        """Make it a memory, on the store's own thread. What this node, `own`, signed itself comes home."""
        signer = head.header.signed_by
        imported = Step("imported", model="", model_hash="", at=stored_at, duration_s=0.0)
        notes = LocalNotes("" if signer == own else signer, stored_at, steps=(imported,))
        with full_disk_refused("import"):
            return memories.adopt(self.folder, head, notes)

    def discard(self) -> None:
        """Close and remove, unless the folder was adopted."""
        self._sections.close()
        shutil.rmtree(self.folder, ignore_errors=True)
