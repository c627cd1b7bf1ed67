"""Maps fitted by other plans than the shipped ones, for comparison. Sets no exams but the one for lambda."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import torch
from alignment_setup import Bridge, Pair, Workshop

from kvnet.align.corpus import Lesson
from kvnet.align.examine import best_of
from kvnet.align.fit import LAMBDAS, Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.layers import held_out_table
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reader
from kvnet.align.recipe import fit_lessons
from kvnet.align.solve import LinearMap
from kvnet.align.window import RowShape
from kvnet.alignment import Intake, Method
from kvnet.types import Geometry

TABLE_LAMBDA: Final = 1e-5  # few rows and many layers: the maps' own would be too small


def plan_of(alignment: AlignmentMap, critical: tuple[int, ...]) -> FitPlan:
    """The plan that a map was fitted by."""
    manifest = alignment.manifest
    return FitPlan(
        source_layers=manifest.source_layers,
        window=manifest.window,
        critical_layers=None if alignment.anchor is None else critical,
        closing=manifest.closing,
        far_window=manifest.far_window,
        far_layers=manifest.far_layers,
    )


def fitted(
    shop: Workshop,
    bridge: Bridge,
    reader: Reader,
    plan: FitPlan,
    lessons: Sequence[Lesson],
    *,
    port: Port | None,
    intake: Intake | None = None,
) -> AlignmentMap:
    """A map by this plan, its lambda chosen on an exam of its own. Without a port it ends in `intake`."""
    found = list(candidates(bridge, reader, plan, lessons, port, intake))
    tuning = shop.tuning(bridge.source, bridge.receiver, plan.closing)
    return best_of(tuning, found, port)[0]


def picture_of(shop: Workshop, pair: Pair, num_lessons: int) -> torch.Tensor:
    """Held-out R² of each source layer for each of the receiver's: [source layers, receiver layers]."""
    bridge = shop.bridge(pair)
    plan = plan_of(bridge.alignment, shop.critical(pair[1]))
    fit = rows_fit(bridge, plan, fit_lessons(num_lessons))
    return table_of(bridge, fit)


def candidates(
    bridge: Bridge,
    reader: Reader,
    plan: FitPlan,
    lessons: Sequence[Lesson],
    port: Port | None,
    intake: Intake | None = None,
) -> Iterator[AlignmentMap]:
    """The map of each lambda."""
    intake = intake or Intake(bridge.receiver.geometry)
    target = port or Port.identity(intake)
    fit = Fit.begin(reader, bridge.receiver, target, plan)
    fit.run(lessons)
    for relative_lambda, found in fit.candidates(LAMBDAS):
        alignment = to_map(bridge, plan, found, fit.state.anchor, relative_lambda)
        if port is None:
            manifest = replace(
                alignment.manifest,
                port="",
                state_layers=intake.state_layers,
                hidden_size=intake.hidden_size,
            )
            alignment = replace(alignment, manifest=manifest)
        yield alignment


def to_map(
    bridge: Bridge,
    plan: FitPlan,
    found: LinearMap,
    anchor: LinearMap | None,
    relative_lambda: float,
) -> AlignmentMap:
    """A solved fit as a map into a port or rows, under the manifest of the pair's own with what differs."""
    manifest = replace(
        bridge.alignment.manifest,
        state_layers=(),
        hidden_size=0,
        method=Method.RIDGE,
        source_layers=plan.source_layers,
        window=plan.window,
        far_window=plan.far_window,
        far_layers=plan.far_layers,
        closing=plan.closing,
        relative_lambda=relative_lambda,
    )
    encoder, bias = found.weight.float(), found.bias.float()
    if anchor is None:
        return AlignmentMap(manifest, encoder, bias)
    return AlignmentMap(manifest, encoder, bias, anchor.weight[:, 0].float(), anchor.bias[0].float())


def rows_fit(bridge: Bridge, plan: FitPlan, lessons: Sequence[Lesson]) -> Fit:
    """The sums of a fit into the receiver's rows, from every source layer, near neighbours alone."""
    every = tuple(range(bridge.source.geometry.num_layers))
    plain = replace(plan, source_layers=every, far_window=None, far_layers=())
    target = Port.identity(Intake(bridge.receiver.geometry))
    fit = Fit.begin(LocalReader(bridge.source), bridge.receiver, target, plain)
    fit.run(lessons)
    return fit


def table_of(bridge: Bridge, fit: Fit) -> torch.Tensor:
    """Held-out R² by layers, from the sums of `rows_fit`."""
    source, receiver = shape_of(bridge.source.geometry), shape_of(bridge.receiver.geometry)
    return held_out_table(fit.state.sums, source, receiver, TABLE_LAMBDA)


def shape_of(geometry: Geometry) -> RowShape:
    """What the columns of a model's rows stand for."""
    return RowShape(geometry.num_layers, geometry.num_kv_heads, geometry.head_dim)
