"""A zip written by hand, so that each field of it can lie. Source: PKWARE's APPNOTE 4.3.

Every entry has the same time, and nothing is compressed unless the entry brings its own stream: the same
bytes everywhere.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

STORE, DEFLATE = 0, 8
REGULAR, SYMBOLIC_LINK, FOLDER, FIFO = 0o100644, 0o120777, 0o040755, 0o010644
_UNIX = 3 << 8 | 20  # made by a Unix, version 2.0
_DATE = (2026 - 1980) << 9 | 1 << 5 | 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry. `stored` are the bytes in the zip, where they are not `data`; sizes lie only where they are
    given.
    """

    name: str | bytes
    data: bytes
    stored: bytes | None = None
    method: int = STORE
    flags: int = 0
    mode: int = REGULAR
    size: int | None = None
    packed_size: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    offset: int | None = None
    before: bytes = b""


def write_zip(
    entries: list[Entry], *, comment: bytes = b"", count: int | None = None, directory_shift: int = 0
) -> bytes:
    """Local entries, the directory and the end record."""
    body, directory = b"", b""
    for entry in entries:
        body += entry.before
        at = len(body) if entry.offset is None else entry.offset
        name = entry.name.encode() if isinstance(entry.name, str) else entry.name
        stored = entry.data if entry.stored is None else entry.stored
        packed = len(stored) if entry.packed_size is None else entry.packed_size
        size = len(entry.data) if entry.size is None else entry.size
        local_size = size if entry.local_size is None else entry.local_size
        local_name = name if entry.local_name is None else entry.local_name
        shared = struct.pack("<HHHHHI", 20, entry.flags, entry.method, 0, _DATE, zlib.crc32(entry.data))
        if entry.offset is None:
            body += b"PK\x03\x04" + shared + struct.pack("<IIHH", packed, local_size, len(local_name), 0)
            body += local_name + stored
        directory += b"PK\x01\x02" + struct.pack("<H", _UNIX) + shared
        directory += (
            struct.pack("<IIHHHHHII", packed, size, len(name), 0, 0, 0, 0, entry.mode << 16, at) + name
        )
    total = len(entries) if count is None else count
    sizes = (len(directory), len(body) + directory_shift, len(comment))
    return body + directory + b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, total, total, *sizes) + comment
