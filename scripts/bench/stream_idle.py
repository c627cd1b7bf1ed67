"""What a daemon without a model costs while nothing happens: resident memory, and a share of one core."""

from __future__ import annotations

import time
from pathlib import Path

from stream_nodes import MIB, Row, cpu_s, folder_at, keepers, load

FULL_S, QUICK_S = 120.0, 20.0
_SETTLE_S = 3.0
MAX_MIB = 80
MAX_SHARE = 0.002


def rows(quick: bool, seed: int) -> list[Row]:
    """Both figures of one daemon that knows a peer."""
    seconds = QUICK_S if quick else FULL_S
    with folder_at() as folder, keepers(folder, "alice", "bob") as nodes:
        pid = nodes["alice"].status().pid
        time.sleep(_SETTLE_S)
        before, began = cpu_s(pid), time.monotonic()
        time.sleep(seconds)
        share = (cpu_s(pid) - before) / (time.monotonic() - began)
        nbytes = _resident_nbytes(pid)
    details = {"seconds": seconds, "seed": seed, "load": load()}
    return [
        Row(
            "idle daemon without a model, resident MiB",
            nbytes / MIB,
            f"< {MAX_MIB}",
            nbytes < MAX_MIB * MIB,
            details,
        ),
        Row(
            "idle daemon without a model, share of a core",
            share,
            f"< {MAX_SHARE}",
            share < MAX_SHARE,
            details,
        ),
    ]


def _resident_nbytes(pid: int) -> int:
    """All that is resident, the code it maps included."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024
