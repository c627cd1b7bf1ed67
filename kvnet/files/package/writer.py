"""Writing a package: parts in, a folder or a zip with a signed list out. Source: FORMAT.md §9.

The key may live in another process: the list is signed by a function that is given.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from kvnet.errors import RequestError
from kvnet.files.document_coding import encode_document
from kvnet.files.documents import MEMORY_PATH, Documents
from kvnet.files.package.agreement import check_documents, check_memory
from kvnet.files.package.listing import PackageFile, Sign, decode_listing, encode_listing
from kvnet.files.package.names import BASIS_PATH, SIGNATURE_PATH, check_paths
from kvnet.files.package.staging import Staging, stage
from kvnet.files.reader import MemoryFile
from kvnet.types import NodeId

_BLOCK_NBYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class PackageParts:
    """What goes into a package. `alignments` maps paths of the form alignments/NAME.bin to files here."""

    memory_file: Path
    documents: Documents
    alignments: Mapping[str, Path] = field(default_factory=dict)
    basis: Path | None = None  # of a transform-coded memory


@dataclass(frozen=True, slots=True)
class WrittenPackage:
    """A package that is on disk."""

    package_id: str
    nbytes: int  # of its files, before a zip makes them smaller
    signed_by: NodeId


def write_package(target: Path | str, parts: PackageParts, sign: Sign) -> WrittenPackage:
    """Write a package to a folder that is new or empty, or to a new file whose name ends in .zip.

    `sign` signs a body as PACKAGE_TYPE. Nothing is left behind after an exception: RequestError for parts or
    targets that cannot be used, StoreFull on a full disk, MalformedPackage for parts of different memories,
    and what `MemoryFile.open` raises.
    """
    with MemoryFile.open(parts.memory_file) as memory:
        header = memory.header
    with stage(Path(target)) as (staging, _):
        files = _add_documents(staging, parts.documents)
        for path, source in _sources(parts).items():
            files[path] = _add_file(staging, path, source)
        check_documents(parts.documents, files)
        check_memory(parts.documents, files, header)
        encoded = encode_listing(files, sign)
        listing = decode_listing(encoded)  # by the rules of those who will read it
        staging.add(SIGNATURE_PATH, len(encoded), [encoded])
    nbytes = len(encoded) + sum(file.size for file in files.values())
    return WrittenPackage(parts.documents.manifest.package_id, nbytes, listing.signed_by)


def _sources(parts: PackageParts) -> dict[str, Path]:
    check_paths(parts.alignments, what="package")
    basis = {BASIS_PATH: parts.basis} if parts.basis else {}
    return {MEMORY_PATH: parts.memory_file, **parts.alignments, **basis}


def _add_documents(staging: Staging, documents: Documents) -> dict[str, PackageFile]:
    files = {}
    for path, document in documents.by_path.items():
        encoded = encode_document(document, what=path)
        staging.add(path, len(encoded), [encoded])
        files[path] = PackageFile(path, len(encoded), hashlib.sha256(encoded).hexdigest())
    return files


def _add_file(staging: Staging, path: str, source: Path) -> PackageFile:
    digest, nbytes = hashlib.sha256(), 0

    def blocks() -> Iterator[bytes]:
        nonlocal nbytes
        while block := file.read(_BLOCK_NBYTES):
            digest.update(block)
            nbytes += len(block)
            yield block

    try:
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as exc:
        raise RequestError(f"{source}: cannot be read ({exc.strerror})") from exc
    with os.fdopen(handle, "rb", buffering=0) as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise RequestError(f"{source}: is no regular file, wanted the bytes of {path}")
        staging.add(path, info.st_size, blocks())
    return PackageFile(path, nbytes, digest.hexdigest())
