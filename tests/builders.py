"""Small memories, keys, offers and receivers for the tests. Made from numbers: the same on every run."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from kvnet.format.compress import compress
from kvnet.format.envelope import Envelope
from kvnet.identity.keys import NodeKey
from kvnet.transfer.admission import Receiver
from kvnet.transfer.messages import Limits, Offer
from kvnet.transfer.sender import WireChunk
from kvnet.types import (
    MAX_CHUNK_RAW_NBYTES,
    ChunkKey,
    Compression,
    DType,
    Fingerprint,
    Geometry,
    KeySpace,
    Kind,
    MemoryHeader,
    RawMemory,
    Rope,
    TransferId,
    content_digest,
    plan_chunks,
    sha256_hex,
)

NOW = 1_800_000_000
SENDER = NodeKey(b"\x01" * 32)
RECEIVER = NodeKey(b"\x02" * 32)
STRANGER = NodeKey(b"\x03" * 32)


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


def make_memory(seed: int = 0, *, seq_len: int = 5, **changes: Any) -> RawMemory:
    """A whole memory; even chunks compress, odd ones do not. `changes` go to its geometry."""
    geometry = make_geometry(**changes)
    source = random.Random(seed)
    chunks = []
    for key in plan_chunks(geometry, seq_len):
        nbytes = key.raw_nbytes(geometry)
        chunks.append(source.randbytes(nbytes) if key.index % 2 else bytes([seed % 256]) * nbytes)
    header = MemoryHeader(
        fingerprint=make_fingerprint(),
        geometry=geometry,
        seq_len=seq_len,
        start_pos=0,
        key_space=KeySpace.ROTATED,
        token_digest=sha256_hex(f"tokens {seed}".encode()),
        content_digest=content_digest([hashlib.sha256(chunk).digest() for chunk in chunks]),
    )
    return RawMemory(header, tuple(chunks))


def wire_chunks(
    memory: RawMemory, wanted: Compression = Compression.LZ4
) -> tuple[tuple[WireChunk, ...], tuple[bytes, ...]]:
    """What a sender knows of a memory's chunks, and their payloads."""
    header = memory.header
    chunks, payloads = [], []
    for key, raw in zip(plan_chunks(header.geometry, header.seq_len), memory.chunks, strict=True):
        used, packed = compress(raw, wanted)
        payload = bytes(packed)
        chunks.append(WireChunk(key, used, len(raw), len(payload), hashlib.sha256(payload).digest()))
        payloads.append(payload)
    return tuple(chunks), tuple(payloads)


def make_offer(memory: RawMemory | MemoryHeader, **changes: Any) -> Offer:
    """An offer from SENDER to RECEIVER, valid for ten minutes from NOW."""
    header = memory.header if isinstance(memory, RawMemory) else memory
    plain = Offer(
        transfer_id=TransferId("0123456789abcdef" * 2),
        memory=header,
        sender=SENDER.node_id,
        receiver=RECEIVER.node_id,
        chunk_count=2 * header.geometry.num_layers,
        created_at=NOW,
        expires_at=NOW + 600,
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
        wire_digest=hashlib.sha256(payload).digest(),
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
