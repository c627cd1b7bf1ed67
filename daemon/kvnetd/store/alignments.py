"""Maps and ports at rest: one signed file each, named by its id; those that come with kvnet beside them.

Their heads are verified as the folder is opened, their numbers each time they are loaded. What cannot be read
is told in `damaged` and left alone. Who may be trusted is for those who put.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from kvnet.alignment import AlignmentKind, Manifest, MapManifest, PortManifest
from kvnet.durable import sync_folder, write_durably
from kvnet.errors import KvnetError, MalformedFile, RequestError, StateCorrupt, UnknownAlignment
from kvnet.files.alignments import AlignmentHead, VerifiedAlignment, read_alignment_file, read_head_file
from kvnet.types import Fingerprint, NodeId, sha256_hex
from kvnetd.store.disk import full_disk_refused, require_room

MAX_AHEAD_S: Final = 300  # two clocks may differ by so much
_SUFFIX = ".safetensors"
_MIN_PREFIX_CHARS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AlignmentRecord:
    """A map or port on disk, of which the head was verified."""

    head: AlignmentHead
    path: Path
    packaged: bool  # came with kvnet; cannot be removed

    @property
    def id(self) -> str:
        """The id of its manifest."""
        return self.head.manifest.id

    @property
    def kind(self) -> AlignmentKind:
        """Map or port."""
        return self.head.kind

    @property
    def manifest(self) -> Manifest:
        """What it says of itself."""
        return self.head.manifest

    @property
    def signer(self) -> NodeId:
        """Whose key signed it."""
        return self.head.signer


class AlignmentStore:
    """The folder of maps and ports. Ids name files; nothing that anyone says ever names a path."""

    def __init__(self, root: Path, packaged: Sequence[Path] = (), own: Collection[str] = ()) -> None:
        """`own` are this node's ids: what it signed itself, and what came with kvnet, goes before others'."""
        self.root = root
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._own = frozenset(own)
        self._digests: dict[Path, str] = {}
        self.damaged: dict[str, str] = {}  # id, as the file's name has it -> why it cannot be used
        self._packaged = self._scan(packaged, packaged=True)
        self._stored = self._scan(sorted(root.glob(f"*{_SUFFIX}")), packaged=False)
        for path in root.glob(f"*{_SUFFIX}.new"):
            path.unlink(missing_ok=True)  # a crash came before it was whole

    def all(self) -> tuple[AlignmentRecord, ...]:
        """Every readable map and port, oldest first."""
        found = {**self._packaged, **self._stored}.values()
        return tuple(sorted(found, key=lambda record: (record.manifest.created_at, record.id)))

    def find(self, wanted: str) -> AlignmentRecord:
        """The map or port with this id, or the only one whose id starts so (8 characters or more).

        Raises UnknownAlignment, RequestError, and StateCorrupt for one that cannot be read.
        """
        alignment = self.resolve(wanted)
        record = self._stored.get(alignment) or self._packaged.get(alignment)
        if record is None:
            raise StateCorrupt(f"{alignment:.60}: {self.damaged.get(alignment, 'was removed meanwhile')}")
        return record

    def resolve(self, wanted: str) -> str:
        """The id that `wanted` is or starts, of what is whole or damaged. Raises as `find`."""
        known = {*self._packaged, *self._stored, *self.damaged}
        if wanted in known:
            return wanted
        found = [name for name in known if len(wanted) >= _MIN_PREFIX_CHARS and name.startswith(wanted)]
        if len(found) > 1:
            raise RequestError(f"alignment {wanted}: {len(found)} ids start so; use more of the id")
        if not found:
            raise UnknownAlignment(
                f"alignment {wanted:.60}: none of the {len(known)} maps and ports here; see `kvnet align ls`"
            )
        return found[0]

    def maps_to(self, receiver: Fingerprint) -> tuple[AlignmentRecord, ...]:
        """Maps to this model that their gate admitted and whose port, if any, is here.

        This node's own first, then packaged ones, then what others signed: dates and verdicts are their
        signer's word, so nobody displaces a map that was fitted here. Of each, the newest first.
        """
        found = [record for record in reversed(self.all()) if self._can_map(record.manifest, receiver)]
        return tuple(sorted(found, key=self._rank))

    def find_map(self, source: Fingerprint, receiver: Fingerprint) -> AlignmentRecord | None:
        """The first of `maps_to` from this source; None without any."""
        found = (r for r in self.maps_to(receiver) if _source_digest(r.manifest) == source.digest)
        return next(found, None)

    def find_port(self, receiver: Fingerprint) -> AlignmentRecord | None:
        """The newest port of this model, of the best signer as `maps_to` ranks them; None without any."""
        found = [r for r in reversed(self.all()) if _is_port_of(r.manifest, receiver)]
        return min(found, key=self._rank, default=None)

    def lacks_port(self, manifest: Manifest) -> bool:
        """Whether this is a map that ends in a port which is not here."""
        port = manifest.port if isinstance(manifest, MapManifest) else ""
        return bool(port) and port not in self._stored and port not in self._packaged

    def is_own(self, signer: NodeId) -> bool:
        """Whether this node signs, or before a rotation signed, as `signer`."""
        return signer in self._own

    def is_packaged(self, alignment: str) -> bool:
        """Whether what has this id came with kvnet."""
        return alignment in self._packaged

    def load(self, record: AlignmentRecord) -> VerifiedAlignment:
        """A map or port whole, every byte verified; else StateCorrupt, and it is passed over from then on."""
        try:
            return _read_as(record)
        except KvnetError as exc:
            self._drop(record)
            self._tell(record.id, exc)
            raise StateCorrupt(f"{record.id}: {exc.message}; {_remedy(record)}") from exc

    def port_file(self, digest: str) -> bytes | None:
        """The file of a port here with this sha256:<hex>, so that nobody need send it; None if none is it."""
        for record in self.all():
            if isinstance(record.manifest, PortManifest) and self._digest_of(record) == digest:
                return record.path.read_bytes()
        return None

    def put(self, alignment: VerifiedAlignment) -> AlignmentRecord:
        """Keep a map or port durably. The same id again is a success.

        Raises StoreFull, and MalformedFile for one that says it was made later than now: it would stay the
        newest of its signer's whatever came after it.
        """
        name = alignment.manifest.id
        _refuse_future(alignment.manifest, datetime.now(UTC))
        for record in (self._packaged.get(name), self._stored.get(name)):
            if record is not None and self._is_whole(record):
                return record
        path = self.root / f"{name}{_SUFFIX}"
        require_room(self.root, len(alignment.encoded), what=name)
        with full_disk_refused(name):
            write_durably(path, alignment.encoded)
        self._stored[name] = AlignmentRecord(alignment.head, path, packaged=False)
        self.damaged.pop(name, None)
        return self._stored[name]

    def remove(self, wanted: str) -> str:
        """Remove a map or port, damaged or not; returns its id. RequestError for one that came with kvnet."""
        name = self.resolve(wanted)
        path = self.root / f"{name}{_SUFFIX}"
        if name not in self._stored and not path.is_file():
            raise RequestError(f"{name}: came with kvnet and cannot be removed")
        path.unlink(missing_ok=True)
        sync_folder(self.root)
        self._stored.pop(name, None)
        if name not in self._packaged:
            self.damaged.pop(name, None)
        return name

    def _scan(self, paths: Sequence[Path], *, packaged: bool) -> dict[str, AlignmentRecord]:
        found: dict[str, AlignmentRecord] = {}
        for path in paths:
            try:
                record = AlignmentRecord(read_head_file(path), path, packaged)
                if not packaged and record.id != path.stem:
                    raise StateCorrupt(f"it holds {record.id}")
            except KvnetError as exc:
                self._tell(path.stem, exc)
            else:
                found[record.id] = record
        return found

    def _can_map(self, manifest: Manifest, receiver: Fingerprint) -> bool:
        return (
            isinstance(manifest, MapManifest)
            and manifest.receiver.digest == receiver.digest
            and manifest.gate.admitted
            and not self.lacks_port(manifest)
        )

    def _rank(self, record: AlignmentRecord) -> int:
        if record.packaged:
            return 1
        return 0 if self.is_own(record.signer) else 2

    def _digest_of(self, record: AlignmentRecord) -> str:
        """Of a port's whole file, read once: what is put under an id later is the same file."""
        if record.path not in self._digests:
            try:
                self._digests[record.path] = sha256_hex(record.path.read_bytes())
            except OSError:
                return ""
        return self._digests[record.path]

    def _is_whole(self, record: AlignmentRecord) -> bool:
        try:
            _read_as(record)
        except KvnetError:
            return False
        return True

    def _drop(self, record: AlignmentRecord) -> None:
        (self._packaged if record.packaged else self._stored).pop(record.id, None)

    def _tell(self, name: str, exc: KvnetError) -> None:
        self.damaged[name] = exc.message
        _log.warning("alignment %s cannot be used: %s", name, exc.message)


def _read_as(record: AlignmentRecord) -> VerifiedAlignment:
    found = read_alignment_file(record.path)
    if found.manifest.id != record.id:
        raise StateCorrupt(f"it holds {found.manifest.id}")
    return found


def _refuse_future(manifest: Manifest, now: datetime) -> None:
    if datetime.fromisoformat(manifest.created_at) > now + timedelta(seconds=MAX_AHEAD_S):
        raise MalformedFile(
            f"{manifest.id}: says it was made at {manifest.created_at}, and it is {now:%Y-%m-%dT%H:%M:%SZ} "
            "here; set the clocks, or let its maker make it again"
        )


def _source_digest(manifest: Manifest) -> str:
    return manifest.source.digest if isinstance(manifest, MapManifest) else ""


def _is_port_of(manifest: Manifest, receiver: Fingerprint) -> bool:
    return isinstance(manifest, PortManifest) and manifest.receiver.digest == receiver.digest


def _remedy(record: AlignmentRecord) -> str:
    if record.packaged:
        return "install kvnet again"
    return "remove it with `kvnet align rm` and import it again"
