"""The files of a package, from a folder or from a zip, by name. Source: FORMAT.md §9 and PKWARE's APPNOTE
4.3.

A zip is read by hand, and only in its plainest form: entries from the first byte on without a gap, the
directory, the end record, nothing more; no zip64, so no package above 4 GiB. Imports nothing of kvnet.
Knows no documents and no signatures.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.second_reader.strict import Refused

REQUIRED = ("kv-cache.awkg", "manifest.json", "preview.json", "provenance.json", "quality-report.json")
SIGNATURE = "signature.sig"
BASIS = "codec/basis.safetensors"
_FOLDERS = ("alignments", "codec")
_ALIGNMENT = re.compile(r"alignments/[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}\.bin", re.ASCII)
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
_END_NBYTES = 22
_CENTRAL_NBYTES = 46
_ENCRYPTED, _DESCRIPTOR = 0x1, 0x8
_UNIX = 3
_STORE, _DEFLATE = 0, 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored file: where it is, and how many bytes it says it holds."""

    size: int
    source: Path | bytes
    deflated: bool = False

    def read(self, size: int) -> bytes:
        """Its bytes, which must be `size`; no more than one byte beyond is ever made."""
        if isinstance(self.source, Path):
            with self.source.open("rb") as file:
                data = file.read(size + 1)
        elif self.deflated:
            data = _inflate(self.source, size)
        else:
            data = self.source
        if len(data) != size:
            raise Refused("bad_signature", "a file has another size than the list")
        return data


def _inflate(packed: bytes, size: int) -> bytes:
    stream = zlib.decompressobj(-15)
    try:
        data = stream.decompress(packed, size + 1)
    except zlib.error as exc:
        raise Refused("malformed_package", "an entry does not inflate") from exc
    if len(data) != size or not stream.eof or stream.unused_data:
        raise Refused("malformed_package", "an entry inflates to another size than listed")
    return data


def allowed(path: str) -> bool:
    """Whether §9 names this path."""
    return path in (*REQUIRED, SIGNATURE, BASIS) or _ALIGNMENT.fullmatch(path) is not None


def open_entries(path: Path) -> dict[str, Entry]:
    """Every file of the package at `path`, a folder or a zip."""
    found: dict[str, Entry] = {}
    for name, entry in _folder(path) if path.is_dir() else _zip(path.read_bytes()):
        if not allowed(name) or name.lower() in map(str.lower, found):
            raise Refused("malformed_package", f"{name!r:.60} is no name of a package, or there twice")
        found[name] = entry
    return found


def _folder(root: Path) -> Iterator[tuple[str, Entry]]:
    for path in sorted(root.rglob("*")):
        name, mode = path.relative_to(root).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode) and name in _FOLDERS:
            continue
        if not stat.S_ISREG(mode):
            raise Refused("malformed_package", f"{name!r:.60} is not a regular file")
        yield name, Entry(path.lstat().st_size, path)


@dataclass(frozen=True, slots=True)
class _Listed:
    """What the directory says of one entry."""

    made_by: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    attributes: int
    offset: int
    name: bytes

    def check(self) -> None:
        """Refuse what is no plain file, stored or deflated."""
        kind = (self.attributes >> 16) & 0o170000 if self.made_by >> 8 == _UNIX else 0
        if self.flags & _ENCRYPTED or self.method not in (_STORE, _DEFLATE) or kind not in (0, stat.S_IFREG):
            raise Refused("malformed_package", "an entry that is encrypted, a link, or packed otherwise")
        if self.method == _STORE and self.packed != self.size:
            raise Refused("malformed_package", "a stored entry of two sizes")

    def is_said_by(self, flags: int, method: int, crc: int, packed: int, size: int) -> bool:
        """Whether what stands before the entry's bytes is the same; sizes that follow them are zero there."""
        sizes = (crc, packed, size)
        later = bool(flags & _DESCRIPTOR) and sizes == (0, 0, 0)
        same = (flags, method) == (self.flags, self.method)
        return same and (later or sizes == (self.crc, self.packed, self.size))

    @property
    def descriptors(self) -> tuple[bytes, ...]:
        """What may stand behind the entry's bytes: nothing, or its sizes once more."""
        sizes = struct.pack("<III", self.crc, self.packed, self.size)
        return (sizes, b"PK\x07\x08" + sizes) if self.flags & _DESCRIPTOR else (b"",)


def _zip(data: bytes) -> Iterator[tuple[str, Entry]]:
    """Entries in the order of their bytes, end to end from the first byte to the directory."""
    if len(data) < _END_NBYTES or data[-_END_NBYTES:][:4] != _END:
        raise Refused("malformed_package", "no zip, or one with bytes behind it")
    total, nbytes, start, comment = struct.unpack("<HIIH", data[-12:])
    if comment or start + nbytes + _END_NBYTES != len(data):
        raise Refused("malformed_package", "a zip with more than its entries")
    listed = sorted(_directory(data, start, total), key=lambda entry: entry.offset)
    ends = [entry.offset for entry in listed[1:]] + [start]
    if not listed or listed[0].offset:
        raise Refused("malformed_package", "no entries, or bytes before the first")
    for entry, end in zip(listed, ends, strict=True):
        entry.check()
        if data[entry.offset : entry.offset + 4] != _LOCAL or end - entry.offset < 30:
            raise Refused("malformed_package", "an entry is not where the directory says")
        name_nbytes, extra_nbytes = struct.unpack_from("<HH", data, entry.offset + 26)
        name_at = entry.offset + 30
        begin = name_at + name_nbytes + extra_nbytes
        behind = data[begin + entry.packed : end]
        said = struct.unpack_from("<HHHHIII", data, entry.offset + 6)
        if not entry.is_said_by(*said[:2], *said[4:]) or data[name_at : name_at + name_nbytes] != entry.name:
            raise Refused("malformed_package", "an entry is described in two ways")
        if behind not in entry.descriptors:
            raise Refused("malformed_package", "something stands behind an entry")
        if begin + entry.packed > end:
            raise Refused("malformed_package", "entries overlap")
        packed = data[begin : begin + entry.packed]
        yield entry.name.decode("latin-1"), Entry(entry.size, packed, entry.method == _DEFLATE)


def _directory(data: bytes, at: int, total: int) -> Iterator[_Listed]:
    for _ in range(total):
        if data[at : at + 4] != _CENTRAL or at + _CENTRAL_NBYTES > len(data):
            raise Refused("malformed_package", "the zip's directory is broken")
        fields = struct.unpack_from("<HHHHHHIIIHHHHHII", data, at + 4)
        made_by, _, flags, method, _, _, crc, packed, size, name, extra, comment, _, _, attributes, offset = (
            fields
        )
        at += _CENTRAL_NBYTES
        yield _Listed(made_by, flags, method, crc, packed, size, attributes, offset, data[at : at + name])
        at += name + extra + comment
    if at != len(data) - _END_NBYTES:
        raise Refused("malformed_package", "the zip's directory holds more than its entries")
