"""How commands speak: one JSON document or a few lines for people, errors with a code and a status."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, is_dataclass
from typing import Annotated, Any

import typer

from kvnet.errors import KvnetError

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def print_json(value: Any) -> None:
    """One JSON document on one line."""
    print(json.dumps(plain(value)), flush=True)


def plain(value: Any) -> Any:
    """Dataclasses, and lists of them, as JSON-ready values."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return value


def print_error(error: KvnetError, *, as_json: bool) -> None:
    """One sentence on stderr; with `--json` also the code and what differs, on stdout."""
    if as_json:
        print_json({"error": {"code": error.code, "message": error.message, "details": error.details}})
    print(f"error: {printable(error.message)} [{error.code}]", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """Text of others, without what would drive a terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
    """A table on stdout; `empty` is what is said when there are no rows."""
    lines = table_lines(columns, rows)
    print("\n".join(lines) if len(lines) > 1 else empty)


def table_lines(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Left-aligned columns under a header line."""
    listed = [tuple(columns), *[tuple(printable(str(cell)) for cell in row) for row in rows]]
    widths = [max(len(row[i]) for row in listed) for i in range(len(columns))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in listed]


def nbytes_text(nbytes: float) -> str:
    """A size for people: 1.2 MB."""
    for unit in ("B", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.2f} GB"


def seconds_text(seconds: float) -> str:
    """A duration for people: 3.1 ms, 4.20 s."""
    return f"{seconds * 1000:.1f} ms" if seconds < 1 else f"{seconds:.2f} s"
