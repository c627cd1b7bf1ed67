"""Which layers of a source a map sees, and what a fit may cost. Knows models and readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from kvnet.align.corpus import Lesson
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.layers import held_out_table, pick_source_layers
from kvnet.align.port import Port
from kvnet.align.reading import Reader
from kvnet.align.window import shape_of
from kvnet.alignment import Intake, LayerStrategy, windows_width
from kvnet.errors import RequestError
from kvnet.model.generation import never
from kvnet.model.host import ModelHost

MOST_FEATURES: Final = 12_288  # numbers that a row is predicted from: the sums are of their square, 1.2 GB
_TABLE_LESSONS: Final = 64  # that layers are compared on
_TABLE_LAMBDA: Final = 1e-3  # few rows: a map's own would be too small
_NUM_LEARNED: Final = 2  # source layers for each of the receiver's


def source_layers_for(
    reader: Reader,
    host: ModelHost,
    lessons: Sequence[Lesson],
    plan: FitPlan,
    strategy: LayerStrategy | None,
    *,
    cancelled: Callable[[], bool] = never,
) -> tuple[int, ...]:
    """Those that the strategy picks for any of the receiver's layers; all of them where it is None.

    No more than MOST_FEATURES leave room for beside the far window of `plan`, which says the rest of the fit;
    then None is `linear`. `learned` reads the first lessons once more. Raises RequestError for a window that
    leaves room for none, and as a fit does.
    """
    num_layers = reader.geometry.num_layers
    room = _room(reader, plan)
    if strategy is None and room >= num_layers:
        return tuple(range(num_layers))
    table = None
    if strategy is LayerStrategy.LEARNED:
        table = _compare_layers(reader, host, lessons, plan.closing, cancelled)
    picked = pick_source_layers(
        strategy or LayerStrategy.LINEAR,
        num_layers,
        host.geometry.num_layers,
        table=table,
        num_picked=_NUM_LEARNED,
    )
    every = sorted({layer_idx for layers in picked for layer_idx in layers})
    step = torch.linspace(0, len(every) - 1, min(room, len(every))).round().long().tolist()
    return tuple(every[place] for place in step)


def _room(reader: Reader, plan: FitPlan) -> int:
    """Layers of which the near window may be seen. Raises RequestError for none."""
    beside = windows_width(reader.geometry, (), plan.window, plan.far_layers, plan.far_window)
    of_layer = windows_width(reader.geometry, (0,), plan.window, (), None)
    room = (MOST_FEATURES - beside) // of_layer
    if room < 1:
        raise RequestError(
            f"one layer of {reader.fingerprint.model} has {of_layer} numbers in a window from "
            f"{plan.window[0]} to {plan.window[1]}, and {beside} come from further away: a map sees "
            f"{MOST_FEATURES} at most; choose a smaller window"
        )
    return room


def _compare_layers(
    reader: Reader,
    host: ModelHost,
    lessons: Sequence[Lesson],
    closing: str,
    cancelled: Callable[[], bool],
) -> torch.Tensor:
    """Held-out R² of each source layer alone for each of the receiver's, of slots without neighbours."""
    every = tuple(range(reader.geometry.num_layers))
    plan = FitPlan(every, window=(0, 0), closing=closing)
    fit = Fit.begin(reader, host, Port.identity(Intake(host.geometry)), plan)
    fit.run(lessons[:_TABLE_LESSONS], cancelled=cancelled)
    source, receiver = shape_of(reader.geometry), shape_of(host.geometry)
    return held_out_table(fit.state.sums, source, receiver, _TABLE_LAMBDA)
