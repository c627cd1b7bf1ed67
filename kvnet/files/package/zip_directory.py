"""What a zip says it holds, believed only where its two halves agree. Knows no package.

A zip names each file twice, in the directory at its end and before the file's bytes. Here both say the same,
the files lie end to end from the first byte, and nothing is before, between or behind them: every reader
sees the same files.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO, Final

from kvnet.errors import MalformedPackage

MAX_DIRECTORY_NBYTES: Final = 4 << 20
MAX_DEFLATE_RATIO: Final = 1032  # zlib's Technical Details: 258 bytes from two bits
_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR64: Final = struct.Struct("<4sLQL")
_ENTRY: Final = struct.Struct("<28x3H12x")  # of the directory: the lengths of name, extra and comment
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_MAX_U32: Final = 0xFFFFFFFF
_ENCRYPTED: Final = 0x0001 | 0x0040 | 0x2000
_DESCRIPTOR: Final = 0x0008
_KNOWN_FLAGS: Final = 0x0006 | _DESCRIPTOR | 0x0800  # deflate's level, sizes behind the bytes, UTF-8 names
_DOS_FOLDER: Final = 0x10


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file in a zip: `stored_nbytes` at `offset` become `nbytes`."""

    path: str
    offset: int
    stored_nbytes: int
    nbytes: int
    deflated: bool


def read_directory(file: BinaryIO, file_nbytes: int, *, max_entries: int) -> list[ZipEntry]:
    """Every file of a zip, in the order of their bytes. Raises MalformedPackage."""
    directory_offset, directory_nbytes, count = _find_directory(file, file_nbytes)
    if count > max_entries:
        raise MalformedPackage(f"zip: {count} files, a package has at most {max_entries}")
    _check_directory(_pread(file, directory_offset, directory_nbytes))
    try:
        with zipfile.ZipFile(file) as archive:
            infos = sorted(archive.infolist(), key=lambda info: info.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, struct.error, ValueError, OverflowError) as exc:
        raise MalformedPackage(f"zip: its directory cannot be read ({exc})") from exc
    if len(infos) != count:
        raise MalformedPackage(f"zip: {len(infos)} files in its directory, which says {count}")
    entries, position = [], 0
    for i, info in enumerate(infos):
        following = infos[i + 1].header_offset if i + 1 < count else directory_offset
        entries.append(_check_entry(file, info, position, following))
        position = following
    return entries


def _find_directory(file: BinaryIO, file_nbytes: int) -> tuple[int, int, int]:
    """Offset and length of the directory and its number of files, from the records that must end the zip."""
    end_offset = file_nbytes - _END.size
    signature, *_, count, nbytes, offset, comment_nbytes = _END.unpack(_pread(file, end_offset, _END.size))
    if signature != b"PK\5\6" or comment_nbytes:
        raise MalformedPackage("zip: it does not end with its directory; something trails it, or it was cut")
    locator_offset = end_offset - _LOCATOR64.size
    if locator_offset > 0 and _pread(file, locator_offset, 4) == b"PK\6\7":
        end_offset = locator_offset - _END64.size
        signature, *_, count, nbytes, offset = _END64.unpack(_pread(file, end_offset, _END64.size))
        if signature != b"PK\6\6":
            raise MalformedPackage("zip: its 64-bit directory record is not where it belongs")
    if nbytes > MAX_DIRECTORY_NBYTES:
        raise MalformedPackage(f"zip: a directory of {nbytes} bytes, at most {MAX_DIRECTORY_NBYTES} are read")
    if offset + nbytes != end_offset:
        raise MalformedPackage("zip: its directory is not where it says; something precedes or follows it")
    return offset, nbytes, count


def _check_directory(directory: bytes) -> None:
    """That its entries end exactly where it ends: zipfile lets the last one run over."""
    at = 0
    while at < len(directory):
        if len(directory) - at < _ENTRY.size:
            raise MalformedPackage("zip: its directory ends within an entry")
        *_, name_nbytes, extra_nbytes, comment_nbytes = _ENTRY.unpack_from(directory, at)
        at += _ENTRY.size + name_nbytes + extra_nbytes + comment_nbytes
    if at != len(directory):
        raise MalformedPackage("zip: the last entry of its directory runs past its end")


def _check_entry(file: BinaryIO, info: zipfile.ZipInfo, position: int, following: int) -> ZipEntry:
    """One file of the directory against what stands before and behind its bytes."""
    path = info.orig_filename
    _check_kind(info)
    if info.header_offset != position:
        raise MalformedPackage(f"zip: a gap or an overlap before {path!r:.120}")
    head = _pread(file, position, _LOCAL.size)
    signature, _, flags, method, _, _, *sizes, name_nbytes, extra_nbytes = _LOCAL.unpack(head)
    name = _pread(file, position + _LOCAL.size, name_nbytes)
    extra = _pread(file, position + _LOCAL.size + name_nbytes, extra_nbytes)
    said = (info.CRC, info.compress_size, info.file_size)
    found = (sizes[0], *_wide_sizes(extra, sizes[1], sizes[2]))
    if flags & _DESCRIPTOR and not any(found):
        found = said  # what was not known yet stands behind the bytes
    same = (b"PK\3\4", info.flag_bits, info.compress_type, path.encode()) == (signature, flags, method, name)
    if not same or said != found:
        raise MalformedPackage(f"zip: {path!r:.120} is described in two different ways")
    offset = position + _LOCAL.size + name_nbytes + extra_nbytes
    behind = following - offset - info.compress_size
    descriptors = _descriptors(said) if flags & _DESCRIPTOR else [b""]
    if behind not in map(len, descriptors) or _pread(file, following - behind, behind) not in descriptors:
        raise MalformedPackage(f"zip: a gap or an overlap behind {path!r:.120}")
    deflated = info.compress_type == zipfile.ZIP_DEFLATED
    return ZipEntry(path, offset, info.compress_size, info.file_size, deflated)


def _check_kind(info: zipfile.ZipInfo) -> None:
    """Whether this is a plain regular file that claims no impossible size."""
    path, mode = info.orig_filename, info.external_attr >> 16
    if info.flag_bits & _ENCRYPTED:
        raise MalformedPackage(f"zip: {path!r:.120} is encrypted; pack it without a password")
    if info.flag_bits & ~_KNOWN_FLAGS:
        raise MalformedPackage(f"zip: {path!r:.120} has unknown flags {info.flag_bits:#06x}")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or info.external_attr & _DOS_FOLDER or path.endswith("/"):
        raise MalformedPackage(
            f"zip: {path!r:.120} is no regular file; a package holds no links and no folders"
        )
    most_nbytes = info.compress_size
    if info.compress_type == zipfile.ZIP_DEFLATED:
        most_nbytes = MAX_DEFLATE_RATIO * info.compress_size
    elif info.compress_type != zipfile.ZIP_STORED:
        raise MalformedPackage(
            f"zip: {path!r:.120} uses method {info.compress_type}, wanted store or deflate"
        )
    if info.file_size > most_nbytes:
        raise MalformedPackage(
            f"zip: {path!r:.120} cannot be {info.file_size} bytes from {info.compress_size}"
        )


def _wide_sizes(extra: bytes, stored_nbytes: int, nbytes: int) -> tuple[int, int]:
    """The sizes before a file's bytes, of which a large one stands in the zip64 field."""
    wide = b""
    while len(extra) >= 4:
        field, length = struct.unpack_from("<HH", extra)
        if field == 1:
            wide = extra[4 : 4 + length]
        extra = extra[4 + length :]
    numbers = [int.from_bytes(wide[i : i + 8], "little") for i in range(0, len(wide) - 7, 8)]
    if nbytes == _MAX_U32 and numbers:
        nbytes = numbers.pop(0)
    if stored_nbytes == _MAX_U32 and numbers:
        stored_nbytes = numbers.pop(0)
    return stored_nbytes, nbytes


def _descriptors(said: tuple[int, int, int]) -> list[bytes]:
    """The four ways in which a zip may repeat CRC and sizes behind a file's bytes."""
    crc, stored_nbytes, nbytes = said
    wide = struct.pack("<LQQ", crc, stored_nbytes, nbytes)
    if max(stored_nbytes, nbytes) > _MAX_U32:
        return [wide, b"PK\7\x08" + wide]
    narrow = struct.pack("<LLL", crc, stored_nbytes, nbytes)
    return [narrow, b"PK\7\x08" + narrow, wide, b"PK\7\x08" + wide]


def _pread(file: BinaryIO, offset: int, nbytes: int) -> bytes:
    if offset < 0:
        raise MalformedPackage("zip: shorter than its own directory")
    file.seek(offset)
    found = file.read(nbytes)
    if len(found) != nbytes:
        raise MalformedPackage(f"zip: ends within what it describes, at byte {offset + len(found)}")
    return found
