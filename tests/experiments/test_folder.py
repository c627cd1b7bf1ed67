"""A run's folder: what a crash leaves, who may write, which lines count."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from kvnet.errors import AlreadyRunning, MalformedRun, RequestError, UnknownRun
from kvnet.experiments.folder import EVENTS, MANIFEST, RunFolder, find_run
from kvnet.experiments.record import Closed, Event, Failure, Finish, Summary
from tests.experiments.runs import a_manifest, an_event, write_cell, write_run

BEFORE_IT_IS_KILLED = """
import sys, time
from pathlib import Path
from kvnet.experiments.folder import RunFolder
from tests.experiments.runs import a_manifest, an_event, write_cell
folder = RunFolder.create(Path(sys.argv[1]), a_manifest())
write_cell(folder, "whole", fraction=0.5)
folder.append(an_event("begun"))
folder.flush()
print(folder.path, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("name", ["event.v1.json", "manifest.v1.json"])
def test_what_is_written_is_of_the_published_schema(tmp_path: Path, name: str) -> None:
    path = write_run(tmp_path)
    with RunFolder.open(path, write=True) as folder:
        folder.append(Summary({"tinyllama": {"layers": 22}}))
    text = (resources.files("kvnet.experiments") / "schema" / name).read_text(encoding="utf-8")
    schema = jsonschema.Draft202012Validator(json.loads(text))
    documents = (path / MANIFEST).read_text(), *(path / EVENTS).read_text().splitlines()
    wanted = documents[1:] if name.startswith("event") else documents[:1]
    kinds = {json.loads(document).get("kind") for document in wanted}
    assert kinds == (
        {"measurement", "cell", "failure", "summary", "finish"} if len(wanted) > 1 else {"recipe"}
    )
    for document in wanted:
        schema.validate(json.loads(document))


def test_every_kind_of_line_comes_back_as_it_was_written(tmp_path: Path) -> None:
    bodies = [
        an_event("", right=0.0, parameters={"x": [1, "a"]}, lesson=None),
        Closed("c", 1.5, {"x": 1}, 3),
        Failure("d", "no room", "store_full", {"x": 2}, 4),
        Summary({"tinyllama": {"layers": 22}}),
        Finish("finished", 1),
    ]
    with RunFolder.create(tmp_path, a_manifest(controls=())) as folder:
        for body in bodies:
            folder.append(body)
        assert [line.body for line in folder.lines()] == bodies
    assert RunFolder.open(folder.path).manifest == folder.manifest


def test_killed_writer_leaves_whole_cells_and_the_next_goes_on(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        [sys.executable, "-c", BEFORE_IT_IS_KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    path = Path(writer.stdout.readline().strip())
    with pytest.raises(AlreadyRunning, match="another process writes it"):
        RunFolder.open(path, write=True)
    writer.send_signal(signal.SIGKILL)
    writer.communicate(timeout=30)
    with (path / EVENTS).open("ab") as file:
        file.write(b'{"v": 1, "ts": "2026-')  # what a kill in the middle of a write leaves
    with RunFolder.open(path, write=True) as folder:
        assert folder.done_cells() == {"whole"}
        assert "torn (21 bytes" in folder.torn
        write_cell(folder, "begun", fraction=0.5)
    assert RunFolder.open(path).torn == ""
    counted = [body for body in folder.events() if isinstance(body, Event) and body.cell == "begun"]
    assert len(counted) == 4 * 8 * 4  # not the one that the killed process measured


def test_torn_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    whole = list(RunFolder.open(path).lines())
    with (path / EVENTS).open("ab") as file:
        file.write(b'{"v": 1')
    folder = RunFolder.open(path)
    assert folder.torn.endswith("was left out; its cell will be measured again")
    assert list(folder.lines()) == whole


def test_line_that_is_broken_before_the_last_is_refused_by_its_number(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    lines = (path / EVENTS).read_bytes().splitlines(keepends=True)
    (path / EVENTS).write_bytes(b"".join([*lines[:2], b"{oops\n", *lines[2:]]))
    with pytest.raises(MalformedRun, match=r"events.jsonl line 3: not strict JSON"):
        list(RunFolder.open(path).lines())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"v": 2}, "schema version 2, this kvnet reads 1"),
        ({"kind": "picture"}, "kind 'picture' is none of"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"values": {"right": "yes"}}, "value right is 'yes', wanted a finite number"),
    ],
)
def test_line_of_another_schema_is_refused_in_a_sentence(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = write_run(tmp_path)
    line = json.loads((path / EVENTS).read_text().splitlines()[0])
    with (path / EVENTS).open("a") as file:
        file.write(json.dumps(line | change) + "\n")
    with pytest.raises(MalformedRun, match=said):
        list(RunFolder.open(path).lines())


def test_cell_without_a_control_is_not_closed(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, a_manifest()) as folder:
        folder.append(an_event("c", "text"))
        with pytest.raises(MalformedRun, match="the control none is missing"):
            folder.append(Closed("c", 1.0))


def test_number_that_is_not_finite_is_not_logged(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, a_manifest()) as folder:
        with pytest.raises(MalformedRun, match="right is nan"):
            folder.append(an_event(right=float("nan")))
        assert list(folder.lines()) == []


def test_failed_cell_that_succeeded_later_no_longer_counts_as_failed(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path, a_manifest()) as folder:
        folder.append(Failure("c", "no room", "store_full"))
        assert folder.progress() == (0, 1, "open")
        write_cell(folder, "c", fraction=0.5)
        assert folder.progress() == (1, 0, "open")
        assert not [body for body in folder.events() if isinstance(body, Failure)]


def test_run_is_found_by_how_its_name_starts_or_ends(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert (
        find_run(tmp_path, "keep") == find_run(tmp_path, path.name[-6:]) == find_run(tmp_path, "last") == path
    )
    write_run(tmp_path)
    with pytest.raises(UnknownRun, match="2 runs are called so"):
        find_run(tmp_path, "keep")
    with pytest.raises(UnknownRun, match="none in"):
        find_run(tmp_path, "other")


def test_run_that_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="wanted small letters"):
        RunFolder.create(tmp_path, a_manifest(name="../up"))
    with pytest.raises(UnknownRun, match=r"it has no manifest.json"):
        RunFolder.open(tmp_path)
