"""A fit's sums from many workers of a Ray cluster: each reads a share of the texts, and the sums add up.

Knows fits and models by name. What a share adds is what reading its texts here would have added, but for the
order of additions in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from kvnet.align.corpus import Lesson
from kvnet.align.fit import LEAST_LESSONS, Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.moments import MomentPair
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.align.solve import LinearMap
from kvnet.errors import OperatorError
from kvnet.protocols.cells import lab_of
from kvnet.protocols.on_ray import RETRIES, connected

_SHARES_A_CPU: Final = 2  # so that a slow worker is not waited for long


@dataclass(frozen=True, slots=True, eq=False)
class Share:
    """What a worker is told: the texts from `start` to the end of `lessons`, read by both models."""

    source: str
    receiver: str
    cache_dir: Path
    port: Port
    plan: FitPlan
    anchor: LinearMap | None
    lessons: tuple[Lesson, ...]
    start: int


def sum_share(share: Share) -> dict[str, torch.Tensor]:
    """The sums of a share, as `MomentPair.to_tensors` has them."""
    lab = lab_of(share.cache_dir)
    fit = Fit.begin(LocalReader(lab.host(share.source)), lab.host(share.receiver), share.port, share.plan)
    # As if those before were done: which of two halves a text goes to hangs on its place among all.
    fit.state.num_done, fit.state.anchor = share.start, share.anchor
    with torch.no_grad():
        fit.run(share.lessons)
    return fit.state.sums.to_tensors()


def run_fit_on_ray(
    fit: Fit, lessons: Sequence[Lesson], *, source: str, cache_dir: Path, shares: int = 0
) -> None:
    """`Fit.run` on a cluster; `source` names the model that `fit.reader` is.

    What anchors are learned from is read here. Shares are added in order, so a fit whose worker was lost
    twice can be gone on with: it then raises OperatorError. Raises MissingExtra, and what `Fit.run` does.
    """
    state, plan = fit.state, fit.plan
    if plan.critical_layers is not None and state.anchor is None:
        fit.run(lessons[: max(LEAST_LESSONS, plan.num_labelled)])
    with connected() as ray:
        cuts = _cuts(
            state.num_done, len(lessons), shares or _SHARES_A_CPU * int(ray.cluster_resources()["CPU"])
        )
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(sum_share)
        pending = []
        for start, stop in cuts:
            told = (source, fit.host.name, cache_dir, fit.port, plan, state.anchor)
            pending.append((stop, remote.remote(Share(*told, tuple(lessons[:stop]), start))))
        for stop, one in pending:
            _merge(fit, MomentPair.from_tensors(_got(ray, one)), stop)


def _cuts(start: int, stop: int, shares: int) -> list[tuple[int, int]]:
    """At most so many ranges, each of which ends behind the texts that a fit needs at least."""
    first = max(start, min(stop, LEAST_LESSONS)) if start < stop else stop
    step = max(1, -(-(stop - start) // shares))
    ends = sorted({*range(max(start + step, first), stop, step), stop})
    return list(zip([start, *ends], ends, strict=False)) if start < stop else []


def _merge(fit: Fit, sums: MomentPair, num_done: int) -> None:
    fit.state.sums.merge(sums)
    fit.state.num_rows += sums.fit.num_rows + sums.held_out.num_rows
    fit.state.num_done = num_done


def _got(ray: Any, one: Any) -> dict[str, torch.Tensor]:
    try:
        found: dict[str, torch.Tensor] = ray.get(one)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise OperatorError(
            f"a Ray worker that read texts for a fit was lost {1 + RETRIES} times ({type(error).__name__}); "
            "look after the cluster, and start the fit again"
        ) from error
    return found
