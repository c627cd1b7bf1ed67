"""Texts from outside: UTF-8 as it is, or one sentence why not."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from kvnet.errors import RequestError
from kvnet.texts import read_text, require_text

TEXT = "grüße 😀\r\n\x00"


def test_file_and_stdin_are_read_as_utf_8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    path.write_bytes("grüße 😀".encode())
    assert read_text(str(path)) == "grüße 😀"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(TEXT.encode())))
    assert read_text("-") == TEXT


def test_what_is_no_text_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text"
    for prepare in (lambda: None, path.mkdir, lambda: (path.rmdir(), path.write_bytes(b"\xff"))):
        prepare()
        with pytest.raises(RequestError, match=f"file {path}"):
            read_text(str(path))
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"\xff")))
    with pytest.raises(RequestError, match="stdin"):
        read_text("-")


def test_argument_that_was_no_utf_8_is_refused(tmp_path: Path) -> None:
    assert require_text(TEXT, what="note") == TEXT
    with pytest.raises(RequestError, match="note: is not UTF-8 text at character 3"):
        require_text("abc\udcff", what="note")
