"""The nouns of kvnet as frozen values. Knows no tensors, no sockets, no files.

Axis order everywhere is that of transformers: [batch, num_kv_heads, seq_len, head_dim].
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from enum import IntEnum, StrEnum
from typing import Any, NewType

from blake3 import blake3

NodeId = NewType("NodeId", str)  # base32 of an Ed25519 public key, 52 characters, lower case
MemoryId = NewType("MemoryId", str)  # "mem_" + base32 of a SHA-256, lower case
TransferId = NewType("TransferId", str)  # 128 random bits, 32 hex digits


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
    BASIS = 3  # a piece of the calibration, or of the port, that a memory's receiver lacks
    COORDINATES = 4  # which slots of a port-coded memory are sent, and their codes


class Compression(IntEnum):
    """Byte codec of a chunk's payload; the number is what the wire carries."""

    NONE = 0
    LZ4 = 1
    ZSTD = 2
    SPLIT = 3  # byte planes apart, each through zstd


class Scheme(StrEnum):
    """How numbers become a chunk's raw bytes."""

    RAW = "raw"
    GROUPED = "grouped"
    TRANSFORM = "transform"
    PORT = "port"  # coordinates in a receiver's port instead of keys and values


@dataclass(frozen=True, slots=True)
class Coding:
    """How keys and values became a chunk's raw bytes, before byte compression. Source: FORMAT.md §8.

    RAW uses none of the fields but `pruned_heads`; GROUPED the first four; TRANSFORM the last four;
    PORT two equal numbers of bits, and as its basis the port.
    """

    scheme: Scheme = Scheme.RAW
    key_bits: int = 0
    value_bits: int = 0
    group_size: int = 0
    hadamard: bool = False
    sink_tokens: int = 0
    recent_tokens: int = 0
    basis: str = ""  # sha256:<hex> of the bytes of the calibration, or of the port
    basis_nbytes: int = 0
    pruned_heads: tuple[tuple[int, ...], ...] = ()  # [layer, KV head] pairs that were set to zero


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
    KEPT = "kept"  # by a node that hosts no model: it passes memories on, and reads none
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
    content_digest: str  # over the `chunk_digest` of every chunk's raw bytes, in order; "" while it is open
    coding: Coding = Coding()
    attention_heads: int = 0  # query heads that the attention metadata tells of; 0: there is none
    derived_from: str = ""  # id of the memory that this one was encoded from
    prefix_digest: str = ""  # of the start_pos tokens before this memory's; "" if there are none

    @property
    def id(self) -> MemoryId:
        """The memory's name: two memories with the same contents have the same id."""
        plain = to_plain(self)
        if not self.prefix_digest:
            del plain["prefix_digest"]  # younger than the memories that have none, whose ids stay
        return MemoryId(
            "mem_" + base32(hashlib.sha256(b"kvnet/memory/v1\0" + canonical_json(plain)).digest())
        )

    @property
    def through_digest(self) -> str:
        """What the `prefix_digest` of a memory is that goes on where this one ends. Source: FORMAT.md §2."""
        if not self.prefix_digest:
            return self.token_digest
        return sha256_hex(f"kvnet/prefix/v1\0{self.prefix_digest}{self.token_digest}".encode())

    @property
    def is_open(self) -> bool:
        """Whether the memory is still being made: its contents, and with them its id, are not known yet."""
        return not self.content_digest

    def closes(self, offered: MemoryHeader) -> bool:
        """Whether this is the memory that was offered: the very same, or what an open one came to be."""
        opened = replace(self, content_digest="", derived_from="") if offered.is_open else self
        return bool(self.content_digest) and opened == offered

    @property
    def raw_nbytes(self) -> int:
        """Bytes of all keys and values once decoded."""
        return self.seq_len * self.geometry.token_nbytes


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
    """A memory's header and the raw bytes of its chunks, in the order of `plan_chunks`.

    What the bytes of a key or value chunk mean, the header's `coding` says.
    """

    header: MemoryHeader
    chunks: tuple[bytes | memoryview, ...]


@dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """How one layer attended to the text while it was read (FORMAT.md §8.4). The names are the seed's."""

    layer_index: int
    average_attention_score: float  # mean attention on earlier tokens but the first, 0 to 1
    entropy_per_head: tuple[float, ...]  # nats, mean over query positions
    important_token_indices: tuple[int, ...]  # most attended first


def chunk_digest(data: bytes | bytearray | memoryview) -> bytes:
    """BLAKE3 of a chunk's bytes, 32 bytes long."""
    return blake3(data).digest()


def content_digest(raw_digests: Sequence[bytes]) -> str:
    """Digest of a memory's contents from the `chunk_digest` of each raw chunk, in plan order."""
    return sha256_hex(b"kvnet/content/v2\0" + b"".join(raw_digests))


def chunks_digest(wire_digests: Sequence[bytes]) -> str:
    """Digest over the wire digests of chunks in order: what commit, receipt and a file's checksum bind."""
    return sha256_hex(b"kvnet/chunks/v2\0" + b"".join(wire_digests))
