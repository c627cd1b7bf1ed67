"""Memory stays bounded: while much goes through, as memories grow longer, after transfers were broken off.

Daemons without a model, synthetic memories, loopback. Resident is RssAnon: the kernel cannot drop it.
"""

from __future__ import annotations

import os
import random
import statistics
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from stream_nodes import (
    MIB,
    Row,
    folder_at,
    keepers,
    load,
    put_memory,
    resident_nbytes,
    timed_send,
    tokens_of,
    touch,
)

from kvnet.client import Node
from kvnet.errors import KvnetError
from kvnet.paths import Home

FULL_MIB, QUICK_MIB = 4096, 256
MAX_GROWTH_MIB = 256
LENGTHS, QUICK_LENGTHS = (512, 2048, 8192, 32768, 131072), (512, 4096, 16384)
MOST_TIMES = 15
TOUCHED_MIB = 3072
NARROW_LAYERS = 2  # 8 KiB a token: 128k tokens are 1 GiB
CANCELLED, QUICK_CANCELLED = 1000, 60
_SAMPLE_S = 0.02
_LONGEST_S = 0.1
_SETTLE_S = 5.0
MAX_LEFT_FILES = 4  # connections that are just being closed


def rows(quick: bool, seed: int) -> list[Row]:
    """Growth while a large memory goes through, linearity, and what broken-off transfers leave."""
    return [
        *_growth(QUICK_MIB if quick else FULL_MIB, seed),
        _linear(QUICK_LENGTHS if quick else LENGTHS, seed),
        *_leaks(QUICK_CANCELLED if quick else CANCELLED, seed),
    ]


def _growth(mib: int, seed: int) -> list[Row]:
    with folder_at() as folder:
        memory = put_memory(Home(folder / "alice"), tokens_of(mib * MIB), seed=seed)
        keeping = keepers(folder, "alice", "bob", limits={"max_transfer_nbytes": 2 * mib * MIB})
        with keeping as nodes, watched(nodes) as peaks:
            seconds = timed_send(nodes["alice"], memory, "bob")
    details = {"mib": mib, "seconds": seconds, "load": load()}
    return [
        Row(
            f"resident growth while {mib} MiB go through, {end}, MiB",
            grown / MIB,
            f"< {MAX_GROWTH_MIB}",
            grown < MAX_GROWTH_MIB * MIB,
            details,
        )
        for end, grown in (("sender", peaks["alice"]), ("receiver", peaks["bob"]))
    ]


def _linear(lengths: tuple[int, ...], seed: int) -> Row:
    """Seconds a token, less what a memory of one token costs, from the shortest memory to the longest."""
    per_token: list[float] = []
    grown: list[int] = []
    with folder_at() as folder:
        home = Home(folder / "alice")
        made = {
            n: [put_memory(home, n, seed=seed + k, layers=NARROW_LAYERS) for k in range(_times_of(n))]
            for n in lengths
        }
        tiny = [put_memory(home, 1, seed=seed + k, layers=NARROW_LAYERS) for k in range(MOST_TIMES)]
        with keepers(folder, "alice", "bob") as nodes:
            fixed_s = statistics.median([timed_send(nodes["alice"], memory, "bob") for memory in tiny][1:])
            for num_tokens, memories in made.items():
                touch(TOUCHED_MIB * MIB)
                with watched(nodes) as peaks:
                    seconds = statistics.median([timed_send(nodes["alice"], one, "bob") for one in memories])
                per_token.append(max(0.0, seconds - fixed_s) / num_tokens)
                grown.append(max(peaks.values()))
    middle = statistics.median(per_token)
    spread = max(abs(one / middle - 1) for one in per_token)
    return Row(
        f"seconds a token, {lengths[0]} to {lengths[-1]} tokens, largest deviation from the median",
        spread,
        "<= 0.10",
        spread <= 0.10,
        {
            "fixed_s": fixed_s,
            "us_per_token": [round(one * 1e6, 2) for one in per_token],
            "most_grown_mib": max(grown) / MIB,
            "load": load(),
        },
    )


def _times_of(num_tokens: int) -> int:
    """How often a length is sent: what takes milliseconds more often than what takes seconds."""
    return max(1, min(MOST_TIMES, LENGTHS[-1] // num_tokens))


def _leaks(times: int, seed: int) -> list[Row]:
    """What both daemons hold more than after the first half of the transfers, all of them broken off."""
    rng = random.Random(seed)
    with folder_at() as folder:
        memory = put_memory(Home(folder / "alice"), tokens_of(16 * MIB), seed=seed)
        # What is broken off stays for a resume, here of more transfers than one peer may leave.
        limits = {"max_unfinished_per_peer": times + 1, "max_calls_per_s": 1000}
        with keepers(folder, "alice", "bob", limits=limits) as nodes:
            pids = {name: node.status().pid for name, node in nodes.items()}
            before: dict[str, tuple[int, int]] = {}
            for number in range(times):
                break_off(nodes["alice"], memory, str(number), rng.uniform(0, _LONGEST_S))
                if number == times // 2:
                    time.sleep(_SETTLE_S)
                    before = {name: _held(pid) for name, pid in pids.items()}
            time.sleep(_SETTLE_S)
            after = {name: _held(pid) for name, pid in pids.items()}
    files = max(after[name][0] - before[name][0] for name in pids)
    nbytes = max(after[name][1] - before[name][1] for name in pids)
    details = {"cancelled": times, "load": load()}
    return [
        Row(
            "open files more after cancelled transfers",
            files,
            f"<= {MAX_LEFT_FILES}",
            files <= MAX_LEFT_FILES,
            details,
        ),
        Row(
            "resident MiB more after cancelled transfers", nbytes / MIB, "<= 16", nbytes <= 16 * MIB, details
        ),
    ]


def break_off(sender: Node, memory: str, note: str, after_s: float) -> None:
    """Begin to send, and leave."""
    began = time.perf_counter()
    try:
        steps = sender.send_stream(memory, "bob", codec="exact", note=note, if_off="fail")
        for _ in steps:
            if time.perf_counter() - began > after_s:
                steps.close()
                return
    except KvnetError:
        return  # refused: the one before is still being closed


def _held(pid: int) -> tuple[int, int]:
    """Open files, and resident bytes."""
    return len(os.listdir(f"/proc/{pid}/fd")), resident_nbytes(pid)  # noqa: PTH208


@contextmanager
def watched(nodes: Mapping[str, Node]) -> Iterator[dict[str, int]]:
    """How much larger than at first each daemon was at its largest: known when the block is left."""
    pids = {name: node.status().pid for name, node in nodes.items()}
    first = {name: resident_nbytes(pid) for name, pid in pids.items()}
    peaks = dict.fromkeys(pids, 0)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_S):
            for name, pid in pids.items():
                if Path(f"/proc/{pid}").exists():
                    peaks[name] = max(peaks[name], resident_nbytes(pid) - first[name])

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield peaks
    finally:
        done.set()
        watching.join()
