"""The event log: a fixed vocabulary, nothing lost by rotation, nothing said that should not be."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from kvnetd.log import FIELDS, KEPT_FILES, SCHEMA_VERSION, SPANS, EventLog

from kvnet.errors import BadSignature

ARCHITECTURE = Path(__file__).parents[2] / "ARCHITECTURE.md"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "events.jsonl"


@pytest.fixture
def log(path: Path) -> Any:
    found = EventLog(path, node="K3QF7ZM", max_nbytes=1 << 20)
    yield found
    found.close()


def parsed(log: EventLog) -> list[dict[str, Any]]:
    """Every line as an object."""
    return [json.loads(line) for line in log.lines()]


def test_line_carries_version_time_event_and_node(log: EventLog) -> None:
    log.write("transfer.started", peer="bob", chunks=3)
    (line,) = parsed(log)
    assert line.pop("ts").endswith("Z")
    assert line == {
        "v": SCHEMA_VERSION,
        "event": "transfer.started",
        "node": "K3QF7ZM",
        "peer": "bob",
        "chunks": 3,
    }


def test_text_cannot_break_a_line(log: EventLog) -> None:
    log.write("transfer.failed", message='a\nb\r\u2028"}{\x00é')
    assert [line["message"] for line in parsed(log)] == ['a\nb\r\u2028"}{\x00é']


@pytest.mark.parametrize("field", ["prompt", "text", "note", "token", "key", "answer", "Peer", ""])
def test_field_outside_the_schema_is_a_bug_and_writes_nothing(log: EventLog, field: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        log.write("transfer.started", **{field: "secret"})
    assert log.lines() == []


@pytest.mark.parametrize("event", ["", "prompt.started", "Transfer.started"])
def test_event_outside_the_schema_is_a_bug_and_writes_nothing(log: EventLog, event: str) -> None:
    with pytest.raises(ValueError, match="schema"):
        log.write(event)
    assert log.lines() == []


def test_no_field_is_made_for_prompts_texts_or_keys() -> None:
    assert not FIELDS & {"prompt", "text", "question", "answer", "context", "note", "key", "seed", "token"}
    assert "generation" in SPANS


def test_completed_span_adds_what_became_known_and_its_duration(log: EventLog) -> None:
    with log.span("transfer", peer="bob") as span:
        span.add(chunks=6)
    started, completed = parsed(log)
    assert (started["event"], completed["event"]) == ("transfer.started", "transfer.completed")
    assert "chunks" not in started
    assert (completed["peer"], completed["chunks"]) == ("bob", 6)
    assert completed["duration_s"] >= 0


def test_failed_span_carries_the_code_and_passes_the_error_on(log: EventLog) -> None:
    with pytest.raises(BadSignature), log.span("transfer", peer="bob"):
        raise BadSignature("chunk 3: altered")
    failed = parsed(log)[-1]
    assert failed["event"] == "transfer.failed"
    assert (failed["error"], failed["message"]) == ("bad_signature", "chunk 3: altered")


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (ValueError("what the user wrote"), "internal", "ValueError"),
        (asyncio.CancelledError("secret"), "cancelled", "the caller went away"),
        (GeneratorExit("secret"), "cancelled", "the caller went away"),
    ],
)
def test_failure_that_is_not_ours_is_named_without_its_words(
    log: EventLog, failure: BaseException, error: str, message: str
) -> None:
    with pytest.raises(type(failure)), log.span("generation"):
        raise failure
    failed = parsed(log)[-1]
    assert (failed["error"], failed["message"]) == (error, message)


def test_rotation_keeps_whole_lines_and_their_order(path: Path) -> None:
    log = EventLog(path, node="n", max_nbytes=1000)
    for number in range(100):
        log.write("transfer.started", count=number)
    kept = [line["count"] for line in parsed(log)]
    log.close()
    assert kept == list(range(100 - len(kept), 100))
    assert len(kept) > 20
    files = sorted(entry.name for entry in path.parent.iterdir())
    assert files == [path.name, *(f"{path.name}.{age}" for age in range(1, KEPT_FILES + 1))]
    assert all(entry.stat().st_size < 1000 for entry in path.parent.iterdir())


def test_rotation_loses_nothing_until_the_oldest_file_goes(path: Path) -> None:
    log = EventLog(path, node="n", max_nbytes=10_000)
    for number in range(300):
        log.write("transfer.started", count=number)
    assert [line["count"] for line in parsed(log)] == list(range(300))
    log.close()


def test_restarted_log_goes_on_where_it_ended(path: Path) -> None:
    for number in range(3):
        log = EventLog(path, node="n", max_nbytes=1 << 20)
        log.write("node.started", pid=number)
        log.close()
    log = EventLog(path, node="n", max_nbytes=1 << 20)
    assert [line["pid"] for line in parsed(log)] == [0, 1, 2]
    log.close()


def test_restarted_log_rotates_by_its_whole_size(path: Path) -> None:
    for number in range(30):
        log = EventLog(path, node="n", max_nbytes=1000)
        log.write("node.started", pid=number)
        log.close()
    assert path.stat().st_size < 1000


def test_listener_hears_every_line_until_it_leaves(log: EventLog) -> None:
    heard: list[str] = []
    leave = log.listen(heard.append)
    log.write("node.started", pid=1)
    leave()
    log.write("node.completed", pid=1)
    assert heard == log.lines()[:1]


def test_every_event_and_every_field_is_in_the_table_of_events() -> None:
    section = ARCHITECTURE.read_text(encoding="utf-8").partition("## The event log")[2].partition("\n## ")[0]
    rows = [row.strip("| ").split(" | ") for row in section.splitlines() if row.startswith("| `")]
    assert {events.lstrip("`").split(".")[0] for events, _, _ in rows} == set(SPANS)
    told = {
        field for _, _, fields in rows for quoted in re.findall("`(.+?)`", fields) for field in quoted.split()
    }
    assert told | {"duration_s", "error", "message"} == FIELDS
