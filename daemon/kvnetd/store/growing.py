"""A memory that is stored while it is made: section by section, in any order, then moved into place.

What was written lies in plan order in the end, as FORMAT.md §7 has it. Blocks; one call at a time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from kvnet.format.awkg import SectionFacts, make_sections
from kvnet.identity.keys import NodeKey
from kvnet.plan import decoded_nbytes, plan_memory
from kvnet.transfer.sender import WireChunk
from kvnet.types import MemoryHeader, content_digest
from kvnetd.store.disk import full_disk_refused, require_room
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import Making, MemoryRecord
from kvnetd.store.sections import make_sections_file


class GrowingMemory:
    """A folder among the memories, hidden until it is one; the next start clears away what never was."""

    def __init__(self, memories: MemoryStore, header: MemoryHeader) -> None:
        """`header` is open. Raises StoreFull where its keys and values would not fit."""
        plan = plan_memory(header)
        require_room(memories.root, sum(decoded_nbytes(header.geometry, key) for key in plan), what="reading")
        self._memories = memories
        self._header = header
        self._count = len(plan)
        self.folder = Path(tempfile.mkdtemp(prefix=".reading-", dir=memories.root))
        self._sections = make_sections_file(self.folder, memories.vault)
        self._end = 0
        self._told: dict[int, tuple[int, WireChunk, bytes]] = {}  # offset, and digest of the raw bytes

    def write(self, chunk: WireChunk, wire: bytes | memoryview, raw_digest: bytes) -> None:
        """Add a section; `raw_digest` is the `chunk_digest` of its raw bytes. Raises StoreFull."""
        with full_disk_refused("reading"):
            start, self._end = self._end, self._sections.write(self._end, wire)
        self._told[chunk.key.index] = (start, chunk, raw_digest)

    def finish(self, making: Callable[[MemoryHeader], Making], key: NodeKey) -> MemoryRecord:
        """Close the header and make the folder a memory, on the store's own thread."""
        told = [self._told[index] for index in range(self._count)]
        header = replace(self._header, content_digest=content_digest([digest for _, _, digest in told]))
        with full_disk_refused("reading"):
            self._put_in_order([(start, chunk.wire_nbytes) for start, chunk, _ in told])
            table = make_sections(header, [_facts_of(chunk) for _, chunk, _ in told])
            self._sections.sync()
            return self._memories.seal_in(self.folder, header, table, making(header), key)

    def _put_in_order(self, places: list[tuple[int, int]]) -> None:
        """Write the sections anew behind one another, unless they came so. `places`: (start, wire bytes)."""
        if places == sorted(places):
            return
        aside = self.folder / "in-order"
        aside.mkdir()
        ordered = make_sections_file(aside, self._memories.vault)
        with ordered:
            end = 0
            for start, wire_nbytes in places:
                end = ordered.write(end, self._sections.read(start, wire_nbytes))
            ordered.sync()
        self._sections.close()
        name = Path(self._sections.name).name
        (aside / name).replace(self.folder / name)
        aside.rmdir()
        self._sections = make_sections_file(self.folder, self._memories.vault)

    def discard(self) -> None:
        """Close and remove, unless it became a memory."""
        self._sections.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def _facts_of(chunk: WireChunk) -> SectionFacts:
    return SectionFacts(chunk.compression, chunk.wire_nbytes, chunk.raw_nbytes, chunk.wire_digest)
