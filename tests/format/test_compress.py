"""Compression never grows a chunk; decompression never exceeds what the table or envelope says."""

from __future__ import annotations

import random
import struct
import tracemalloc

import lz4.block
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kvnet.errors import MalformedChunk
from kvnet.format.compress import compress, decompress, effective_level, suited_compression, zstd
from kvnet.plan import MAX_CHUNK_RAW_NBYTES
from kvnet.types import Coding, Compression, Kind, Scheme

TEXT = b"to be or not to be, " * 50
PACKED = tuple(used for used in Compression if used is not Compression.NONE)
NO_DATA = struct.pack("<II", 0x184D2A50, 4) + b"skip"  # a skippable frame
raws = st.builds(
    lambda unit, times, tail: (unit * times + tail)[: (len(unit) * times + len(tail)) // 4 * 4],
    st.binary(max_size=40),
    st.integers(1, 200),
    st.binary(max_size=60),
)


def wire_of(raw: bytes, wanted: Compression, itemsize: int = 2) -> bytes:
    """The wire bytes of a chunk that compresses."""
    used, wire = compress(raw, wanted, itemsize=itemsize)
    assert used is wanted
    return bytes(wire)


def refused(wire: bytes, used: Compression, raw_nbytes: int, itemsize: int = 2) -> None:
    """The wire bytes are refused, whichever buffer they come in."""
    for data in (wire, memoryview(wire)):
        with pytest.raises(MalformedChunk):
            decompress(data, used, raw_nbytes, itemsize=itemsize)


def planes(*parts: bytes) -> bytes:
    """Planes as SPLIT lays them out, the most significant first."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


@given(raws, st.sampled_from(Compression), st.sampled_from([2, 4]), st.integers(0, 5))
def test_decompress_is_the_inverse_of_compress(
    raw: bytes, wanted: Compression, itemsize: int, level: int
) -> None:
    used, wire = compress(raw, wanted, level=level, itemsize=itemsize)
    assert used in (wanted, Compression.NONE)
    assert len(wire) < len(raw) or (used is Compression.NONE and wire is raw)
    for data in (wire, memoryview(wire), bytearray(wire)):
        assert bytes(decompress(data, used, len(raw), itemsize=itemsize)) == raw
    assert bytes(compress(memoryview(raw), wanted, level=level, itemsize=itemsize)[1]) == bytes(wire)


@pytest.mark.parametrize("wanted", PACKED)
def test_zeros_shrink_and_noise_stays_as_it_is(wanted: Compression) -> None:
    assert len(wire_of(bytes(10_000), wanted)) < 100
    noise = random.Random(0).randbytes(4096)
    used, wire = compress(noise, wanted, itemsize=2)
    assert used is Compression.NONE
    assert wire is noise


def test_none_leaves_even_zeros_alone() -> None:
    zeros = bytes(100)
    assert compress(zeros, Compression.NONE) == (Compression.NONE, zeros)


@pytest.mark.parametrize("wanted", Compression)
def test_empty_chunk_is_left_alone(wanted: Compression) -> None:
    assert compress(b"", wanted, itemsize=2) == (Compression.NONE, b"")


def test_split_gains_on_floats_where_zstd_gains_little() -> None:
    source = random.Random(1)
    raw = struct.pack("<20000e", *(source.gauss(0, 1) for _ in range(20_000)))
    assert len(wire_of(raw, Compression.SPLIT)) < 0.95 * len(wire_of(raw, Compression.ZSTD))


def test_split_wire_is_the_planes_from_the_most_significant_down() -> None:
    raw = bytes(value for i in range(300) for value in (i * 37 % 256, i * 91 % 251, 0, 7))
    view = memoryview(wire_of(raw, Compression.SPLIT, itemsize=4))
    found = []
    for _ in range(4):
        (nbytes,) = struct.unpack_from("<I", view)
        found.append(bytes(view[4 : 4 + nbytes]))
        view = view[4 + nbytes :]
    assert not view
    assert [zstd.decompress(part) for part in found[:2]] == [b"\x07" * 300, bytes(300)]
    assert [part if len(part) == 300 else zstd.decompress(part) for part in found[2:]] == [
        raw[1::4],
        raw[0::4],
    ]


@pytest.mark.parametrize(
    ("wanted", "coding", "kind", "suited"),
    [
        (Compression.SPLIT, Coding(), Kind.KEY, Compression.SPLIT),
        (Compression.SPLIT, Coding(), Kind.VALUE, Compression.SPLIT),
        (Compression.SPLIT, Coding(), Kind.ATTENTION, Compression.ZSTD),
        (Compression.SPLIT, Coding(Scheme.GROUPED), Kind.KEY, Compression.ZSTD),
        (Compression.SPLIT, Coding(Scheme.TRANSFORM), Kind.VALUE, Compression.ZSTD),
        (Compression.LZ4, Coding(Scheme.GROUPED), Kind.KEY, Compression.LZ4),
        (Compression.NONE, Coding(), Kind.KEY, Compression.NONE),
    ],
)
def test_split_is_for_raw_keys_and_values(
    wanted: Compression, coding: Coding, kind: Kind, suited: Compression
) -> None:
    assert suited_compression(wanted, coding, kind) is suited


def test_levels_have_defaults_where_there_are_levels() -> None:
    assert [effective_level(wanted) for wanted in Compression] == [0, 0, 3, 1]
    assert [effective_level(wanted, 7) for wanted in Compression] == [0, 0, 7, 7]
    assert len(wire_of(TEXT, Compression.ZSTD)) <= len(compress(TEXT, Compression.ZSTD, level=-7)[1])


@pytest.mark.parametrize(("nbytes", "itemsize"), [(100, 0), (100, 1), (100, 3), (99, 2), (98, 4)])
def test_split_of_broken_elements_is_a_bug_here_and_a_refusal_there(nbytes: int, itemsize: int) -> None:
    with pytest.raises(ValueError, match="whole elements"):
        compress(bytes(nbytes), Compression.SPLIT, itemsize=itemsize)
    refused(planes(bytes(nbytes)), Compression.SPLIT, nbytes, itemsize)


BOMBS = {
    "lz4": (lz4.block.compress(bytes(64 << 20), store_size=False), Compression.LZ4),
    "zstd that states its size": (zstd.compress(bytes(64 << 20)), Compression.ZSTD),
    "zstd that does not": (
        (lambda c: c.compress(bytes(64 << 20), c.CONTINUE) + c.flush())(zstd.ZstdCompressor()),
        Compression.ZSTD,
    ),
    "split": (planes(zstd.compress(bytes(64 << 20)), bytes(2048)), Compression.SPLIT),
}


@pytest.mark.parametrize(("bomb", "used"), BOMBS.values(), ids=BOMBS)
def test_bomb_never_allocates_beyond_what_was_said(bomb: bytes, used: Compression) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(MalformedChunk):
            decompress(bomb, used, 4096, itemsize=2)
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("used", Compression)
def test_claim_beyond_a_mebibyte_is_refused_before_the_payload_is_read(used: Compression) -> None:
    tracemalloc.start()
    try:
        for claim in (MAX_CHUNK_RAW_NBYTES + 2, 2**32 - 2):
            with pytest.raises(MalformedChunk, match="claims"):
                decompress(b"anything", used, claim, itemsize=2)
        assert tracemalloc.get_traced_memory()[1] < 1 << 16
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("used", PACKED)
def test_wire_cut_at_any_byte_is_refused(used: Compression) -> None:
    wire = wire_of(TEXT, used)
    for nbytes in range(len(wire)):
        refused(wire[:nbytes], used, len(TEXT))


@pytest.mark.parametrize("used", PACKED)
def test_bytes_behind_the_wire_are_refused(used: Compression) -> None:
    wire = wire_of(TEXT, used)
    for tail in (b"\0", b"anything", wire, NO_DATA):
        refused(wire + tail, used, len(TEXT))


@pytest.mark.parametrize("used", Compression)
@pytest.mark.parametrize("change", [-2, 2, 100])
def test_any_other_size_than_the_stated_is_refused(used: Compression, change: int) -> None:
    wire = TEXT if used is Compression.NONE else wire_of(TEXT, used)
    refused(wire, used, len(TEXT) + change)


def test_frame_without_a_stated_size_is_taken_if_it_has_the_right_one() -> None:
    compressor = zstd.ZstdCompressor()
    wire = compressor.compress(TEXT, compressor.CONTINUE) + compressor.flush()
    assert zstd.get_frame_info(wire).decompressed_size is None
    assert decompress(wire, Compression.ZSTD, len(TEXT)) == TEXT
    for change in (-1, 1):
        refused(wire, Compression.ZSTD, len(TEXT) + change)


def test_skippable_and_joined_frames_are_refused() -> None:
    refused(NO_DATA, Compression.ZSTD, 0)
    refused(NO_DATA + zstd.compress(TEXT), Compression.ZSTD, len(TEXT))
    refused(zstd.compress(TEXT[:500]) + zstd.compress(TEXT[500:]), Compression.ZSTD, len(TEXT))
    compressor = zstd.ZstdCompressor()
    half = compressor.compress(TEXT[:500], compressor.CONTINUE) + compressor.flush()
    refused(half + zstd.compress(TEXT[500:]), Compression.ZSTD, len(TEXT))


def test_frame_with_a_dictionary_is_refused() -> None:
    samples = [b"the same words again and again %d" % (i % 7) for i in range(2000)]
    trained = zstd.train_dict(samples, 1024)
    wire = zstd.compress(TEXT, zstd_dict=trained)
    assert zstd.get_frame_info(wire).dictionary_id
    refused(wire, Compression.ZSTD, len(TEXT))
    raw_dictionary = zstd.ZstdDict(TEXT, is_raw=True)  # names no id, and cannot be decoded without it
    refused(zstd.compress(TEXT, zstd_dict=raw_dictionary), Compression.ZSTD, len(TEXT))


def test_window_beyond_8_mib_is_refused() -> None:
    parameter = zstd.CompressionParameter
    for log in (23, 24):
        options = {parameter.window_log: log, parameter.content_size_flag: 0}
        compressor = zstd.ZstdCompressor(options=options)
        wire = compressor.compress(TEXT, compressor.CONTINUE) + compressor.flush()
        if log == 23:
            assert decompress(wire, Compression.ZSTD, len(TEXT)) == TEXT
        else:
            refused(wire, Compression.ZSTD, len(TEXT))


def test_flipped_checksum_of_a_frame_is_refused() -> None:
    wire = bytearray(zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1}))
    assert decompress(bytes(wire), Compression.ZSTD, len(TEXT)) == TEXT
    wire[-1] ^= 1
    refused(bytes(wire), Compression.ZSTD, len(TEXT))


def test_plane_of_another_length_is_refused() -> None:
    high, low = bytes(100), bytes(range(100))
    assert bytes(decompress(planes(high, low), Compression.SPLIT, 200, itemsize=2))[0::2] == low
    for wire in (
        planes(high, low + b"\0"),
        planes(high, low[:-1]),
        planes(high),
        planes(high, low, b""),
        planes(high) + struct.pack("<I", 2**32 - 1) + low,
        planes(zstd.compress(bytes(99)), low),
        planes(zstd.compress(bytes(101)), low),
        planes(b"", low),
    ):
        refused(wire, Compression.SPLIT, 200)


@pytest.mark.parametrize("used", PACKED)
@given(wire=st.binary(max_size=100), raw_nbytes=st.integers(0, 5000))
def test_noise_has_the_right_size_or_is_refused(used: Compression, wire: bytes, raw_nbytes: int) -> None:
    try:
        raw = decompress(wire, used, raw_nbytes, itemsize=2)
    except MalformedChunk:
        return
    assert len(raw) == raw_nbytes


@pytest.mark.parametrize("used", PACKED)
@given(st.data())
def test_flipped_byte_gives_the_right_size_or_is_refused(used: Compression, data: st.DataObject) -> None:
    wire = bytearray(wire_of(TEXT, used))
    at, value = data.draw(st.integers(0, len(wire) - 1)), data.draw(st.integers(0, 255))
    assume(wire[at] != value)
    wire[at] = value
    try:
        raw = decompress(wire, used, len(TEXT), itemsize=2)
    except MalformedChunk:
        return
    assert len(raw) == len(TEXT)


_CHECKED = zstd.compress(TEXT, options={zstd.CompressionParameter.checksum_flag: 1})
_NAMED = zstd.compress(
    TEXT,
    zstd_dict=zstd.train_dict([b"the same words again and again %d" % (i % 7) for i in range(2000)], 1024),
)
_WIDE = (lambda c: c.compress(TEXT, c.CONTINUE) + c.flush())(
    zstd.ZstdCompressor(
        options={zstd.CompressionParameter.window_log: 24, zstd.CompressionParameter.content_size_flag: 0}
    )
)
REASONS = {
    "a dictionary": (_NAMED, "wants a dictionary"),
    "a wide window": (_WIDE, "wants a window of"),
    "another length": (zstd.compress(TEXT + b"x"), f"states {len(TEXT) + 1} bytes"),
    "a header cut short": (_CHECKED[:6], "ends within the frame's header"),
    "nothing but the magic": (_CHECKED[:4], "ends after the magic number"),
    "no checksum where one is due": (_CHECKED[:-4], "does not end after"),
    "rubbish": (_CHECKED[:7] + b"\xff" * 40, "does not decompress to"),
}


@pytest.mark.parametrize(("wire", "why"), REASONS.values(), ids=REASONS)
def test_frame_is_refused_for_what_is_wrong_with_it(wire: bytes, why: str) -> None:
    with pytest.raises(MalformedChunk, match=why):
        decompress(wire, Compression.ZSTD, len(TEXT))


@pytest.mark.parametrize(
    ("wire", "raw_nbytes", "itemsize", "why"),
    [
        (planes(bytes(49), bytes(49)), 99, 2, "99 bytes of itemsize 2"),
        (planes(*[bytes(24)] * 4), 98, 4, "98 bytes of itemsize 4"),
        (planes(zstd.compress(b"abcd"), b"abcd"), 8, 2, "a plane of 13 bytes, at most 4"),
        (planes(b"abcd", b"abcd")[:-1], 8, 2, "a plane of 4 bytes, at most 4 and all there"),
    ],
    ids=["odd length", "broken elements", "a frame longer than its plane", "the last plane cut short"],
)
def test_planes_are_refused_for_what_is_wrong_with_them(
    wire: bytes, raw_nbytes: int, itemsize: int, why: str
) -> None:
    with pytest.raises(MalformedChunk, match=why):
        decompress(wire, Compression.SPLIT, raw_nbytes, itemsize=itemsize)
