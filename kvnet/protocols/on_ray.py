"""Cells on a Ray cluster that is there already, or on a local one. Knows no protocols.

A cell is a task without effects, so one whose worker is lost is started again, and then fails alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from kvnet.errors import MissingExtra
from kvnet.protocols.cells import CellJob, Outcome, failed, measure_cell

RETRIES: Final = 1


@contextmanager
def connected() -> Iterator[Any]:
    """The module `ray`, connected. Raises MissingExtra where it is not installed.

    RAY_ADDRESS names the cluster; without it Ray starts one on this machine, which ends with the block.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("--on ray needs Ray: pip install 'kvnet[ray]'") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def run_on_ray(jobs: Sequence[CellJob]) -> Iterator[Outcome]:
    """Every cell's outcome, as it comes. Raises MissingExtra."""
    with connected() as ray:
        yield from _measure(ray, jobs)


def _measure(ray: Any, jobs: Sequence[CellJob]) -> Iterator[Outcome]:
    remote = ray.remote(num_cpus=1, max_retries=RETRIES)(measure_cell)
    running = {remote.remote(job): job for job in jobs}
    while running:
        ended, _ = ray.wait(list(running), num_returns=1)
        job = running.pop(ended[0])
        try:
            yield ray.get(ended[0])
        except ray.exceptions.RayError as error:
            reason = f"the Ray worker that measured it was lost ({type(error).__name__})"
            yield failed(job.setting, reason, "worker_lost")
