"""One transfer on its way in: what arrived is on disk before it is acknowledged, and survives a restart.

In its folder lie the body of the offer, payloads in order of arrival, both sealed if the vault seals, and
`chunks.log` (fixed-size records: envelope, signature, offset of the payload). A torn last record is dropped.
Knows its own folder; not which transfers there are.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kvnet.durable import sync_folder
from kvnet.errors import BadSignature, KvnetError, MalformedChunk, StateCorrupt
from kvnet.format.awkg import Section
from kvnet.format.awkg.sections import raw_digest, unpack_section
from kvnet.format.envelope import ENVELOPE_NBYTES, Envelope
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import VerifiedChunk
from kvnet.plan import count_chunks, plan_transfer, transfer_room_nbytes
from kvnet.transfer.messages import Offer
from kvnet.types import Compression, Kind, chunk_digest, content_digest
from kvnetd.store.bases import BasisStore
from kvnetd.store.disk import full_disk_refused
from kvnetd.store.failpoints import reach
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import LocalNotes, MemoryRecord, Step
from kvnetd.store.sections import SectionsFile, make_sections_file, read_frame, sections_place
from kvnetd.store.vault import Vault, place_of

SIGNATURE_NBYTES = 64
_OFFSET = struct.Struct("<Q")
RECORD_NBYTES = ENVELOPE_NBYTES + SIGNATURE_NBYTES + _OFFSET.size
CHUNK_LOG_FILE = "chunks.log"
OFFER_FILE = "offer.bin"
CACHED_NBYTES = 64 << 20  # a transfer of more does not stay in the page cache


@dataclass(frozen=True, slots=True)
class _Held:
    """Where a chunk's payload happened to arrive, and under which envelope."""

    offset: int
    envelope: Envelope


class IncomingTransfer:
    """One transfer's folder, open for writing."""

    def __init__(self, folder: Path, offer: Offer, bases: BasisStore, vault: Vault) -> None:
        self._folder = folder
        self._offer = offer
        self._bases = bases
        self._known_basis = _known_basis(offer, bases)
        self._held: dict[int, _Held] = {}
        self._raw_digests: dict[int, bytes] = {}  # of chunks that came since this was opened
        # Gigabytes that go by would take the place of what is in use, the model's own weights first.
        self._is_large = transfer_room_nbytes(offer.memory) > CACHED_NBYTES
        self._log = -1
        self._sections = make_sections_file(folder, vault)
        try:
            self._log = os.open(folder / CHUNK_LOG_FILE, os.O_RDWR | os.O_CREAT, 0o600)
            self._end = self._recover()
            # Names last as long as what they name: a lost entry would lose acknowledged chunks.
            sync_folder(folder)
            sync_folder(folder.parent)
        except BaseException:
            self.close()
            raise

    @property
    def held(self) -> dict[int, bytes]:
        """Chunk index -> wire digest, of all that is durable: also of a basis that is here anyway."""
        arrived = {index: entry.envelope.wire_digest for index, entry in self._held.items()}
        return {**arrived, **self._known_basis}

    def place_of(self, index: int) -> tuple[int, Envelope]:
        """Where a chunk that is durable lies in the file of `reader`, and under which envelope it came."""
        held = self._held[index]
        return held.offset, held.envelope

    def reader(self) -> SectionsFile:
        """The sections' file, opened once more: it can be read on when this transfer is closed or gone."""
        return self._sections.reopened()

    def store(self, chunks: list[VerifiedChunk]) -> None:
        """Write a batch and sync it. Raises StoreFull; what was durable before stays so."""
        with full_disk_refused("transfer"):
            fresh: list[tuple[int, _Held]] = []
            end = self._end
            records = b""
            for chunk in chunks:
                envelope = chunk.envelope
                records += chunk.signed.envelope + chunk.signed.signature + _OFFSET.pack(end)
                fresh.append((envelope.key.index, _Held(end, envelope)))
                end = self._sections.write(end, chunk.signed.payload)
            reach("chunk.written")
            # Payloads first: a record in the log promises that its payload is there.
            self._sections.sync()
            reach("chunk.synced")
            if self._is_large:
                self._sections.drop_from_cache(self._end, end)
            _write_all(self._log, records, len(self._held) * RECORD_NBYTES)
            os.fdatasync(self._log)
            reach("chunk.logged")
        self._end = end
        self._held.update(fresh)

    def sum_up(self, chunks: list[VerifiedChunk]) -> None:
        """Decompress and digest what came, each chunk as it comes: `finish` need not read it again.

        They were verified, and this very process writes and syncs them, so it may run beside `store`. What
        came before a restart is read back from disk, and so is what cannot be decompressed: `finish` says so.
        """
        for chunk in chunks:
            envelope = chunk.envelope
            if envelope.key.kind is not Kind.BASIS:
                with suppress(MalformedChunk):
                    raw = unpack_section(self._offer.memory, envelope, chunk.signed.payload)
                    self._raw_digests[envelope.key.index] = raw_digest(envelope, raw)

    def finish(self, memories: MemoryStore, head: VerifiedHead, *, stored_at: str) -> MemoryRecord:
        """Turn the complete transfer into a memory under its maker's seal, which the session has checked.

        Raises BadSignature when its contents belie its id, its seal or its basis.
        """
        try:
            self._check_contents(head)
            self._take_basis()
        except BadSignature:
            self.discard()  # resuming it could only end here again
            raise
        with full_disk_refused("transfer"):
            folder = memories.new_folder(head.header.memory.id)
            try:
                self._lay_out(folder, head.header.sections)
                received = Step("received", model="", model_hash="", at=stored_at, duration_s=0.0)
                notes = LocalNotes(origin=self._offer.sender, stored_at=stored_at, steps=(received,))
                record = memories.adopt(folder, head, notes)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
        self.discard()
        return record

    def _check_contents(self, head: VerifiedHead) -> None:
        header, transfer_id = head.header, self._offer.transfer_id
        if not header.memory.closes(self._offer.memory):
            raise BadSignature(f"transfer {transfer_id}: its seal is of another memory than was offered")
        raw_digests: list[bytes] = []
        for section in header.sections:
            held = self._held[section.key.index]
            claimed = (section.compression, section.raw_nbytes, section.wire_nbytes, section.wire_digest)
            envelope = held.envelope
            came = (envelope.compression, envelope.raw_nbytes, envelope.wire_nbytes, envelope.wire_digest)
            if claimed != came:
                index = section.key.index
                raise BadSignature(f"transfer {transfer_id}: chunk {index} is not as its seal says")
            raw_digests.append(self._raw_digest_of(section, held))
        if content_digest(raw_digests) != header.memory.content_digest:
            raise BadSignature(f"transfer {transfer_id}: the contents are not the memory offered")

    def _raw_digest_of(self, section: Section, held: _Held) -> bytes:
        known = self._raw_digests.get(section.key.index)
        if known is None and section.compression is Compression.NONE:
            known = section.wire_digest  # raw and wire bytes are the same, and were verified as they came
        if known is None:
            wire = read_frame(self._sections, section, held.offset)
            known = raw_digest(section, unpack_section(self._offer.memory, section, wire))
        return known

    def _take_basis(self) -> None:
        digest = self._offer.memory.coding.basis
        if not digest or self._known_basis:
            return
        held = [self._held[key.index] for key in plan_transfer(self._offer.memory) if key.kind is Kind.BASIS]
        basis = b"".join(self._sections.read(h.offset, h.envelope.wire_nbytes) for h in held)
        if "sha256:" + hashlib.sha256(basis).hexdigest() != digest:
            raise BadSignature(f"transfer {self._offer.transfer_id}: the calibration is not the one offered")
        self._bases.put(basis)

    def _lay_out(self, folder: Path, table: tuple[Section, ...]) -> None:
        """The memory's folder: its sections in plan order and nothing else, the envelopes, the offer.

        What was acknowledged stays untouched in the spool until the memory is in place.
        """
        for path in (self._folder / CHUNK_LOG_FILE, place_of(self._folder / OFFER_FILE)):
            os.link(path, folder / path.name)
        arrived, source = sections_place(self._folder), self._sections
        nbytes = sum(source.frame_nbytes(section.wire_nbytes) for section in table)
        in_order = all(self._held[section.key.index].offset == source.start_of(section) for section in table)
        if in_order and arrived.stat().st_size == nbytes:
            os.link(arrived, folder / arrived.name)
            return
        with (folder / arrived.name).open("wb") as out:
            for section in table:
                frame_nbytes = source.frame_nbytes(section.wire_nbytes)
                source.copy(self._held[section.key.index].offset, frame_nbytes, out)
            out.flush()
            os.fsync(out.fileno())

    def close(self) -> None:
        """Close the files; the folder stays for a resume."""
        self._sections.close()
        if self._log >= 0:
            os.close(self._log)
        self._log = -1

    def discard(self) -> None:
        """Close and remove."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _recover(self) -> int:
        log = os.pread(self._log, self._offer.chunk_count * RECORD_NBYTES, 0)
        end = 0
        for start in range(0, len(log) - RECORD_NBYTES + 1, RECORD_NBYTES):
            record = log[start : start + RECORD_NBYTES]
            try:
                envelope = Envelope.unpack(record[:ENVELOPE_NBYTES])
            except KvnetError:
                break
            (offset,) = _OFFSET.unpack(record[-_OFFSET.size :])
            if not self._has(envelope, offset):
                break
            self._held[envelope.key.index] = _Held(offset, envelope)
            end = offset + self._sections.frame_nbytes(envelope.wire_nbytes)
        # Else a later recovery could take what lay behind the damage for chunks of its own.
        os.ftruncate(self._log, len(self._held) * RECORD_NBYTES)
        self._sections.truncate(end)
        return end

    def _has(self, envelope: Envelope, offset: int) -> bool:
        try:
            payload = self._sections.read(offset, envelope.wire_nbytes)
        except StateCorrupt:
            return False
        return chunk_digest(payload) == envelope.wire_digest


def _known_basis(offer: Offer, bases: BasisStore) -> dict[int, bytes]:
    """Chunk index -> digest for the pieces of the offer's basis, if it is here already."""
    memory = offer.memory
    basis = bases.get(memory.coding.basis) if memory.coding.basis else None
    if basis is None or len(basis) != memory.coding.basis_nbytes:
        return {}
    pieces = plan_transfer(memory)[count_chunks(memory) :]
    return {key.index: chunk_digest(basis[key.start : key.stop]) for key in pieces}


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
