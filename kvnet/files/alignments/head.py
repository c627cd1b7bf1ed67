"""The head of a map's or port's file: names, shapes, and a manifest under a signature. Source: FORMAT.md §10.

Knows no files and looks at no number. Only `read_head` makes an AlignmentHead.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from math import prod
from typing import Any, Final

from kvnet.alignment import AlignmentKind, Manifest, MapManifest, Method, kind_of
from kvnet.errors import BadSignature, MalformedFile, MalformedMessage, RequestError, UnsupportedFormat
from kvnet.files.alignments.manifests import (
    MAX_KNOWN_WIDTH,
    MAX_MANIFEST_NBYTES,
    MAX_RESIDUAL_WIDTH,
    decode_manifest,
    encode_manifest,
    tensor_shapes,
)
from kvnet.format import strict_json
from kvnet.identity.keys import NodeKey, node_id_of, public_key_of, short_id, verify_signature
from kvnet.plan import MAX_PORT_RANK
from kvnet.types import DType, NodeId, canonical_json

MAX_ALIGNMENT_NBYTES: Final = 1 << 30
MAX_HEADER_NBYTES: Final = 1 << 20
PREFIX_NBYTES: Final = 8
WHAT: Final = "alignment file"
_PREFIX: Final = struct.Struct("<Q")
_ALIGN_NBYTES: Final = 8  # the header is padded with blanks, so that tensors lie where their items may
_DOMAIN: Final = b"kvnet/alignment/v1\0"
_METADATA_KEY: Final = "__metadata__"
_METADATA: Final = frozenset({"kind", "manifest", "signature", "signer"})
_DTYPES: Final = {"F32": DType.FLOAT32, "F16": DType.FLOAT16}
_NAMES: Final = {dtype: name for name, dtype in _DTYPES.items()}
_WITNESS: Final = object()


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies: bytes start..stop of the file's data (stop exclusive)."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class AlignmentHead:
    """What a file says of itself, under a signature that holds. Its numbers were not looked at yet."""

    manifest: Manifest
    signer: NodeId
    tables: Mapping[str, TensorEntry]
    header_nbytes: int
    _witness: InitVar[object]  # no field, so that dataclasses.replace cannot copy it

    def __post_init__(self, _witness: object) -> None:
        if _witness is not _WITNESS:
            raise TypeError("AlignmentHead is made by read_head")

    @property
    def kind(self) -> AlignmentKind:
        """Map or port."""
        return kind_of(self.manifest)

    @property
    def rank(self) -> int:
        """Coordinates of a port, or of that which a map ends in; 0 of a map that ends in rows."""
        if isinstance(self.manifest, MapManifest):
            return self.tables["encoder"].shape[1] if self.manifest.port else 0
        return self.manifest.rank

    @property
    def data_start(self) -> int:
        """Bytes before the first tensor."""
        return PREFIX_NBYTES + self.header_nbytes

    @property
    def file_nbytes(self) -> int:
        """Length of the whole file."""
        return self.data_start + max(entry.stop for entry in self.tables.values())


def read_header_nbytes(prefix: bytes | memoryview, *, file_nbytes: int) -> int:
    """Length of the header behind a file's first 8 bytes: rule 1. Raises MalformedFile."""
    check_file_nbytes(file_nbytes)
    if len(prefix) != PREFIX_NBYTES:
        raise MalformedFile(f"{WHAT}: {len(prefix)} bytes, wanted {PREFIX_NBYTES} before its header")
    (header_nbytes,) = _PREFIX.unpack(prefix)
    if header_nbytes > MAX_HEADER_NBYTES or header_nbytes % _ALIGN_NBYTES or not header_nbytes:
        raise MalformedFile(
            f"{WHAT}: a header of {header_nbytes} bytes, wanted a multiple of {_ALIGN_NBYTES} "
            f"up to {MAX_HEADER_NBYTES}"
        )
    if PREFIX_NBYTES + header_nbytes > file_nbytes:
        raise MalformedFile(f"{WHAT}: {file_nbytes} bytes, its header alone has more; it was cut short")
    return int(header_nbytes)


def read_head(header: bytes | memoryview, *, file_nbytes: int) -> AlignmentHead:
    """Check a header, its signature and the file's length: rules 2 to 7, without the numbers.

    Raises MalformedFile, UnsupportedFormat, BadSignature.
    """
    header = bytes(header)
    try:
        plain = strict_json.loads(header, what=WHAT, max_nbytes=MAX_HEADER_NBYTES)
    except MalformedMessage as exc:
        raise MalformedFile(exc.message) from exc
    if not isinstance(plain, dict):
        raise MalformedFile(f"{WHAT}: its header is a {type(plain).__name__}, wanted an object")
    kind, text, signer = _read_metadata(plain)
    if _padded(plain) != header:
        raise MalformedFile(f"{WHAT}: its header is not written as canonical JSON")
    manifest = decode_manifest(kind, text)
    del plain[_METADATA_KEY]
    tables = _read_tables(plain, manifest)
    head = AlignmentHead(manifest, signer, tables, len(header), _WITNESS)
    if file_nbytes != head.file_nbytes:
        raise MalformedFile(
            f"{WHAT}: {file_nbytes} bytes, its header says {head.file_nbytes}; get the file again"
        )
    return head


def pack_header(tables: Mapping[str, TensorEntry], manifest: Manifest, key: NodeKey) -> bytes:
    """A file's bytes before its first tensor: inverse of `read_header_nbytes` and `read_head`."""
    kind, text = kind_of(manifest), encode_manifest(manifest)
    metadata = {
        "kind": kind.value,
        "manifest": text.decode(),
        "signature": base64.b64encode(key.sign(_signed(kind, text))).decode(),
        "signer": key.node_id,
    }
    header = _padded({**_plain_tables(tables), _METADATA_KEY: metadata})
    return _PREFIX.pack(len(header)) + header


def encode_tables(tables: Mapping[str, TensorEntry]) -> bytes:
    """The canonical JSON of names, types, shapes and places: in tensors_digest it precedes the numbers."""
    return canonical_json(_plain_tables(tables))


def check_file_nbytes(nbytes: int) -> None:
    """Refuse a length that no file has: MalformedFile."""
    if not PREFIX_NBYTES <= nbytes <= MAX_ALIGNMENT_NBYTES:
        raise MalformedFile(f"{WHAT}: {nbytes} bytes, allowed are {PREFIX_NBYTES} to {MAX_ALIGNMENT_NBYTES}")


def _read_metadata(plain: dict[str, Any]) -> tuple[AlignmentKind, bytes, NodeId]:
    """Kind, manifest text and signer, once the signature holds."""
    metadata = plain.get(_METADATA_KEY)
    if not isinstance(metadata, dict) or metadata.keys() != _METADATA:
        raise MalformedFile(
            f"{WHAT}: its metadata is not {', '.join(sorted(_METADATA))}; is it a map or port?"
        )
    if not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedFile(f"{WHAT}: its metadata holds something else than texts")
    if metadata["kind"] not in tuple(AlignmentKind):
        raise UnsupportedFormat(
            f"{WHAT}: of kind {metadata['kind']!r:.40}, this kvnet reads {' and '.join(AlignmentKind)}"
        )
    kind, text = AlignmentKind(metadata["kind"]), metadata["manifest"].encode()
    if len(text) > MAX_MANIFEST_NBYTES:
        raise MalformedFile(
            f"{WHAT}: a manifest of {len(text)} bytes, at most {MAX_MANIFEST_NBYTES} are read"
        )
    public = _public_key(metadata["signer"])
    if not verify_signature(public, _signed(kind, text), _signature(metadata["signature"])):
        raise BadSignature(
            f"{WHAT}: its manifest is not what {short_id(metadata['signer'])} signed; get the file again"
        )
    return kind, text, node_id_of(public)


def _public_key(signer: str) -> bytes:
    try:
        public = public_key_of(signer)
    except RequestError as exc:
        raise MalformedFile(f"{WHAT}: signer is {signer!r:.60}, wanted a node id") from exc
    if node_id_of(public) != signer:
        raise MalformedFile(f"{WHAT}: signer is {signer!r:.60}, wanted lower case, ungrouped")
    return public


def _signature(text: str) -> bytes:
    try:
        signature = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if len(signature) != 64 or base64.b64encode(signature).decode() != text:
        raise MalformedFile(f"{WHAT}: its signature is not the base64 of 64 bytes")
    return signature


def _read_tables(plain: dict[str, Any], manifest: Manifest) -> dict[str, TensorEntry]:
    """The tensors, which must be those of the manifest and lie end to end."""
    wanted = tensor_shapes(
        manifest,
        _rank_of(plain, manifest),
        has_anchor="anchor" in plain,
        residual_width=_residual_width_of(plain, manifest),
        known_width=_known_width_of(plain),
    )
    if plain.keys() != wanted.keys():
        raise MalformedFile(
            f"{WHAT}: tensors {', '.join(sorted(plain))!r:.80}, wanted {', '.join(sorted(wanted))}"
        )
    entries = {name: _read_entry(name, entry, wanted[name]) for name, entry in plain.items()}
    position = 0
    for name in stored_order({name: entry.dtype for name, entry in entries.items()}):
        entry = entries[name]
        stop = position + prod(entry.shape) * entry.dtype.itemsize
        if (entry.start, entry.stop) != (position, stop):
            raise MalformedFile(
                f"{WHAT}: tensor {name} lies at {entry.start} to {entry.stop}, wanted {position} to {stop}"
            )
        position = stop
    return entries


def _rank_of(plain: dict[str, Any], manifest: Manifest) -> int:
    """Columns of a map's encoder, which its manifest leaves open; 0 of all else."""
    if not isinstance(manifest, MapManifest):
        return 0
    rank = _columns_of(plain, "encoder")
    if manifest.port and not (type(rank) is int and 1 <= rank <= MAX_PORT_RANK):
        raise MalformedFile(
            f"{WHAT}: an encoder into {rank!r:.20} coordinates, allowed are 1 to {MAX_PORT_RANK}"
        )
    return rank if type(rank) is int else 0


def _residual_width_of(plain: dict[str, Any], manifest: Manifest) -> int:
    """Columns of a trained map's residual, which its manifest leaves open; 0 of all else."""
    if not isinstance(manifest, MapManifest) or manifest.method is not Method.TRAINED:
        return 0
    width = _columns_of(plain, "residual_in")
    if not (type(width) is int and 1 <= width <= MAX_RESIDUAL_WIDTH):
        raise MalformedFile(
            f"{WHAT}: a trained map with a residual of {width!r:.20} hidden numbers, "
            f"allowed are 1 to {MAX_RESIDUAL_WIDTH}"
        )
    return width


def _known_width_of(plain: dict[str, Any]) -> int:
    """Directions in which a map knows how far its texts reach; 0 of one that does not."""
    if "known_scale" not in plain:
        return 0
    width = _columns_of(plain, "known_scale")
    if not (type(width) is int and 1 <= width <= MAX_KNOWN_WIDTH):
        raise MalformedFile(
            f"{WHAT}: knows how far it goes in {width!r:.20} directions, allowed are 1 to {MAX_KNOWN_WIDTH}"
        )
    return width


def _columns_of(plain: dict[str, Any], name: str) -> Any:
    """The second number of a tensor's shape as the header has it, unchecked; None if there is none."""
    entry = plain.get(name)
    shape = entry.get("shape") if isinstance(entry, dict) else None
    return shape[1] if isinstance(shape, list) and len(shape) == 2 else None


def _read_entry(name: str, entry: Any, shape: tuple[int, ...]) -> TensorEntry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MalformedFile(f"{WHAT}: tensor {name} is not described by dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise MalformedFile(
            f"{WHAT}: tensor {name} is {entry['dtype']!r:.20}, allowed are {', '.join(_DTYPES)}"
        )
    if not _are_counts(entry["shape"]) or tuple(entry["shape"]) != shape:
        raise MalformedFile(f"{WHAT}: tensor {name} is {entry['shape']!r:.60}, wanted {list(shape)}")
    offsets = entry["data_offsets"]
    if not _are_counts(offsets) or len(offsets) != 2:
        raise MalformedFile(f"{WHAT}: tensor {name} lies at {offsets!r:.60}, wanted two offsets")
    return TensorEntry(_DTYPES[entry["dtype"]], shape, offsets[0], offsets[1])


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def stored_order(dtypes: Mapping[str, DType]) -> list[str]:
    """Wide items first, then by name: each tensor then lies at a multiple of its items' size."""
    return sorted(dtypes, key=lambda name: (-dtypes[name].itemsize, name))


def _signed(kind: AlignmentKind, text: bytes) -> bytes:
    return _DOMAIN + hashlib.sha256(kind.encode() + b"\0" + text).digest()


def _padded(plain: Mapping[str, Any]) -> bytes:
    header = canonical_json(plain)
    return header + b" " * (-len(header) % _ALIGN_NBYTES)


def _plain_tables(tables: Mapping[str, TensorEntry]) -> dict[str, Any]:
    return {
        name: {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [entry.start, entry.stop],
        }
        for name, entry in tables.items()
    }
