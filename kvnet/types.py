"""The nouns of kvnet as frozen values. Knows no tensors, no sockets, no files.

Axis order everywhere is that of transformers: [batch, num_kv_heads, seq_len, head_dim].
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import IntEnum, StrEnum
from typing import Any, NewType

NodeId = NewType("NodeId", str)  # base32 of an Ed25519 public key, 52 characters, lower case
MemoryId = NewType("MemoryId", str)  # "mem_" + base32 of a SHA-256, lower case
TransferId = NewType("TransferId", str)  # 128 random bits, 32 hex digits

MAX_CHUNK_RAW_NBYTES = 1 << 20


class DType(StrEnum):
    """Element type of a cache."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return 4 if self is DType.FLOAT32 else 2


class Kind(IntEnum):
    """What a chunk holds."""

    KEY = 0
    VALUE = 1
    ATTENTION = 2


class Compression(IntEnum):
    """Byte codec of a chunk's payload; the number is what the wire carries."""

    NONE = 0
    LZ4 = 1


class KeySpace(StrEnum):
    """Whether stored keys still carry their rotary rotation."""

    ROTATED = "rotated"
    CONTENT = "content"


class Tier(StrEnum):
    """How a memory reaches a model (DESIGN: Words)."""

    EXACT = "exact"
    IDENTITY = "identity"
    MAPPED = "mapped"
    MAPPED_TOKENS = "mapped+tokens"
    TEXT = "text"
    REFUSED = "refused"
    NONE = "none"  # the question was asked without a memory


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary parameters as transformers names them; `extra` holds the scaling type's own."""

    rope_type: str
    rope_theta: float
    partial_rotary_factor: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shape of a cache, without its length."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: DType
    rope: Rope

    @property
    def token_nbytes(self) -> int:
        """Bytes one token takes: keys and values of all layers."""
        return 2 * self.num_layers * self.layer_token_nbytes

    @property
    def layer_token_nbytes(self) -> int:
        """Bytes one token takes in one layer, keys or values."""
        return self.num_kv_heads * self.head_dim * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a model is: digests over its config, tokenizer and weight files, and its quantization.

    A claim of the node that states it, until it is checked.
    """

    model: str  # a name for people; not part of the digest
    architecture: str
    config_digest: str
    tokenizer_digest: str
    weights_digest: str
    quantization: str

    @property
    def digest(self) -> str:
        """SHA-256 over every field but the name, as `sha256:<hex>`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "model"}
        return sha256_hex(b"kvnet/fingerprint/v1\0" + canonical_json(parts))


@dataclass(frozen=True, slots=True)
class MemoryHeader:
    """What a memory is, independent of who holds it and when. Its digest is the memory's id."""

    fingerprint: Fingerprint
    geometry: Geometry
    seq_len: int
    start_pos: int
    key_space: KeySpace
    token_digest: str
    content_digest: str  # SHA-256 over the ordered SHA-256 of every chunk's raw bytes

    @property
    def id(self) -> MemoryId:
        """The memory's name: two memories with the same contents have the same id."""
        digest = hashlib.sha256(b"kvnet/memory/v1\0" + canonical_json(to_plain(self))).digest()
        return MemoryId("mem_" + base32(digest))

    @property
    def raw_nbytes(self) -> int:
        """Bytes of all keys and values, uncompressed."""
        return self.seq_len * self.geometry.token_nbytes


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """Which part of a memory: one layer, one kind, tokens start..stop (stop exclusive)."""

    index: int
    layer_idx: int
    kind: Kind
    start: int
    stop: int

    def raw_nbytes(self, geometry: Geometry) -> int:
        """Bytes of [num_kv_heads, stop - start, head_dim] in the geometry's dtype."""
        return (self.stop - self.start) * geometry.layer_token_nbytes


def plan_chunks(geometry: Geometry, seq_len: int) -> tuple[ChunkKey, ...]:
    """Cut a memory into chunks of at most 1 MiB raw, in the order they are sent.

    Both sides compute the same plan from the offer, so no plan travels. Source: FORMAT.md §3.
    """
    step = max(1, MAX_CHUNK_RAW_NBYTES // geometry.layer_token_nbytes)
    keys: list[ChunkKey] = []
    for layer_idx in range(geometry.num_layers):
        for kind in (Kind.KEY, Kind.VALUE):
            for start in range(0, seq_len, step):
                stop = min(seq_len, start + step)
                keys.append(ChunkKey(len(keys), layer_idx, kind, start, stop))
    return tuple(keys)


def count_chunks(geometry: Geometry, seq_len: int) -> int:
    """`len(plan_chunks(...))` without building it: safe on a claim from a stranger."""
    step = max(1, MAX_CHUNK_RAW_NBYTES // geometry.layer_token_nbytes)
    return 2 * geometry.num_layers * -(-seq_len // step)


def to_plain(value: Any) -> Any:
    """A dataclass as JSON-ready plain values."""
    return asdict(value)


def canonical_json(value: Any) -> bytes:
    """One byte string per value: sorted keys, no blanks, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def sha256_hex(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def base32(data: bytes) -> str:
    """RFC 4648 base32, lower case, unpadded: readable aloud and safe in a DNS label."""
    return base64.b32encode(data).decode().rstrip("=").lower()


def unbase32(text: str) -> bytes:
    """Inverse of `base32`. Raises ValueError on anything else, non-canonical tails included."""
    try:
        data = base64.b32decode(text.upper() + "=" * (-len(text) % 8))
    except ValueError as exc:
        raise ValueError(f"not base32: {text!r}") from exc
    if base32(data) != text:
        raise ValueError(f"not canonical base32: {text!r}")
    return data


@dataclass(frozen=True, slots=True)
class RawMemory:
    """A memory's header and its uncompressed chunks, in the order of `plan_chunks`.

    Chunk i holds [num_kv_heads, stop - start, head_dim] of the header's dtype, contiguous,
    little-endian.
    """

    header: MemoryHeader
    chunks: tuple[bytes | memoryview, ...]


def content_digest(raw_digests: list[bytes] | tuple[bytes, ...]) -> str:
    """Digest of a memory's contents from the SHA-256 of each raw chunk, in plan order."""
    return sha256_hex(b"kvnet/content/v1\0" + b"".join(raw_digests))
