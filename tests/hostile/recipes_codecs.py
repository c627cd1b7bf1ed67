"""Sections that do not decompress to their raw length, bombs among them, digested and signed: rule 10."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.hostile.bases import MALFORMED_CHUNK, OK, Case, file_case, wired, zeros
from tests.hostile.frames import (
    COMPRESSED,
    RAW,
    RESERVED,
    RLE,
    block,
    lz4_zeros,
    skippable,
    zero_blocks,
    zstd_frame,
    zstd_zeros,
)

_NBYTES = 2048  # of a section of `zeros`
_MIB = 1 << 20


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _valid()
    yield from _lz4()
    yield from _zstd_lengths()
    yield from _zstd_frames()
    yield from _zstd_fields()
    yield from _split()


def _valid() -> Iterator[Case]:
    plane = _NBYTES // 4
    yield wired("valid_lz4", "lz4", lz4_zeros(_NBYTES), OK)
    yield wired("valid_zstd", "zstd", zstd_zeros(_NBYTES), OK)
    yield wired("valid_zstd_undeclared", "zstd", zstd_frame(zero_blocks(_NBYTES)), OK)
    single = zstd_frame(zero_blocks(_NBYTES), declared=_NBYTES, window_log=None)
    yield wired("valid_zstd_single_segment", "zstd", single, OK)
    yield wired("valid_zstd_window_8_mib", "zstd", zstd_frame(zero_blocks(_NBYTES), window_log=23), OK)
    yield wired("valid_split", "split", _planes([zstd_zeros(plane)] * 4), OK)
    yield wired(
        "valid_split_with_whole_planes", "split", _planes([bytes(plane)] * 2 + [zstd_zeros(plane)] * 2), OK
    )


def _lz4() -> Iterator[Case]:
    whole = lz4_zeros(_NBYTES)
    wrong = {
        "one_too_many": lz4_zeros(_NBYTES + 1),
        "one_too_few": lz4_zeros(_NBYTES - 1),
        "bomb_500_kib": lz4_zeros(500 << 10),
        "stored_size": struct.pack("<I", _NBYTES) + whole,
        "frame_format": b"\x04\x22\x4d\x18\x60\x40\x82" + struct.pack("<I", len(whole)) + whole + bytes(4),
        "trailing_byte": whole + b"\0",
        "truncated": whole[:-1],
        "truncated_in_half": whole[: len(whole) // 2],
        "only_a_token": b"\x1f",
        "literals_beyond_the_end": b"\xf0" + b"\xff" * 60 + bytes(20),
        "offset_before_the_start": b"\x1f\x00\xff\xff" + whole[4:],
        "length_never_ends": b"\x1f\x00\x01\x00" + b"\xff" * 500,
        "noise": bytes(range(1, 200)),
        "a_zstd_frame": zstd_zeros(_NBYTES),
    }
    for name, wire in wrong.items():
        yield wired(f"lz4_{name}", "lz4", wire, MALFORMED_CHUNK)


def _zstd_lengths() -> Iterator[Case]:
    for name, nbytes in {"one_too_many": _NBYTES + 1, "one_too_few": _NBYTES - 1, "a_byte": 1}.items():
        yield wired(f"zstd_{name}", "zstd", zstd_zeros(nbytes), MALFORMED_CHUNK)
        yield wired(f"zstd_{name}_undeclared", "zstd", zstd_frame(zero_blocks(nbytes)), MALFORMED_CHUNK)
        lying = zstd_zeros(nbytes, declared=_NBYTES)
        yield wired(f"zstd_{name}_that_declares_the_raw_length", "zstd", lying, MALFORMED_CHUNK)
    yield wired("zstd_empty_frame", "zstd", zstd_frame(block(RAW, 0, b"", last=True)), MALFORMED_CHUNK)
    for name, nbytes in {"56_mib": 56 * _MIB, "8_mib": 8 * _MIB}.items():
        bomb = zero_blocks(nbytes)
        yield wired(f"zstd_bomb_{name}", "zstd", zstd_zeros(nbytes), MALFORMED_CHUNK)
        yield wired(f"zstd_bomb_{name}_undeclared", "zstd", zstd_frame(bomb), MALFORMED_CHUNK)
        lying = zstd_zeros(nbytes, declared=_NBYTES)
        yield wired(f"zstd_bomb_{name}_that_declares_the_raw_length", "zstd", lying, MALFORMED_CHUNK)
    for declared in (0, _NBYTES - 1, _NBYTES + 1, 2**32 - 1):
        frame = zstd_frame(zero_blocks(_NBYTES), declared=declared)
        yield wired(f"zstd_declares_{declared}", "zstd", frame, MALFORMED_CHUNK)
    for declared in (2**32, 2**63, 2**64 - 1):
        frame = zstd_frame(zero_blocks(_NBYTES), declared=declared, declared_nbytes=8)
        yield wired(f"zstd_declares_{declared}", "zstd", frame, MALFORMED_CHUNK)
        single = zstd_frame(zero_blocks(_NBYTES), declared=declared, declared_nbytes=8, window_log=None)
        yield wired(f"zstd_declares_{declared}_in_one_segment", "zstd", single, MALFORMED_CHUNK)


def _zstd_frames() -> Iterator[Case]:
    whole, half = zstd_zeros(_NBYTES), zstd_zeros(_NBYTES // 2)
    wrong = {
        "trailing_byte": whole + b"\0",
        "trailing_text": whole + b"behind the frame",
        "two_frames": whole + whole,
        "two_halves": half + half,
        "empty_frame_behind": whole + zstd_frame(block(RAW, 0, b"", last=True)),
        "skippable_before": skippable(b"hidden") + whole,
        "skippable_behind": whole + skippable(b"hidden"),
        "skippable_alone": skippable(b"hidden"),
        "skippable_of_4_gib": struct.pack("<II", 0x184D2A5F, 2**32 - 1) + whole,
        "truncated": whole[:-1],
        "magic_alone": whole[:4],
        "header_alone": whole[:10],
        "magic_of_another_version": b"\x27\xb5\x2f\xfd" + whole[4:],
        "byte_before": b"\0" + whole,
        "no_last_block": zstd_frame(zero_blocks(_NBYTES, finished=False), declared=_NBYTES),
        "block_behind_the_last": whole + block(RLE, 5, b"\0", last=True),
        "lz4_block": lz4_zeros(_NBYTES),
        "noise": bytes(range(1, 250)),
    }
    for name, wire in wrong.items():
        yield wired(f"zstd_{name}", "zstd", wire, MALFORMED_CHUNK)


def _zstd_fields() -> Iterator[Case]:
    blocks = zero_blocks(_NBYTES)
    for log in (24, 27, 31, 41):
        yield wired(f"zstd_window_2_{log}", "zstd", zstd_frame(blocks, window_log=log), MALFORMED_CHUNK)
        frame = zstd_frame(blocks, window_log=log, declared=_NBYTES)
        yield wired(f"zstd_window_2_{log}_declared", "zstd", frame, MALFORMED_CHUNK)
    for name, dictionary in {"1": b"\x01", "2": b"\x01\x02", "4": b"\x01\x02\x03\x04"}.items():
        frame = zstd_frame(blocks, declared=_NBYTES, dictionary=dictionary)
        yield wired(f"zstd_dictionary_id_of_{name}", "zstd", frame, MALFORMED_CHUNK)
    yield wired("zstd_reserved_bit", "zstd", zstd_frame(blocks, flags=8), MALFORMED_CHUNK)
    summed = zstd_frame(blocks, declared=_NBYTES, flags=4, tail=b"\x01\x02\x03\x04")
    yield wired("zstd_wrong_checksum", "zstd", summed, MALFORMED_CHUNK)
    yield wired("zstd_missing_checksum", "zstd", zstd_frame(blocks, flags=4), MALFORMED_CHUNK)
    kinds = {"reserved_block": RESERVED, "compressed_block_of_noise": COMPRESSED}
    for name, kind in kinds.items():
        frame = zstd_frame(block(kind, 9, bytes(range(9)), last=True), declared=_NBYTES)
        yield wired(f"zstd_{name}", "zstd", frame, MALFORMED_CHUNK)
    beyond = zstd_frame(block(RLE, (1 << 21) - 1, b"\0", last=True))
    yield wired("zstd_block_beyond_128_kib", "zstd", beyond, MALFORMED_CHUNK)
    yield wired(
        "zstd_raw_block_beyond_the_end",
        "zstd",
        zstd_frame(block(RAW, 2000, b"abc", last=True)),
        MALFORMED_CHUNK,
    )


def _planes(planes: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(plane)) + plane for plane in planes)


def _split() -> Iterator[Case]:
    plane = _NBYTES // 4
    good, whole = zstd_zeros(plane), bytes(plane)
    wrong = {
        "three_planes": _planes([good] * 3),
        "five_planes": _planes([good] * 5),
        "trailing_byte": _planes([good] * 4) + b"\0",
        "truncated": _planes([good] * 4)[:-1],
        "truncated_length": _planes([good] * 3) + b"\0\0",
        "length_0": _planes([good] * 3 + [b""]),
        "length_2_31": _planes([good] * 3) + struct.pack("<I", 2**31) + good,
        "length_2_32_less_1": _planes([good] * 3) + struct.pack("<I", 2**32 - 1) + good,
        "length_beyond_the_end": _planes([good] * 3) + struct.pack("<I", len(good) + 1) + good,
        "length_short_of_the_frame": _planes([good] * 3) + struct.pack("<I", len(good) - 1) + good,
        "plane_too_long": _planes([good] * 3 + [whole + b"\0"]),
        "plane_short_and_not_a_frame": _planes([good] * 3 + [whole[:-1]]),
        "plane_of_one_less": _planes([good] * 3 + [zstd_zeros(plane - 1)]),
        "plane_of_one_more": _planes([good] * 3 + [zstd_zeros(plane + 1)]),
        "plane_bomb": _planes([good] * 3 + [zstd_frame(zero_blocks(8 * _MIB))]),
        "plane_bomb_declared": _planes([good] * 3 + [zstd_zeros(8 * _MIB)]),
        "plane_bomb_that_lies": _planes([good] * 3 + [zstd_zeros(8 * _MIB, declared=plane)]),
        "plane_with_skippable": _planes([good] * 3 + [skippable(b"x") + good]),
        "plane_of_two_frames": _planes([good] * 3 + [zstd_zeros(plane // 2) * 2]),
        "plane_window_2_27": _planes([good] * 3 + [zstd_frame(zero_blocks(plane), window_log=27)]),
        "plane_dictionary": _planes([good] * 3 + [zstd_frame(zero_blocks(plane), dictionary=b"\x01")]),
        "one_frame": zstd_zeros(_NBYTES),
        "nothing_but_lengths": bytes(16),
        "first_plane_takes_all": _planes([whole + whole]),
    }
    for name, wire in wrong.items():
        yield wired(f"split_{name}", "split", wire, MALFORMED_CHUNK)
    halves = zeros("bfloat16", 128)
    halves.codecs[0], halves.wires[0] = "split", _planes([good] * 4)
    yield file_case("split_four_planes_of_bfloat16", MALFORMED_CHUNK, halves.describe().sign())
