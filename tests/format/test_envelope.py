"""208 bytes, no more and no less, and none of them without a meaning."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedChunk
from kvnet.format.envelope import ENVELOPE_NBYTES, Envelope
from kvnet.plan import MAX_CHUNK_RAW_NBYTES, ChunkKey
from kvnet.types import Compression, Kind
from tests.builders import envelopes, make_envelope

GOLDEN = Path(__file__).parent.parent / "golden" / "envelope_v2.hex"
PACKED = make_envelope().pack()


def with_bytes(offset: int, layout: str, *values: int) -> bytes:
    """PACKED with some of its bytes replaced."""
    data = bytearray(PACKED)
    struct.pack_into(layout, data, offset, *values)
    return bytes(data)


@given(envelopes())
def test_unpack_is_the_inverse_of_pack(envelope: Envelope) -> None:
    packed = envelope.pack()
    assert len(packed) == ENVELOPE_NBYTES
    assert Envelope.unpack(packed) == envelope


def test_packed_envelope_is_what_it_always_was() -> None:
    envelope = Envelope(
        sender_key=bytes(range(32)),
        receiver_key=bytes(range(32, 64)),
        transfer_id=bytes(range(64, 80)),
        nonce=bytes(range(80, 96)),
        offer_digest=bytes(range(96, 128)),
        key=ChunkKey(
            index=0x01020304, layer_idx=0x05060708, kind=Kind.VALUE, start=0x0A0B0C0D, stop=0x0E0F1011
        ),
        total=0x12131415,
        compression=Compression.LZ4,
        raw_nbytes=0x000D1617,
        wire_nbytes=0x00031819,
        wire_digest=bytes(range(128, 160)),
    )
    golden = bytes.fromhex(GOLDEN.read_text())
    assert envelope.pack() == golden
    assert Envelope.unpack(golden) == envelope


@pytest.mark.parametrize("length", [*range(ENVELOPE_NBYTES), ENVELOPE_NBYTES + 1, 4096])
def test_any_other_length_is_refused(length: int) -> None:
    with pytest.raises(MalformedChunk, match=f"{length} bytes"):
        Envelope.unpack((PACKED * 20)[:length])


def test_every_flipped_bit_is_refused_or_seen() -> None:
    envelope = Envelope.unpack(PACKED)
    for bit in range(8 * ENVELOPE_NBYTES):
        flipped = bytearray(PACKED)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            other = Envelope.unpack(bytes(flipped))
        except MalformedChunk:
            continue
        assert other != envelope, f"bit {bit} means nothing"
        assert other.pack() == bytes(flipped)


@given(st.binary(min_size=ENVELOPE_NBYTES, max_size=ENVELOPE_NBYTES))
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedChunk, match="domain"):
        Envelope.unpack(data)


HOSTILE = {
    "another version": with_bytes(13, "<B", ord("1")),
    "kind 5": with_bytes(148, "<B", 5),
    "compression 4": with_bytes(149, "<B", 4),
    "reserved bytes": with_bytes(150, "<H", 1),
    "raw length of 4 GiB": with_bytes(168, "<II", 2**32 - 1, 7),
    "raw length over the limit": with_bytes(168, "<II", MAX_CHUNK_RAW_NBYTES + 1, 7),
    "wire longer than raw": with_bytes(168, "<II", 7, 8),
    "uncompressed but shorter than raw": with_bytes(168, "<II", 8, 7),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_hostile_field_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedChunk):
        Envelope.unpack(data)


@pytest.mark.parametrize(
    ("raw_nbytes", "wire_nbytes"), [(MAX_CHUNK_RAW_NBYTES + 1, 7), (7, 8)], ids=["too much", "it grew"]
)
def test_compressed_chunk_is_neither_too_long_nor_longer_than_raw(raw_nbytes: int, wire_nbytes: int) -> None:
    hostile = make_envelope(compression=Compression.LZ4, raw_nbytes=raw_nbytes, wire_nbytes=wire_nbytes)
    with pytest.raises(MalformedChunk, match=f"raw {raw_nbytes} and wire {wire_nbytes} bytes"):
        Envelope.unpack(hostile.pack())
