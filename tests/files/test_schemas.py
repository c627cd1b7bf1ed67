"""The shipped JSON Schemas: they say the same as the dataclasses, and take every document kvnet writes."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import MalformedPackage
from kvnet.files.document_coding import decode_document, encode_document
from kvnet.files.documents import DOCUMENT_TYPES
from kvnet.files.package.listing import Listing
from kvnet.format.strict_json import camel_case
from tests.files.packages import make_package
from tests.files.test_documents import documents

TYPES: dict[str, type] = {**DOCUMENT_TYPES, "signature.json": Listing}
MISSING = object()
VALUES = st.sampled_from(
    [None, True, -1, 0, 1, 7, 0.5, -0.5, 1e300, "", "x", "x" * 4096, "x" * 4097, [], ["x"], [1], {}, {"x": 1}]
) | st.sampled_from(
    ["float16", "float64", "kv-cache.awkg", "alignments/x.bin", "alignments/.x.bin", "2027-01-15T24:00:00Z"]
)


def schema_of(path: str) -> Any:
    """The schema that the package ships for a document."""
    return json.loads((resources.files("kvnet.files") / "schemas" / path).read_text(encoding="utf-8"))


def takes(path: str, plain: Any) -> bool:
    """Whether the schema takes a document."""
    return bool(jsonschema.Draft202012Validator(schema_of(path)).is_valid(plain))


def keys_of_schema(schema: Any) -> Any:
    """Required and optional keys of an object, and those of the objects within."""
    if "items" in schema:
        return keys_of_schema(schema["items"])
    if "properties" not in schema:
        return None
    assert schema["additionalProperties"] is False
    required = set(schema["required"])
    return {(key, key in required): keys_of_schema(inner) for key, inner in schema["properties"].items()}


def keys_of_dataclass(hint: Any) -> Any:
    """The same of a dataclass."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union, tuple):
        return keys_of_dataclass(typing.get_args(hint)[0])
    if not dataclasses.is_dataclass(hint):
        return None
    hints = typing.get_type_hints(hint)
    return {
        (
            camel_case(spec.name),
            spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING,
        ): keys_of_dataclass(hints[spec.name])
        for spec in dataclasses.fields(hint)
    }


def places(plain: Any) -> Iterator[tuple[Any, Any]]:
    """Every object or list in a document with each of its keys, but not within free-form objects."""
    entries = (
        plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    )
    for key, entry in list(entries):
        yield plain, key
        if key not in ("pricing", "details"):
            yield from places(entry)


@pytest.mark.parametrize("path", TYPES)
def test_each_schema_is_one_of_draft_2020_12(path: str) -> None:
    schema = schema_of(path)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    jsonschema.Draft202012Validator.check_schema(schema)


def test_there_is_no_schema_without_a_document() -> None:
    names = {entry.name for entry in (resources.files("kvnet.files") / "schemas").iterdir()}
    assert names == set(TYPES)


@pytest.mark.parametrize("path", TYPES)
def test_schema_and_dataclass_name_the_same_keys_and_require_the_same(path: str) -> None:
    assert keys_of_schema(schema_of(path)) == keys_of_dataclass(TYPES[path])


@pytest.mark.parametrize("path", DOCUMENT_TYPES)
@given(data=st.data())
def test_the_schema_takes_every_document_that_is_written(path: str, data: st.DataObject) -> None:
    plain = json.loads(encode_document(data.draw(documents[path]), what=path))
    assert takes(path, plain)


def test_the_schemas_take_the_files_of_a_written_package(tmp_path: Path) -> None:
    files = make_package(tmp_path).files
    for path in DOCUMENT_TYPES:
        assert takes(path, json.loads(files[path]))
    assert takes("signature.json", json.loads(files["signature.sig"]))


@pytest.mark.parametrize("path", DOCUMENT_TYPES)
@given(data=st.data())
def test_the_schema_refuses_what_the_reader_refuses_and_takes_what_it_takes(
    path: str, data: st.DataObject
) -> None:
    plain = json.loads(encode_document(data.draw(documents[path]), what=path))
    place, key = data.draw(st.sampled_from(list(places(plain))))
    value = data.draw(VALUES | st.just(MISSING))
    if value is MISSING:
        del place[key]
    elif isinstance(place, dict) and data.draw(st.booleans()):
        place[data.draw(st.sampled_from(["x", "package_id", "Name"]))] = value
    else:
        place[key] = value
    try:
        decode_document(DOCUMENT_TYPES[path], json.dumps(plain).encode(), what=path)
    except MalformedPackage:
        is_read = False
    else:
        is_read = True
    assert is_read == takes(path, plain)
