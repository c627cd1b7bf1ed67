"""The event log as a researcher reads it: valid, in threes, followed live, and silent about texts."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kvnet.errors import RequestError
from kvnet.paths import Home
from tests.e2e.daemons import MakeHome, Pair, Said, cli_command, environment, kvnet
from tests.e2e.outcomes import json_of, prints
from tests.lan.harness import Output

CANARY_NUMBER = "77431906628"  # so long that no duration, size or id in a log has it by chance
CANARY_TEXT = f"The code of the zebrafinch gate is {CANARY_NUMBER}."
CANARY_PROMPT = "What is the code of the zebrafinch gate?"
CANARY_NOTE = "okapi"
CANARIES = ("zebrafinch", CANARY_NUMBER, CANARY_NOTE)


def _threes(lines: list[dict[str, Any]]) -> Counter[str]:
    """Per span: how many were started and not yet ended."""
    open_spans: Counter[str] = Counter()
    for line in lines:
        name, _, what = line["event"].partition(".")
        if what == "started":
            open_spans[name] += 1
        elif what in ("completed", "failed") and name != "verification":
            open_spans[name] -= 1
            assert line["duration_s"] >= 0
        if what == "failed":
            assert line["error"]
    return +open_spans


def test_the_log_is_valid_in_threes_and_holds_no_word_of_text_or_prompt(alice: Path, pair: Pair) -> None:
    memory = json_of(alice, "remember", CANARY_TEXT, "--name", "canary")
    json_of(alice, "send", "canary", "--to", "bob", "--note", CANARY_NOTE, "--codec", "exact")
    coded = json_of(alice, "send", "canary", "--to", "bob", "--note", CANARY_NOTE, "--codec", "int8")
    for daemon in (pair.alice, pair.bob):
        with daemon.node() as node:
            node.ask(CANARY_PROMPT, memory["id"])
            node.ask(CANARY_PROMPT, coded["memory"])
            node.ask(CANARY_PROMPT, max_tokens=2)
            for refuse in (
                lambda: node.ask(CANARY_PROMPT, max_tokens=5000),
                lambda: node.ask(CANARY_PROMPT, stop=("",)),
                lambda: node.ask(CANARY_PROMPT, context=CANARY_TEXT * 300),
                lambda: node.remember(CANARY_TEXT * 300),
            ):
                with pytest.raises(RequestError):
                    refuse()
    for daemon in (pair.alice, pair.bob):
        lines = [json.loads(line) for line in prints(kvnet(daemon.home.root, "log", "--json")).splitlines()]
        assert lines
        for line in lines:
            assert line["v"] == 1
            assert line["ts"].endswith("Z")
            assert line["node"] == daemon.node_id[:13]
        # A daemon that was killed leaves what it was at; the one that runs is a span of its own.
        last_start = max(i for i, line in enumerate(lines) if line["event"] == "node.started")
        assert _threes(lines[last_start:]) == Counter(node=1)
        names = {line["event"] for line in lines}
        assert {"model.completed", "generation.completed", "generation.failed", "prefill.failed"} <= names
        assert {"injection.completed", "transfer.completed"} <= names
        logs = [path for path in daemon.home.events.parent.rglob("*") if path.is_file()]
        for path in (*logs, daemon.home.root / "stderr.txt"):
            content = path.read_text(encoding="utf-8", errors="replace").lower()
            assert not [canary for canary in CANARIES if canary in content], path
    transfers = [line for line in pair.alice.events("transfer.completed") if line["direction"] == "out"]
    received = [line for line in pair.bob.events("transfer.completed") if line["direction"] == "in"]
    assert transfers[-1]["transfer_id"] == received[-1]["transfer_id"]
    assert transfers[-1]["raw_bytes"] == received[-1]["raw_bytes"]
    assert "verification.completed" in {line["event"] for line in pair.bob.events()}
    encoded = pair.alice.events("encoding.completed")[-1]
    assert (encoded["memory"], encoded["codec"]) == (coded["memory"], "int8")
    assert encoded["raw_bytes"] < transfers[-1]["raw_bytes"]


def test_the_log_can_be_read_without_a_daemon_and_by_event(alice: Path, home: MakeHome) -> None:
    assert kvnet(home("nobody"), "log", "--json") == Said(0, "", "")
    lines = prints(kvnet(alice, "log", "--json", "--event", "model")).splitlines()
    assert {json.loads(line)["event"] for line in lines} == {"model.started", "model.completed"}


@pytest.fixture
def following(alice: Path) -> Iterator[Output]:
    """`kvnet log --follow` in the background."""
    process = subprocess.Popen(
        cli_command("log", "--follow", "--json"),
        env=environment(Home(alice)),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        yield Output(process)
        process.kill()


def test_follow_shows_new_lines(alice: Path, pair: Pair, following: Output) -> None:
    before = following.wait_for(lambda line: "node.started" in line, 20)
    with pair.alice.node() as node:
        memory = node.remember(f"Omar's city is number {os.getpid()}.")
    at = following.wait_for(lambda line: memory.id in line, 20, after=before)
    assert json.loads(following.lines[at - 1])["event"] == "prefill.completed"


async def test_the_sdk_follows_events_too(pair: Pair) -> None:
    async with pair.alice.async_node() as node:
        events = node.events(past=True)
        first = await anext(events)
        assert first["event"] == "node.started"
        await events.aclose()
        past = [event["event"] async for event in node.events(follow=False, past=True)]
    assert past[0] == "node.started"
