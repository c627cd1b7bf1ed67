"""Two daemons' logs as one run: what a transfer cost on both sides, and the answers behind it."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.daemons import Pair
from tests.e2e.outcomes import json_of


def test_logs_of_two_daemons_give_a_run_whose_table_shows_a_transfer_on_both_sides(
    alice: Path, pair: Pair, tmp_path: Path
) -> None:
    sent = json_of(alice, "remember", "Omar's pet is a heron that nobody joined before.")
    with pair.alice.node() as node:
        report = node.send(sent["id"], "bob", codec="int8")
    with pair.bob.node() as node:
        answer = node.ask("Omar's pet is", report.memory)
    logs = (str(pair.alice.home.events), str(pair.bob.home.events))
    run = json_of(alice, "exp", "join", *logs, "--runs", str(tmp_path))["run"]

    query = "SELECT arm, metric, value FROM marks JOIN cells USING (cell) WHERE cells.parameters LIKE '%{}%'"
    rows = json_of(alice, "exp", "sql", query.format(report.transfer_id), run)
    told = {(row["arm"], row["metric"]): row["value"] for row in rows}
    (out,) = [e for e in pair.alice.events("transfer.completed") if e["transfer_id"] == report.transfer_id]
    (back,) = [e for e in pair.bob.events("transfer.completed") if e["transfer_id"] == report.transfer_id]
    assert told["transfer", "wire_nbytes"] == out["wire_bytes"] == back["wire_bytes"] == report.wire_bytes
    assert told["transfer", "sent_s"] == out["duration_s"] > 0
    assert told["transfer", "received_s"] == back["duration_s"] > 0
    assert told["answer", "reused_tokens"] == answer.kv.reused_tokens

    table = json_of(alice, "exp", "table", run)
    shown = {row["arm"]: row["values"] for row in table["rows"] if row["parameters"]["tier"] == "exact"}
    assert {"wire_nbytes", "raw_nbytes", "sent_s", "received_s"} <= shown["transfer"].keys()
