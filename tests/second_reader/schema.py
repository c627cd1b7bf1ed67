"""The part of JSON Schema that the package documents' schemas use. Any other keyword in a schema is an
error of ours.

Imports nothing of kvnet; the schemas themselves are data, and part of FORMAT.md §9.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from tests.second_reader.strict import number

SCHEMAS = Path(__file__).parents[2] / "kvnet" / "files" / "schemas"

_TYPES: dict[str, Any] = {
    "object": lambda v: isinstance(v, dict),
    "array": lambda v: isinstance(v, list),
    "string": lambda v: isinstance(v, str),
    "number": number,
    "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "boolean": lambda v: isinstance(v, bool),
    "null": lambda v: v is None,
}
_SAID = {"$schema", "$id", "title", "description", "properties", "required", "items"}


@lru_cache(maxsize=16)
def load_schema(name: str) -> dict[str, Any]:
    """The schema of one document, by its file name."""
    return json.loads((SCHEMAS / name).read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def breach(schema: dict[str, Any], value: Any, what: str = "the document") -> str:
    """The first rule of the schema that this value breaks, or ""."""
    for keyword, wanted in schema.items():
        if keyword not in _SAID and not _holds(keyword, wanted, value, schema):
            return f"{what} breaks {keyword} {wanted!r:.60}"
    if isinstance(value, dict):
        return _breach_of_object(schema, value, what)
    if isinstance(value, list) and "items" in schema:
        return next((why for entry in value if (why := breach(schema["items"], entry, f"{what}[]"))), "")
    return ""


def _breach_of_object(schema: dict[str, Any], value: dict[str, Any], what: str) -> str:
    properties = schema.get("properties", {})
    missing = [key for key in schema.get("required", []) if key not in value]
    if missing:
        return f"{what} lacks {missing[0]}"
    others = schema.get("additionalProperties")
    for key, entry in value.items():
        inner = properties.get(key, others if isinstance(others, dict) else {})
        if why := breach(inner, entry, f"{what}.{key:.40}"):
            return why
    return ""


def _holds(keyword: str, wanted: Any, value: Any, schema: dict[str, Any]) -> bool:
    """Whether one keyword holds. Those of another type than the value's say nothing of it."""
    if keyword == "type":
        return any(_TYPES[name](value) for name in ([wanted] if isinstance(wanted, str) else wanted))
    if keyword == "const":
        return bool(value == wanted and type(value) is type(wanted))
    if keyword == "enum":
        return value in wanted
    if keyword in ("minimum", "maximum"):
        return not number(value) or (value >= wanted if keyword == "minimum" else value <= wanted)
    if keyword in ("pattern", "minLength", "maxLength"):
        return not isinstance(value, str) or _text_holds(keyword, wanted, value)
    if keyword == "additionalProperties":
        extra = set(value) - set(schema.get("properties", {})) if isinstance(value, dict) else set()
        return wanted is not False or not extra
    raise AssertionError(f"the schema keyword {keyword!r} is not known here")


def _text_holds(keyword: str, wanted: Any, value: str) -> bool:
    if keyword == "pattern":
        return re.search(wanted.replace("$", r"\Z"), value) is not None
    return bool(len(value) >= wanted if keyword == "minLength" else len(value) <= wanted)
