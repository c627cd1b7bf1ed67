"""Which codings there are: those of FORMAT.md §8, and a reason for every other."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from kvnet.plan import (
    MAX_BASIS_NBYTES,
    MAX_RECENT_TOKENS,
    MAX_SINK_TOKENS,
    check_coding,
)
from kvnet.types import Coding, KeySpace, MemoryHeader, Rope
from tests.builders import INT8, RAW, make_basis, make_geometry, make_memory, make_port

TRANSFORM, _ = make_basis()
PORT, _ = make_port()
# Three layers of eight channels: means and two matrices each for keys and values, and room for their names.
FULL_BASIS_NBYTES = 2 * 3 * (8 + 2 * 8 * 8) * 4 + (64 << 10) + 512 * 18


def header_of(coding: Coding = RAW, *, seq_len: int = 5, heads: int = 0, **geometry: Any) -> MemoryHeader:
    """What a memory of this coding says it is."""
    return replace(
        make_memory().header,
        geometry=make_geometry(**geometry),
        seq_len=seq_len,
        coding=coding,
        attention_heads=heads,
    )


GOOD = {
    "raw": RAW,
    "raw, pruned": Coding(pruned_heads=((0, 0), (0, 1), (2, 1))),
    "int8": INT8,
    "int4 with everything": replace(
        INT8, key_bits=4, value_bits=4, group_size=1024, hadamard=True, pruned_heads=((1, 1),)
    ),
    "transform": TRANSFORM,
    "transform at its limits": replace(
        TRANSFORM,
        basis_nbytes=FULL_BASIS_NBYTES,
        sink_tokens=MAX_SINK_TOKENS,
        recent_tokens=MAX_RECENT_TOKENS,
    ),
    "transform without exact tokens": replace(TRANSFORM, sink_tokens=0, recent_tokens=0),
}


def test_basis_is_bounded_by_its_geometry_and_at_most_a_gibibyte() -> None:
    wide = make_geometry(num_kv_heads=128, head_dim=128)
    header = header_of(replace(TRANSFORM, basis_nbytes=MAX_BASIS_NBYTES))
    assert check_coding(replace(header, geometry=wide)) == ""
    header = header_of(replace(TRANSFORM, basis_nbytes=MAX_BASIS_NBYTES + 1))
    assert f"allowed are 1 to {MAX_BASIS_NBYTES}" in check_coding(replace(header, geometry=wide))


@pytest.mark.parametrize("coding", GOOD.values(), ids=GOOD)
def test_coding_of_the_format_is_taken(coding: Coding) -> None:
    assert check_coding(header_of(coding)) == ""


BAD: dict[str, tuple[Coding, str]] = {
    **{
        f"raw with {name}": (Coding(**{name: value}), "a raw coding has parameters")
        for name, value in {
            "key_bits": 8,
            "value_bits": 8,
            "group_size": 64,
            "hadamard": True,
            "sink_tokens": 1,
            "recent_tokens": 1,
            "basis": "sha256:0",
            "basis_nbytes": 1,
        }.items()
    },
    **{
        f"grouped with {name} {value}": (replace(INT8, **{name: value}), wanted)
        for name, value, wanted in [
            ("key_bits", 0, "0 and 8 bits"),
            ("key_bits", 2, "2 and 8 bits"),
            ("key_bits", 16, "16 and 8 bits"),
            ("value_bits", 0, "8 and 0 bits"),
            ("value_bits", 5, "8 and 5 bits"),
            ("group_size", 0, "groups of 0"),
            ("group_size", 7, "groups of 7"),
            ("group_size", 1025, "groups of 1025"),
            ("sink_tokens", 1, "parameters of a transform"),
            ("recent_tokens", 1, "parameters of a transform"),
            ("basis", "sha256:0", "parameters of a transform"),
            ("basis_nbytes", 1, "parameters of a transform"),
        ]
    },
    **{
        f"transform with {name} {value}": (replace(TRANSFORM, **{name: value}), wanted)
        for name, value, wanted in [
            ("key_bits", 8, "parameters of a grouped one"),
            ("value_bits", 8, "parameters of a grouped one"),
            ("group_size", 64, "parameters of a grouped one"),
            ("hadamard", True, "parameters of a grouped one"),
            ("basis", "", "a basis of"),
            ("basis", "sha256:0", "a basis of"),
            ("basis", TRANSFORM.basis.upper(), "a basis of"),
            ("basis_nbytes", 0, "a basis of 0 bytes"),
            ("basis_nbytes", FULL_BASIS_NBYTES + 1, f"allowed are 1 to {FULL_BASIS_NBYTES}"),
            ("sink_tokens", MAX_SINK_TOKENS + 1, f"{MAX_SINK_TOKENS + 1} first"),
            ("recent_tokens", MAX_RECENT_TOKENS + 1, f"{MAX_RECENT_TOKENS + 1} last"),
        ]
    },
    **{
        f"{coding.scheme} pruned at {pairs}": (replace(coding, pruned_heads=pairs), wanted)
        for coding in (RAW, INT8, TRANSFORM)
        for pairs, wanted in [
            (((1, 0), (0, 0)), "not ascending"),
            (((0, 0), (0, 0)), "not ascending"),
            (((3, 0),), r"\[3, 0\] is no head"),
            (((0, 2),), r"\[0, 2\] is no head"),
            (((0,),), r"\[0\] is no head"),
            (((0, 0, 0),), r"\[0, 0, 0\] is no head"),
            (((),), r"\[\] is no head"),
        ]
    },
}


PORTED = replace(header_of(PORT), key_space=KeySpace.CONTENT)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("basis_nbytes", [1, MAX_BASIS_NBYTES])
@pytest.mark.parametrize("rope", [Rope("default", 0.0), Rope("linear", 1e4), Rope("of tomorrow", 1e99)])
def test_coordinates_of_a_port_are_taken_whatever_turned_the_keys_of_their_source(
    bits: int, basis_nbytes: int, rope: Rope
) -> None:
    coding = replace(PORT, key_bits=bits, value_bits=bits, basis_nbytes=basis_nbytes)
    assert check_coding(replace(PORTED, coding=coding, geometry=make_geometry(rope=rope))) == ""


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"key_bits": 4}, "4 or 8 bits, for keys and values alike"),
        ({"value_bits": 0}, "4 or 8 bits, for keys and values alike"),
        ({"key_bits": 2, "value_bits": 2}, "4 or 8 bits, for keys and values alike"),
        ({"group_size": 8}, "no other parameters"),
        ({"hadamard": True}, "no other parameters"),
        ({"sink_tokens": 1}, "no other parameters"),
        ({"recent_tokens": 1}, "no other parameters"),
        ({"pruned_heads": ((0, 0),)}, "no other parameters"),
        ({"basis": ""}, "a port of 300 bytes, allowed are"),
        ({"basis": PORT.basis.upper()}, "a port of 300 bytes, allowed are"),
        ({"basis_nbytes": 0}, "a port of 0 bytes, allowed are 1 to"),
        ({"basis_nbytes": MAX_BASIS_NBYTES + 1}, f"allowed are 1 to {MAX_BASIS_NBYTES}"),
    ],
)
def test_any_other_port_coding_is_told_what_is_wrong_with_it(changes: dict[str, Any], wanted: str) -> None:
    assert wanted in check_coding(replace(PORTED, coding=replace(PORT, **changes)))


def test_coordinates_with_what_they_cannot_hold_are_refused() -> None:
    for other in ({"key_space": KeySpace.ROTATED}, {"attention_heads": 4}):
        assert "which they cannot hold" in check_coding(replace(PORTED, **other))
    rope = Rope("default", 1e4, partial_rotary_factor=2.0)
    assert "partial_rotary_factor of 2.0" in check_coding(replace(PORTED, geometry=make_geometry(rope=rope)))


@pytest.mark.parametrize(("coding", "wanted"), BAD.values(), ids=BAD)
def test_any_other_coding_is_told_what_is_wrong_with_it(coding: Coding, wanted: str) -> None:
    assert re.search(wanted, check_coding(header_of(coding)))


CONTENT = make_memory(coding=INT8).header
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GOOD_ROPES = {
    "plain": Rope("default", 10000.0),
    "half": Rope("default", 10000.0, 0.5),
    "linear": Rope("linear", 10000.0, extra={"factor": 2}),
    "llama3": Rope("llama3", 500000.0, extra=LLAMA3),
    "a type that turns plainly": Rope("of tomorrow", 10000.0, extra={"factor": "any"}),
}


@pytest.mark.parametrize("rope", GOOD_ROPES.values(), ids=GOOD_ROPES)
def test_keys_of_content_space_are_taken_where_the_rope_says_how_to_turn_them(rope: Rope) -> None:
    assert check_coding(replace(CONTENT, geometry=make_geometry(rope=rope))) == ""


BAD_ROPES: dict[str, tuple[Rope, str]] = {
    "no theta": (Rope("default", 0.0), "nothing says how to turn"),
    "negative theta": (Rope("default", -1.0), "nothing says how to turn"),
    "no rotated dimension": (Rope("default", 10000.0, 0.0), "partial_rotary_factor"),
    "more dimensions than there are": (Rope("default", 10000.0, 1.5), "partial_rotary_factor"),
    "linear without a factor": (Rope("linear", 10000.0), "without a factor"),
    "linear by nothing": (Rope("linear", 10000.0, extra={"factor": 0}), "without a factor"),
    "linear by a text": (Rope("linear", 10000.0, extra={"factor": "2"}), "without a factor"),
    "linear by a truth": (Rope("linear", 10000.0, extra={"factor": True}), "without a factor"),
    **{
        f"llama3 without {name}": (
            Rope("llama3", 500000.0, extra={k: v for k, v in LLAMA3.items() if k != name}),
            f"without a {name}",
        )
        for name in LLAMA3
    },
    "llama3 with one frequency for both": (
        Rope("llama3", 500000.0, extra={**LLAMA3, "high_freq_factor": 1.0}),
        "one frequency factor",
    ),
}


@pytest.mark.parametrize(("rope", "wanted"), BAD_ROPES.values(), ids=BAD_ROPES)
def test_keys_of_content_space_that_cannot_be_turned_are_told_so(rope: Rope, wanted: str) -> None:
    assert wanted in check_coding(replace(CONTENT, geometry=make_geometry(rope=rope)))


def test_raw_keys_are_rotated_keys() -> None:
    raw = make_memory().header
    assert "content space" in check_coding(replace(raw, key_space=KeySpace.CONTENT))
    assert check_coding(replace(raw, geometry=make_geometry(rope=Rope("default", 0.0)))) == ""


def test_transform_of_too_many_channels_is_none_of_the_format() -> None:
    assert check_coding(header_of(TRANSFORM, num_kv_heads=128, head_dim=128)) == ""
    assert "16512 channels" in check_coding(header_of(TRANSFORM, num_kv_heads=129, head_dim=128))


def test_groups_of_too_many_channels_are_none_of_the_format() -> None:
    assert check_coding(header_of(INT8, num_kv_heads=128, head_dim=1024)) == ""
    assert "132096 channels" in check_coding(header_of(INT8, num_kv_heads=129, head_dim=1024))
