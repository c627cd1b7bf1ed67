"""The two daemons of a soak: started from the nursery, killed, looked at from outside."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kvnet.api import NodeStatus
from kvnet.client import AsyncNode
from kvnet.errors import NotRunning
from kvnet.paths import Home

from .nursery import OFFSET

READY_S = 90.0
STOP_S = 30.0
POLL_S = 0.03
FAILPOINT_VARIABLE = "KVNET_FAILPOINT"
_QUIET = {"HF_HUB_OFFLINE": "1", "GRPC_VERBOSITY": "NONE"}  # as the daemon's main sets it, but in time
_ROOT = Path(__file__).resolve().parents[2]


class Nursery:
    """The process that forks daemons. Its requests block for a moment."""

    def __init__(self) -> None:
        path = os.pathsep.join((str(_ROOT), str(_ROOT / "daemon"), os.environ.get("PYTHONPATH", "")))
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery.py"))],
            env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), **_QUIET},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C is for the soak, which ends the daemons itself
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(10)

    def ask(self, **request: Any) -> Any:
        """One request, one reply."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the nursery has no pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


class SoakNode:
    """One daemon on a home of its own; every start after the first keeps its port."""

    def __init__(self, nursery: Nursery, folder: Path, name: str) -> None:
        self.home, self.name = Home(folder), name
        self.node_id = self.grpc = ""
        self.pid = 0
        self.found_at_start: frozenset[str] = frozenset()  # memories that lay there when it was started last
        self.crashes: list[str] = []  # what it said of bugs, and ends that nobody asked for
        self._nursery = nursery
        self._listen = "127.0.0.1:0"
        self._client: AsyncNode | None = None
        self._said = folder.parent / f"{name}.stderr"  # not at home: its disk may be full
        self._clock = folder.parent / f"{name}.clock"
        self._num_read = 0
        self.move_clock(0.0)

    async def start(self, *, failpoint: str = "") -> NodeStatus:
        """Start and wait until it answers; `failpoint` kills it at that point of its store."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("KVNET_")}
        environment |= {"KVNET_HOME": str(self.home.root), **_QUIET}
        if failpoint:
            environment[FAILPOINT_VARIABLE] = failpoint
        flags = {"home": str(self.home.root), "name": self.name, "model": "ref-a", "mdns": "0"}
        flags["listen"] = self._listen
        self.home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.found_at_start = frozenset(path.name for path in (self.home.store / "memories").glob("mem_*"))
        self.pid = self._nursery.ask(
            do="start",
            arguments=[part for key, value in flags.items() for part in (f"--{key}", value)],
            environment=environment,
            stderr=str(self._said),
            clock=str(self._clock),
        )
        status = await self._ready()
        self.node_id, self.grpc, self._listen = status.node_id, status.grpc, status.grpc
        return status

    async def stop(self) -> None:
        """SIGTERM, and wait; harmless when it does not run."""
        status = await self._end(signal.SIGTERM)
        if status not in (None, 0):
            self.crashes.append(f"{self.name} ended with wait status {status} on SIGTERM")

    async def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        await self._end(signal.SIGKILL)

    def has_ended(self) -> bool:
        """Whether the process is gone; it is forgotten then."""
        if self.pid == 0:
            return True
        status = self._nursery.ask(do="ended", pid=self.pid)
        if status is None:
            return False
        if os.WTERMSIG(status) != signal.SIGKILL:
            self.crashes.append(f"{self.name} ended by itself with wait status {status}")
        self.pid = 0
        return True

    def move_clock(self, by_s: float) -> None:
        """From now on its wall clock is off by so much; 0 puts it right."""
        if self._clock.exists():
            with self._clock.open("r+b") as file:  # in place: the daemon has it mapped
                file.write(OFFSET.pack(by_s))
        else:
            self._clock.write_bytes(OFFSET.pack(by_s))

    @property
    def sdk(self) -> AsyncNode:
        """A connection that is kept until the daemon is started anew. Raises NotRunning."""
        if self._client is None:
            self._client = AsyncNode(home=self.home.root)
        return self._client

    async def hang_up(self) -> None:
        """Close `sdk`: a new daemon has a new token."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    def log_nbytes(self) -> int:
        """Size of the event log now."""
        return self.home.events.stat().st_size if self.home.events.exists() else 0

    def events_since(self, offset: int) -> list[dict[str, Any]]:
        """Events logged since the log had this size; all of it where a new one was begun meanwhile."""
        data = self.home.events.read_bytes()
        lines = data[offset if offset <= len(data) else 0 :].splitlines()
        return [event for line in lines if (event := _event(line))]

    def look_for_crashes(self) -> None:
        """Read on in what it printed; a traceback is a crash, with its last line."""
        if not self._said.exists():
            return
        with self._said.open(encoding="utf-8", errors="replace") as said:
            said.seek(self._num_read)
            text = said.read()
            self._num_read = said.tell()
        for part in text.split("Traceback (most recent call last):")[1:]:
            closing = [line for line in part.splitlines() if line and not line.startswith((" ", "\t", "+"))]
            self.crashes.append(f"{self.name}: {closing[0] if closing else part.strip():.300}")

    def rss_mib(self) -> float:
        """Resident memory now."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)

    def num_fds(self) -> int:
        """Open descriptors now."""
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    async def _ready(self) -> NodeStatus:
        deadline = time.monotonic() + READY_S
        await self.hang_up()
        while time.monotonic() < deadline:
            if self.has_ended():
                raise RuntimeError(f"{self.name} ended while starting: {self._tail()}")
            try:
                status = await self.sdk.status()
            except NotRunning:
                await self.hang_up()
                await asyncio.sleep(POLL_S)
                continue
            if status.pid == self.pid:
                return status
        raise RuntimeError(f"{self.name} was not ready after {READY_S:.0f} s: {self._tail()}")

    async def _end(self, with_signal: signal.Signals) -> int | None:
        await self.hang_up()
        if self.has_ended():
            return None
        pid, self.pid = self.pid, 0
        os.kill(pid, with_signal)
        deadline = time.monotonic() + STOP_S
        while (status := self._nursery.ask(do="ended", pid=pid)) is None:
            if time.monotonic() > deadline:
                self.crashes.append(f"{self.name} did not stop within {STOP_S:.0f} s")
                os.kill(pid, signal.SIGKILL)
                deadline = time.monotonic() + STOP_S
            await asyncio.sleep(POLL_S)
        return int(status)

    def _tail(self) -> str:
        return self._said.read_text(encoding="utf-8", errors="replace")[-1000:] if self._said.exists() else ""


def _event(line: bytes) -> dict[str, Any] | None:
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:  # half a line, from when the disk was full
        return None
    return event
