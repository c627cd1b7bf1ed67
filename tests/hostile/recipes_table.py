"""Section tables that are not the plan, or whose lengths do not add up, correctly signed: rules 6 and 7 of
§7.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from tests.hostile.bases import MALFORMED_FILE as MALFORMED
from tests.hostile.bases import Case, Header, changed, file_case, grouped, raw, transform, zeros
from tests.hostile.frames import lz4_zeros

_BORDERS = {"2_31": 2**31, "2_32": 2**32, "2_53": 2**53, "2_62": 2**62, "2_63_less_1": 2**63 - 1}
_BEYOND = {"2_63": 2**63, "2_64": 2**64, "minus_2_63": -(2**63)}


def cases() -> Iterator[Case]:
    """Every case of this page."""
    yield from _counts()
    yield from _orders()
    yield from _lengths()
    yield from _offsets()
    yield from _codecs()
    yield from _raw_lengths()


def _section(index: int, **fields: Any) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["sections"][index] |= fields

    return change


def _counts() -> Iterator[Case]:
    def empty(header: Header) -> None:
        header["sections"] = []

    yield changed("table_empty", empty)
    yield changed("table_without_first", lambda header: header["sections"].pop(0))
    yield changed("table_without_last", lambda header: header["sections"].pop())
    yield changed("table_with_last_twice", lambda header: header["sections"].append(header["sections"][-1]))
    yield changed(
        "table_with_first_twice", lambda header: header["sections"].insert(0, header["sections"][0])
    )
    yield changed("table_of_nulls", lambda header: header.update(sections=[None] * 6))
    yield changed("table_of_lists", lambda header: header.update(sections=[[]] * 6))
    yield changed(
        "table_of_200_sections", lambda header: header.update(sections=header["sections"][:1] * 200)
    )
    yield changed("sequence_of_2_31_less_1", _long(2**31 - 1))
    yield changed("sequence_of_100000", _long(100_000))


def _long(seq_len: int) -> Callable[[Header], None]:
    def change(header: Header) -> None:
        header["sequenceLength"] = header["metadata"]["tokenCount"] = seq_len

    return change


def _orders() -> Iterator[Case]:
    fields: dict[str, tuple[Any, ...]] = {
        "layer": (1, 2, 511, 2**31),
        "start": (1, 3, 2**32),
        "stop": (0, 2, 4, 2**32),
    }
    fields |= {"kind": ("value", "attention", "basis", "Key", "")}
    for key, values in fields.items():
        for value in values:
            yield changed(f"section_{key}_{value or 'none'}", _section(0, **{key: value}))
    for name, order in {
        "first_two": (1, 0, 2, 3, 4, 5),
        "layers": (3, 4, 5, 0, 1, 2),
        "all": (5, 4, 3, 2, 1, 0),
    }.items():
        draft = raw()
        draft.plan, draft.raws = [draft.plan[i] for i in order], [draft.raws[i] for i in order]
        yield file_case(f"sections_reordered_{name}", MALFORMED, draft.pack().describe().sign())
    attention_first = raw()
    attention_first.plan.insert(0, attention_first.plan.pop(2))
    attention_first.raws.insert(0, attention_first.raws.pop(2))
    yield file_case("sections_attention_first", MALFORMED, attention_first.pack().describe().sign())


def _lengths() -> Iterator[Case]:
    for key in ("offset", "wireLength", "rawLength", "layer", "start", "stop"):
        for name, value in (_BORDERS | _BEYOND).items():
            yield changed(f"section_{key}_{name}", _section(1, **{key: value}))
    for key in ("offset", "wireLength", "rawLength"):
        for name, wrong in {"1e3": 1e3, "1e300": 1e300, "minus_1": -1, "list": [96]}.items():
            yield changed(f"section_{key}_{name}", _section(2, **{key: wrong}))
    yield changed("section_both_lengths_2_63_less_1", _section(1, wireLength=2**63 - 1, rawLength=2**63 - 1))
    yield changed("section_both_lengths_0", _section(1, wireLength=0, rawLength=0))
    yield changed("section_wire_length_0", _section(1, wireLength=0))


def _offsets() -> Iterator[Case]:
    def all_zero(header: Header) -> None:
        for section in header["sections"]:
            section["offset"] = 0

    yield changed("offsets_all_zero", all_zero)
    for name, offset in {"hole": 97, "overlap": 95, "of_another": 192, "zero": 0}.items():
        yield changed(f"offset_{name}", _section(1, offset=offset))
    yield changed(
        "offset_swapped", lambda header: (_section(0, offset=96)(header), _section(1, offset=0)(header))
    )
    yield changed("offset_of_first_is_1", _section(0, offset=1))
    for name, index in {"before_the_first": 0, "in_the_middle": 3, "before_the_last": 5}.items():
        draft = raw()
        for section in draft.header["sections"][index:]:
            section["offset"] += 8
        draft.wires.insert(index, bytes(8))
        yield file_case(f"hole_of_8_bytes_{name}", MALFORMED, draft.sign())
    aliased = raw()
    aliased.header["sections"][1] |= {"offset": 0, "blake3": aliased.header["sections"][0]["blake3"]}
    yield file_case("two_sections_of_the_same_bytes", MALFORMED, aliased.sign())


def _codecs() -> Iterator[Case]:
    for codec in ("brotli", "", "NONE", "zstd ", "deflate"):
        yield changed(f"section_codec_{codec.strip() or 'empty'}_{len(codec)}", _section(0, codec=codec))
    yield changed("split_of_attention", _section(2, codec="split"))
    for name, make in {"grouped": grouped, "transform": transform}.items():
        yield changed(f"split_of_{name}", _section(0, codec="split"), draft=make())
    for i, digest in enumerate(("", "0" * 63, "0" * 65, "sha256:" + "0" * 64, "g" * 64)):
        yield changed(f"section_blake3_{i}", _section(0, blake3=digest))
    yield changed(
        "section_blake3_upper_case", lambda h: _section(0, blake3=h["sections"][0]["blake3"].upper())(h)
    )


def _raw_lengths() -> Iterator[Case]:
    """Consistent tables whose raw lengths §8 does not have."""
    for name, make, index in (("raw", raw, 0), ("attention", raw, 2), ("k8", grouped, 0), ("v4", grouped, 1)):
        for more in (-1, 1):
            draft = make()
            draft.raws[index] = draft.raws[index][:-1] if more < 0 else draft.raws[index] + b"\0"
            yield file_case(f"raw_length_{name}_{more:+}", MALFORMED, draft.pack().describe().sign())
    for name, length in {"3": 3, "one_too_many": 4 + 4 * (4 + 12) + 7 * 6 + 1, "2_19": 2**19}.items():
        draft = transform()
        draft.raws[0] = bytes(length)
        draft.codecs[0], draft.wires[0] = (
            ("none", bytes(length)) if length < 999 else ("lz4", lz4_zeros(length))
        )
        yield file_case(f"raw_length_transform_{name}", MALFORMED, draft.describe().sign())
    draft = zeros()
    draft.codecs[0], draft.wires[0] = "lz4", draft.raws[0] + b"\0"
    yield file_case("wire_length_beyond_raw_length", MALFORMED, draft.describe().sign())
    shorter = zeros()
    shorter.wires[0] = shorter.raws[0][:-1]
    yield file_case("uncompressed_shorter_than_raw", MALFORMED, shorter.describe().sign())
    bomb = raw()
    bomb.header["attentionHeads"] = (1 << 26) - 7  # 256 MiB of entropies in a small section
    bomb.raws[2] = bomb.raws[5] = b""
    bomb.wires[2] = bomb.wires[5] = lz4_zeros(4096)
    bomb.codecs[2] = bomb.codecs[5] = "lz4"
    bomb.describe()
    for i in (2, 5):
        bomb.header["sections"][i]["rawLength"] = 16 + 4 * bomb.header["attentionHeads"] + 12
    yield file_case("attention_of_256_mib", MALFORMED, bomb.sign())
