"""Frozen dataclasses <-> strict camelCase JSON, with the rules that a field's annotation carries.

Knows no document by name; those are in documents.py.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar

from kvnet.errors import MalformedMessage, MalformedPackage, RequestError
from kvnet.format import strict_json
from kvnet.format.strict_json import camel_case
from kvnet.types import canonical_json

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """What a field's value must be beyond its type: `Annotated[str, Rule(...)]`."""

    holds: Callable[[Any], bool]
    wanted: str  # completes "wanted …" in the refusal


def matching(pattern: str, wanted: str) -> Rule:
    """The rule that a text is an instance of `pattern` from end to end."""
    compiled = re.compile(pattern)
    return Rule(lambda text: compiled.fullmatch(text) is not None, wanted)


def encode_document(document: Any, *, what: str) -> bytes:
    """The canonical JSON of a document; an optional field that has its default is left out.

    Raises RequestError where the document breaks a rule of its own: what is in it came from a user.
    """
    try:
        encoded = canonical_json(to_plain_document(document))
        decode_document(type(document), encoded, what=what)
    except (MalformedPackage, UnicodeEncodeError) as exc:
        raise RequestError(f"this cannot be packed: {exc}") from exc
    return encoded


def decode_document(cls: type[T], encoded: bytes, *, what: str) -> T:
    """Inverse of `encode_document`, for bytes from anywhere.

    Raises MalformedPackage: FORMAT.md §1 and the schema in kvnet/files/schemas, field by field.
    """
    try:
        plain = strict_json.loads(encoded, what=what)
        document = strict_json.from_plain(cls, plain, what=what, name_of=camel_case)
    except MalformedMessage as exc:
        raise MalformedPackage(exc.message) from exc
    _check(cls, document, what)
    return document


def to_plain_document(value: Any) -> Any:
    """A document as JSON-ready values under the names it has in JSON."""
    if dataclasses.is_dataclass(value):
        return {
            camel_case(spec.name): to_plain_document(getattr(value, spec.name))
            for spec in dataclasses.fields(value)
            if not _is_default(spec, getattr(value, spec.name))
        }
    return [to_plain_document(entry) for entry in value] if isinstance(value, tuple) else value


def _is_default(spec: dataclasses.Field[Any], value: Any) -> bool:
    if spec.default_factory is not dataclasses.MISSING:
        return bool(value == spec.default_factory())
    return spec.default is not dataclasses.MISSING and value == spec.default


def _check(hint: Any, value: Any, what: str) -> None:
    """Every rule on the way down, in the order of the fields."""
    if value is None:
        return
    hint, rules = _split(hint)
    has_fields = dataclasses.is_dataclass(hint)
    for rule in rules:
        if not rule.holds(value):
            raise MalformedPackage(f"{what}: {value!r:.80}, wanted {rule.wanted}")
    if has_fields:
        for name, inner in _hints(hint).items():
            _check(inner, getattr(value, name), f"{what}.{camel_case(name)}")
    elif typing.get_origin(hint) is tuple:
        for i, entry in enumerate(value):
            _check(typing.get_args(hint)[0], entry, f"{what}[{i}]")


def _split(hint: Any) -> tuple[Any, tuple[Rule, ...]]:
    """A hint without `| None` and without its rules, and the rules."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if typing.get_origin(hint) is typing.Annotated:
        return typing.get_args(hint)[0], hint.__metadata__
    return hint, ()


@lru_cache(maxsize=64)
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)
