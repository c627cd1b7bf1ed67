"""Texts from outside: files, stdin and arguments, as UTF-8 or as a sentence why not."""

from __future__ import annotations

import sys
from pathlib import Path

from kvnet.errors import RequestError


def read_text(file: str) -> str:
    """A file's text; `-` is stdin. Raises RequestError."""
    try:
        if file == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        shown = "stdin" if file == "-" else f"file {file}"
        raise RequestError(f"{shown}: cannot be read as UTF-8 text ({exc})") from exc


def require_text(text: str, *, what: str) -> str:
    """`text`, unless it holds bytes of an argument that were no UTF-8. Raises RequestError."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise RequestError(f"{what}: is not UTF-8 text at character {exc.start}") from exc
    return text
