"""SECURITY.md's promises: each names the tests that hold it, and they are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_ROW = re.compile(r"\| (?P<promise>[^|]+) \| (?P<how>[^|]+) \| (?P<tests>[^|]*) \|")
_TEST = re.compile(r"^(async )?def test_", re.MULTILINE)


def promises() -> dict[str, str]:
    """What is promised -> the column of tests, as it stands in the table."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    table = page.partition("## What this version promises\n\n")[2].partition("\n\n")[0]
    _, _, *rows = table.splitlines()  # the heads of the columns and the line below them
    found = [_ROW.fullmatch(row) for row in rows]
    assert all(found), [row for row, match in zip(rows, found, strict=True) if match is None]
    return {match["promise"]: match["tests"] for match in found if match is not None}


def test_the_table_is_found() -> None:
    assert len(promises()) >= 15


@pytest.mark.parametrize("promise", promises())
def test_every_promise_names_tests_that_are_there(promise: str) -> None:
    places = re.findall(r"`((?:tests|scripts)/[^`]+)`", promises()[promise])
    assert places, "no test holds this promise: write one and name it"
    assert any(place.startswith("tests/") for place in places)
    for place in map(ROOT.joinpath, places):
        assert place.exists(), place
        if place.is_relative_to(ROOT / "tests"):
            files = [place] if place.is_file() else list(place.rglob("test_*.py"))
            assert any(_TEST.search(file.read_text(encoding="utf-8")) for file in files), place
