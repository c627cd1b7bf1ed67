"""Memories at rest: one folder each, an `.awkg` file in its parts, moved into place whole.

`head.awkg`, the sections and `signature` one after the other are the file (FORMAT.md §7); `local.json` holds
what this node knows beyond it. One that came from a peer keeps its signed chunk envelopes (`chunks.log`) and
its offer beside them; one whose text is kept has it there too (`texts`). Sections, offer and text are sealed,
if the vault seals. A memory is read back only after the digest of every section agrees.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from kvnet.durable import sync_folder, write_durably
from kvnet.errors import KvnetError, MalformedChunk, RequestError, StateCorrupt, TooBusy, UnknownMemory
from kvnet.format.awkg import AwkgHeader, Metadata, Section
from kvnet.format.awkg.sections import unpack_section
from kvnet.format.compress import effective_level
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import VerifiedHead, seal_head, verify_head
from kvnet.identity.signing import SignedMessage
from kvnet.types import MemoryHeader, MemoryId, RawMemory, canonical_json
from kvnetd.store.disk import full_disk_refused, require_room
from kvnetd.store.failpoints import reach
from kvnetd.store.places import identity, put_in_place, restore, take_away
from kvnetd.store.records import (
    HEAD_FILE,
    LOCAL_FILE,
    SIGNATURE_FILE,
    LocalNotes,
    Making,
    MemoryRecord,
    read_head,
    read_record,
)
from kvnetd.store.sections import SectionsFile, open_sections, read_section, write_sections
from kvnetd.store.texts import carry_text
from kvnetd.store.vault import Vault


class MemoryStore:
    """The folder of memories. Ids name folders; nothing a peer says ever names a path."""

    def __init__(self, root: Path, vault: Vault | None = None) -> None:
        """Without a vault everything is written in clear."""
        self.root = root
        self.vault = vault or Vault.in_clear()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.damaged: dict[str, str] = {}
        self._records: dict[MemoryId, MemoryRecord] = {}
        restore(root)
        for folder in sorted(root.iterdir()):
            self._scan(folder)

    def all(self) -> tuple[MemoryRecord, ...]:
        """Every readable memory, oldest first."""
        return tuple(sorted(list(self._records.values()), key=lambda record: record.stored_at))

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

    def encodings_of(self, memory: MemoryId) -> tuple[MemoryRecord, ...]:
        """What this node encoded from a memory in passing, to send it."""
        return tuple(r for r in self.all() if r.notes.in_passing and r.header.derived_from == memory)

    def is_encoding(self, record: MemoryRecord) -> bool:
        """Whether a memory is only another coding, made in passing, of one that is here too."""
        return record.notes.in_passing and record.header.derived_from in self._records

    def put(self, memory: RawMemory, making: Making, key: NodeKey) -> MemoryRecord:
        """Store a memory made here, under this node's seal.

        The same contents again are a success; they are written again only if they lie here damaged, or
        made here with another compression. What is made in passing never takes the place of what was asked
        for. Raises UnknownMemory where the memory that this was encoded from in passing is gone.
        """
        in_passing = making.notes.in_passing
        if in_passing and memory.header.derived_from not in self._records:
            raise UnknownMemory(f"memory {memory.header.derived_from:.60}: was removed meanwhile")
        known = self._records.get(memory.header.id)
        if known is not None and self._is_as_wanted(known, making) and self.is_intact(known):
            return known if in_passing else self._asked_for(known)
        require_room(self.root, sum(len(chunk) for chunk in memory.chunks), what="remember")
        folder = self.new_folder(memory.header.id)
        try:
            with full_disk_refused("remember"):
                sections = write_sections(
                    folder,
                    memory.header,
                    memory.chunks,
                    vault=self.vault,
                    wanted=making.compression,
                    level=making.level,
                )
                return self.seal_in(folder, memory.header, sections, making, key)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def seal_in(
        self,
        folder: Path,
        memory: MemoryHeader,
        sections: tuple[Section, ...],
        making: Making,
        key: NodeKey,
    ) -> MemoryRecord:
        """Sign the head of a memory made here, whose sections lie in `folder`, and move it into place.

        What is made in passing stays asked for where it was.
        """
        if making.notes.in_passing and self._was_asked_for(memory.id):
            making = replace(making, notes=replace(making.notes, in_passing=False))
        header = AwkgHeader(
            memory=memory,
            sections=sections,
            compression=making.compression,
            compression_level=effective_level(making.compression, making.level),
            created_at=making.created_at,
            created_by=making.created_by,
            signed_by=key.node_id,
            metadata=Metadata(
                domain=making.domain,
                topic=making.topic,
                language_hint=making.language_hint,
                quality_score=None,
                token_count=memory.seq_len,
            ),
            w_matrix_reference=making.alignment,
        )
        return self._move_in(folder, verify_head(seal_head(key, header)), making.notes)

    def adopt(self, folder: Path, head: VerifiedHead, notes: LocalNotes) -> MemoryRecord:
        """Move a folder that already holds the sections into place.

        A copy that is here already stays if it is whole, and gives way if it is not.
        """
        known = self._records.get(head.header.memory.id)
        if known is not None and self.is_intact(known):
            shutil.rmtree(folder)
            return self._asked_for(known)
        return self._move_in(folder, head, notes)

    def new_folder(self, memory: MemoryId) -> Path:
        """An empty folder beside the memories, to be filled and adopted; cleared away at the next start."""
        folder = self.root / f".{memory}.new"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        return folder

    def export(self, record: MemoryRecord) -> Iterator[bytes]:
        """The memory's `.awkg` file, a MiB at a time, every section checked.

        Raises as `open_stored`, and StateCorrupt for a section that is damaged.
        """
        sealed, sections = self.open_stored(record)
        with sections:
            yield sealed.body
            for section in record.head.sections:
                yield read_section(sections, section)
        yield sealed.signature

    def open_stored(self, record: MemoryRecord) -> tuple[SignedMessage, SectionsFile]:
        """The sealed head of a memory and the file of the sections it tells of, never of two writings.

        Raises UnknownMemory, StateCorrupt, and
        TooBusy where the memory was replaced since `record` was looked up: that is no damage.
        """
        place = self.root / record.id
        before = identity(place)
        with ExitStack() as stack:
            try:
                sections = stack.enter_context(self._open_sections(record))
                head = read_head(place)
            except StateCorrupt:
                if identity(place) == before:
                    raise
                raise self._replaced(record) from None
            if identity(place) != before or head.header != record.head:
                raise self._replaced(record)
            stack.pop_all()
        return head.sealed, sections

    def forget(self, memory: MemoryId) -> None:
        """Remove a memory from disk, damaged or not. Raises UnknownMemory."""
        was_there = take_away(self.root / memory)
        self.dismiss(memory)  # after it is gone: a failure leaves the memory where it was
        if not was_there:
            raise UnknownMemory(f"memory {memory:.60}: was removed meanwhile")

    def drop_passing(self, memory: MemoryId) -> None:
        """Forget what was read for a peer alone: nothing that anybody here asked for, now or before."""
        record = self._records.get(memory)
        if record is not None and record.notes.in_passing and not record.header.derived_from:
            self.forget(memory)

    def dismiss(self, memory: str) -> None:
        """Know no more of a memory whose folder is gone."""
        self._records.pop(MemoryId(memory), None)
        self.damaged.pop(memory, None)

    def load(self, record: MemoryRecord) -> RawMemory:
        """Read a whole memory back, every digest checked. Raises StateCorrupt, and remembers that."""
        try:
            with self.open_stored(record)[1] as sections:
                chunks = [
                    unpack_section(record.header, section, read_section(sections, section))
                    for section in record.head.sections
                ]
        except (StateCorrupt, MalformedChunk) as exc:
            self._is_damage(record, exc)
            raise StateCorrupt(exc.message) from exc
        self.damaged.pop(record.id, None)
        return RawMemory(record.header, tuple(chunks))

    def is_intact(self, record: MemoryRecord) -> bool:
        """Whether every section is what was stored. What is wrong is told in `damaged`.

        Raises StateCorrupt where that cannot be said now; UnknownMemory, TooBusy for one replaced meanwhile.
        """
        try:
            with self.open_stored(record)[1] as sections:
                for section in record.head.sections:
                    read_section(sections, section)
        except StateCorrupt as exc:
            if not self._is_damage(record, exc):
                raise
            return False
        return True

    @property
    def nbytes(self) -> int:
        """Bytes of all sections."""
        return sum(record.head.sections_nbytes for record in self.all())

    def _move_in(self, folder: Path, head: VerifiedHead, notes: LocalNotes) -> MemoryRecord:
        record = MemoryRecord(head.header, notes)
        write_durably(folder / HEAD_FILE, head.sealed.body)
        write_durably(folder / SIGNATURE_FILE, head.sealed.signature)
        write_durably(folder / LOCAL_FILE, canonical_json(notes.to_plain()))
        carry_text(self.root / record.id, folder)
        sync_folder(folder)  # its names too, before the folder that has the text is removed
        reach("memory.laid-out")
        put_in_place(folder, self.root / record.id)
        reach("memory.in-place")
        self._records[record.id] = record
        self.damaged.pop(record.id, None)
        return record

    def _is_damage(self, record: MemoryRecord, error: KvnetError) -> bool:
        """Whether an error tells of this memory, not of too many open files, say; then it is remembered."""
        cause = error.__cause__
        tells = not isinstance(cause, OSError) or cause.errno in (errno.ENOENT, errno.EIO)
        if tells and self._records.get(record.id) == record:  # not replaced meanwhile
            self.damaged[record.id] = error.message
            return True
        return False

    def _asked_for(self, record: MemoryRecord) -> MemoryRecord:
        """The record of a memory that somebody wants for its own sake from now on."""
        if not record.notes.in_passing:
            return record
        wanted = replace(record, notes=replace(record.notes, in_passing=False))
        write_durably(self.root / record.id / LOCAL_FILE, canonical_json(wanted.notes.to_plain()))
        self._records[record.id] = wanted
        return wanted

    def _open_sections(self, record: MemoryRecord) -> SectionsFile:
        try:
            return open_sections(self.root / record.id, self.vault)
        except OSError as exc:
            if not (self.root / record.id).exists():
                raise UnknownMemory(f"memory {record.id}: was removed meanwhile") from exc
            raise StateCorrupt(f"memory {record.id}: its sections cannot be read ({exc.strerror})") from exc

    def _replaced(self, record: MemoryRecord) -> KvnetError:
        if not (self.root / record.id).exists():
            return UnknownMemory(f"memory {record.id}: was removed meanwhile")
        return TooBusy(f"memory {record.id}: was written anew meanwhile; try again")

    def _was_asked_for(self, memory: MemoryId) -> bool:
        known = self._records.get(memory)
        return memory in self.damaged if known is None else not known.notes.in_passing

    def _is_as_wanted(self, record: MemoryRecord, making: Making) -> bool:
        if record.origin or making.notes.in_passing:
            return True
        wanted = (making.compression, effective_level(making.compression, making.level))
        return (record.head.compression, record.head.compression_level) == wanted

    def _scan(self, folder: Path) -> None:
        if folder.name.startswith("."):
            # A capture, arrival or removal that never finished; nothing was promised for it.
            shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            record = read_record(folder)
        except KvnetError as exc:
            self.damaged[folder.name] = exc.message
        else:
            self._records[record.id] = record
