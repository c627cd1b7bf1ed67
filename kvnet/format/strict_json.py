"""Strict JSON into frozen dataclasses, for every document that a stranger may have written.

Refuses what `json.loads` lets through: duplicate keys, NaN and infinities, deep nesting, huge
documents, missing or unknown fields, a bool where a number belongs. Source: FORMAT.md §1.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

from kvnet.errors import MalformedMessage

MAX_DOCUMENT_NBYTES = 1 << 20
MAX_DEPTH = 16
MAX_STRING_CHARS = 4096
MAX_INTEGER = (1 << 63) - 1

T = TypeVar("T")

_SCALARS = (str, int, float, bool)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # or what is left of one at the end
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_BRACKET_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")  # one down, one up, as signed bytes


def loads(data: bytes, *, what: str, max_nbytes: int = MAX_DOCUMENT_NBYTES) -> Any:
    """Parse one JSON document. Raises MalformedMessage; `what` names the document in the message."""
    if len(data) > max_nbytes:
        raise MalformedMessage(f"{what}: {len(data)} bytes, at most {max_nbytes} are read")
    _check_depth(data, what)
    try:
        return _parse(data)
    except (ValueError, UnicodeDecodeError) as exc:
        raise MalformedMessage(f"{what}: not strict JSON ({exc})") from exc


def _parse(data: bytes) -> Any:
    parsed = json.loads(
        data.decode("utf-8"),
        object_pairs_hook=_unique_keys,
        parse_constant=_refuse_constant,
        parse_float=_finite_float,
        parse_int=_bounded_int,
    )
    if b"\\u" in data:
        # Half a surrogate pair parses, but no file, database or wire takes it afterwards.
        json.dumps(parsed, ensure_ascii=False).encode()
    return parsed


def decode(cls: type[T], data: bytes, *, what: str, max_nbytes: int = MAX_DOCUMENT_NBYTES) -> T:
    """Parse a document into the frozen dataclass `cls`, every field checked."""
    return from_plain(cls, loads(data, what=what, max_nbytes=max_nbytes), what=what)


def from_plain(cls: type[T], plain: Any, *, what: str, name_of: Callable[[str], str] = str) -> T:
    """Build `cls` from parsed JSON. Missing, unknown or wrongly typed fields are refused.

    `name_of` gives a field's key in the document: `camel_case`, or the field's own name. A text field whose
    metadata has `max_chars` may be as long as that.
    """
    if not isinstance(plain, dict):
        raise MalformedMessage(f"{what}: expected an object, got {type(plain).__name__}")
    plain_cls: Any = cls
    known = _fields(plain_cls, name_of)
    unknown = sorted(plain.keys() - known.keys())
    if unknown:
        raise MalformedMessage(f"{what}: unknown field {unknown[0]!r:.60}")
    values = {}
    for key, (name, hint, is_required, max_chars) in known.items():
        if key in plain and max_chars:
            values[name] = _scalar(hint, plain[key], f"{what}.{key}", max_chars)
        elif key in plain:
            values[name] = _coerce(hint, plain[key], f"{what}.{key}", name_of)
        elif is_required:
            raise MalformedMessage(f"{what}: field {key!r} is missing")
    return cls(**values)


def camel_case(name: str) -> str:
    """`num_kv_heads` as `numKvHeads`: how files name fields."""
    first, *others = name.split("_")
    return first + "".join(other.capitalize() for other in others)


def _coerce(hint: Any, value: Any, what: str, name_of: Callable[[str], str]) -> Any:
    if hint in _SCALARS:  # first: of these a section table has tens of thousands
        return _scalar(hint, value, what)
    if hint is Any:
        return value
    origin = typing.get_origin(hint)
    if isinstance(hint, typing.NewType):
        return _coerce(hint.__supertype__, value, what, name_of)
    if origin is types.UnionType or origin is typing.Union:
        inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
        return None if value is None else _coerce(inner[0], value, what, name_of)
    if origin is tuple:
        if not isinstance(value, list):
            raise MalformedMessage(f"{what}: expected a list, got {type(value).__name__}")
        item = typing.get_args(hint)[0]
        return tuple(_coerce(item, entry, f"{what}[{i}]", name_of) for i, entry in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, dict):
            raise MalformedMessage(f"{what}: expected an object, got {type(value).__name__}")
        check_strings(value, what)
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return from_plain(hint, value, what=what, name_of=name_of)
    return _enum(hint, value, what)


def _scalar(hint: Any, value: Any, what: str, max_chars: int = MAX_STRING_CHARS) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise MalformedMessage(f"{what}: expected {hint.__name__}, got {type(value).__name__}")
    if isinstance(value, str) and len(value) > max_chars:
        raise MalformedMessage(f"{what}: {len(value)} characters, at most {max_chars} are read")
    if hint is int and value < 0:
        raise MalformedMessage(f"{what}: {value} is negative")
    return value


def check_strings(value: Any, what: str) -> None:
    """The string rule inside free-form values, keys included. Raises MalformedMessage."""
    if isinstance(value, str) and len(value) > MAX_STRING_CHARS:
        raise MalformedMessage(f"{what}: {len(value)} characters, at most {MAX_STRING_CHARS} are read")
    if isinstance(value, dict):
        for key, entry in value.items():
            check_strings(key, what)
            check_strings(entry, what)
    if isinstance(value, list):
        for entry in value:
            check_strings(entry, what)


def _enum(hint: type[Enum], value: Any, what: str) -> Enum:
    try:
        return hint(value)
    except ValueError as exc:
        known = ", ".join(str(member.value) for member in hint)
        raise MalformedMessage(f"{what}: {value!r:.40} is none of {known}") from exc


@lru_cache(maxsize=64)
def _fields(cls: Any, name_of: Callable[[str], str]) -> dict[str, tuple[str, Any, bool, int]]:
    """Of each key: the field's name, its type, whether it must be there, and its own bound or 0."""
    hints = typing.get_type_hints(cls)
    missing = dataclasses.MISSING
    return {
        name_of(f.name): (
            f.name,
            hints[f.name],
            f.default is missing and f.default_factory is missing,
            f.metadata.get("max_chars", 0),
        )
        for f in dataclasses.fields(cls)
    }


def _check_depth(data: bytes, what: str) -> None:
    # Before json.loads: deep nesting there is a RecursionError, not a ValueError.
    steps = memoryview(_STRING.sub(b"", data).translate(_BRACKET_STEPS, _NO_BRACKETS)).cast("b")
    if max(accumulate(steps, initial=0)) > MAX_DEPTH:
        raise MalformedMessage(f"{what}: nested deeper than {MAX_DEPTH}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r:.60} appears twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{text:.40} is out of range")
    return value


def _bounded_int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > MAX_INTEGER:
        raise ValueError(f"integer {text:.24} is out of range")
    return int(text)
