"""The head of a memory file as bytes: prelude and JSON header. Source: FORMAT.md §7, rules 1 to 3 of §7.2.

The camelCase document exists only here; everything else deals in `AwkgHeader`.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from kvnet.errors import MalformedFile, MalformedMessage, RequestError, UnsupportedFormat
from kvnet.format import strict_json
from kvnet.format.awkg.header import AwkgHeader, Repeated, Section
from kvnet.format.awkg.schema import (
    VERSION,
    WHAT,
    CodecName,
    FingerprintDocument,
    HeaderDocument,
    KindName,
    QuantizationName,
    SectionDocument,
    check_forms,
)
from kvnet.plan import ChunkKey
from kvnet.types import Compression, Fingerprint, Geometry, Kind, MemoryHeader, NodeId, canonical_json

MAGIC: Final = b"AWKG"
SIGNATURE_NBYTES: Final = 64
_PRELUDE: Final = struct.Struct("<4sHI")
PRELUDE_NBYTES: Final = _PRELUDE.size
MAX_HEADER_NBYTES: Final = 1 << 20
MAX_HEAD_NBYTES: Final = PRELUDE_NBYTES + MAX_HEADER_NBYTES


def pack_head(header: AwkgHeader) -> bytes:
    """The head of a file: 10 bytes of prelude and the header as canonical JSON.

    Raises RequestError for more sections or text than a header of 1 MiB takes.
    """
    plain = _to_plain(_document_of(header))
    if not header.memory.prefix_digest:
        del plain["prefixDigest"]  # as in the files from before there was one
    try:
        strict_json.check_strings(plain, WHAT)
        document = canonical_json(plain)
    except (MalformedMessage, UnicodeEncodeError) as exc:
        raise RequestError(f"memory file: its texts do not fit a header ({exc})") from exc
    if len(document) > MAX_HEADER_NBYTES:
        raise RequestError(
            f"memory file: {len(header.sections)} sections take a header of {len(document)} bytes, "
            f"at most {MAX_HEADER_NBYTES} are read; write fewer tokens, or a coarser coding"
        )
    return _PRELUDE.pack(MAGIC, VERSION, len(document)) + document


def unpack_head(head: bytes) -> AwkgHeader:
    """Inverse of `pack_head`: rules 1 to 3 of FORMAT.md §7.2. Nothing in the result is checked any further.

    Raises MalformedFile, or UnsupportedFormat for another version.
    """
    header_nbytes = read_prelude(head[:PRELUDE_NBYTES])
    if len(head) != PRELUDE_NBYTES + header_nbytes:
        raise MalformedFile(f"memory file: a head of {len(head)} bytes, wanted 10 + {header_nbytes}")
    try:
        plain = strict_json.loads(head[PRELUDE_NBYTES:], what=WHAT, max_nbytes=MAX_HEADER_NBYTES)
        document = strict_json.from_plain(
            HeaderDocument, _without_extensions(plain), what=WHAT, name_of=strict_json.camel_case
        )
    except MalformedMessage as exc:
        raise MalformedFile(exc.message) from exc
    check_forms(document)
    return _header_of(document)


def read_prelude(prelude: bytes) -> int:
    """The length of the JSON header that follows. Raises MalformedFile and UnsupportedFormat."""
    if len(prelude) < PRELUDE_NBYTES:
        raise MalformedFile(f"memory file: ends after {len(prelude)} bytes; it is no .awkg file")
    magic, version, header_nbytes = _PRELUDE.unpack_from(prelude)
    if magic != MAGIC:
        raise MalformedFile(f"memory file: starts with {magic!r}, wanted {MAGIC!r}; it is no .awkg file")
    if version != VERSION:
        raise UnsupportedFormat(f"memory file: version {version}, this kvnet reads {VERSION}")
    if not 2 <= header_nbytes <= MAX_HEADER_NBYTES:
        raise MalformedFile(f"memory file: a header of {header_nbytes} bytes, allowed are 2 to 1048576")
    return int(header_nbytes)


def _without_extensions(plain: Any) -> Any:
    """The document without its `x-` keys, which mean nothing but must be strict JSON like the rest."""
    if not isinstance(plain, dict):
        return plain
    extensions = {key: value for key, value in plain.items() if key.startswith("x-")}
    strict_json.check_strings(extensions, WHAT)
    return {key: value for key, value in plain.items() if key not in extensions}


def _document_of(header: AwkgHeader) -> HeaderDocument:
    memory, geometry, model = header.memory, header.memory.geometry, header.memory.fingerprint
    return HeaderDocument(
        version=VERSION,
        source_model=model.model,
        source_model_hash=header.source_model_hash,
        fingerprint=FingerprintDocument(
            architecture=model.architecture,
            config_digest=model.config_digest,
            tokenizer_digest=model.tokenizer_digest,
            weights_digest=model.weights_digest,
            quantization=model.quantization,
        ),
        sequence_length=memory.seq_len,
        start_position=memory.start_pos,
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        dtype=geometry.dtype,
        rope=geometry.rope,
        key_space=memory.key_space,
        token_digest=memory.token_digest,
        content_digest=memory.content_digest,
        quantization=QuantizationName(header.quantization),
        coding=memory.coding,
        compression=CodecName[header.compression.name],
        compression_level=header.compression_level,
        checksum=header.checksum,
        created_at=header.created_at,
        created_by=header.created_by,
        signed_by=header.signed_by,
        metadata=header.metadata,
        sections=tuple(map(_packed_section, header.sections)),
        attention_heads=memory.attention_heads,
        derived_from=memory.derived_from,
        prefix_digest=memory.prefix_digest,
        w_matrix_reference=header.w_matrix_reference,
        alignment=header.alignment,
    )


def _header_of(document: HeaderDocument) -> AwkgHeader:
    geometry = Geometry(
        document.num_layers, document.num_kv_heads, document.head_dim, document.dtype, document.rope
    )
    claimed = document.fingerprint
    memory = MemoryHeader(
        fingerprint=Fingerprint(
            model=document.source_model,
            architecture=claimed.architecture,
            config_digest=claimed.config_digest,
            tokenizer_digest=claimed.tokenizer_digest,
            weights_digest=claimed.weights_digest,
            quantization=claimed.quantization,
        ),
        geometry=geometry,
        seq_len=document.sequence_length,
        start_pos=document.start_position,
        key_space=document.key_space,
        token_digest=document.token_digest,
        content_digest=document.content_digest,
        coding=document.coding,
        attention_heads=document.attention_heads,
        derived_from=document.derived_from,
        prefix_digest=document.prefix_digest,
    )
    return AwkgHeader(
        memory=memory,
        sections=tuple(_unpacked_section(i, section) for i, section in enumerate(document.sections)),
        compression=Compression[document.compression.name],
        compression_level=document.compression_level,
        created_at=document.created_at,
        created_by=document.created_by,
        signed_by=NodeId(document.signed_by),
        metadata=document.metadata,
        w_matrix_reference=document.w_matrix_reference,
        alignment=document.alignment,
        repeated=Repeated(document.source_model_hash, document.quantization.value, document.checksum),
    )


def _packed_section(section: Section) -> SectionDocument:
    key = section.key
    return SectionDocument(
        layer=key.layer_idx,
        kind=KindName[key.kind.name],
        start=key.start,
        stop=key.stop,
        offset=section.offset,
        wire_length=section.wire_nbytes,
        raw_length=section.raw_nbytes,
        codec=CodecName[section.compression.name],
        blake3=section.wire_digest.hex(),
    )


def _unpacked_section(index: int, section: SectionDocument) -> Section:
    return Section(
        key=ChunkKey(index, section.layer, Kind[section.kind.name], section.start, section.stop),
        offset=section.offset,
        wire_nbytes=section.wire_length,
        raw_nbytes=section.raw_length,
        compression=Compression[section.codec.name],
        wire_digest=bytes.fromhex(section.blake3),
    )


def _to_plain(value: Any) -> Any:
    """Dataclasses as objects with camelCase keys; mappings keep the keys they came with."""
    if dataclasses.is_dataclass(value):
        named = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return {strict_json.camel_case(name): _to_plain(entry) for name, entry in named}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_to_plain(entry) for entry in value]
    return dict(value) if isinstance(value, Mapping) else value
