"""Start and stop the daemon as a separate process. Never imports it: `kvnetd` brings torch along."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from kvnet.api import NodeStatus
from kvnet.client import Node
from kvnet.errors import AlreadyRunning, KvnetError, NotRunning, OperatorError, error_from_code
from kvnet.paths import Home

READY_DEADLINE_S = 900.0
STOP_DEADLINE_S = 60.0
_POLL_S = 0.05
_RETRY_S = 1.0


def daemon_command(home: Home, flags: dict[str, str]) -> list[str]:
    """What runs the daemon in the foreground."""
    pairs = [part for key, value in flags.items() for part in (f"--{key}", value)]
    return [sys.executable, "-m", "kvnetd.main", "--home", str(home.root), *pairs]


def running(home: Home) -> NodeStatus | None:
    """The status of the daemon that uses this home, if one answers."""
    try:
        with Node(home=home.root) as node:
            return node.status()
    except NotRunning:
        return None


def start(home: Home, flags: dict[str, str]) -> NodeStatus:
    """Start a detached daemon and wait until one answers. Raises what kept it from starting.

    A daemon that holds the state folder without answering is on its way up, or on its way down: the
    first will answer, after the second ours can start.
    """
    home.check()
    deadline = time.monotonic() + READY_DEADLINE_S
    while True:
        try:
            return _start_once(home, daemon_command(home, flags), deadline)
        except AlreadyRunning:
            status = running(home)
            if status is not None:
                return status
            if time.monotonic() > deadline:
                raise
            time.sleep(_RETRY_S)


def _start_once(home: Home, command: list[str], deadline: float) -> NodeStatus:
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.daemon_log.parent.mkdir(mode=0o700, exist_ok=True)
        log = home.daemon_log.open("ab")
    except OSError as exc:
        raise OperatorError(
            f"state folder {home.root}: cannot be written ({exc.strerror}); set KVNET_HOME to another"
        ) from exc
    with log:
        said_before = log.tell()
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _why_it_ended(home.daemon_log, said_before, process.returncode)
        status = running(home)
        if status is not None and status.pid == process.pid:
            return status
        time.sleep(_POLL_S)
    process.terminate()
    raise OperatorError(f"the daemon was not ready after {READY_DEADLINE_S:.0f} s; see {home.daemon_log}")


def stop(home: Home) -> int:
    """Ask the daemon to stop and wait until it has. Raises NotRunning."""
    with Node(home=home.root) as node:
        pid = node.shutdown()
    deadline = time.monotonic() + STOP_DEADLINE_S
    while time.monotonic() < deadline:
        if not _is_alive(pid):
            return pid
        time.sleep(_POLL_S)
    raise OperatorError(f"the daemon (pid {pid}) did not stop within {STOP_DEADLINE_S:.0f} s; kill it")


def _is_alive(pid: int) -> bool:
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # our own child, if this process started it, would stay a zombie
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether it has ended and nobody asked how: in a container, the first process may never do so."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[:1] == ["Z"]


def _why_it_ended(log: Path, said_before: int, status: int) -> KvnetError:
    said = log.read_bytes()[said_before:].decode("utf-8", "replace").strip().splitlines()
    for line in reversed(said):
        try:
            body = json.loads(line)
            return error_from_code(body["code"], body["message"])
        except (ValueError, KeyError, TypeError):
            continue
    last = said[-1] if said else "it said nothing"
    return OperatorError(f"the daemon ended with status {status} while starting ({last:.200}); see {log}")
