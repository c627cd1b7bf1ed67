"""Small memories, keys, offers and receivers for the tests. Made from numbers: the same on every run."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from kvnet.format.awkg import AwkgHeader, Metadata, SectionFacts, make_sections
from kvnet.format.compress import compress
from kvnet.format.envelope import Envelope
from kvnet.identity.keys import NodeKey
from kvnet.identity.seal import VerifiedHead, seal_head, verify_head
from kvnet.plan import (
    MAX_CHUNK_RAW_NBYTES,
    ChunkKey,
    count_chunks,
    count_transfer_chunks,
    plan_memory,
    plan_transfer,
    raw_nbytes_range,
)
from kvnet.transfer.admission import Receiver
from kvnet.transfer.messages import Limits, Offer
from kvnet.transfer.sender import WireChunk
from kvnet.types import (
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
    TransferId,
    chunk_digest,
    content_digest,
    sha256_hex,
)

NOW = 1_800_000_000
SENDER = NodeKey(b"\x01" * 32)
RECEIVER = NodeKey(b"\x02" * 32)
STRANGER = NodeKey(b"\x03" * 32)
RAW = Coding()
INT8 = Coding(Scheme.GROUPED, key_bits=8, value_bits=8, group_size=8)
MAP_ID = "map_" + "m" * 52  # what made the coordinates of the port-coded memories here


def make_fingerprint(**changes: Any) -> Fingerprint:
    """A model that exists nowhere."""
    plain = Fingerprint(
        model="tiny",
        architecture="LlamaForCausalLM",
        config_digest=sha256_hex(b"config"),
        tokenizer_digest=sha256_hex(b"tokenizer"),
        weights_digest=sha256_hex(b"weights"),
        quantization="none",
    )
    return replace(plain, **changes)


def make_geometry(**changes: Any) -> Geometry:
    """Three layers of two heads: 32 bytes a token and layer."""
    return replace(Geometry(3, 2, 4, DType.FLOAT32, Rope("default", 10000.0)), **changes)


def make_memory(
    seed: int = 0,
    *,
    seq_len: int = 5,
    coding: Coding = RAW,
    attention_heads: int = 0,
    derived_from: str = "",
    **changes: Any,
) -> RawMemory:
    """A whole memory; even chunks compress, odd ones do not. `changes` go to its geometry."""
    claims = MemoryHeader(
        fingerprint=make_fingerprint(),
        geometry=make_geometry(**changes),
        seq_len=seq_len,
        start_pos=0,
        key_space=KeySpace.ROTATED if coding.scheme is Scheme.RAW else KeySpace.CONTENT,
        token_digest=sha256_hex(f"tokens {seed}".encode()),
        content_digest="",
        coding=coding,
        attention_heads=attention_heads,
        derived_from=derived_from,
    )
    source = random.Random(seed)
    chunks = []
    for key in plan_memory(claims):
        nbytes = raw_nbytes_range(claims, key)[-1]
        chunks.append(source.randbytes(nbytes) if key.index % 2 else bytes([seed % 256]) * nbytes)
    digest = content_digest([chunk_digest(chunk) for chunk in chunks])
    return RawMemory(replace(claims, content_digest=digest), tuple(chunks))


def make_basis(nbytes: int = 300) -> tuple[Coding, bytes]:
    """A transform coding and the bytes of its calibration, which mean nothing."""
    basis = random.Random(nbytes).randbytes(nbytes)
    coding = Coding(
        Scheme.TRANSFORM, sink_tokens=1, recent_tokens=2, basis=sha256_hex(basis), basis_nbytes=nbytes
    )
    return coding, basis


def make_port(nbytes: int = 300, *, bits: int = 8) -> tuple[Coding, bytes]:
    """A port coding and the bytes of its port, which mean nothing."""
    port = random.Random(-nbytes).randbytes(nbytes)
    return Coding(Scheme.PORT, bits, bits, basis=sha256_hex(port), basis_nbytes=nbytes), port


def wire_chunks(
    memory: RawMemory, wanted: Compression = Compression.LZ4
) -> tuple[tuple[WireChunk, ...], tuple[bytes, ...]]:
    """What a sender knows of a memory's chunks, and their payloads."""
    chunks, payloads = [], []
    for key, raw in zip(plan_memory(memory.header), memory.chunks, strict=True):
        used, packed = compress(raw, wanted)
        payload = bytes(packed)
        chunks.append(WireChunk(key, used, len(raw), len(payload), chunk_digest(payload)))
        payloads.append(payload)
    return tuple(chunks), tuple(payloads)


def wire_basis(header: MemoryHeader, basis: bytes) -> tuple[tuple[WireChunk, ...], tuple[bytes, ...]]:
    """The chunks that follow those of the memory, where its basis goes with it."""
    keys = plan_transfer(header)[count_chunks(header) :]
    payloads = tuple(basis[key.start : key.stop] for key in keys)
    pairs = zip(keys, payloads, strict=True)
    chunks = (WireChunk(k, Compression.NONE, len(p), len(p), chunk_digest(p)) for k, p in pairs)
    return tuple(chunks), payloads


def make_head(
    memory: RawMemory, *, key: NodeKey = SENDER, wanted: Compression = Compression.LZ4
) -> VerifiedHead:
    """The sealed head of the file that holds `wire_chunks(memory)`."""
    chunks, _ = wire_chunks(memory, wanted)
    facts = [(c.compression, c.wire_nbytes, c.raw_nbytes, c.wire_digest) for c in chunks]
    header = AwkgHeader(
        memory=memory.header,
        sections=make_sections(memory.header, [SectionFacts(*fact) for fact in facts]),
        compression=wanted,
        compression_level=0,
        created_at="2027-01-15T08:00:00Z",
        created_by="alice",
        signed_by=key.node_id,
        metadata=Metadata("", "", "", None, memory.header.seq_len),
        w_matrix_reference=MAP_ID if memory.header.coding.scheme is Scheme.PORT else "",
    )
    return verify_head(seal_head(key, header))


def make_offer(memory: RawMemory | MemoryHeader, **changes: Any) -> Offer:
    """An offer from SENDER to RECEIVER, valid for ten minutes from NOW."""
    header = memory.header if isinstance(memory, RawMemory) else memory
    plain = Offer(
        transfer_id=TransferId("0123456789abcdef" * 2),
        memory=header,
        sender=SENDER.node_id,
        receiver=RECEIVER.node_id,
        chunk_count=changes.pop("chunk_count") if "chunk_count" in changes else count_transfer_chunks(header),
        created_at=NOW,
        expires_at=NOW + 600,
        map=MAP_ID if header.coding.scheme is Scheme.PORT else "",
    )
    return replace(plain, **changes)


def make_receiver(**changes: Any) -> Receiver:
    """A node that hosts the very model of `make_memory` and has room for a few of them."""
    plain = Receiver(
        node_id=RECEIVER.node_id,
        fingerprint=make_fingerprint(),
        geometry=make_geometry(),
        limits=Limits(max_seq_len=64),
        free_nbytes=1 << 20,
    )
    return replace(plain, **changes)


def make_envelope(payload: bytes = b"payload", **changes: Any) -> Envelope:
    """The envelope of an uncompressed chunk from SENDER to RECEIVER."""
    plain = Envelope(
        sender_key=SENDER.public,
        receiver_key=RECEIVER.public,
        transfer_id=b"t" * 16,
        nonce=b"n" * 16,
        offer_digest=b"o" * 32,
        key=ChunkKey(1, 0, Kind.VALUE, 0, 5),
        total=6,
        compression=Compression.NONE,
        raw_nbytes=len(payload),
        wire_nbytes=len(payload),
        wire_digest=chunk_digest(payload),
    )
    return replace(plain, **changes)


_u32 = st.integers(0, 2**32 - 1)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope:
    """Any envelope that `pack` may produce."""
    compression = draw(st.sampled_from(Compression))
    raw_nbytes = draw(st.integers(0, MAX_CHUNK_RAW_NBYTES))
    wire_nbytes = raw_nbytes if compression is Compression.NONE else draw(st.integers(0, raw_nbytes))
    return Envelope(
        sender_key=draw(st.binary(min_size=32, max_size=32)),
        receiver_key=draw(st.binary(min_size=32, max_size=32)),
        transfer_id=draw(st.binary(min_size=16, max_size=16)),
        nonce=draw(st.binary(min_size=16, max_size=16)),
        offer_digest=draw(st.binary(min_size=32, max_size=32)),
        key=ChunkKey(draw(_u32), draw(_u32), draw(st.sampled_from(Kind)), draw(_u32), draw(_u32)),
        total=draw(_u32),
        compression=compression,
        raw_nbytes=raw_nbytes,
        wire_nbytes=wire_nbytes,
        wire_digest=draw(st.binary(min_size=32, max_size=32)),
    )
