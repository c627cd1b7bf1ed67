"""Daemons that start fast: a process that has imported the heavy libraries and forks one for each start.

Most of a daemon's start is the import of torch and transformers. What is forked off imports kvnet and kvnetd
itself, runs `kvnetd.main` with its own arguments and environment, and is killed like any other process.
Its wall clock can be moved: by the seconds in the file `clock`, a little-endian double, which is read at
each look at the time. Run as a program; requests and replies are JSON lines on stdin and stdout.
"""

from __future__ import annotations

import datetime
import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

OFFSET = struct.Struct("<d")
_ALIVE: set[int] = set()


def main() -> None:
    """Serve requests until stdin ends: `start` gives a pid, `ended` its wait status or null."""
    _preload()
    acts: dict[str, Callable[[dict[str, Any]], int | None]] = {"start": _start, "ended": _ended}
    try:
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(acts[request["do"]](request)), flush=True)
    finally:
        for pid in _ALIVE:  # whoever asked for them is gone
            os.kill(pid, signal.SIGKILL)


def _preload() -> None:
    # Nothing of kvnet: what it reads from the environment or the clock when it is imported stays its own.
    import cryptography
    import grpc.aio
    import safetensors.torch
    import torch
    import transformers
    import zeroconf
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    del cryptography, grpc, safetensors, torch, transformers, zeroconf
    del AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM


def _start(request: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        _ALIVE.add(pid)
        return pid
    status = 1
    _ALIVE.clear()  # theirs are not ours
    try:
        _become(request)
        from kvnetd.main import main as run_daemon

        status = run_daemon(request["arguments"])
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _become(request: dict[str, Any]) -> None:
    """Give the fork what a new process would have: its own group, output, input, environment and clock."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    out = os.open(request["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for handle in (1, 2):
        os.dup2(out, handle)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(request["environment"])
    _follow(Path(request["clock"]))


def _follow(clock: Path) -> None:
    with clock.open("rb") as file:
        offset = mmap.mmap(file.fileno(), OFFSET.size, prot=mmap.PROT_READ)
    real = time.time
    time.time = lambda: real() + float(OFFSET.unpack(offset[: OFFSET.size])[0])

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Moved:
            return cls.fromtimestamp(time.time(), tz)

    datetime.datetime = Moved  # type: ignore[misc]  # before kvnet imports it by name


def _ended(request: dict[str, Any]) -> int | None:
    pid, status = os.waitpid(request["pid"], os.WNOHANG)
    if not pid:
        return None
    _ALIVE.discard(pid)
    return status


if __name__ == "__main__":
    main()
