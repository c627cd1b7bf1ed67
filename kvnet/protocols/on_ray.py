"""Cells on a Ray cluster that is there already, or on a local one. Knows no protocols.

A cell is a task without effects, so one whose worker is lost is started again, and then fails alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from kvnet.errors import MissingExtra
from kvnet.protocols.cells import CellJob, Outcome, failed, measure_cell

_RETRIES: Final = 1


def run_on_ray(jobs: Sequence[CellJob]) -> Iterator[Outcome]:
    """Every cell's outcome, as it comes. Raises MissingExtra where Ray is not installed.

    RAY_ADDRESS names the cluster; without it Ray starts one on this machine, which ends with the run.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("--on ray needs Ray: pip install 'kvnet[ray]'") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        yield from _measure(ray, jobs)
    finally:
        if is_ours:
            ray.shutdown()


def _measure(ray: Any, jobs: Sequence[CellJob]) -> Iterator[Outcome]:
    remote = ray.remote(num_cpus=1, max_retries=_RETRIES)(measure_cell)
    running = {remote.remote(job): job for job in jobs}
    while running:
        ended, _ = ray.wait(list(running), num_returns=1)
        job = running.pop(ended[0])
        try:
            yield ray.get(ended[0])
        except ray.exceptions.RayError as error:
            reason = f"the Ray worker that measured it was lost ({type(error).__name__})"
            yield failed(job.setting, reason, "worker_lost")
