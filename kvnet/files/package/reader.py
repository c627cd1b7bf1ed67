"""Reading a package, folder or zip: every rule of FORMAT.md §9, nothing believed before it is checked.

Opening checks names, the signed list and the documents; `verify` reads every byte. Knows no tensors.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Protocol, Self

from kvnet.errors import BadSignature, MalformedPackage, RequestError, StoreFull
from kvnet.files.document_coding import decode_document
from kvnet.files.documents import (
    DOCUMENT_TYPES,
    MEMORY_PATH,
    Documents,
    Manifest,
    Preview,
    Provenance,
    QualityReport,
)
from kvnet.files.package.agreement import check_documents, check_memory
from kvnet.files.package.archive import ZipContainer
from kvnet.files.package.folder import FolderContainer
from kvnet.files.package.listing import Listing, PackageFile, decode_listing
from kvnet.files.package.names import SIGNATURE_PATH
from kvnet.files.package.staging import is_zip_target, stage
from kvnet.files.reader import MemoryFile
from kvnet.format.strict_json import MAX_DOCUMENT_NBYTES
from kvnet.types import NodeId

OnProgress = Callable[[int, int], None]
_SPARE_DISK_NBYTES: Final = 64 << 20
_ZIP_MAGIC: Final = b"PK"


class Container(Protocol):
    """Named bytes on disk, in a folder or a zip."""

    sizes: Mapping[str, int]

    def read(self, path: str) -> Iterator[bytes]: ...
    def close(self) -> None: ...


class Package:
    """An open package whose names, list and documents are verified. One thread at a time."""

    __slots__ = ("_by_path", "_container", "_documents", "_listing", "_memory_path", "_stack", "path")

    def __init__(self, path: Path, container: Container, listing: Listing, documents: Documents) -> None:
        self.path = path
        self._container = container
        self._listing = listing
        self._by_path = listing.by_path
        self._documents = documents
        self._memory_path = path / MEMORY_PATH if isinstance(container, FolderContainer) else None
        self._stack = ExitStack()

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a folder or a zip. Of the memory and the alignments, names and sizes are checked so far.

        Raises MalformedPackage and BadSignature; RequestError where it cannot be read.
        """
        path = Path(path)
        container = _open_container(path)
        try:
            listing = decode_listing(_read_small(container, SIGNATURE_PATH))
            _check_stored(container.sizes, listing.by_path)
            documents = _read_documents(container, listing.by_path)
            check_documents(documents, listing.by_path)
            return cls(path, container, listing, documents)
        except BaseException:
            container.close()
            raise

    def close(self) -> None:
        """Let go of the package, and of a copy of its memory if one was made."""
        self._stack.close()
        self._container.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def manifest(self) -> Manifest:
        """What the package is."""
        return self._documents.manifest

    @property
    def provenance(self) -> Provenance:
        """How the memory came to be."""
        return self._documents.provenance

    @property
    def quality(self) -> QualityReport:
        """What was measured of it."""
        return self._documents.quality

    @property
    def preview(self) -> Preview:
        """What may be shown of it."""
        return self._documents.preview

    @property
    def signed_by(self) -> NodeId:
        """Who signed the list of files: not always who signed the memory in it."""
        return self._listing.signed_by

    @property
    def files(self) -> tuple[PackageFile, ...]:
        """Every file but the signature, in the order of the list."""
        return self._listing.files

    def read(self, path: str) -> Iterator[bytes]:
        """One listed file in blocks of at most 1 MiB; believe them only once the iterator has ended.

        Raises BadSignature at its end if they are not what was signed, MalformedPackage for a zip that lies.
        """
        yield from _verified(self._container, self._by_path[path])

    def open_memory(self) -> MemoryFile:
        """The memory file, its head checked and in agreement with the documents. Close it before the package.

        That of a zip is first copied to a private temporary file, and verified on the way. Raises what `open`
        and `MemoryFile.open` raise, and StoreFull where there is no room for the copy.
        """
        memory = MemoryFile.open(self._memory_path or self._extract_memory())
        try:
            check_memory(self._documents, self._by_path, memory.header)
        except BaseException:
            memory.close()
            raise
        return memory

    def verify(self, on_progress: OnProgress | None = None) -> None:
        """Check every byte: each file against the list, then the memory by FORMAT.md §7.2.

        `on_progress` is called with bytes done and their total. Raises what `open_memory` and
        `MemoryFile.verify` raise.
        """
        memory_nbytes = self._by_path[MEMORY_PATH].size
        total_nbytes = memory_nbytes + sum(file.size for file in self.files)  # the memory is read twice
        done_nbytes = 0

        def advance(nbytes: int) -> None:
            nonlocal done_nbytes
            done_nbytes += nbytes
            if on_progress is not None:
                on_progress(done_nbytes, total_nbytes)

        for file in self.files:
            for block in _verified(self._container, file):
                advance(len(block))
        with self.open_memory() as memory:
            memory.verify(
                lambda done, _: on_progress(done_nbytes + done, total_nbytes) if on_progress else None
            )
        advance(memory_nbytes)

    def unpack(self, target: Path | str, on_progress: OnProgress | None = None) -> None:
        """Write the package to a folder that is new or empty, where it is verified before it takes its name.

        Raises what `verify` raises, RequestError or StoreFull where `target` cannot be written.
        """
        target = Path(target)
        if is_zip_target(target):
            raise RequestError(f"{target}: ends in .zip, wanted the name of a folder")
        with stage(target) as (staging, staged):
            for file in self.files:
                staging.add(file.path, file.size, _verified(self._container, file))
            signature = _read_small(self._container, SIGNATURE_PATH)
            staging.add(SIGNATURE_PATH, len(signature), [signature])
            with Package.open(staged) as copy:
                copy.verify(on_progress)

    def _extract_memory(self) -> Path:
        file = self._by_path[MEMORY_PATH]
        folder = Path(self._stack.enter_context(_temporary_folder()))
        free_nbytes = shutil.disk_usage(folder).free
        if free_nbytes < file.size + _SPARE_DISK_NBYTES:
            raise StoreFull(
                f"{folder.parent}: {free_nbytes} bytes free, the memory in {self.path} takes {file.size}; "
                "set TMPDIR to a larger disk, or unpack the package"
            )
        path = folder / MEMORY_PATH
        try:
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                out.writelines(_verified(self._container, file))
        except OSError as exc:
            raise StoreFull(
                f"{path}: cannot be written ({exc.strerror}); set TMPDIR to another disk"
            ) from exc
        self._memory_path = path  # only now: what broke off or differs is never opened
        return path


def _temporary_folder() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="kvnet-", ignore_cleanup_errors=True)
    except OSError as exc:
        raise RequestError(
            f"no folder takes temporary files ({exc.strerror}); set TMPDIR to one, or unpack the package"
        ) from exc


def is_package(path: Path) -> bool:
    """Whether `path` is to be opened as a package: a folder, or a file that starts like a zip.

    Raises RequestError where it cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            return stat.S_ISDIR(mode)
        with path.open("rb") as file:
            return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
    except OSError as exc:
        raise RequestError(f"{path}: cannot be read ({exc.strerror})") from exc


def _open_container(path: Path) -> Container:
    try:
        mode = path.lstat().st_mode
    except OSError as exc:
        raise RequestError(f"package {path}: cannot be read ({exc.strerror})") from exc
    if stat.S_ISLNK(mode):
        raise MalformedPackage(f"package {path}: is a link, which is not followed; name what it points to")
    return FolderContainer(path) if stat.S_ISDIR(mode) else ZipContainer(path)


def _check_stored(stored: Mapping[str, int], listed: Mapping[str, PackageFile]) -> None:
    """What is stored is what is listed, no file more and none less."""
    missing = sorted(listed.keys() - stored.keys())
    if missing:
        raise MalformedPackage(f"package: {missing[0]} is listed, but not there")
    extra = sorted(stored.keys() - listed.keys() - {SIGNATURE_PATH})
    if extra:
        raise MalformedPackage(f"package: {extra[0]} is there, but not listed")
    for path, file in listed.items():
        if stored[path] != file.size:
            raise BadSignature(
                f"{path}: {stored[path]} bytes, {file.size} were signed; get the package again"
            )


def _read_documents(container: Container, listed: Mapping[str, PackageFile]) -> Documents:
    found: dict[str, Any] = {}
    for path, cls in DOCUMENT_TYPES.items():
        _require_small(path, listed[path].size)
        found[path] = decode_document(cls, b"".join(_verified(container, listed[path])), what=path)
    return Documents(*found.values())


def _read_small(container: Container, path: str) -> bytes:
    if path not in container.sizes:
        raise MalformedPackage(f"package: {path} is missing")
    _require_small(path, container.sizes[path])
    blocks, nbytes = [], 0
    for block in container.read(path):
        nbytes += len(block)
        _require_small(path, nbytes)
        blocks.append(block)
    return b"".join(blocks)


def _require_small(path: str, nbytes: int) -> None:
    if nbytes > MAX_DOCUMENT_NBYTES:
        raise MalformedPackage(f"{path}: {nbytes} bytes, at most {MAX_DOCUMENT_NBYTES} are read")


def _verified(container: Container, file: PackageFile) -> Iterator[bytes]:
    """A file's blocks; at their end BadSignature if they are not what was signed, or more."""
    digest, nbytes = hashlib.sha256(), 0
    for block in container.read(file.path):
        nbytes += len(block)
        if nbytes > file.size:
            break
        digest.update(block)
        yield block
    if nbytes != file.size or digest.hexdigest() != file.sha256:
        raise BadSignature(f"{file.path}: not what was signed; get the package again")
