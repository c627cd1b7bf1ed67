"""exp: what the commands print, write and refuse; none of them imports torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.outcomes import Kvnet, json_of, refused
from tests.experiments.runs import write_run

HEAVY = ("torch", "transformers", "duckdb", "matplotlib", "numpy")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVNET_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    return write_run(tmp_path / "runs")


def test_listing_says_how_far_each_run_is(kvnet: Kvnet, run: Path) -> None:
    (listed,) = json_of(kvnet("exp", "ls", "--json"))
    assert (listed["run"], listed["done"], listed["failed"], listed["status"]) == (run.name, 6, 1, "finished")


def test_table_prints_every_arm_and_why_a_cell_failed(kvnet: Kvnet, run: Path) -> None:
    said = kvnet("exp", "table", "last", "--metric", "right")
    assert said.status == 0
    first = said.out.splitlines()[0]
    assert first.split() == ["arm", "fraction", "n", "right"]
    for arm in ("kept", "none", "text", "zeroed", "wanted at most 1"):
        assert arm in said.out
    assert len(json_of(kvnet("exp", "table", "--json"))["rows"]) == 6


def test_report_plot_and_exports_lie_where_they_are_told(kvnet: Kvnet, run: Path, tmp_path: Path) -> None:
    made = json_of(kvnet("exp", "report", run.name, "--html", tmp_path / "page.html", "--json"))
    assert Path(made["html"]).read_text().startswith("<!doctype html>")
    plots = json_of(kvnet("exp", "plot", "last", "--metric", "right", "--out", tmp_path / "plots", "--json"))
    assert {Path(plot).read_bytes()[:4] for plot in plots} == {b"\x89PNG"}
    for kind, suffix in (("parquet", "parquet"), ("notebook", "ipynb")):
        assert kvnet("exp", "export", "last", "--to", kind).status == 0
        assert (tmp_path / f"{run.name}.{suffix}").stat().st_size > 0


def test_sql_diff_and_freeze_answer_in_json(kvnet: Kvnet, run: Path) -> None:
    asked = "SELECT count(*) AS n FROM measurements"
    assert json_of(kvnet("exp", "sql", asked, "--json")) == [{"n": 6 * 4 * 8 * 4}]
    assert json_of(kvnet("exp", "diff", "last", "last", "--json"))["made"] == {}
    assert json_of(kvnet("exp", "freeze", "last", "--json"))["was_frozen"] is False
    assert "as it was frozen" in kvnet("exp", "freeze", "last").out


def test_what_cannot_be_run_is_refused_before_a_model_is_loaded(
    kvnet: Kvnet, run: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[recipe]\nname = "x"\nprotocol = "structure"\nversion = 1\nquestion = "?"\ncolour = 1\n')
    refused(kvnet("exp", "run", own), "recipe_invalid", 4)
    refused(kvnet("exp", "run", "structure", "--sweep", "colour=red"), "recipe_invalid", 4)
    refused(kvnet("exp", "run", "--resume", "nothing"), "unknown_run", 4)
    refused(kvnet("exp", "run", "structure", "--on", "moon"), "request_invalid", 4)
    refused(kvnet("exp", "table", "nothing"), "unknown_run", 4)
    refused(kvnet("exp", "run", "drift", "--task", "nowhere.jsonl"), "request_invalid", 4)
    task = tmp_path / "own, mine.jsonl"
    task.write_text("")
    refused(kvnet("exp", "run", "structure", "--task", task), "request_invalid", 4)


def test_commands_start_without_what_only_some_of_them_need(run: Path) -> None:
    look = f"import sys, kvnet.cli.main; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, timeout=60, check=True
    )
    assert found.stdout.strip() == "[]"


@pytest.mark.slow
def test_structure_ends_with_one_object_of_its_figures(kvnet: Kvnet, run: Path) -> None:
    said = kvnet("exp", "run", "structure", "--quick", "--json")
    assert said.status == 0, said
    found = json.loads(said.out.splitlines()[-1])
    assert found["tinyllama"]["bytes_per_token"] == 22_528


@pytest.mark.slow
def test_what_keeps_a_run_from_beginning_is_told_once_and_in_json(
    kvnet: Kvnet, run: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    said = kvnet("exp", "run", "structure", "--quick", "--runs", tmp_path / "file" / "runs", "--json")
    assert said.status == 4, said
    assert json.loads(said.out)["error"]["message"] in said.err
    assert said.err.count("error: ") == 1


@pytest.mark.slow
def test_own_questions_take_the_place_of_the_recipes(kvnet: Kvnet, run: Path, tmp_path: Path) -> None:
    pets = ("owl", "fox", "cat", "dog", "horse", "goat", "bear", "wolf", "sheep", "mouse")
    lines = [
        {"context": f"{name}'s pet is {pet}.", "question": f"{name}'s pet is", "answer": f"{pet}."}
        for name in ("Ada", "Bob")
        for pet in pets
    ]
    task = tmp_path / "own, mine.jsonl"  # a comma separates values of --sweep
    task.write_text("\n".join(map(json.dumps, lines)))
    said = kvnet("exp", "run", "same-model", "--task", task, "--quick", "--sweep", "lessons=20")
    assert said.status == 0, said
    rows = json_of(kvnet("exp", "table", "last", "--json"))["rows"]
    assert {(row["task"], row["model"]) for row in rows} == {(task.name, "ref-a")}
    assert {row["values"]["right"]["n"] for row in rows} == {20}


@pytest.mark.slow
def test_sweep_with_a_failed_cell_goes_on_and_ends_with_all_it_found(kvnet: Kvnet, run: Path) -> None:
    said = kvnet("exp", "run", "structure", "--quick", "--sweep", "lengths=[8,99999],[8,16,32]", "--json")
    assert said.status == 1, said
    last = json.loads(said.out)  # the one document
    assert last["error"]["code"] == "cells_failed"
    assert last["tinyllama"]["bytes_per_token"] == 22_528
    assert said.err.count("error: ") == 1
    listed = json_of(kvnet("exp", "ls", "--json"))[-1]
    assert (listed["done"], listed["failed"], listed["status"]) == (1, 1, "failed")
    (failed,) = json_of(kvnet("exp", "table", "last", "--json"))["failures"]
    assert failed["parameters"]["lengths"] == [8, 99999]
    assert failed["reason"]
