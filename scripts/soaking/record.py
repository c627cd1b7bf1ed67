"""What a soak has seen so far, and its report."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .checker import Message, Verdict, count_kinds
from .plan import Fault
from .report import growth_per_h, machine, percentile, rounded


@dataclass(slots=True)
class Findings:
    """What was seen so far."""

    plan: tuple[Fault, ...]
    seed: int
    skipped: dict[str, str]
    began: float = field(default_factory=time.monotonic)
    verdict: Verdict = field(default_factory=Verdict)
    done: list[Fault] = field(default_factory=list)
    not_struck: list[Fault] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    recoveries_s: list[float] = field(default_factory=list)
    over_30s: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    rss_mib: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    fds: dict[str, list[int]] = field(default_factory=dict)  # at each sample
    refusals: Counter[str] = field(default_factory=Counter)  # what `send` raised, by code
    failed_entries: list[str] = field(default_factory=list)
    num_receipts: int = 0
    spool_nbytes: int = -1
    store_nbytes: int = -1

    @property
    def num_broken(self) -> int:
        """Promises that were broken."""
        verdict = self.verdict
        return verdict.lost + verdict.mismatches + verdict.duplicates + len(self.crashes)

    def report(self) -> dict[str, Any]:
        """The figures, as JSON takes them."""
        verdict = self.verdict
        fds = {name: (counts[0], counts[-1]) for name, counts in self.fds.items() if counts}
        return {
            "faults": len(self.done),
            "planned": len(self.plan),
            "by_kind": count_kinds(fault.kind for fault in self.done),
            "not_struck": count_kinds(fault.kind for fault in self.not_struck),
            "skipped": self.skipped,
            "transfers": sum(message.accepted for message in self.messages),
            "lost": verdict.lost,
            "mismatches": verdict.mismatches,
            "duplicates": verdict.duplicates,
            "crashes": len(self.crashes),
            "bytes_acked": sum(message.nbytes for message in self.messages if message.accepted),
            "bytes_lost": verdict.bytes_lost,
            "resume_p50_s": rounded(percentile(self.recoveries_s, 0.50)),
            "resume_p99_s": rounded(percentile(self.recoveries_s, 0.99)),
            "resume_max_s": rounded(max(self.recoveries_s, default=None)),
            "recovered_over_30s": len(self.over_30s),
            "resumed_transfers": sum(bool(m.acked_chunks and m.resumed_chunks) for m in self.messages),
            "refused": dict(sorted(self.refusals.items())),
            "failed_entries": len(self.failed_entries),
            "receipts_verified": self.num_receipts,
            "rss_growth_mib_per_h": {name: rounded(growth_per_h(s), 2) for name, s in self.rss_mib.items()},
            "rss_mib": {name: rounded(s[-1][1], 1) for name, s in self.rss_mib.items() if s},
            "fds_start": {name: first for name, (first, _) in fds.items()},
            "fds_end": {name: last for name, (_, last) in fds.items()},
            "spool_nbytes_after_gc": self.spool_nbytes,
            "store_nbytes_after_gc": self.store_nbytes,
            "seed": self.seed,
            "duration_s": round(time.monotonic() - self.began, 1),
            "problems": [*verdict.problems, *self.crashes, *self.over_30s, *self.failed_entries],
            **machine(),
        }
