"""A package as a zip: names, sizes and bytes, never more of them than stated. Knows no signatures.

What is read lies within the zip by its checked directory; what is inflated is counted against it.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from kvnet.errors import MalformedPackage, RequestError
from kvnet.files.package.names import MAX_FILES, check_paths
from kvnet.files.package.zip_directory import ZipEntry, read_directory

BLOCK_NBYTES: Final = 1 << 20
_RAW_DEFLATE: Final = -15  # the largest window, no header


class ZipContainer:
    """The files of a zipped package; `sizes` maps each path to the bytes it will have."""

    def __init__(self, path: Path) -> None:
        """Raises RequestError where the file cannot be read, MalformedPackage by FORMAT.md §9."""
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as exc:
            raise RequestError(f"package {path}: cannot be read ({exc.strerror})") from exc
        self._path = path
        self._file = os.fdopen(handle, "rb")
        try:
            listed = read_directory(self._file, _regular_nbytes(path, handle), max_entries=MAX_FILES)
            check_paths([entry.path for entry in listed], what="zip")
        except BaseException:
            self._file.close()
            raise
        self._entries = {entry.path: entry for entry in listed}
        self.sizes: Mapping[str, int] = {entry.path: entry.nbytes for entry in listed}

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def read(self, path: str) -> Iterator[bytes]:
        """The bytes of one of `sizes`, in blocks of at most 1 MiB; MalformedPackage for more or fewer."""
        entry = self._entries[path]
        blocks = self._inflate(entry) if entry.deflated else self._stored(entry)
        nbytes = 0
        for block in blocks:
            nbytes += len(block)
            if nbytes > entry.nbytes:
                raise MalformedPackage(
                    f"zip: {path} inflates to more than the {entry.nbytes} bytes it states"
                )
            yield block
        if nbytes != entry.nbytes:
            raise MalformedPackage(f"zip: {path} inflates to {nbytes} bytes, it states {entry.nbytes}")

    def _stored(self, entry: ZipEntry) -> Iterator[bytes]:
        position, end = entry.offset, entry.offset + entry.stored_nbytes
        while position < end:
            block = self._pread(min(BLOCK_NBYTES, end - position), position)
            if not block:
                raise MalformedPackage(f"zip: ends within {entry.path}")
            position += len(block)
            yield block

    def _pread(self, nbytes: int, position: int) -> bytes:
        try:
            return os.pread(self._file.fileno(), nbytes, position)
        except OSError as exc:
            raise RequestError(f"package {self._path}: cannot be read ({exc.strerror})") from exc

    def _inflate(self, entry: ZipEntry) -> Iterator[bytes]:
        inflater, stored = zlib.decompressobj(_RAW_DEFLATE), self._stored(entry)
        pending = b""
        while not inflater.eof:
            try:
                block = inflater.decompress(pending, BLOCK_NBYTES)
            except zlib.error as exc:
                raise MalformedPackage(f"zip: {entry.path} is no deflate stream ({exc})") from exc
            pending = inflater.unconsumed_tail
            if block:
                yield block
            elif not pending and not inflater.eof:
                pending = next(stored, b"")
                if not pending:
                    raise MalformedPackage(f"zip: {entry.path} is a deflate stream without an end")
        if inflater.unused_data or next(stored, b""):
            raise MalformedPackage(f"zip: {entry.path} has bytes behind its deflate stream")


def _regular_nbytes(path: Path, handle: int) -> int:
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):
        raise MalformedPackage(f"package {path}: neither a folder nor a regular file")
    return info.st_size
