"""Other ways of fitting a map, at equal data: what each part of the recipe is worth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import harness
import torch
from alignment_fits import TABLE_LAMBDA, candidates, fitted, plan_of, rows_fit, shape_of, table_of, to_map
from alignment_rows import Row, result_of, row_of
from alignment_setup import Bridge, Pair, Trial, Workshop

from kvnet.align.corpus import Lesson
from kvnet.align.exam import Marks
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.layers import pick_source_layers
from kvnet.align.reading import LocalReader
from kvnet.align.recipe import fit_lessons
from kvnet.align.solve import LinearMap, solve_ridge
from kvnet.alignment import Intake, LayerStrategy

_OTHER_CLOSING: Final = " Note:"


def alternative_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """What each part of the recipe is worth, at equal data."""
    for pair in pairs:
        bridge = shop.bridge(pair)
        base = plan_of(bridge.alignment, shop.critical(pair[1]))
        local = replace(base, window=(0, 0), far_window=None, far_layers=())
        closing = "" if base.closing else _OTHER_CLOSING
        lessons = fit_lessons(shop.size.equal_lessons)
        plans = {
            "window 0": local,
            "every slot": replace(base, critical_layers=None),
            "window 0, every slot": replace(local, critical_layers=None),
            f"closing {closing!r}": replace(base, closing=closing),
        }
        if base.far_window is not None:
            plans["no far window"] = replace(base, far_window=None, far_layers=())
        yield from _lambda_rows(shop, bridge, base, lessons)
        for name, plan in plans.items():
            yield _fitted_row(shop, bridge, name, plan, lessons)
        receiver = bridge.receiver
        yield _aimed_row(shop, bridge, "into keys and values", base, lessons, Intake(receiver.geometry))
        yield _aimed_row(shop, bridge, "into states", base, lessons, receiver.intake(shop.critical(pair[1])))
        for count in shop.size.few_lessons:
            yield _fitted_row(shop, bridge, "as shipped", base, fit_lessons(count))
        yield from _layer_rows(shop, bridge, base, lessons)


def _lambda_rows(shop: Workshop, bridge: Bridge, plan: FitPlan, lessons: Sequence[Lesson]) -> Iterator[Row]:
    """The shipped plan on these lessons, by lambda."""
    trial = shop.trial(bridge.source, bridge.receiver, closing=plan.closing)
    for alignment in candidates(bridge, LocalReader(bridge.source), plan, lessons, bridge.port):
        relative_lambda = alignment.manifest.relative_lambda
        harness.say(f"alternatives: {' to '.join(bridge.pair)}, lambda {relative_lambda:g}")
        marks = trial.exam.sit(trial.sitting.mapped(alignment, bridge.port).__getitem__)
        yield _of(trial, bridge, f"as shipped, lambda {relative_lambda:g}", marks, lessons)


def _fitted_row(shop: Workshop, bridge: Bridge, name: str, plan: FitPlan, lessons: Sequence[Lesson]) -> Row:
    harness.say(f"alternatives: {' to '.join(bridge.pair)}, {name}, {len(lessons)} lessons")
    alignment = fitted(shop, bridge, LocalReader(bridge.source), plan, lessons, port=bridge.port)
    trial = shop.trial(bridge.source, bridge.receiver, closing=plan.closing)
    marks = trial.exam.sit(trial.sitting.mapped(alignment, bridge.port).__getitem__)
    return _of(trial, bridge, name, marks, lessons)


def _aimed_row(
    shop: Workshop, bridge: Bridge, name: str, plan: FitPlan, lessons: Sequence[Lesson], intake: Intake
) -> Row:
    """A map without a port, into what the receiver takes by this intake."""
    harness.say(f"alternatives: {' to '.join(bridge.pair)}, {name}")
    alignment = fitted(shop, bridge, LocalReader(bridge.source), plan, lessons, port=None, intake=intake)
    trial = shop.trial(bridge.source, bridge.receiver, closing=plan.closing)
    marks = trial.exam.sit(trial.sitting.mapped(alignment, None).__getitem__)
    return _of(trial, bridge, name, marks, lessons)


def _layer_rows(shop: Workshop, bridge: Bridge, plan: FitPlan, lessons: Sequence[Lesson]) -> Iterator[Row]:
    """Maps into rows, in which every receiver's layer is predicted from its own choice of source layers."""
    harness.say(f"alternatives: {' to '.join(bridge.pair)}, source layers")
    fit = rows_fit(bridge, plan, lessons)
    num_source, num_target = bridge.source.geometry.num_layers, bridge.receiver.geometry.num_layers
    table = table_of(bridge, fit)
    picks: dict[str, tuple[tuple[int, ...], ...]] = {"all": (tuple(range(num_source)),) * num_target}
    picks |= {
        strategy.value: pick_source_layers(strategy, num_source, num_target, table=table)
        for strategy in LayerStrategy
    }
    picks["learned, 2 each"] = pick_source_layers(
        LayerStrategy.LEARNED, num_source, num_target, table=table, num_picked=2
    )
    trial = shop.trial(bridge.source, bridge.receiver, closing=plan.closing)
    for name, picked in picks.items():
        found = _solve_by_layer(bridge, fit, picked)
        alignment = to_map(bridge, fit.plan, found, fit.state.anchor, TABLE_LAMBDA)
        marks = trial.exam.sit(trial.sitting.mapped(alignment, None).__getitem__)
        yield _of(trial, bridge, f"into rows, source layers {name}", marks, lessons)


def _solve_by_layer(bridge: Bridge, fit: Fit, picked: Sequence[Sequence[int]]) -> LinearMap:
    """A ridge for each of the receiver's layers from its source layers; the mean where it has none."""
    sums = fit.state.sums.fit
    source, target = shape_of(bridge.source.geometry), shape_of(bridge.receiver.geometry)
    low, high = fit.plan.window
    inputs, outputs = source.columns(high - low + 1), target.columns()[0]
    weight = torch.zeros(sums.width_x, sums.width_y, dtype=torch.float64)
    for layer_idx, layers in enumerate(picked):
        if layers:
            x_columns, y_columns = inputs[:, list(layers)].flatten(), outputs[layer_idx].flatten()
            part = solve_ridge(sums.select(x_columns, y_columns), TABLE_LAMBDA)
            weight[x_columns[:, None], y_columns] = part.weight
    return LinearMap(weight, sums.mean_y - sums.mean_x @ weight)


def _of(trial: Trial, bridge: Bridge, name: str, marks: Marks, lessons: Sequence[Lesson]) -> Row:
    return row_of("alternatives", bridge.pair, result_of(trial, name, marks)) | {"lessons": len(lessons)}
