"""How a port and a map are made, from the first text to the gate's verdict. Knows the other steps; no daemon.

The defaults are what won between the reference models (scripts/bench/alignment prints the alternatives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch

from kvnet.align.anchors import critical_layers
from kvnet.align.corpus import Lesson, digest_lessons, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting, best_of, figures_of
from kvnet.align.fit import LAMBDAS, Fit, FitPlan, FitState, Progress, learn_port_of, pairing_of
from kvnet.align.gate import judge
from kvnet.align.layers import pick_source_layers
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.quadratic import Quadratic
from kvnet.align.reading import LocalReader, Reader
from kvnet.align.solve import LinearMap
from kvnet.alignment import (
    GateResult,
    Interval,
    LayerStrategy,
    MapManifest,
    Method,
    PortManifest,
    feature_width,
)
from kvnet.errors import RequestError
from kvnet.model.generation import never
from kvnet.model.host import ModelHost

DEFAULT_RANK: Final = 64
DEFAULT_LESSONS: Final = 1200
_PORT_LESSONS: Final = 150
_PORT_QUESTIONS: Final = 6
_PROBE_LESSONS: Final = 24  # that the critical layers are found on
_TUNE_LESSONS: Final = 20  # that lambda is chosen on
_GATE_LESSONS: Final = 40
_GATE_QUESTIONS: Final = 8
_MOST_FEATURES: Final = 8192  # a row's columns times the window: the sums are of its square
CLOSING: Final = " We"  # the next sentence begins: models that bind a fact there have bound the last one
_UNJUDGED: Final = GateResult(
    False, "not examined yet", 0, 0, 0.0, 0.0, 0.0, Interval(0.0, 0.0, 0.0), 0.0, 0.0, 0.0
)
# Seeds of texts that no fit ever sees, and of those it does.
_FIT_SEED, _PORT_SEED, _PROBE_SEED, _TUNE_SEED, _GATE_SEED = 1, 2, 3, 4, 5


@dataclass(frozen=True, slots=True)
class MadePort:
    """A port, what it says of itself, and the layers in which its model's answers read."""

    port: Port
    manifest: PortManifest  # its tensors' digest is filled in when it is signed
    critical_layers: tuple[int, ...]


def make_port(
    host: ModelHost, *, created_at: str, rank: int = DEFAULT_RANK, cancelled: Callable[[], bool] = never
) -> MadePort:
    """A model's port, from its own reading of generated facts. Raises TooFewSamples, UnsupportedModel."""
    layers = find_critical_layers(host)
    lessons = list(fact_lessons(_PORT_LESSONS, seed=_PORT_SEED, num_questions=_PORT_QUESTIONS))
    port, num_rows = learn_port_of(host, lessons, layers, rank, cancelled=cancelled)
    manifest = PortManifest(
        receiver=host.fingerprint,
        geometry=host.geometry,
        rank=rank,
        corpus_digest=digest_lessons(lessons),
        num_rows=num_rows,
        created_at=created_at,
        tensors_digest="",
    )
    return MadePort(port, manifest, layers)


def find_critical_layers(host: ModelHost) -> tuple[int, ...]:
    """Layers whose memory this model's answers need."""
    exam = Exam(host, list(fact_lessons(_PROBE_LESSONS, seed=_PROBE_SEED, num_questions=6)))
    readings = tuple(LocalReader(host).read([lesson.text for lesson in exam.lessons]))
    return critical_layers(exam, readings)


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What may be chosen for a map."""

    anchors: bool = True
    window: tuple[int, int] = (-2, 0)
    far_window: tuple[int, int] | None = (-9, -3)
    far_layers: tuple[int, ...] = (0,)
    num_directions: int = 64
    strategy: LayerStrategy = LayerStrategy.LINEAR
    closing: str = CLOSING
    relative_lambdas: tuple[float, ...] = LAMBDAS


def fit_lessons(count: int = DEFAULT_LESSONS) -> list[Lesson]:
    """The shipped calibration texts: generated, the same everywhere."""
    return list(fact_lessons(count, seed=_FIT_SEED))


def make_map(
    reader: Reader,
    host: ModelHost,
    lessons: Sequence[Lesson],
    *,
    created_at: str,
    port: Port | None,
    port_id: str,
    critical: tuple[int, ...],
    options: MapOptions | None = None,
    state: FitState | None = None,
    progress: Progress = lambda done, total: None,
    saved: Callable[[FitState], None] = lambda state: None,
    cancelled: Callable[[], bool] = never,
) -> AlignmentMap:
    """Fit a map from what `reader` reads to the model here, choose its lambda and let the gate judge it.

    `port` is the one it shall end in (`port_id` names it), or None for the receiver's rows. The map comes
    back whatever the verdict; its manifest says it.
    Raises TooFewSamples, SingularStatistics, UnalignableTokens, NotFinite, Cancelled, and as `reader` does.
    """
    options = options or MapOptions()
    target = port or Port.identity(host.geometry)
    plan = FitPlan(
        source_layers=_source_layers(reader, host, options),
        window=options.window,
        critical_layers=critical if options.anchors else None,
        closing=options.closing,
        far_window=options.far_window,
        far_layers=options.far_layers,
        num_directions=min(options.num_directions, target.rank),
    )
    fit = Fit.begin(reader, host, target, plan, state)
    fit.run(lessons, progress=progress, saved=saved, cancelled=cancelled)
    manifest = MapManifest(
        source=reader.fingerprint,
        source_geometry=reader.geometry,
        receiver=host.fingerprint,
        receiver_geometry=host.geometry,
        port=port_id,
        method=Method.RIDGE,
        pairing=pairing_of(reader, host),
        layer_strategy=options.strategy,
        source_layers=plan.source_layers,
        num_sinks=reader.num_sinks,
        window=plan.window,
        far_window=plan.far_window,
        far_layers=plan.far_layers,
        closing=plan.closing,
        relative_lambda=0.0,
        corpus_digest=digest_lessons(lessons),
        num_contexts=len(lessons),
        num_rows=fit.state.num_rows,
        created_at=created_at,
        tensors_digest="",
        gate=_UNJUDGED,
    )
    made = (
        _to_map(replace(manifest, relative_lambda=relative_lambda), found, fit.state)
        for relative_lambda, found in fit.candidates(options.relative_lambdas)
    )
    tuning = Exam(host, list(fact_lessons(_TUNE_LESSONS, seed=_TUNE_SEED, num_questions=6)))
    chosen, _ = best_of(Sitting.of(reader, tuning, closing=plan.closing), made, port)
    return gated(reader, host, chosen, port, critical, cancelled=cancelled)


def gated(
    reader: Reader,
    host: ModelHost,
    alignment: AlignmentMap,
    port: Port | None,
    critical: tuple[int, ...],
    *,
    cancelled: Callable[[], bool] = never,
) -> AlignmentMap:
    """The map with the gate's verdict in its manifest, from facts that nothing was fitted or chosen on."""
    lessons = list(fact_lessons(_GATE_LESSONS, seed=_GATE_SEED, num_questions=_GATE_QUESTIONS))
    sitting = Sitting.of(reader, Exam(host, lessons), closing=alignment.manifest.closing)
    figures = figures_of(sitting, alignment, port, layers=critical, cancelled=cancelled)
    return replace(alignment, manifest=replace(alignment.manifest, gate=judge(figures)))


def _source_layers(reader: Reader, host: ModelHost, options: MapOptions) -> tuple[int, ...]:
    """All layers where the sums allow it; else those that the strategy picks for any of the receiver's."""
    num_layers = reader.geometry.num_layers
    low, high = options.window
    layer_width = 2 * reader.geometry.num_kv_heads * reader.geometry.head_dim
    room = _MOST_FEATURES // ((high - low + 1) * layer_width)
    if room >= num_layers:
        return tuple(range(num_layers))
    if room == 0:
        raise RequestError(
            f"one layer of {reader.fingerprint.model} has {layer_width} numbers a slot, a window of "
            f"{high - low + 1} slots takes {_MOST_FEATURES} at most; choose a smaller window"
        )
    picked = pick_source_layers(options.strategy, num_layers, host.geometry.num_layers)
    every = sorted({layer_idx for layers in picked for layer_idx in layers})
    step = torch.linspace(0, len(every) - 1, min(room, len(every))).round().long().tolist()
    return tuple(every[place] for place in step)


def _to_map(manifest: MapManifest, found: LinearMap, state: FitState) -> AlignmentMap:
    """The map that a solution is: what it takes of the windows, and of the products behind them."""
    # Rounded as its file will be, so that what is judged is what is used.
    weight, width = found.weight.half().float(), feature_width(manifest)
    anchor, lift = state.anchor, state.lift
    return AlignmentMap(
        manifest,
        weight[:width],
        found.bias.float(),
        anchor=None if anchor is None else anchor.weight[:, 0].float(),
        anchor_bias=None if anchor is None else anchor.bias[0].float(),
        quadratic=None
        if lift is None
        else Quadratic(lift.weight.half().float(), lift.bias.float(), weight[width:]),
    )
