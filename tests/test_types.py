"""The nouns: what is named by content keeps its name, and has another with other contents."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.types import (
    Coding,
    DType,
    KeySpace,
    MemoryHeader,
    Rope,
    base32,
    canonical_json,
    content_digest,
    to_plain,
    unbase32,
)
from tests.builders import INT8, make_basis, make_fingerprint, make_geometry, make_memory

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_bytes_of_a_token_are_keys_and_values_of_all_layers() -> None:
    geometry = make_geometry(dtype=DType.BFLOAT16)
    assert geometry.layer_token_nbytes == 2 * 4 * 2
    assert geometry.token_nbytes == 2 * 3 * 16
    assert [dtype.itemsize for dtype in DType] == [4, 2, 2]


def test_memory_id_is_the_one_it_always_was() -> None:
    assert make_memory(7).header.id == "mem_mepuw2qmymprftfnj3r6wocb3lx3fhdo5rbxndmxoabjkdm55j5a"


def test_memory_id_changes_with_every_field() -> None:
    header = make_memory(7).header
    others = [
        replace(header, fingerprint=make_fingerprint(model="other")),
        replace(header, geometry=make_geometry(rope=Rope("linear", 10000.0, extra={"factor": 2.0}))),
        replace(header, seq_len=6),
        replace(header, start_pos=1),
        replace(header, token_digest="sha256:0"),
        replace(header, content_digest="sha256:0"),
        replace(header, key_space=KeySpace.CONTENT),
        replace(header, start_pos=1, prefix_digest="sha256:0"),
        replace(header, coding=INT8),
        replace(header, coding=replace(INT8, hadamard=True)),
        replace(header, coding=make_basis()[0]),
        replace(header, coding=Coding(pruned_heads=((0, 1),))),
        replace(header, coding=Coding(pruned_heads=((1, 0),))),
        replace(header, attention_heads=1),
        replace(header, derived_from="mem_x"),
    ]
    assert len({header.id, *(other.id for other in others)}) == 1 + len(others)
    varied = {spec.name for spec in fields(MemoryHeader) for o in others if _differs(o, header, spec.name)}
    assert varied == {spec.name for spec in fields(MemoryHeader)}


def _differs(one: MemoryHeader, other: MemoryHeader, name: str) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def test_fields_that_are_empty_by_default_are_part_of_the_id_all_the_same() -> None:
    plain = to_plain(make_memory(7).header)
    assert {"coding", "attention_heads", "derived_from"} <= set(plain)
    assert plain["coding"]["pruned_heads"] == ()


def test_fingerprint_digest_ignores_the_name_and_nothing_else() -> None:
    plain = make_fingerprint()
    assert make_fingerprint(model="renamed").digest == plain.digest
    for field in ("architecture", "config_digest", "tokenizer_digest", "weights_digest", "quantization"):
        assert make_fingerprint(**{field: "other"}).digest != plain.digest


def test_content_digest_depends_on_the_order_of_chunks() -> None:
    assert content_digest([b"a" * 32, b"b" * 32]) != content_digest([b"b" * 32, b"a" * 32])


@given(st.binary(max_size=80))
def test_unbase32_is_the_inverse_of_base32(data: bytes) -> None:
    text = base32(data)
    assert unbase32(text) == data
    assert text == text.lower().rstrip("=")


@pytest.mark.parametrize("text", ["a", "abc", "aaaaaa", "AA", "aa======", "a1", "aé", "ß", "ab"])
def test_unbase32_refuses_what_base32_never_writes(text: str) -> None:
    with pytest.raises(ValueError, match="base32"):
        unbase32(text)


@given(plain_json)
def test_canonical_json_parses_back_and_is_one_string_per_value(value: object) -> None:
    encoded = canonical_json(value)
    assert json.loads(encoded) == value
    assert canonical_json(json.loads(encoded)) == encoded


def test_canonical_json_sorts_keys_leaves_no_blanks_and_keeps_utf_8() -> None:
    assert canonical_json({"b": [1, 2], "a": "é"}) == '{"a":"é","b":[1,2]}'.encode()
    assert canonical_json(dict([("b", 1), ("a", 2)])) == canonical_json(dict([("a", 2), ("b", 1)]))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800"])
def test_canonical_json_writes_nothing_that_is_not_json_in_utf_8(value: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # json's own words
        canonical_json(value)
