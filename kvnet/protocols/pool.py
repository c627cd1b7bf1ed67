"""Cells on several processes of this machine. Knows no protocols; a lost process costs its own cell alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from kvnet.protocols.cells import CellJob, Outcome, failed, measure_cell


def run_cells(jobs: Sequence[CellJob], workers: int) -> Iterator[Outcome]:
    """Every cell's outcome, as it comes. With one worker they are measured here, in order."""
    if workers <= 1:
        yield from map(measure_cell, jobs)
        return
    suspects: list[CellJob] = []
    pending = list(jobs)
    while pending:
        with _executor(workers) as executor:
            running = {executor.submit(measure_cell, job): job for job in pending}
            pending = []
            for outcome, job in _as_they_come(running):
                if outcome is None:
                    suspects.append(job)
                else:
                    yield outcome
    for job in suspects:  # one of them took the pool down: each alone, so that it is known which
        yield _alone(job)


def _as_they_come(
    running: dict[Future[Outcome], CellJob],
) -> Iterator[tuple[Outcome | None, CellJob]]:
    """(its outcome, or None if the pool broke before it ended; the job)."""
    left = set(running)
    while left:
        ended, left = wait(left, return_when=FIRST_COMPLETED)
        for future in ended:
            try:
                yield future.result(), running[future]
            except BrokenProcessPool:
                yield None, running[future]


def _alone(job: CellJob) -> Outcome:
    with _executor(1) as executor:
        try:
            return executor.submit(measure_cell, job).result()
        except BrokenProcessPool:
            return failed(
                job.setting, "the process that measured it died; is there enough memory?", "worker_lost"
            )


def _executor(workers: int) -> ProcessPoolExecutor:
    # Not by fork: torch's threads do not survive it.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
