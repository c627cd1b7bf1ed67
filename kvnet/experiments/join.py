"""Two nodes' event logs as one run: a transfer is a cell, found in both logs by its transfer id.

Knows the daemons' log format (ARCHITECTURE, "The event log"), not the daemons. What is in one log only is a
failed cell, for half of a transfer is no measurement.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kvnet.errors import MalformedRun
from kvnet.experiments.folder import RunFolder
from kvnet.experiments.record import Closed, Event, Failure, Manifest, Summary
from kvnet.types import sha256_hex
from kvnet.version import VERSION

PROTOCOL = "transfer"
_LOG_VERSION = 1
_SENT = "out"
_COUNTS = {"raw_bytes": "raw_nbytes", "wire_bytes": "wire_nbytes", "chunks": "chunks"}


@dataclass(frozen=True, slots=True)
class _Side:
    """What one log says of a transfer: the fields of its last line."""

    node: str
    event: str
    fields: Mapping[str, Any]


def join_logs(logs: tuple[Path, Path], runs_dir: Path, *, name: str = "transfers", command: str = "") -> Path:
    """A run of all transfers that both logs tell of; returns its folder. Raises MalformedRun."""
    lines = [list(_lines(log)) for log in logs]
    sides = [{line["transfer_id"]: _side(line) for line in told if _ends_transfer(line)} for told in lines]
    shared = [id_ for id_ in sides[0] if id_ in sides[1]]
    if not shared:
        raise MalformedRun(
            f"{logs[0]} and {logs[1]}: no transfer id is in both (they tell of {len(sides[0])} and "
            f"{len(sides[1])} transfers); give the event logs of two nodes that sent each other something"
        )
    listed = list(dict.fromkeys([*sides[0], *sides[1]]))
    answers = {id_: said for told in lines for id_, said in _answers(told).items()}
    manifest = Manifest(
        name=name,
        kind="joined",
        protocol=PROTOCOL,
        question="What did the transfers between two nodes cost?",
        nodes=tuple(sorted({side.node for told in sides for side in told.values()})),
        total_cells=len(listed),
        versions={"kvnet": VERSION},
        command=command,
    )
    with RunFolder.create(runs_dir, manifest) as folder:
        failed = sum(
            _write(folder, lesson, id_, sides, logs, answers.get(id_, []))
            for lesson, id_ in enumerate(listed)
        )
        folder.append(Summary({"transfers": len(listed) - failed, "failed": failed}))
        folder.finish(failed_cells=failed)
        return folder.path


def _write(
    folder: RunFolder,
    lesson: int,
    transfer_id: str,
    sides: list[dict[str, _Side]],
    logs: tuple[Path, Path],
    answers: list[dict[str, Any]],
) -> bool:
    """One transfer; whether it counts as failed."""
    cell = sha256_hex(transfer_id.encode())
    found = [told[transfer_id] for told in sides if transfer_id in told]
    parameters = {"transfer_id": transfer_id}
    if len(found) == 1:
        log = logs[0] if transfer_id in sides[0] else logs[1]
        folder.append(
            Failure(cell, f"only {log.name} of node {found[0].node} tells of it", parameters=parameters)
        )
        return True
    for side in found:
        if side.event != "transfer.completed":
            reason = f"{side.node}: {side.fields.get('message', side.event)}"
            folder.append(Failure(cell, reason, str(side.fields.get("error", "internal")), parameters))
            return True
    sender, receiver = sorted(found, key=lambda side: side.fields.get("direction") != _SENT)
    told = {**sender.fields, **receiver.fields}
    values = {ours: float(told[theirs]) for theirs, ours in _COUNTS.items() if theirs in told}
    values["resumed_chunks"] = float(told.get("resumed_chunks", 0))
    values["sent_s"] = float(sender.fields.get("duration_s", 0))
    values["received_s"] = float(receiver.fields.get("duration_s", 0))
    made = {key: str(told[key]) for key in ("tier", "map", "agent") if told.get(key)}
    folder.append(_event(cell, "transfer", values, sender, receiver, made, lesson))
    for line in answers:
        spent = {"ttft_s": line.get("ttft_s"), "answer_s": line.get("duration_s")}
        spent |= {key: line.get(key) for key in ("reused_tokens", "recomputed_tokens", "new_tokens")}
        numbers = {key: float(value) for key, value in spent.items() if value is not None}
        folder.append(_event(cell, "answer", numbers, sender, receiver, made, lesson))
    folder.append(Closed(cell, values["received_s"], parameters))
    return False


def _event(
    cell: str,
    arm: str,
    values: dict[str, float],
    sender: _Side,
    receiver: _Side,
    parameters: dict[str, str],
    lesson: int,
) -> Event:
    return Event(
        cell=cell,
        protocol=PROTOCOL,
        arm=arm,
        values=values,
        task="transfer",
        model=receiver.node,
        source=sender.node,
        parameters=parameters,
        lesson=lesson,
    )


def _answers(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Transfer id -> answers behind what it brought, if it was the last before them to bring it."""
    brought: dict[str, str] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        memory = line.get("memory")
        if line["event"] == "transfer.completed" and line.get("direction") != _SENT and memory:
            brought[memory] = line["transfer_id"]
        elif line["event"] == "generation.completed" and memory in brought:
            found.setdefault(brought[memory], []).append(line)
    return found


def _ends_transfer(line: Mapping[str, Any]) -> bool:
    return line["event"] in ("transfer.completed", "transfer.failed") and bool(line.get("transfer_id"))


def _side(line: Mapping[str, Any]) -> _Side:
    return _Side(line["node"], line["event"], line)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line with its event and node; a torn one is left out, as `kvnet log` does."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise MalformedRun(f"{path}: cannot be read ({exc}); give a node's log/events.jsonl") from exc
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if not isinstance(line, dict) or not {"v", "event", "node"} <= line.keys():
            raise MalformedRun(f"{path} line {number}: no event of a node; give a node's log/events.jsonl")
        if line["v"] != _LOG_VERSION:
            raise MalformedRun(
                f"{path} line {number}: version {line['v']!r:.20}, this kvnet reads {_LOG_VERSION}"
            )
        yield line
