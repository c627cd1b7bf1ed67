"""Chunks whose numbers break a rule of FORMAT.md §8, correctly digested and signed: rule 12."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.hostile.bases import (
    MALFORMED_CHUNK,
    NOT_FINITE,
    OK,
    Case,
    file_case,
    grouped,
    raw,
    rawed,
    transform,
)

_F32 = {"nan": 0x7FC00000, "signalling_nan": 0x7F800001, "infinity": 0x7F800000, "minus_infinity": 0xFF800000}
_F32 |= {"minus_nan": 0xFFC00000, "largest_nan": 0x7FFFFFFF}
_BF16 = {name: bits >> 16 for name, bits in _F32.items() if name not in ("signalling_nan",)}
_F16 = {
    "nan": 0x7E00,
    "signalling_nan": 0x7C01,
    "infinity": 0x7C00,
    "minus_infinity": 0xFC00,
    "largest_nan": 0x7FFF,
}
_BITS = {"float32": _F32, "float16": _F16, "bfloat16": _BF16}


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _raw()
    yield from _grouped()
    yield from _grouped_overflows()
    yield from _transform()
    yield from _exact_tokens()
    yield from _attention()


def _put(at: int, pattern: str, *values: float) -> Callable[[bytearray], None]:
    return lambda data: struct.pack_into("<" + pattern, data, at, *values)


def _raw() -> Iterator[Case]:
    for dtype, bits in _BITS.items():
        pattern = "I" if dtype == "float32" else "H"
        for name, value in bits.items():
            change = _put(0, pattern, value)
            yield rawed(f"raw_{dtype}_{name}_first_key", 0, change, NOT_FINITE, raw(dtype=dtype))
        itemsize = struct.calcsize(pattern)
        for kind, index in {"key": 3, "value": 4}.items():
            for name in ("nan", "infinity"):
                last = _put(24 * itemsize - itemsize, pattern, bits[name])
                yield rawed(f"raw_{dtype}_{name}_last_{kind}", index, last, NOT_FINITE, raw(dtype=dtype))
    for name, value in {"largest": 0x7F7FFFFF, "subnormal": 1, "minus_zero": 0x80000000}.items():
        yield rawed(f"raw_float32_{name}", 0, _put(0, "I", value), OK, raw())


def _grouped() -> Iterator[Case]:
    """8-bit keys: 6 scales, 33 codes. 4-bit values: 11 minima, 11 steps, 17 bytes of codes."""
    for name, bits in _BF16.items():
        yield rawed(f"grouped_scale_{name}", 0, _put(0, "H", bits), NOT_FINITE, grouped())
        yield rawed(f"grouped_minimum_{name}", 1, _put(0, "H", bits), NOT_FINITE, grouped())
        yield rawed(f"grouped_step_{name}", 1, _put(22, "H", bits), NOT_FINITE, grouped())
    yield rawed("grouped_last_scale_nan", 0, _put(10, "H", _BF16["nan"]), NOT_FINITE, grouped())
    for name, bits in {"one": 0xBF80, "smallest": 0x8001}.items():
        yield rawed(f"grouped_scale_minus_{name}", 0, _put(0, "H", bits), MALFORMED_CHUNK, grouped())
        yield rawed(f"grouped_step_minus_{name}", 1, _put(22, "H", bits), MALFORMED_CHUNK, grouped())
    yield rawed("grouped_minimum_minus_one", 1, _put(0, "H", 0xBF80), OK, grouped())
    yield rawed("grouped_scale_zero", 0, _put(0, "H", 0), OK, grouped())
    for name, at in {"first": 12, "last": 44}.items():
        yield rawed(f"grouped_code_of_minus_128_{name}", 0, _put(at, "b", -128), MALFORMED_CHUNK, grouped())
    last = _put(60, "B", 0x10)
    yield rawed("grouped_last_half_byte_not_zero", 1, last, MALFORMED_CHUNK, grouped())


def _grouped_overflows() -> Iterator[Case]:
    """Codes and scales that are fine, and numbers that the dtype does not hold."""
    huge = _put(0, "H", 0x7F7F)

    def overflow(data: bytearray) -> None:
        huge(data)
        struct.pack_into("<b", data, 12, 127)

    for dtype in ("float32", "float16", "bfloat16"):
        yield rawed(f"grouped_{dtype}_overflows", 0, overflow, NOT_FINITE, grouped(dtype=dtype))
    beyond = (_put(0, "H", 0x4700), _put(22, "H", 0x4700))  # 32,768 each

    def just_beyond(data: bytearray) -> None:
        for change in beyond:
            change(data)
        struct.pack_into("<B", data, 44, 0xFF)

    yield rawed("grouped_float16_overflows_in_a_sum", 1, just_beyond, NOT_FINITE, grouped())
    turned = grouped(hadamard=True, headDim=8, dtype="float16")
    codes_at = 2 * 2 * 8
    sums = _put(0, "16H", *[0x43FE] * 16), _put(codes_at, "8b", *[127] * 8)  # 508 x 127 = 64,516

    def hadamard_sum(data: bytearray) -> None:
        for change in sums:
            change(data)

    yield rawed("grouped_float16_overflows_in_hadamard", 0, hadamard_sum, NOT_FINITE, turned)

    def pair(data: bytearray) -> None:
        struct.pack_into("<2H", data, 0, 0x43FE, 0x43FE)
        struct.pack_into("<2b", data, 12, 127, 127)

    # Both halves of a pair at 64,516: by 1 radian, one of them becomes 89,150.
    content = grouped(keySpace="content", startPosition=1)
    yield rawed("grouped_float16_overflows_when_turned", 0, pair, NOT_FINITE, content)


def _transform() -> Iterator[Case]:
    """uint32 |E| = 3, three tokens, 3 x 6 exact rows of 2 bytes, then the codes."""
    rows_at, codes_at = 4 + 12, 4 + 12 + 36
    for dtype in ("float32", "float16", "bfloat16"):
        bits = _BF16 if dtype == "bfloat16" else _F16
        for name, value in bits.items():
            change = _put(rows_at, "H", value)
            yield rawed(f"transform_{dtype}_row_{name}", 0, change, NOT_FINITE, transform(dtype=dtype))
    last_row = _put(codes_at - 2, "H", _F16["nan"])
    yield rawed("transform_last_value_row_nan", 1, last_row, NOT_FINITE, transform())
    yield rawed("transform_code_of_minus_128", 0, _put(codes_at, "b", -128), MALFORMED_CHUNK, transform())

    def last_code(data: bytearray) -> None:
        data[-1] = 0x80

    yield rawed("transform_last_code_of_minus_128", 1, last_code, MALFORMED_CHUNK, transform())
    yield file_case("valid_transform", OK, transform().sign())
    other = transform()
    other.header["coding"]["basis"] = "sha256:" + "0" * 64
    yield file_case("transform_of_an_unknown_basis", "unknown_basis", other.sign())


def _exact_tokens() -> Iterator[Case]:
    lists = {
        "descending": (10, 9, 0),
        "swapped": (0, 10, 9),
        "repeated": (0, 9, 9),
        "all_the_same": (0, 0, 0),
        "one_beyond": (0, 9, 11),
        "far_beyond": (0, 9, 2**31),
        "largest": (0, 9, 2**32 - 1),
    }
    for name, tokens in lists.items():
        yield rawed(f"exact_tokens_{name}", 0, _put(4, "3I", *tokens), MALFORMED_CHUNK, transform())
    for count in (2, 4, 12, 2**16, 2**30, 2**31, 2**32 - 1):
        yield rawed(f"exact_count_{count}_of_3", 0, _put(0, "I", count), MALFORMED_CHUNK, transform())
    for name, tokens in {"without_the_first": (1, 9, 10), "without_the_last": (0, 1, 9)}.items():
        yield rawed(f"exact_tokens_{name}", 0, _put(4, "3I", *tokens), MALFORMED_CHUNK, transform())
    many = transform()
    rank = (len(many.raws[0]) - 4 - 12 - 36) // 8
    listed = struct.pack("<6I", 5, *range(5))  # 4 of 11 are allowed: 1 first, 2 last and 11 div 8
    many.raws[0] = listed + bytes(5 * 12) + bytes(rank * 6)
    yield file_case("exact_tokens_too_many", MALFORMED_CHUNK, many.pack().describe().sign())
    for name, length in {"shorter": -1, "longer": 1}.items():
        draft = transform()
        draft.raws[1] = draft.raws[1][:-1] if length < 0 else draft.raws[1] + b"\0"
        yield file_case(f"transform_one_byte_{name}", MALFORMED_CHUNK, draft.pack().describe().sign())
    empty = transform()
    empty.raws[0] = bytes(4)
    yield file_case("transform_of_four_bytes", MALFORMED_CHUNK, empty.pack().describe().sign())


def _attention() -> Iterator[Case]:
    """uint32 layer, float32 score, uint32 heads, uint32 k, 2 entropies, 3 indices."""
    wrong: dict[str, tuple[Callable[[bytearray], None], str]] = {
        "layer_1_of_0": (_put(0, "I", 1), MALFORMED_CHUNK),
        "layer_huge": (_put(0, "I", 2**32 - 1), MALFORMED_CHUNK),
        "score_negative": (_put(4, "f", -0.25), MALFORMED_CHUNK),
        "score_above_1": (_put(4, "f", 1.5), MALFORMED_CHUNK),
        "heads_1_of_2": (_put(8, "I", 1), MALFORMED_CHUNK),
        "heads_0": (_put(8, "I", 0), MALFORMED_CHUNK),
        "heads_huge": (_put(8, "I", 2**32 - 1), MALFORMED_CHUNK),
        "k_2_of_3": (_put(12, "I", 2), MALFORMED_CHUNK),
        "k_16": (_put(12, "I", 16), MALFORMED_CHUNK),
        "k_huge": (_put(12, "I", 2**32 - 1), MALFORMED_CHUNK),
        "heads_and_k_traded": (_put(8, "2I", 3, 2), MALFORMED_CHUNK),
        "entropy_negative": (_put(16, "f", -0.5), MALFORMED_CHUNK),
        "last_entropy_negative": (_put(20, "f", -0.5), MALFORMED_CHUNK),
        "index_beyond": (_put(24, "I", 3), MALFORMED_CHUNK),
        "index_huge": (_put(32, "I", 2**32 - 1), MALFORMED_CHUNK),
        "indices_repeat": (_put(24, "3I", 0, 1, 0), MALFORMED_CHUNK),
        "score_0": (_put(4, "f", 0.0), OK),
        "score_1": (_put(4, "f", 1.0), OK),
        "entropy_0": (_put(16, "f", 0.0), OK),
    }
    for name, bits in _F32.items():
        wrong[f"score_{name}"] = (_put(4, "I", bits), NOT_FINITE)
        wrong[f"entropy_{name}"] = (_put(20, "I", bits), NOT_FINITE)
    for name, (change, code) in wrong.items():
        yield rawed(f"attention_{name}", 2, change, code, raw())
    swapped = raw()
    swapped.raws[2], swapped.raws[5] = swapped.raws[5], swapped.raws[2]
    yield file_case("attention_of_each_others_layer", MALFORMED_CHUNK, swapped.pack().describe().sign())
