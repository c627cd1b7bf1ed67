"""Transfers on their way in: what arrived is on disk before it is acknowledged, and survives a restart.

A folder per transfer: `offer.bin` (the body of the offer), `sections.bin` (payloads in order of arrival)
and `chunks.log` (fixed-size records: envelope, signature, offset). A torn last record is dropped.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from kvnet.errors import BadSignature, KvnetError
from kvnet.files.durable import sync_folder
from kvnet.format import strict_json
from kvnet.format.awkg import Section
from kvnet.format.envelope import ENVELOPE_NBYTES, Envelope
from kvnet.identity.keys import node_id_of, public_key_of
from kvnet.identity.seal import VerifiedHead
from kvnet.identity.signing import SignedMessage, VerifiedChunk
from kvnet.plan import count_chunks, plan_transfer, transfer_room_nbytes
from kvnet.transfer.messages import MAX_OFFER_NBYTES, Offer
from kvnet.types import Kind
from kvnetd.store.bases import BasisStore
from kvnetd.store.disk import full_disk_refused, require_room, write_durably
from kvnetd.store.memories import MemoryStore
from kvnetd.store.records import SECTIONS_FILE, LocalNotes, MemoryRecord, Step
from kvnetd.store.sections import Contents, copy_bytes, read_section

SIGNATURE_NBYTES = 64
_OFFSET = struct.Struct("<Q")
_RECORD_NBYTES = ENVELOPE_NBYTES + SIGNATURE_NBYTES + _OFFSET.size
CHUNK_LOG_FILE = "chunks.log"
OFFER_FILE = "offer.bin"


@dataclass(frozen=True, slots=True)
class _Held:
    """A chunk's payload in `sections.bin`, where it happened to arrive."""

    offset: int
    envelope: Envelope


class IncomingTransfer:
    """One transfer's folder, open for writing."""

    def __init__(self, folder: Path, offer: Offer, bases: BasisStore) -> None:
        self._folder = folder
        self._offer = offer
        self._bases = bases
        self._known_basis = _known_basis(offer, bases)
        self._held: dict[int, _Held] = {}
        self._sections = self._log = -1
        try:
            self._sections = os.open(folder / SECTIONS_FILE, os.O_RDWR | os.O_CREAT, 0o600)
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

    def store(self, chunks: list[VerifiedChunk]) -> None:
        """Write a batch and sync it. Raises StoreFull; what was durable before stays so."""
        with full_disk_refused("transfer"):
            fresh: list[tuple[int, _Held]] = []
            end = self._end
            records = b""
            for chunk in chunks:
                envelope = chunk.envelope
                _write_all(self._sections, chunk.signed.payload, end)
                records += chunk.signed.envelope + chunk.signed.signature + _OFFSET.pack(end)
                fresh.append((envelope.key.index, _Held(end, envelope)))
                end += envelope.wire_nbytes
            # Payloads first: a record in the log promises that its payload is there.
            os.fdatasync(self._sections)
            _write_all(self._log, records, len(self._held) * _RECORD_NBYTES)
            os.fdatasync(self._log)
        self._end = end
        self._held.update(fresh)

    def finish(self, memories: MemoryStore, head: VerifiedHead, *, stored_at: str) -> MemoryRecord:
        """Turn the complete transfer into a memory under its maker's seal.

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
        contents = Contents(self._offer.memory)
        with (self._folder / SECTIONS_FILE).open("rb") as written:
            for section in header.sections:
                held = self._held[section.key.index]
                claimed = (section.compression, section.raw_nbytes, section.wire_nbytes, section.wire_digest)
                envelope = held.envelope
                came = (envelope.compression, envelope.raw_nbytes, envelope.wire_nbytes, envelope.wire_digest)
                if claimed != came:
                    index = section.key.index
                    raise BadSignature(f"transfer {transfer_id}: chunk {index} is not as its seal says")
                arrived = replace(section, offset=held.offset)
                contents.add(arrived, read_section(written, arrived))
        if contents.content_digest != self._offer.memory.content_digest:
            raise BadSignature(f"transfer {transfer_id}: the contents are not the memory offered")
        if contents.checksum != header.checksum:
            raise BadSignature(f"transfer {transfer_id}: the checksum in its seal is not that of its chunks")

    def _take_basis(self) -> None:
        digest = self._offer.memory.coding.basis
        if not digest or self._known_basis:
            return
        held = [self._held[key.index] for key in plan_transfer(self._offer.memory) if key.kind is Kind.BASIS]
        basis = b"".join(os.pread(self._sections, h.envelope.wire_nbytes, h.offset) for h in held)
        if "sha256:" + hashlib.sha256(basis).hexdigest() != digest:
            raise BadSignature(f"transfer {self._offer.transfer_id}: the calibration is not the one offered")
        self._bases.put(basis)

    def _lay_out(self, folder: Path, table: tuple[Section, ...]) -> None:
        """The memory's folder: its sections in plan order and nothing else, the envelopes, the offer.

        What was acknowledged stays untouched in the spool until the memory is in place.
        """
        for name in (CHUNK_LOG_FILE, OFFER_FILE):
            os.link(self._folder / name, folder / name)
        arrived, sections = self._folder / SECTIONS_FILE, folder / SECTIONS_FILE
        nbytes = sum(section.wire_nbytes for section in table)
        in_order = all(self._held[section.key.index].offset == section.offset for section in table)
        if in_order and arrived.stat().st_size == nbytes:
            os.link(arrived, sections)
            return
        with arrived.open("rb") as source, sections.open("wb") as out:
            for section in table:
                copy_bytes(source, self._held[section.key.index].offset, section.wire_nbytes, out)
            out.flush()
            os.fsync(out.fileno())

    def close(self) -> None:
        """Close the files; the folder stays for a resume."""
        for handle in (self._sections, self._log):
            if handle >= 0:
                os.close(handle)
        self._sections = self._log = -1

    def discard(self) -> None:
        """Close and remove."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _recover(self) -> int:
        log = os.pread(self._log, self._offer.chunk_count * _RECORD_NBYTES, 0)
        end = 0
        for start in range(0, len(log) - _RECORD_NBYTES + 1, _RECORD_NBYTES):
            record = log[start : start + _RECORD_NBYTES]
            try:
                envelope = Envelope.unpack(record[:ENVELOPE_NBYTES])
            except KvnetError:
                break
            (offset,) = _OFFSET.unpack(record[-_OFFSET.size :])
            payload = os.pread(self._sections, envelope.wire_nbytes, offset)
            if hashlib.sha256(payload).digest() != envelope.wire_digest:
                break
            self._held[envelope.key.index] = _Held(offset, envelope)
            end = offset + envelope.wire_nbytes
        # Else a later recovery could take what lay behind the damage for chunks of its own.
        os.ftruncate(self._log, len(self._held) * _RECORD_NBYTES)
        os.ftruncate(self._sections, end)
        return end


class Spool:
    """The folder of unfinished transfers, one folder each, named by sender and transfer id.

    Two senders that use the same transfer id never touch each other's chunks.
    """

    def __init__(self, root: Path, bases: BasisStore) -> None:
        self.root = root
        self._bases = bases
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def open(self, offer: Offer, sealed: SignedMessage) -> IncomingTransfer:
        """Start or resume a transfer. A folder of another offer with this id is started afresh.

        Raises StoreFull when what is still to come would not fit.
        """
        folder = self.root / folder_name(offer)
        needed = transfer_room_nbytes(offer.memory)
        require_room(self.root, needed - self.held_nbytes(offer), what="transfer")
        known = folder / OFFER_FILE
        if folder.exists() and (not known.exists() or known.read_bytes() != sealed.body):
            shutil.rmtree(folder)
        with full_disk_refused("transfer"):
            if not folder.exists():
                folder.mkdir(mode=0o700)
                write_durably(known, sealed.body)
            return IncomingTransfer(folder, offer, self._bases)

    def held_nbytes(self, offer: Offer) -> int:
        """Bytes of this transfer that lie here already."""
        try:
            return (self.root / folder_name(offer) / SECTIONS_FILE).stat().st_size
        except FileNotFoundError:
            return 0

    def expire(self, *, now: int, grace_s: int, busy: frozenset[str]) -> int:
        """Remove transfers whose offer nobody can use any more; returns how many.

        `busy` are the folder names of transfers on their way in (see `folder_name`).
        """
        gone = 0
        for folder in self.root.iterdir():
            if folder.name not in busy and _expires_at(folder) + grace_s < now:
                shutil.rmtree(folder, ignore_errors=True)
                gone += 1
        return gone

    def bases(self) -> frozenset[str]:
        """Digests of the calibrations that unfinished transfers need."""
        offers = (_offer_in(folder) for folder in self.root.iterdir())
        return frozenset(offer.memory.coding.basis for offer in offers if offer is not None)


def _expires_at(folder: Path) -> int:
    offer = _offer_in(folder)
    # Half made, or damaged: nothing was acknowledged under it that could be resumed.
    return 0 if offer is None else offer.expires_at


def _offer_in(folder: Path) -> Offer | None:
    try:
        body = (folder / OFFER_FILE).read_bytes()
        return strict_json.decode(Offer, body, what="offer", max_nbytes=MAX_OFFER_NBYTES)
    except (KvnetError, OSError):
        return None


def _known_basis(offer: Offer, bases: BasisStore) -> dict[int, bytes]:
    """Chunk index -> digest for the pieces of the offer's basis, if it is here already."""
    memory = offer.memory
    basis = bases.get(memory.coding.basis) if memory.coding.basis else None
    if basis is None or len(basis) != memory.coding.basis_nbytes:
        return {}
    pieces = plan_transfer(memory)[count_chunks(memory) :]
    return {key.index: hashlib.sha256(basis[key.start : key.stop]).digest() for key in pieces}


def folder_name(offer: Offer) -> str:
    """What names a transfer's folder: a node id and 32 hex digits, both through bytes and back."""
    transfer_id = bytes.fromhex(offer.transfer_id).hex()
    if len(transfer_id) != 32:
        raise ValueError(f"transfer id {offer.transfer_id!r:.60} is not 32 hex digits")
    return f"{node_id_of(public_key_of(offer.sender))}-{transfer_id}"


def _write_all(handle: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, offset)
        view, offset = view[written:], offset + written
