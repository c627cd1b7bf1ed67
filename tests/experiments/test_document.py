"""Pages whose tables are computed: they show what a mark asks for, and a run that says otherwise is told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvnet.errors import RequestError
from kvnet.experiments.document import differences, fill, recipes_in
from kvnet.experiments.table import Table, make_table
from tests.experiments.runs import write_run

PAGE = """# Answers

<!-- table: kept arm=kept,text rows=arm,fraction metric=right -->
old
<!-- /table -->
Words.
<!-- table: kept arm=kept rows=arm columns=fraction metric=right,kl,verdict -->
<!-- /table -->
"""


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return make_table([write_run(tmp_path)])


def test_tables_hold_the_figures_that_their_marks_ask_for_and_the_words_stay(table: Table) -> None:
    assert recipes_in(PAGE) == ("kept",)
    page = fill(PAGE, {"kept": table}.get)
    assert "old" not in page
    assert "Words." in page
    lines = page.splitlines()
    assert lines[3:5] == ["| arm | fraction | right |", "| --- | --- | --- |"]
    assert [line.split(" | ")[:2] for line in lines[5:9]] == [
        ["| kept", "0.25"],
        ["| kept", "0.5"],
        ["| kept", "1.0"],
        ["| text", ""],
    ]
    (kept,) = [row for row in table.rows if row.parameters == {"fraction": 0.5}]
    assert f"{kept.values['right'].mean:.3g} [" in lines[6]
    assert lines[10].startswith("n = 64 to 192 a figure")
    assert lines[10].endswith("brackets are 95 % intervals; `kvnet exp run kept`.")
    assert "| arm | 0.25 right | 0.25 kl | 0.25 verdict | 0.5 right |" in page
    assert "worse (0.1)" in page
    assert fill(page, {"kept": table}.get) == page


def test_figure_outside_the_interval_that_is_stated_is_told(table: Table) -> None:
    page = fill(PAGE, {"kept": table}.get)
    assert list(differences(page, {"kept": table}.get)) == []
    moved = re.sub(r"^(\| kept \| 0\.5 \|).*", r"\1 0.1 [0.05, 0.15] |", page, flags=re.MULTILINE)
    (told,) = differences(moved, {"kept": table}.get)
    assert told.startswith(
        "kept (arm, fraction), kept / 0.5 / right: the page says 0.1 [0.05, 0.15], the run "
    )
    gone = moved.replace("metric=right -->", "metric=right unchecked -->")
    assert list(differences(gone, {"kept": table}.get)) == []


def test_table_of_no_run_stays_as_it_is() -> None:
    assert fill(PAGE, lambda _: None) == PAGE


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("kept metric=right", "wanted RECIPE rows"),
        ("kept rows=arm metric=right", "two rows are kept"),
        ("kept arm=nothing rows=arm metric=right", "no row of the run is asked for"),
    ],
)
def test_mark_that_says_too_little_is_refused(table: Table, spec: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        fill(f"<!-- table: {spec} -->\n<!-- /table -->\n", {"kept": table}.get)
