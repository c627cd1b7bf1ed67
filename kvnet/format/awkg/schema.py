"""The JSON header of a memory file, key by key, and the forms of its values. Source: FORMAT.md §7.1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from kvnet.errors import MalformedFile
from kvnet.format.awkg.header import Metadata
from kvnet.format.strict_json import camel_case
from kvnet.plan import MAX_ATTENTION_HEADS
from kvnet.types import Coding, DType, KeySpace, Rope

WHAT: Final = "memory file header"
VERSION: Final = 3
_RANGES: Final = {
    "version": (VERSION, VERSION),
    "sequence_length": (1, 2**31 - 1),
    "start_position": (0, 2**31 - 1),
    "attention_heads": (0, MAX_ATTENTION_HEADS),
    "num_layers": (1, 512),
    "num_kv_heads": (1, 256),
    "head_dim": (1, 1024),
}
_DIGESTS: Final = ("source_model_hash", "token_digest", "content_digest", "checksum")
_HEX_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
_MEMORY_ID: Final = re.compile(r"mem_[a-z2-7]{51}[aq]|")  # 256 bits leave one bit in the last character


class CodecName(StrEnum):
    NONE = "none"
    LZ4 = "lz4"
    ZSTD = "zstd"
    SPLIT = "split"


class KindName(StrEnum):
    KEY = "key"
    VALUE = "value"
    ATTENTION = "attention"
    COORDINATES = "coordinates"


class QuantizationName(StrEnum):
    NONE = "none"
    INT8 = "int8"
    K8V4 = "k8v4"
    INT4 = "int4"
    K4V8 = "k4v8"
    TRANSFORM = "transform"
    PORT8 = "port8"
    PORT4 = "port4"


@dataclass(frozen=True, slots=True)
class FingerprintDocument:
    architecture: str
    config_digest: str
    tokenizer_digest: str
    weights_digest: str
    quantization: str


@dataclass(frozen=True, slots=True)
class SectionDocument:
    layer: int
    kind: KindName
    start: int
    stop: int
    offset: int
    wire_length: int
    raw_length: int
    codec: CodecName
    blake3: str


@dataclass(frozen=True, slots=True)
class HeaderDocument:
    """The header by the names of FORMAT.md §7.1, which are these in camelCase."""

    version: int
    source_model: str
    source_model_hash: str
    fingerprint: FingerprintDocument
    sequence_length: int
    start_position: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    rope: Rope
    key_space: KeySpace
    token_digest: str
    content_digest: str
    quantization: QuantizationName
    coding: Coding
    compression: CodecName
    compression_level: int
    checksum: str
    created_at: str
    created_by: str
    signed_by: str
    metadata: Metadata
    sections: tuple[SectionDocument, ...]
    attention_heads: int = 0
    derived_from: str = ""
    prefix_digest: str = ""
    w_matrix_reference: str = ""
    alignment: Mapping[str, Any] = field(default_factory=dict)


def check_forms(document: HeaderDocument) -> None:
    """What types cannot say of a header: ranges, digests, times and ids. Raises MalformedFile."""
    for name, (least, most) in _RANGES.items():
        value = getattr(document, name)
        if not least <= value <= most:
            key = camel_case(name)
            raise MalformedFile(f"{WHAT}: {key} is {value}, allowed are {least} to {most}")
    for name in _DIGESTS:
        if not _DIGEST.fullmatch(getattr(document, name)):
            key = camel_case(name)
            raise MalformedFile(f"{WHAT}: {key} is not `sha256:` and 64 lower-case hex digits")
    for i, section in enumerate(document.sections):
        if not _HEX_DIGEST.fullmatch(section.blake3):
            raise MalformedFile(f"{WHAT}: blake3 of section {i} is not 64 lower-case hex digits")
    if not _is_time(document.created_at):
        raise MalformedFile(f"{WHAT}: createdAt is {document.created_at!r:.40}, wanted YYYY-MM-DDThh:mm:ssZ")
    if document.prefix_digest and not _DIGEST.fullmatch(document.prefix_digest):
        raise MalformedFile(f"{WHAT}: prefixDigest is not `sha256:` and 64 lower-case hex digits")
    if not _MEMORY_ID.fullmatch(document.derived_from):
        raise MalformedFile(f"{WHAT}: derivedFrom is {document.derived_from!r:.60}, wanted a memory id")


def _is_time(text: str) -> bool:
    if not _TIME.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True
