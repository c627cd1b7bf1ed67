"""Several transfers at once between two daemons: does the whole get slower, and does each get its share?"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from stream_nodes import MIB, Row, folder_at, keepers, load, put_memory, timed_send, tokens_of

from kvnet.client import Node
from kvnet.paths import Home

FULL_MIB, QUICK_MIB = 256, 24  # of each transfer
AT_ONCE = (1, 2, 4, 8)
NEVER_FALLS = 0.95  # of the goodput of one: less is noise
FAIR = 0.20
# As many as a peer may not have at once by default.
LIMITS = {"max_inbound_transfers_per_peer": 8, "max_connections_per_peer": 32, "max_connections_per_ip": 32}


@dataclass(frozen=True, slots=True)
class Round:
    """So many transfers of one size that began together."""

    at_once: int
    gbps: float  # of all, from the first byte asked for to the last receipt
    unfairness: float  # largest deviation of a transfer's rate from the mean one


def rows(quick: bool, seed: int) -> list[Row]:
    """Total goodput from one to eight transfers at once, and the share of each."""
    return rows_of(rounds(QUICK_MIB if quick else FULL_MIB, seed))


def rows_of(measured: list[Round]) -> list[Row]:
    """The rows of rounds that were run."""
    least = min(one.gbps / measured[0].gbps for one in measured)
    most = max(one.unfairness for one in measured)
    details = {f"gbps_{one.at_once}": one.gbps for one in measured} | {"load": load()}
    return [
        Row(
            "total goodput of 1 to 8 transfers, least share of that of one",
            least,
            f">= {NEVER_FALLS}",
            least >= NEVER_FALLS,
            details,
        ),
        Row(
            "deviation of a transfer from its fair share, 1 to 8 at once",
            most,
            f"<= {FAIR:.2f}",
            most <= FAIR,
            {f"unfairness_{one.at_once}": one.unfairness for one in measured},
        ),
    ]


def rounds(mib: int, seed: int) -> list[Round]:
    """One round for each number in AT_ONCE, on daemons that are up for all of them."""
    with folder_at() as folder:
        home, count = Home(folder / "alice"), sum(AT_ONCE)
        memories = iter([put_memory(home, tokens_of(mib * MIB), seed=seed + n) for n in range(count)])
        with keepers(folder, "alice", "bob", limits=LIMITS) as nodes:
            return [_round(nodes["alice"], [next(memories) for _ in range(n)], mib) for n in AT_ONCE]


def _round(sender: Node, memories: list[str], mib: int) -> Round:
    together = threading.Barrier(len(memories))

    def send(memory: str) -> float:
        together.wait()
        return timed_send(sender, memory, "bob")

    began = time.perf_counter()
    with ThreadPoolExecutor(len(memories)) as pool:
        rates = [mib * MIB / seconds for seconds in pool.map(send, memories)]
    seconds = time.perf_counter() - began
    mean = sum(rates) / len(rates)
    unfairness = max(abs(rate / mean - 1) for rate in rates)
    return Round(len(memories), len(memories) * mib * MIB / seconds / 1e9, unfairness)
