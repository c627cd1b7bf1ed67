"""A map or port as one file: written, verified whole, read from disk. Source: FORMAT.md §10.

Hashes numbers, but never looks at one. Only `read_alignment` makes a VerifiedAlignment; who uses the numbers
accepts nothing else.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

from kvnet.alignment import AlignmentKind, Manifest
from kvnet.errors import BadSignature, KvnetError, MalformedFile, RequestError
from kvnet.files.alignments.head import (
    PREFIX_NBYTES,
    WHAT,
    AlignmentHead,
    TensorEntry,
    check_file_nbytes,
    encode_tables,
    pack_header,
    read_head,
    read_header_nbytes,
    stored_order,
)
from kvnet.identity.keys import NodeKey, short_id
from kvnet.types import DType, NodeId

_WITNESS: Final = object()


class TensorBytes(NamedTuple):
    """A tensor to be written: its elements in C order, little-endian."""

    dtype: DType
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class VerifiedAlignment:
    """A map or port whose every byte is what its signer signed. Made by `read_alignment` alone.

    That its numbers are finite is for those who decode them to check.
    """

    head: AlignmentHead
    encoded: memoryview  # the whole file
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("VerifiedAlignment is made by read_alignment")

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

    @property
    def tables(self) -> Mapping[str, TensorEntry]:
        """Each tensor by name."""
        return self.head.tables

    @property
    def data(self) -> memoryview:
        """The bytes of all tensors."""
        return self.encoded[self.head.data_start :]

    @property
    def digest(self) -> str:
        """`sha256:<hex>` of the whole file: how a coding names a port (FORMAT.md §8)."""
        return "sha256:" + hashlib.sha256(self.encoded).hexdigest()

    def tensor(self, name: str) -> TensorBytes:
        """One tensor; KeyError for a name that `tables` lacks."""
        entry = self.tables[name]
        return TensorBytes(entry.dtype, entry.shape, self.data[entry.start : entry.stop])


def write_alignment(manifest: Manifest, tensors: Mapping[str, TensorBytes], key: NodeKey) -> bytes:
    """A signed file of these tensors. `manifest.tensors_digest` may be empty: it is filled in.

    Raises ValueError for a manifest or tensors that `read_alignment` would refuse.
    """
    tables, position = {}, 0
    for name in stored_order({name: tensor.dtype for name, tensor in tensors.items()}):
        tensor = tensors[name]
        if tensor.dtype is DType.BFLOAT16:
            raise ValueError(f"tensor {name} is bfloat16, an alignment holds float32 and float16")
        stop = position + memoryview(tensor.data).nbytes
        tables[name] = TensorEntry(tensor.dtype, tensor.shape, position, stop)
        position = stop
    blocks = [tensors[name].data for name in tables]
    found = _tensors_digest(tables, *blocks)
    if manifest.tensors_digest not in ("", found):
        raise ValueError("the tensors are not those of the manifest's tensors_digest")
    header = pack_header(tables, replace(manifest, tensors_digest=found), key)
    encoded = b"".join((header, *blocks))
    try:
        read_alignment(encoded)
    except KvnetError as exc:
        raise ValueError(f"an alignment that no reader takes: {exc.message}") from exc
    return encoded


def read_alignment(encoded: bytes | memoryview) -> VerifiedAlignment:
    """Check a whole file: FORMAT.md §10, rules 1 to 8, in this order.

    Raises MalformedFile, UnsupportedFormat, BadSignature.
    """
    view = memoryview(encoded)
    check_file_nbytes(len(view))
    header_nbytes = read_header_nbytes(view[:PREFIX_NBYTES], file_nbytes=len(view))
    head = read_head(view[PREFIX_NBYTES : PREFIX_NBYTES + header_nbytes], file_nbytes=len(view))
    if _tensors_digest(head.tables, view[head.data_start :]) != head.manifest.tensors_digest:
        raise BadSignature(
            f"{WHAT}: its numbers are not those that {short_id(head.signer)} signed; get the file again"
        )
    return VerifiedAlignment(head, view, _WITNESS)


def read_alignment_file(path: Path | str) -> VerifiedAlignment:
    """`read_alignment` of a regular file, which is read whole. RequestError where it cannot be read."""
    return read_alignment(_read_regular(Path(path), whole=True)[0])


def read_head_file(path: Path | str) -> AlignmentHead:
    """`read_head` of a regular file, of which no more is read. RequestError where it cannot be read."""
    start, file_nbytes = _read_regular(Path(path), whole=False)
    return read_head(start[PREFIX_NBYTES:], file_nbytes=file_nbytes)


def _tensors_digest(tables: Mapping[str, TensorEntry], *blocks: bytes | memoryview) -> str:
    digest = hashlib.sha256(encode_tables(tables))
    for block in blocks:
        digest.update(block)
    return "sha256:" + digest.hexdigest()


def _read_regular(path: Path, *, whole: bool) -> tuple[bytes, int]:
    """A file, or its bytes up to its header's end, and its length, which is bounded before it is read."""
    try:
        _require_regular(path, path.stat().st_mode)  # anything else is not even opened: it may block or act
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            info = os.fstat(file.fileno())
            _require_regular(path, info.st_mode)  # it may have been replaced meanwhile
            check_file_nbytes(info.st_size)
            header_nbytes = read_header_nbytes(file.read(PREFIX_NBYTES), file_nbytes=info.st_size)
            file.seek(0)
            return file.read(info.st_size if whole else PREFIX_NBYTES + header_nbytes), info.st_size
    except OSError as exc:
        raise RequestError(
            f"{path}: cannot be read ({exc.strerror}); check the path and its permissions"
        ) from exc


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise MalformedFile(f"{path}: not a regular file; a map or port is one file of its own")
