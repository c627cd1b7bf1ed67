"""Small memories and the heads of their files, whole or with one thing wrong. The same on every run."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from kvnet.format.attention import pack_attention
from kvnet.format.awkg import AwkgHeader, Metadata, SectionFacts, make_sections
from kvnet.format.compress import compress, effective_level, suited_compression
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import SEAL_TYPE
from kvnet.identity.signing import SignedMessage, sign_message
from kvnet.plan import MAX_IMPORTANT_TOKENS, ChunkKey, plan_memory, raw_nbytes_range
from kvnet.types import (
    AttentionMetadata,
    Coding,
    Compression,
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    Kind,
    MemoryHeader,
    RawMemory,
    Rope,
    Scheme,
    base32,
    chunk_digest,
    content_digest,
    sha256_hex,
)

WRITER = NodeKey(b"\x07" * 32)
OTHER = NodeKey(b"\x08" * 32)
CREATED_AT = "2027-01-15T08:00:00Z"
SPECIMEN = sha256_hex(b"specimen")


def make_header_of_memory(**changes: Any) -> MemoryHeader:
    """Two layers of two heads and five tokens of float16, with attention metadata of four query heads."""
    plain: dict[str, Any] = {
        "fingerprint": Fingerprint("tiny", "LlamaForCausalLM", SPECIMEN, SPECIMEN, SPECIMEN, "nf4"),
        "geometry": Geometry(2, 2, 4, DType.FLOAT16, Rope("default", 10000.0)),
        "seq_len": 5,
        "start_pos": 0,
        "key_space": KeySpace.ROTATED,
        "token_digest": sha256_hex(b"tokens"),
        "content_digest": "",
        "attention_heads": 4,
    }
    return MemoryHeader(**{**plain, **changes})


def make_raw_memory(header: MemoryHeader, seed: int = 0) -> RawMemory:
    """Bytes for every chunk of this header: keys are noise, values are zeros, attention is well-formed."""
    source = random.Random(seed)
    chunks = tuple(_raw_chunk(header, key, source) for key in plan_memory(header))
    digest = content_digest([chunk_digest(chunk) for chunk in chunks])
    return RawMemory(with_fields(header, content_digest=digest), chunks)


def make_finite(memory: RawMemory) -> RawMemory:
    """The same float16 memory without NaN and infinity: no number has all bits of its exponent."""
    chunks = tuple(
        _without_top_bit(chunk) if key.kind in (Kind.KEY, Kind.VALUE) else chunk
        for key, chunk in zip(plan_memory(memory.header), memory.chunks, strict=True)
    )
    digest = content_digest([chunk_digest(chunk) for chunk in chunks])
    return RawMemory(with_fields(memory.header, content_digest=digest), chunks)


def _without_top_bit(chunk: bytes | memoryview) -> bytes:
    cleared = bytearray(chunk)
    cleared[1::2] = bytes(high & 0xBF for high in cleared[1::2])
    return bytes(cleared)


def with_fields(value: Any, **changes: Any) -> Any:
    """A frozen dataclass with other values in some fields."""
    return type(value)(**{name: getattr(value, name) for name in value.__dataclass_fields__} | changes)


def make_parts(memory: RawMemory, wanted: Compression) -> tuple[list[SectionFacts], list[bytes]]:
    """What a writer knows of each chunk, and its wire bytes."""
    header = memory.header
    facts, wires = [], []
    for key, raw in zip(plan_memory(header), memory.chunks, strict=True):
        suited = suited_compression(wanted, header.coding, key.kind)
        used, packed = compress(raw, suited, itemsize=header.geometry.dtype.itemsize)
        wire = bytes(packed)
        facts.append(SectionFacts(used, len(wire), len(raw), chunk_digest(wire)))
        wires.append(wire)
    return facts, wires


def make_awkg_header(
    memory: RawMemory, wanted: Compression = Compression.ZSTD, **changes: Any
) -> tuple[AwkgHeader, list[bytes]]:
    """The header of this memory's file, signed by WRITER, and its sections' wire bytes."""
    facts, wires = make_parts(memory, wanted)
    plain: dict[str, Any] = {
        "memory": memory.header,
        "sections": make_sections(memory.header, facts),
        "compression": wanted,
        "compression_level": effective_level(wanted),
        "created_at": CREATED_AT,
        "created_by": "kvnet tests",
        "signed_by": WRITER.node_id,
        "metadata": Metadata("tests", "small things", "en", 0.5, memory.header.seq_len),
    }
    return AwkgHeader(**{**plain, **changes}), wires


def document_of(head: bytes) -> dict[str, Any]:
    """The JSON header in a head, to be changed."""
    document: dict[str, Any] = json.loads(head[10:])
    return document


def head_of(document: Any) -> bytes:
    """A head around any document; bytes stand as they are."""
    body = document if isinstance(document, bytes) else json.dumps(document, ensure_ascii=False).encode()
    return struct.pack("<4sHI", b"AWKG", 3, len(body)) + body


def head_with(head: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """A head whose document `change` has changed in place."""
    document = document_of(head)
    change(document)
    return head_of(document)


def seal_anything(head: bytes, key: NodeKey = WRITER) -> SignedMessage:
    """A good signature under any bytes, which `seal_head` would refuse to make."""
    return sign_message(key, SEAL_TYPE, head)


def file_of(head: bytes, sections: Sequence[bytes], key: NodeKey = WRITER) -> bytes:
    """A whole file: any head, any sections, and a good signature over the head."""
    return head + b"".join(sections) + seal_anything(head, key).signature


def _raw_chunk(header: MemoryHeader, key: ChunkKey, source: random.Random) -> bytes:
    if key.kind is Kind.ATTENTION:
        return pack_attention(make_attention(header, key.layer_idx))
    nbytes = raw_nbytes_range(header, key)[0]
    return source.randbytes(nbytes) if key.kind is Kind.KEY else bytes(nbytes)


def make_attention(header: MemoryHeader, layer_idx: int) -> AttentionMetadata:
    """Metadata that fits this layer; its numbers are exact in float32."""
    num_tokens = min(MAX_IMPORTANT_TOKENS, header.seq_len)
    entropies = tuple(0.5 + head / 4 for head in range(header.attention_heads))
    return AttentionMetadata(layer_idx, 0.25, entropies, tuple(reversed(range(num_tokens))))


_digests = st.binary(min_size=32, max_size=32).map(lambda data: "sha256:" + data.hex())
_texts = st.text(max_size=12)
_finite = st.floats(allow_nan=False, allow_infinity=False)
_plain = st.integers(-9, 9) | st.booleans() | st.none()
_shares = st.floats(0, 1, exclude_min=True)
_ropes = st.builds(
    Rope,
    st.sampled_from(["default", "llama3", "linear"]),
    _finite,
    _shares,
    st.dictionaries(_texts, st.integers(-9, 9) | _finite | _texts, max_size=2),
)
# Of these a decoder can compute angles.
_turning_ropes = st.builds(
    Rope, st.just("linear"), st.floats(1, 1e9), _shares, st.just({"factor": 2.0})
) | st.builds(
    Rope, st.just("of tomorrow"), st.floats(1, 1e9), _shares, st.dictionaries(_texts, _finite, max_size=2)
)
_grouped = st.builds(
    Coding,
    st.just(Scheme.GROUPED),
    st.sampled_from([4, 8]),
    st.sampled_from([4, 8]),
    st.integers(8, 1024),
    st.booleans(),
)
_transform = st.builds(
    Coding,
    scheme=st.just(Scheme.TRANSFORM),
    sink_tokens=st.integers(0, 64),
    recent_tokens=st.integers(0, 1024),
    basis=_digests,
    basis_nbytes=st.integers(1, 1 << 16),
)
_port = st.sampled_from([4, 8]).flatmap(
    lambda bits: st.builds(
        Coding,
        scheme=st.just(Scheme.PORT),
        key_bits=st.just(bits),
        value_bits=st.just(bits),
        basis=_digests,
        basis_nbytes=st.integers(1, 1 << 30),
    )
)
_map_ids = st.binary(min_size=32, max_size=32).map(lambda data: "map_" + base32(data))


@st.composite
def memory_headers(draw: st.DrawFn) -> MemoryHeader:
    """Any small memory that FORMAT.md allows, its contents not yet known."""
    few = st.integers(1, 3)
    head_dim, dtype = draw(st.integers(1, 8)), draw(st.sampled_from(DType))
    coding = draw(st.just(Coding()) | _grouped | _transform | _port)
    is_port = coding.scheme is Scheme.PORT
    turned = is_port or (coding.scheme is not Scheme.RAW and draw(st.booleans()))
    geometry = Geometry(draw(few), draw(few), head_dim, dtype, draw(_turning_ropes if turned else _ropes))
    heads = [(i, j) for i in range(geometry.num_layers) for j in range(geometry.num_kv_heads)]
    pruned = () if is_port else tuple(sorted(draw(st.sets(st.sampled_from(heads), max_size=2))))
    ids = st.just("") | st.binary(min_size=32, max_size=32).map(lambda data: "mem_" + base32(data))
    return MemoryHeader(
        fingerprint=Fingerprint(
            draw(_texts), draw(_texts), *(draw(_digests) for _ in range(3)), draw(_texts)
        ),
        geometry=geometry,
        seq_len=draw(st.integers(1, 40)),
        start_pos=draw(st.integers(0, 2**31 - 1)),
        key_space=KeySpace.CONTENT if turned else KeySpace.ROTATED,
        token_digest=draw(_digests),
        content_digest="",
        coding=with_fields(coding, pruned_heads=pruned),
        attention_heads=0 if is_port else draw(st.integers(0, 4)),
        derived_from=draw(ids),
    )


metadatas = st.builds(
    Metadata, _texts, _texts, _texts, st.none() | st.floats(0, 1), st.just(0)
)  # token_count: that of the memory


@st.composite
def memory_files(draw: st.DrawFn) -> tuple[RawMemory, AwkgHeader, list[bytes]]:
    """Any small memory, the header of its file, and its sections."""
    memory = make_raw_memory(draw(memory_headers()), draw(st.integers(0, 9)))
    metadata = with_fields(draw(metadatas), token_count=memory.header.seq_len)
    header, wires = make_awkg_header(
        memory,
        draw(st.sampled_from(Compression)),
        metadata=metadata,
        created_by=draw(_texts),
        w_matrix_reference=draw(_map_ids if memory.header.coding.scheme is Scheme.PORT else _texts),
        alignment=draw(
            st.dictionaries(_texts, st.lists(st.integers(-9, 9) | st.booleans() | st.none(), max_size=2))
        ),
    )
    return memory, header, wires
