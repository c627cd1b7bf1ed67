"""A run's folder: `manifest.json`, written once, and `events.jsonl`, append-only.

Knows no protocols. One process writes at a time (`lock`); anyone may read meanwhile. A crash leaves at most a
torn last line, which readers leave out and the next writer cuts off, both saying so in `torn`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO

from kvnet.durable import sync_folder
from kvnet.errors import AlreadyRunning, MalformedRun, RequestError, UnknownRun
from kvnet.experiments.record import (
    Body,
    Closed,
    Event,
    Failure,
    Finish,
    Line,
    Manifest,
    Summary,
    check_values,
    manifest_to_json,
    parse_line,
    parse_manifest,
)
from kvnet.format.strict_json import MAX_DOCUMENT_NBYTES

MANIFEST = "manifest.json"
EVENTS = "events.jsonl"
DIGESTS = "digests.json"  # of a frozen run
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_MEASUREMENT = b'"kind": "measurement"'
_TAIL_NBYTES = 1 << 16


class RunFolder:
    """One run. Made by `create` or `open`; a writer must be closed, best by `with`."""

    def __init__(self, path: Path, manifest: Manifest, *, lock: IO[str] | None, torn: str = "") -> None:
        self.path = path
        self.manifest = manifest
        self.torn = torn  # one sentence, if a torn last line was left out
        self._lock = lock
        self._out: IO[bytes] | None = None
        self._session = 0
        self._arms: dict[str, set[str]] = {}  # of each cell, what this session measured

    @classmethod
    def create(cls, runs_dir: Path, manifest: Manifest) -> RunFolder:
        """A new folder NAME-YYYYmmdd-HHMMSS-shortid, open for writing. Raises RequestError."""
        if not _NAME.fullmatch(manifest.name):
            raise RequestError(
                f"run name {manifest.name!r:.80}: wanted small letters, digits, dots and dashes, at most 64"
            )
        now = datetime.now(UTC)
        run = f"{manifest.name}-{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        path = runs_dir / run
        manifest = replace(manifest, run=run, created=_stamp(now))
        try:
            path.mkdir(parents=True)
            with (path / MANIFEST).open("xb") as file:
                file.write(manifest_to_json(manifest).encode())
                file.flush()
                os.fsync(file.fileno())
            (path / EVENTS).touch()
            sync_folder(path)
            sync_folder(runs_dir)
        except OSError as exc:
            raise RequestError(f"{path}: cannot be written ({exc.strerror}); name another --runs") from exc
        return cls.open(path, write=True)

    @classmethod
    def open(cls, path: Path, *, write: bool = False) -> RunFolder:
        """Raises UnknownRun, MalformedRun and, for a writer, AlreadyRunning."""
        try:
            manifest = parse_manifest((path / MANIFEST).read_bytes(), what=f"{path.name}/{MANIFEST}")
        except (FileNotFoundError, NotADirectoryError) as exc:
            raise UnknownRun(
                f"{path}: no run, it has no {MANIFEST}; `kvnet exp ls` lists what is there"
            ) from exc
        if write and (path / DIGESTS).exists():
            raise RequestError(f"run {path.name}: is frozen, nothing can be added; run the recipe anew")
        folder = cls(path, manifest, lock=_take_lock(path) if write else None)
        try:
            folder.torn = _torn_sentence(path, cut=write)
            if write:
                folder._session = 1 + folder._last_session()
                folder._out = (path / EVENTS).open("ab")
        except BaseException:
            folder.close()
            raise
        return folder

    def append(self, event: Body) -> None:
        """Write one line. A `Closed`, `Failure`, `Summary` or `Finish` is on disk when this returns.

        Raises MalformedRun for a value that is no finite number, and for a cell that is closed without all of
        the manifest's controls.
        """
        if self._out is None:
            raise ValueError("the folder was opened for reading")
        if isinstance(event, Event):
            check_values(event.values, f"arm {event.arm} of {event.protocol}")
            self._arms.setdefault(event.cell, set()).add(event.arm)
        if isinstance(event, Closed):
            self._refuse_without_controls(event.cell)
        line = Line(_stamp(datetime.now(UTC)), self.manifest.run, self._session, event)
        self._out.write(line.to_json().encode() + b"\n")
        if not isinstance(event, Event):
            self.flush()
        elif not event.cell:
            self._out.flush()  # outlives this process; a tracker's step is not worth a sync

    def append_cell(self, events: Iterable[Event], closed: Closed) -> None:
        """A whole cell, measured elsewhere: its lines, then what closes it."""
        for event in events:
            self.append(event)
        self.append(closed)

    def flush(self) -> None:
        """Put what was written on disk."""
        if self._out is not None:
            self._out.flush()
            os.fsync(self._out.fileno())

    def finish(self, status: str = "finished", *, failed_cells: int = 0) -> None:
        """Say that the run ended, and close the folder."""
        self.append(Finish(status, failed_cells))
        self.close()

    def close(self) -> None:
        """Let go of the folder; on a full disk the log says what is there."""
        out, self._out = self._out, None
        lock, self._lock = self._lock, None
        with suppress(OSError):
            if out is not None:
                out.close()
        if lock is not None:
            lock.close()

    def lines(self, *, rare: bool = False) -> Iterator[Line]:
        """Every whole line, oldest first. Raises MalformedRun for one that is not of the schema.

        With `rare`, measurements are passed over unread.
        """
        whole = b""
        number = 0
        with (self.path / EVENTS).open("rb") as file:
            for raw in file:
                if whole and not (rare and _MEASUREMENT in whole):
                    yield self._line(whole, number)
                whole, number = raw, number + 1
        # The last: torn where the writer was killed, or is still writing.
        if whole.endswith(b"\n") and not (rare and _MEASUREMENT in whole):
            yield self._line(whole, number)

    def events(self) -> Iterator[Body]:
        """The bodies that count: no measurement of a cell that its own session did not close."""
        closed = {
            (line.session, line.body.cell) for line in self.lines() if isinstance(line.body, Closed)
        } | {(line.session, "") for line in self.lines()}
        done = {cell for _, cell in closed}
        for line in self.lines():
            body = line.body
            if isinstance(body, Event) and (line.session, body.cell) not in closed:
                continue
            if isinstance(body, Failure) and body.cell in done:
                continue  # it succeeded later
            yield body

    def done_cells(self) -> frozenset[str]:
        """Cells that are complete; what is left of a sweep is the others, failed ones included."""
        return frozenset(line.body.cell for line in self.lines(rare=True) if isinstance(line.body, Closed))

    def progress(self) -> tuple[int, int, str]:
        """(cells done, cells failed, status): finished, failed or open, which is running or cut short."""
        done: set[str] = set()
        failed: set[str] = set()
        status = "open"
        for line in self.lines(rare=True):
            body = line.body
            if isinstance(body, Closed):
                done.add(body.cell)
            elif isinstance(body, Failure):
                failed.add(body.cell)
            elif isinstance(body, Finish):
                status = body.status
        return len(done), len(failed - done), status

    def summary(self) -> Summary | None:
        """The last one."""
        found = [line.body for line in self.lines(rare=True) if isinstance(line.body, Summary)]
        return found[-1] if found else None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _last_session(self) -> int:
        """Sessions follow each other, so the last line's is the highest; 0 in an empty log."""
        with (self.path / EVENTS).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - MAX_DOCUMENT_NBYTES))
            last = file.read().splitlines()[-1:]
        return parse_line(last[0], what=f"{self.path.name}: the last line").session if last else 0

    def _line(self, raw: bytes, number: int) -> Line:
        return parse_line(raw, what=f"{self.path.name}/{EVENTS} line {number}")

    def _refuse_without_controls(self, cell: str) -> None:
        missing = sorted(set(self.manifest.controls) - self._arms.get(cell, set()))
        if missing:
            raise MalformedRun(
                f"cell {cell:.19} of {self.manifest.protocol}: the control {', '.join(missing)} is missing, "
                "so what the other arms got says nothing; run it too"
            )


def find_runs(runs_dir: Path) -> list[Path]:
    """The run folders in a folder, oldest first by name's time stamp."""
    found = [path.parent for path in runs_dir.glob(f"*/{MANIFEST}")]
    return sorted(found, key=lambda path: (path.name.rsplit("-", 3)[1:], path.name))


def find_run(runs_dir: Path, name: str) -> Path:
    """A run by path, by name or by how its name starts or ends; `last` is the newest. Raises UnknownRun."""
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    runs = find_runs(runs_dir)
    if name == "last" and runs:
        return runs[-1]
    found = [path for path in runs if path.name == name]
    found = found or [path for path in runs if path.name.startswith(name) or path.name.endswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(path.name for path in found[-3:])
        raise UnknownRun(f"run {name}: {len(found)} runs are called so ({named}); give more of the name")
    raise UnknownRun(f"run {name!r:.80}: none in {runs_dir} is called so; `kvnet exp ls` lists them")


def _torn_sentence(path: Path, *, cut: bool) -> str:
    """A writer cuts a torn line off: its own first line would join it."""
    events = path / EVENTS
    with events.open("r+b" if cut else "rb") as file:
        nbytes = file.seek(0, os.SEEK_END)
        torn_nbytes = _torn_nbytes(file, nbytes)
        if torn_nbytes and cut:
            file.truncate(nbytes - torn_nbytes)
            file.flush()
            os.fsync(file.fileno())
    if not torn_nbytes:
        return ""
    return (
        f"{path.name}/{EVENTS}: the last line is torn ({torn_nbytes} bytes without an end), it was "
        f"{'cut off' if cut else 'left out'}; "
        "its cell will be measured again"
    )


def _torn_nbytes(file: IO[bytes], nbytes: int) -> int:
    """Bytes behind the last newline."""
    behind = 0
    while behind < nbytes:
        step = min(_TAIL_NBYTES, nbytes - behind)
        file.seek(nbytes - behind - step)
        at = file.read(step).rfind(b"\n")
        if at >= 0:
            return behind + step - at - 1
        behind += step
    return behind


def _take_lock(path: Path) -> IO[str]:
    import fcntl  # not on Windows, where runs can be read all the same

    lock = (path / "lock").open("a", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        lock.close()
        raise AlreadyRunning(f"run {path.name}: another process writes it; wait until it ends") from exc
    return lock


def _stamp(when: datetime) -> str:
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
