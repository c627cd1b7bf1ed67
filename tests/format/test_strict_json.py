"""What `json.loads` lets through and a stranger may have written on purpose."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, NewType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedMessage
from kvnet.format import strict_json
from kvnet.format.strict_json import MAX_DEPTH, MAX_DOCUMENT_NBYTES, MAX_INTEGER, MAX_STRING_CHARS

Name = NewType("Name", str)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True, slots=True)
class Leaf:
    size: int


@dataclass(frozen=True, slots=True)
class Page:
    """A field with a bound of its own beside one without."""

    title: str
    text: str = field(default="", metadata={"max_chars": 2 * MAX_STRING_CHARS})


@dataclass(frozen=True, slots=True)
class Tree:
    """One field of every kind that documents have."""

    name: Name
    count: int
    ratio: float
    alive: bool
    colour: Colour
    leaf: Leaf
    leaves: tuple[Leaf, ...]
    maybe: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


PLAIN: dict[str, Any] = {
    "name": "oak",
    "count": 3,
    "ratio": 0.5,
    "alive": True,
    "colour": "red",
    "leaf": {"size": 1},
    "leaves": [{"size": 2}],
}

leaves = st.builds(Leaf, st.integers(0, MAX_INTEGER))
trees = st.builds(
    Tree,
    name=st.text(max_size=20).map(Name),
    count=st.integers(0, MAX_INTEGER),
    ratio=st.floats(allow_nan=False, allow_infinity=False),
    alive=st.booleans(),
    colour=st.sampled_from(Colour),
    leaf=leaves,
    leaves=st.lists(leaves, max_size=3).map(tuple),
    maybe=st.none() | st.text(max_size=5),
    extra=st.dictionaries(st.text(max_size=5), st.integers(-MAX_INTEGER, MAX_INTEGER), max_size=3),
)


def refuse(document: str | bytes, match: str = "") -> None:
    """The document is no strict JSON, or no Tree."""
    data = document.encode() if isinstance(document, str) else document
    with pytest.raises(MalformedMessage, match=match):
        strict_json.decode(Tree, data, what="tree")


@given(trees)
def test_decode_is_the_inverse_of_json_dumps(tree: Tree) -> None:
    document = json.dumps(asdict(tree), ensure_ascii=False).encode()
    assert strict_json.decode(Tree, document, what="tree") == tree


def test_fields_with_defaults_may_be_absent() -> None:
    tree = strict_json.from_plain(Tree, PLAIN, what="tree")
    assert (tree.maybe, tree.extra) == (None, {})


@pytest.mark.parametrize("name", PLAIN)
def test_missing_field_is_refused_by_name(name: str) -> None:
    refuse(json.dumps({key: value for key, value in PLAIN.items() if key != name}), f"{name}.*missing")


def test_unknown_field_is_refused_by_name() -> None:
    refuse(json.dumps({**PLAIN, "surprise": 1}), "unknown field 'surprise'")
    refuse(json.dumps({**PLAIN, "leaf": {"size": 1, "surprise": 1}}), "leaf.*surprise")


def test_message_about_a_long_key_stays_short() -> None:
    for document in (json.dumps({**PLAIN, "k" * 10_000: 1}), f'{{"{"k" * 10_000}":1,"{"k" * 10_000}":2}}'):
        with pytest.raises(MalformedMessage) as refused:
            strict_json.decode(Tree, document.encode(), what="tree")
        assert len(refused.value.message) < 200


WRONG: list[tuple[str, Any]] = [
    ("name", 1),
    ("name", None),
    ("name", "x" * (MAX_STRING_CHARS + 1)),
    ("count", True),
    ("count", 1.0),
    ("count", -1),
    ("count", "1"),
    ("ratio", True),
    ("ratio", "0.5"),
    ("alive", 1),
    ("alive", "true"),
    ("colour", "green"),
    ("colour", 0),
    ("colour", []),
    ("leaf", []),
    ("leaf", "leaf"),
    ("leaves", {}),
    ("leaves", [1]),
    ("leaves", None),
    ("maybe", 1),
    ("extra", []),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrongly_typed_field_is_refused_by_name(name: str, value: Any) -> None:
    refuse(json.dumps({**PLAIN, name: value}), rf"tree\.{name}")


def test_integer_is_taken_where_a_float_belongs() -> None:
    tree = strict_json.from_plain(Tree, {**PLAIN, "ratio": 2}, what="tree")
    assert type(tree.ratio) is float


@pytest.mark.parametrize("document", ["[]", "1", '"tree"', "null", "true"])
def test_document_that_is_no_object_is_refused(document: str) -> None:
    refuse(document, "expected an object")


NOT_STRICT = {
    "duplicate key": '{"a":1,"a":1}',
    "duplicate key deep inside": '{"a":[{"b":1,"b":2}]}',
    "duplicate key by escape": '{"a":1,"\\u0061":2}',
    "NaN": '{"a":NaN}',
    "infinity": '{"a":Infinity}',
    "minus infinity": '{"a":-Infinity}',
    "float beyond range": '{"a":1e999}',
    "minus float beyond range": '{"a":-1e999}',
    "integer beyond 63 bits": f'{{"a":{MAX_INTEGER + 1}}}',
    "integer of a million digits": '{"a":' + "9" * 1_000_000 + "}",
    "half a surrogate pair": '{"a":"\\ud800"}',
    "half a surrogate pair in a key": '{"\\udfff":1}',
    "empty": "",
    "two documents": "{} {}",
    "trailing comma": '{"a":1,}',
    "single quotes": "{'a':1}",
    "comment": "{} // nothing",
    "byte order mark": "\ufeff{}",
    "control character": '{"a":"\x01"}',
}


@pytest.mark.parametrize("document", NOT_STRICT.values(), ids=NOT_STRICT)
def test_loose_json_is_refused(document: str) -> None:
    with pytest.raises(MalformedMessage, match="not strict JSON"):
        strict_json.loads(document.encode(), what="document")


@pytest.mark.parametrize("data", [b"\xff{}", b'{"a":"\xc3"}', b'{"a":"\xed\xa0\x80"}', "{}".encode("utf-16")])
def test_bytes_that_are_not_utf_8_are_refused(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        strict_json.loads(data, what="document")


def test_whole_surrogate_pairs_are_taken() -> None:
    assert strict_json.loads(b'["\\ud83d\\ude00"]', what="document") == ["😀"]


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_nesting_is_refused_before_it_is_parsed(opening: str) -> None:
    with pytest.raises(MalformedMessage, match="nested deeper"):
        strict_json.loads(opening.encode() * 100_000, what="document")


def test_nesting_up_to_the_limit_is_taken_and_brackets_in_strings_do_not_count() -> None:
    deepest = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert strict_json.loads(deepest.encode(), what="document") is not None
    with pytest.raises(MalformedMessage):
        strict_json.loads(f"[{deepest}]".encode(), what="document")
    tricky = json.dumps(["[" * 100, '\\"[' * 100, "\\"])
    assert strict_json.loads(tricky.encode(), what="document") == json.loads(tricky)


def test_oversize_document_is_refused_unread() -> None:
    began = time.perf_counter()
    with pytest.raises(MalformedMessage, match="at most"):
        strict_json.loads(b"[" * (MAX_DOCUMENT_NBYTES + 1), what="document")
    assert time.perf_counter() - began < 0.01
    with pytest.raises(MalformedMessage, match="at most 3"):
        strict_json.loads(b"[ ] ", what="document", max_nbytes=3)


@given(st.binary(max_size=60))
def test_any_bytes_parse_or_are_malformed(data: bytes) -> None:
    try:
        parsed = strict_json.loads(data, what="document")
    except MalformedMessage:
        return
    assert parsed == json.loads(data)


def deepest(document: bytes) -> int:
    """The nesting of a document, counted byte by byte."""
    depth = most = 0
    in_string = is_escaped = False
    for byte in document:
        if in_string:
            in_string = is_escaped or byte != ord('"')
            is_escaped = byte == ord("\\") and not is_escaped
        elif byte in b"[{":
            depth += 1
            most = max(most, depth)
        elif byte in b"]}":
            depth -= 1
        else:
            in_string = byte == ord('"')
    return most


def refusal(document: bytes) -> str:
    """Why the document is refused; empty if it is not."""
    try:
        strict_json.loads(document, what="document")
    except MalformedMessage as exc:
        return exc.message
    return ""


@given(st.lists(st.sampled_from([*'[[[[[{]}""\\a\n']), max_size=120).map("".join))
def test_nesting_is_that_outside_of_strings(text: str) -> None:
    document = text.encode()
    assert ("nested deeper" in refusal(document)) == (deepest(document) > MAX_DEPTH)


@dataclass(frozen=True, slots=True)
class Branch:
    leaf_count: int
    next_leaf: Leaf
    w_matrix_reference: str = ""
    free_form: Mapping[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("name", "key"),
    [("num_kv_heads", "numKvHeads"), ("dtype", "dtype"), ("w_matrix_reference", "wMatrixReference")],
)
def test_camel_case_is_that_of_the_files(name: str, key: str) -> None:
    assert strict_json.camel_case(name) == key


def test_keys_may_be_named_otherwise_than_fields() -> None:
    plain = {"leafCount": 1, "nextLeaf": {"size": 2}, "freeForm": {"snake_case": 3}}
    branch = strict_json.from_plain(Branch, plain, what="branch", name_of=strict_json.camel_case)
    assert branch == Branch(1, Leaf(2), free_form={"snake_case": 3})
    with pytest.raises(MalformedMessage, match="unknown field 'leaf_count'"):
        strict_json.from_plain(
            Branch, {**plain, "leaf_count": 1}, what="branch", name_of=strict_json.camel_case
        )
    with pytest.raises(MalformedMessage, match="'leafCount'"):
        strict_json.from_plain(
            Branch, {"nextLeaf": {"size": 2}}, what="branch", name_of=strict_json.camel_case
        )


def test_field_with_a_bound_of_its_own_is_longer_than_the_others() -> None:
    most = 2 * MAX_STRING_CHARS
    assert strict_json.from_plain(Page, {"title": "", "text": "a" * most}, what="page").text == "a" * most
    for plain in ({"title": "", "text": "a" * (most + 1)}, {"title": "a" * most}, {"title": "", "text": 7}):
        with pytest.raises(MalformedMessage):
            strict_json.from_plain(Page, plain, what="page")


LONGEST = "x" * MAX_STRING_CHARS


@pytest.mark.parametrize(
    "place",
    [
        lambda text: text,
        lambda text: {text: 1},
        lambda text: {"a": text},
        lambda text: [1, text],
        lambda text: {"a": [{"b": text}]},
        lambda text: [{text: None}],
    ],
    ids=["itself", "a key", "a value", "in a list", "deep down", "a key deep down"],
)
def test_long_string_within_a_free_form_value_is_refused_wherever_it_is(place: Any) -> None:
    strict_json.check_strings(place(LONGEST), "tree")
    with pytest.raises(MalformedMessage, match=f"at most {MAX_STRING_CHARS} are read"):
        strict_json.check_strings(place(LONGEST + "x"), "tree")


def test_free_form_field_keeps_the_bound_of_strings() -> None:
    tree = PLAIN | {"extra": {"a": LONGEST + "x"}}
    with pytest.raises(MalformedMessage, match=r"tree\.extra: 4097 characters"):
        strict_json.decode(Tree, json.dumps(tree).encode(), what="tree")
