"""A memory file on its way in from whoever calls this node, piece by piece, verified before it is a memory.

Its sections go straight to where they will stay. Never takes more than the head says. Blocks; may be
called from any thread, one call at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from kvnet.errors import BadSignature, MalformedChunk, MalformedFile
from kvnet.format.awkg import PRELUDE_NBYTES, SIGNATURE_NBYTES, read_prelude, unpack_head
from kvnet.format.awkg.sections import raw_digest, unpack_section
from kvnet.identity.seal import VerifiedHead, verify_head_bytes
from kvnet.plan import MAX_CHUNK_RAW_NBYTES
from kvnet.types import NodeId, chunk_digest, content_digest
from kvnetd.store.disk import full_disk_refused, require_room
from kvnetd.store.memories import MemoryStore
from kvnetd.store.origins import source_of_own_file
from kvnetd.store.records import LocalNotes, MemoryRecord, Step
from kvnetd.store.sections import make_sections_file

_WHAT = "memory file"


class Upload:
    """A folder among the memories, hidden until it is one; the next start clears away what never was."""

    def __init__(self, memories: MemoryStore) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=".import-", dir=memories.root))
        self._sections = make_sections_file(self.folder, memories.vault)
        self._end = 0  # of what is in the file
        self._head = b""
        self._waiting = bytearray()  # of the head, then of the next section, then what is behind them
        self._to_come: deque[int] = deque()  # wire bytes of each section that is not complete

    def write(self, data: bytes) -> None:
        """The next bytes of the file.

        Raises MalformedFile and UnsupportedFormat as soon as it can be none, StoreFull.
        """
        self._waiting += data
        if not self._head and not self._split_head():
            return
        with full_disk_refused("import"):
            while self._to_come and len(self._waiting) >= self._to_come[0]:
                nbytes = self._to_come.popleft()
                self._end = self._sections.write(self._end, bytes(self._waiting[:nbytes]))
                del self._waiting[:nbytes]
        if not self._to_come and len(self._waiting) > SIGNATURE_NBYTES:
            raise MalformedFile(f"{_WHAT}: goes on behind what its head says; get the file again")

    def _split_head(self) -> bool:
        """Take the head from the start, once it is whole; whether it is."""
        if len(self._waiting) < PRELUDE_NBYTES:
            return False
        head_nbytes = PRELUDE_NBYTES + read_prelude(bytes(self._waiting[:PRELUDE_NBYTES]))
        if len(self._waiting) < head_nbytes:
            return False
        head = bytes(self._waiting[:head_nbytes])
        # Claims yet, as the signature comes last: what is beyond any section is not believed.
        claims = [min(max(s.wire_nbytes, 0), MAX_CHUNK_RAW_NBYTES) for s in unpack_head(head).sections]
        require_room(self.folder, sum(claims), what="import")
        del self._waiting[:head_nbytes]
        self._head, self._to_come = head, deque(claims)
        return True

    def verify(self) -> VerifiedHead:
        """The head of the file that came, once all of it is verified and durable: FORMAT.md §7.2, 1 to 11.

        Raises MalformedFile, UnsupportedFormat, BadSignature and MalformedChunk.
        """
        if not self._head:
            read_prelude(bytes(self._waiting[:PRELUDE_NBYTES]))
            raise MalformedFile(f"{_WHAT}: ends within its head; it was cut short")
        if self._to_come:
            raise MalformedFile(f"{_WHAT}: ends {len(self._to_come)} sections too early; it was cut short")
        if len(self._waiting) < SIGNATURE_NBYTES:
            raise MalformedFile(f"{_WHAT}: ends before its signature; it was cut short")
        head = verify_head_bytes(self._head, bytes(self._waiting))
        with full_disk_refused("import"):
            self._sections.sync()
        self._check_contents(head)
        return head

    def _check_contents(self, head: VerifiedHead) -> None:
        memory, raw_digests = head.header.memory, []
        for section in head.header.sections:
            index = section.key.index
            wire = self._sections.read(self._sections.start_of(section), section.wire_nbytes)
            if chunk_digest(wire) != section.wire_digest:
                raise BadSignature(f"{_WHAT}: section {index} is not what was signed; get the file again")
            try:
                raw_digests.append(raw_digest(section, unpack_section(memory, section, wire)))
            except MalformedChunk as exc:
                raise MalformedChunk(f"{_WHAT}: section {index}: {exc.message}") from exc
        if content_digest(raw_digests) != memory.content_digest:
            raise BadSignature(f"{_WHAT}: its contentDigest is not that of its contents")

    def finish(
        self, memories: MemoryStore, head: VerifiedHead, *, own: Collection[NodeId], stored_at: str
    ) -> MemoryRecord:
        """Make it a memory, on the store's own thread. What this node, by any `own` id, signed comes home."""
        signer = head.header.signed_by
        imported = Step("imported", model="", model_hash="", at=stored_at, duration_s=0.0)
        notes = LocalNotes(signer, stored_at, steps=(imported,))
        if signer in own:
            source = source_of_own_file(memories, head.header.memory, signer)
            notes = replace(notes, origin="", source=source)
        with full_disk_refused("import"):
            return memories.adopt(self.folder, head, notes)

    def discard(self) -> None:
        """Close and remove, unless the folder was adopted."""
        self._sections.close()
        shutil.rmtree(self.folder, ignore_errors=True)
