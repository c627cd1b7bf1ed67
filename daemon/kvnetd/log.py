"""The event log: one JSON line per event, spans in threes (`.started`, `.completed`, `.failed`), rotated.

No prompts, no texts, no tensors, no key material: only the fields named below can be written.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from kvnet.errors import KvnetError

SCHEMA_VERSION = 1
KEPT_FILES = 5

# What a line may carry besides `v ts event node`; a name not listed is a bug, not a field.
FIELDS = frozenset(
    {
        *("transfer_id", "direction", "peer", "agent", "memory", "tier", "map", "fallback"),
        "codec",
        *("source", "receiver", "lessons", "rows", "admitted", "gap_recovered"),
        *("model", "quantization", "device", "version", "pid", "address", "port"),
        *("mode", "predicted_s"),
        *("tokens", "chunks", "resumed_chunks", "raw_bytes", "wire_bytes", "count"),
        *("reused_tokens", "recomputed_tokens", "new_tokens", "finish_reason"),
        *("entry", "attempts", "origin"),
        *("duration_s", "ttft_s", "error", "message"),
    }
)
SPANS = (
    "node",
    "model",
    "prefill",
    "encoding",
    "calibration",
    "alignment",
    "transfer",
    "outbox",
    "store",
    "verification",
    "injection",
    "generation",
    "discovery",
    "peer",
)


class Span:
    """An event in progress. `end` writes its last line; fields added before appear on it."""

    def __init__(self, log: EventLog, name: str, fields: dict[str, Any]) -> None:
        self._log = log
        self._name = name
        self._fields = fields
        self._began = time.perf_counter()
        log.write(f"{name}.started", **fields)

    def add(self, **fields: Any) -> None:
        """Attach what became known on the way."""
        self._fields.update(fields)

    def end(self, failure: BaseException | None = None) -> None:
        """`.completed`, or `.failed` with the error's code, either with `duration_s`."""
        duration_s = round(time.perf_counter() - self._began, 6)
        if failure is None:
            self._log.write(f"{self._name}.completed", **self._fields, duration_s=duration_s)
            return
        error, message = "internal", type(failure).__name__
        if isinstance(failure, asyncio.CancelledError | GeneratorExit):
            error, message = "cancelled", "the caller went away"
        if isinstance(failure, KvnetError):
            error, message = failure.code, failure.message
        self._log.write(
            f"{self._name}.failed", **self._fields, error=error, message=message, duration_s=duration_s
        )


class EventLog:
    """Appends to `events.jsonl` and tells live listeners."""

    def __init__(self, path: Path, *, node: str, max_nbytes: int) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._node = node
        self._max_nbytes = max_nbytes
        self._lock = Lock()
        self._out = path.open("a", encoding="utf-8")
        self._listeners: list[Callable[[str], None]] = []

    def write(self, event: str, **fields: Any) -> None:
        """Write one line. Raises ValueError for a name that is not part of the schema."""
        unknown = set(fields) - FIELDS
        if unknown or event.split(".")[0] not in SPANS:
            raise ValueError(f"not in the event schema: {event} {sorted(unknown)}")
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps({"v": SCHEMA_VERSION, "ts": now, "event": event, "node": self._node, **fields})
        # A full disk costs lines of the log, not the transfer they tell of.
        with self._lock, suppress(OSError):
            self._rotate_if_full(len(line))
            self._out.write(line + "\n")
            self._out.flush()
        for listener in tuple(self._listeners):
            listener(line)

    def begin(self, name: str, **fields: Any) -> Span:
        """Write `name.started`; the span's `end` writes the rest."""
        return Span(self, name, dict(fields))

    @contextmanager
    def span(self, name: str, **fields: Any) -> Iterator[Span]:
        """`begin` and `end` around a block; what the block raises is logged and passed on."""
        span = self.begin(name, **fields)
        try:
            yield span
        except BaseException as failure:
            span.end(failure)
            raise
        span.end()

    def listen(self, listener: Callable[[str], None]) -> Callable[[], None]:
        """Call `listener` with every new line; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def lines(self) -> list[str]:
        """Every line that the log still holds, oldest first."""
        older = [self._path.with_name(f"{self._path.name}.{age}") for age in range(KEPT_FILES, 0, -1)]
        found: list[str] = []
        for path in (*older, self._path):
            if path.exists():
                found += path.read_text(encoding="utf-8").splitlines()
        return found

    def close(self) -> None:
        """Flush and close the file."""
        with self._lock, suppress(OSError):
            self._out.close()

    def _rotate_if_full(self, incoming: int) -> None:
        if self._out.tell() + incoming < self._max_nbytes:
            return
        for age in range(KEPT_FILES - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{age}")
            if older.exists():
                older.replace(self._path.with_name(f"{self._path.name}.{age + 1}"))
        self._path.replace(self._path.with_name(f"{self._path.name}.1"))
        full, self._out = self._out, self._path.open("a", encoding="utf-8")
        full.close()
