"""Memories in coordinates of a port that break one rule of FORMAT.md §8.5, digested and signed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.bases import (
    MALFORMED_CHUNK,
    MALFORMED_FILE,
    OK,
    Case,
    Header,
    changed,
    file_case,
    rawed,
)
from tests.hostile.bases import MALFORMED_PACKAGE as MALFORMED
from tests.hostile.frames import lz4_zeros
from tests.hostile.recipes_package import zipped
from tests.second_reader.awkg_builder import Draft
from tests.second_reader.package_builder import dump, make_documents, sign_package
from tests.second_reader.port import MAX_RANK
from tests.second_reader.port_builder import make_port, pack_chunk, port_draft

RANK = 3
NUM_TOKENS = 11  # a bitmap of two bytes, five spare bits
_SENT = [i in (0, 1, 8) for i in range(NUM_TOKENS)]
_ROWS = [[1, -1, 7], [0, 0, -7], [-2, 3, 4]]
_ZERO = "sha256:" + "0" * 64
_UNUSED: Header = {"groupSize": 8, "hadamard": True, "sinkTokens": 1, "recentTokens": 1}
_UNUSED |= {"prunedHeads": [[0, 0]]}


def port() -> bytes:
    """The port of every case here."""
    return make_port(RANK)


def coordinates(bits: int = 8, **changes: Any) -> Draft:
    """One section: three codes of 8 or 4 bits for three of 11 slots."""
    draft = port_draft(3, rank=RANK, bits=bits, **({"sequenceLength": NUM_TOKENS} | changes))
    if draft.header["sequenceLength"] == NUM_TOKENS:
        draft.raws = [pack_chunk(_SENT, _ROWS, bits)]
    return draft.pack().describe()


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _valid()
    yield from _codings()
    yield from _references()
    yield from _tables()
    yield from _bitmaps()
    yield from _codes()
    yield from _packages()


def _replaced(name: str, data: bytes, code: str, draft: Draft) -> Case:
    """A file whose one chunk is these bytes."""
    draft.raws = [data]
    return file_case(f"port_{name}", code, draft.pack().describe().sign())


def _valid() -> Iterator[Case]:
    for bits in (4, 8):
        yield file_case(f"port_valid_{bits}_bits", OK, coordinates(bits).sign())
        nothing = pack_chunk([False] * NUM_TOKENS, [], bits)
        yield _replaced(f"{bits}_bits_nothing_sent", nothing, OK, coordinates(bits))
        most = (1 << (bits - 1)) - 1
        ends = pack_chunk(_SENT, [[most, -most, 0]] * 3, bits)
        yield _replaced(f"{bits}_bits_largest_codes", ends, OK, coordinates(bits))
    yield file_case("port_valid_three_chunks", OK, coordinates(sequenceLength=2001).sign())
    theta = {"ropeType": "linear", "ropeTheta": 0}  # no scaling, and nothing to turn by
    yield file_case("port_of_a_source_without_rope", OK, coordinates(rope=theta).sign())


def _set(place: str, key: str, value: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        (header[place] if place else header)[key] = value

    return change


def _codings() -> Iterator[Case]:
    for key, value in _UNUSED.items():
        yield changed(f"port_with_{key}", _set("coding", key, value), draft=coordinates())
    for bits in (0, 1, 2, 3, 5, 16, 2**62):
        draft = coordinates()
        draft.header["coding"] |= {"keyBits": bits, "valueBits": bits}
        yield file_case(f"port_of_{bits}_bits", MALFORMED_FILE, draft.sign())
    for key in ("keyBits", "valueBits"):
        yield changed(f"port_of_other_{key}", _set("coding", key, 4), draft=coordinates())
    for i, name in enumerate(("", "port", "sha256:", "0" * 64, _ZERO.upper())):
        yield changed(f"port_name_{i}", _set("coding", "basis", name), draft=coordinates())
    for nbytes in (0, (1 << 30) + 1, 2**62):
        yield changed(f"port_of_{nbytes}_bytes", _set("coding", "basisNbytes", nbytes), draft=coordinates())
    yield changed("port_not_here", _set("coding", "basis", _ZERO), "unknown_alignment", coordinates())
    one_less = len(port()) - 1
    shorter = _set("coding", "basisNbytes", one_less)
    yield changed("port_of_another_length", shorter, "unknown_alignment", coordinates())
    yield changed("port_with_rotated_keys", _set("", "keySpace", "rotated"), draft=coordinates())
    yield changed("port_with_attention_heads", _set("", "attentionHeads", 2), draft=coordinates())
    for label in ("port4", "port", "int8", "none"):
        yield changed(f"port_label_{label}_of_8_bits", _set("", "quantization", label), draft=coordinates())
    yield changed("port_partial_rotary_factor_2", _set("rope", "partialRotaryFactor", 2), draft=coordinates())


def _references() -> Iterator[Case]:
    digits = "a" * 51
    wrong = {
        "empty": "",
        "free": "to-b",
        "short": "map_" + digits,
        "long": "map_" + digits + "aa",
        "upper_case": "map_" + digits + "A",
        "not_base32": "map_" + digits + "1",
        "of_a_memory": "mem_" + digits + "a",
        "of_a_port": "port_" + digits + "a",
        "with_a_line_end": "map_" + digits + "a\n",
    }
    for name, reference in wrong.items():
        change = _set("", "wMatrixReference", reference)
        yield changed(f"port_reference_{name}", change, draft=coordinates())
    yield changed("port_reference_missing", lambda h: h.pop("wMatrixReference"), draft=coordinates())


def _tables() -> Iterator[Case]:
    values = {"kind": ("key", "attention", "basis"), "layer": (1,), "start": (1,), "stop": (10, 12, 1000)}
    for key, wrong in values.items():
        for value in wrong:
            change = _section(**{key: value})
            yield changed(f"port_section_{key}_{value}", change, draft=coordinates())
    yield changed("port_section_split", _section(codec="split"), draft=coordinates())
    joined = coordinates(sequenceLength=1001)
    joined.plan, joined.raws, joined.codecs = [(0, "coordinates", 0, 1001)], [bytes(126)], ["none"]
    yield file_case("port_of_1001_tokens_in_one_chunk", MALFORMED_FILE, joined.pack().describe().sign())
    raw = coordinates()
    raw.plan = [(0, "key", 0, NUM_TOKENS)]
    yield file_case("port_with_keys", MALFORMED_FILE, raw.describe().sign())
    yield _replaced("shorter_than_its_bitmap", b"\3", MALFORMED_FILE, coordinates())
    longest = 2 + NUM_TOKENS * MAX_RANK
    for name, nbytes, code in (("most", longest, MALFORMED_CHUNK), ("more", longest + 1, MALFORMED_FILE)):
        draft = coordinates()
        draft.raws, draft.codecs, draft.wires = [bytes(nbytes)], ["lz4"], [lz4_zeros(nbytes)]
        yield file_case(f"port_of_{name}_bytes", code, draft.describe().sign())


def _section(**fields: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["sections"][0] |= fields

    return change


def _bitmaps() -> Iterator[Case]:
    for bits in (4, 8):
        whole = pack_chunk(_SENT, _ROWS, bits)
        for name, at in {"one_more_sent": 0x0107, "one_less_sent": 0x0101, "none_sent": 0}.items():
            data = at.to_bytes(2, "little") + whole[2:]
            yield _replaced(f"{bits}_bits_{name}", data, MALFORMED_CHUNK, coordinates(bits))
        yield _replaced(f"{bits}_bits_a_byte_less", whole[:-1], MALFORMED_CHUNK, coordinates(bits))
        yield _replaced(f"{bits}_bits_a_byte_more", whole + b"\0", MALFORMED_CHUNK, coordinates(bits))
        yield _replaced(f"{bits}_bits_bitmap_alone", whole[:2], MALFORMED_CHUNK, coordinates(bits))
        for spare in (11, 15):  # the third slot that is sent is no slot
            moved = (0x0003 | 1 << spare).to_bytes(2, "little") + whole[2:]
            yield _replaced(f"{bits}_bits_spare_bit_{spare}", moved, MALFORMED_CHUNK, coordinates(bits))
    others = pack_chunk(_SENT, [row[:2] for row in _ROWS], 8)
    yield _replaced("of_another_rank", others, MALFORMED_CHUNK, coordinates())


def _codes() -> Iterator[Case]:
    places: dict[str, tuple[int, int, int]] = {  # bits, byte, value
        "8_bits_first_code_is_lowest": (8, 2, 0x80),
        "8_bits_last_code_is_lowest": (8, 10, 0x80),
        "4_bits_first_code_is_lowest": (4, 2, 0x08),
        "4_bits_second_code_is_lowest": (4, 2, 0x80),
        "4_bits_last_code_is_lowest": (4, 7, 0x08),
        "4_bits_padding_of_first_slot": (4, 3, 0x17),
        "4_bits_padding_of_last_slot": (4, 7, 0xF4),
    }
    for name, (bits, at, value) in places.items():

        def put(data: bytearray, at: int = at, value: int = value) -> None:
            data[at] = value

        yield rawed(f"port_{name}", 0, put, MALFORMED_CHUNK, coordinates(bits))


def _packages() -> Iterator[Case]:
    draft = coordinates()
    awkg, right = draft.sign(), port()
    files = {"kv-cache.awkg": awkg} | dump(make_documents(awkg, draft.header))
    held: dict[str, tuple[bytes | None, str]] = {
        "valid": (right, OK),
        "without_its_port": (None, MALFORMED),
        "with_another_port": (make_port(RANK + 1), MALFORMED),
        "with_a_longer_port": (right + b"\0", MALFORMED),
    }
    for name, (data, code) in held.items():
        more = {} if data is None else {"codec/basis.safetensors": data}
        yield zipped(f"package_of_coordinates_{name}", code, sign_package(files | more))
