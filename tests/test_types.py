"""The nouns: every token is in exactly one chunk, and what is named by content keeps its name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.types import (
    MAX_CHUNK_RAW_NBYTES,
    DType,
    Geometry,
    Kind,
    Rope,
    base32,
    canonical_json,
    content_digest,
    count_chunks,
    plan_chunks,
    unbase32,
)
from tests.builders import make_fingerprint, make_geometry, make_memory

ROPE = Rope("default", 10000.0)
geometries = st.builds(
    Geometry,
    num_layers=st.integers(1, 4),
    num_kv_heads=st.integers(1, 256),
    head_dim=st.integers(1, 1024),
    dtype=st.sampled_from(DType),
    rope=st.just(ROPE),
)
plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(geometries, st.integers(1, 300))
def test_plan_covers_every_token_of_every_layer_once(geometry: Geometry, seq_len: int) -> None:
    covered: dict[tuple[int, Kind], list[int]] = {}
    for key in plan_chunks(geometry, seq_len):
        covered.setdefault((key.layer_idx, key.kind), []).extend(range(key.start, key.stop))
    wanted = {(layer, kind) for layer in range(geometry.num_layers) for kind in (Kind.KEY, Kind.VALUE)}
    assert set(covered) == wanted
    assert all(tokens == list(range(seq_len)) for tokens in covered.values())


@given(geometries, st.integers(1, 300))
def test_chunks_have_at_most_a_mebibyte_and_add_up_to_the_memory(geometry: Geometry, seq_len: int) -> None:
    plan = plan_chunks(geometry, seq_len)
    sizes = [key.raw_nbytes(geometry) for key in plan]
    assert all(0 < size <= MAX_CHUNK_RAW_NBYTES for size in sizes)
    assert sum(sizes) == seq_len * geometry.token_nbytes
    assert [key.index for key in plan] == list(range(len(plan)))


@given(geometries, st.integers(0, 300))
def test_count_chunks_is_the_length_of_the_plan(geometry: Geometry, seq_len: int) -> None:
    assert count_chunks(geometry, seq_len) == len(plan_chunks(geometry, seq_len))


def test_count_chunks_takes_absurd_claims() -> None:
    absurd = Geometry(2**62, 2**62, 2**62, DType.FLOAT32, ROPE)
    assert count_chunks(absurd, 2**62) == 2 * 2**62 * 2**62


def test_layers_come_in_order_keys_before_values() -> None:
    plan = plan_chunks(make_geometry(), 5)
    wanted = [(layer, kind) for layer in range(3) for kind in (Kind.KEY, Kind.VALUE)]
    assert [(key.layer_idx, key.kind) for key in plan] == wanted


def test_bytes_of_a_token_are_keys_and_values_of_all_layers() -> None:
    geometry = make_geometry(dtype=DType.BFLOAT16)
    assert geometry.layer_token_nbytes == 2 * 4 * 2
    assert geometry.token_nbytes == 2 * 3 * 16
    assert [dtype.itemsize for dtype in DType] == [4, 2, 2]


def test_memory_id_is_the_one_it_always_was() -> None:
    assert make_memory(7).header.id == "mem_tvbdvd4r7czhvjkvgcztd6cz6hx47nor23pkmokq6jizwlfazfzq"


def test_memory_id_changes_with_every_field() -> None:
    header = make_memory(7).header
    others = [
        replace(header, fingerprint=make_fingerprint(model="other")),
        replace(header, geometry=make_geometry(rope=Rope("linear", 10000.0, extra={"factor": 2.0}))),
        replace(header, seq_len=6),
        replace(header, start_pos=1),
        replace(header, token_digest="sha256:0"),
        replace(header, content_digest="sha256:0"),
    ]
    assert len({header.id, *(other.id for other in others)}) == 1 + len(others)


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
