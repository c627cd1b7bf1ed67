"""How a port and a map are made, from the first text to the gate's verdict. Knows the other steps; no daemon.

The defaults are what won between the reference models (scripts/bench/alignment prints the alternatives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvnet.align.anchors import critical_layers
from kvnet.align.corpus import Lesson, digest_lessons, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting, best_of
from kvnet.align.fit import LAMBDAS, Fit, FitPlan, FitState, Progress, learn_port_of, pairing_of
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.quadratic import Quadratic
from kvnet.align.reading import LocalReader, Reader, hold
from kvnet.align.solve import LinearMap, Solver
from kvnet.align.sources import source_layers_for
from kvnet.align.standing import beside
from kvnet.align.verdict import verdict_on
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
CLOSING: Final = " We"  # the next sentence begins: models that bind a fact there have bound the last one
_ZERO: Final = Interval(0.0, 0.0, 0.0)
_UNJUDGED: Final = GateResult(
    admitted=False,
    reason="not examined yet",
    num_questions=0,
    num_texts=0,
    recall_text=0.0,
    recall_none=0.0,
    recall_mapped=0.0,
    gap_recovered=_ZERO,
    gap_shuffled=0.0,
    kl=0.0,
    kl_shuffled=0.0,
    attention_cosine=0.0,
    uses=(),
)
_METHODS: Final = {
    Solver.RIDGE: Method.RIDGE,
    Solver.LOW_RANK: Method.LOW_RANK,
    Solver.PROCRUSTES: Method.PROCRUSTES,
}
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
    layers = find_critical_layers(host, cancelled=cancelled)
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


def find_critical_layers(host: ModelHost, *, cancelled: Callable[[], bool] = never) -> tuple[int, ...]:
    """Layers whose memory this model's answers need. Raises Cancelled."""
    lessons = list(fact_lessons(_PROBE_LESSONS, seed=_PROBE_SEED, num_questions=6))
    exam = Exam(host, lessons, cancelled=cancelled)
    readings = hold(LocalReader(host).read([lesson.text for lesson in lessons]), cancelled=cancelled)
    return critical_layers(exam, readings, cancelled=cancelled)


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The map that is in use for the pair a new one is made for, and the port it ends in."""

    alignment: AlignmentMap
    port: Port | None


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What may be chosen for a map."""

    anchors: bool = True
    window: tuple[int, int] = (-2, 0)
    far_window: tuple[int, int] | None = (-9, -3)
    far_layers: tuple[int, ...] = (0,)
    num_directions: int = 64
    strategy: LayerStrategy | None = None  # all layers, or those of LINEAR where that is too much
    head_local: bool = False  # each of the receiver's heads from its namesake alone; for maps into rows
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
    standing: Standing | None = None,
    state: FitState | None = None,
    progress: Progress = lambda done, total: None,
    saved: Callable[[FitState], None] = lambda state: None,
    cancelled: Callable[[], bool] = never,
) -> AlignmentMap:
    """Fit a map from what `reader` reads to the model here, choose its lambda and let the gate judge it.

    `port` is the one it shall end in (`port_id` names it), or None for the receiver's rows. The map comes
    back whatever the verdict; its manifest says it. With `standing` it is admitted only beside that one
    (`gated`). `progress` counts every text that the source reads.
    Raises TooFewSamples, SingularStatistics, UnalignableTokens, NotFinite, Cancelled, and as `reader` does.
    """
    options = options or MapOptions()
    if options.head_local and port is not None:
        raise RequestError(
            "a port's coordinates are of all heads, so only a map into rows is head-local; add --rows"
        )
    target = port or Port.identity(host.geometry)
    plan = FitPlan(
        source_layers=(),
        window=options.window,
        critical_layers=critical if options.anchors else None,
        closing=options.closing,
        far_window=options.far_window,
        far_layers=options.far_layers,
        # Products are of all heads too.
        num_directions=0 if options.head_local else min(options.num_directions, target.rank),
        head_local=options.head_local,
    )
    layers = source_layers_for(reader, host, lessons, plan, options.strategy, cancelled=cancelled)
    plan = replace(plan, source_layers=layers)
    fit = Fit.begin(reader, host, target, plan, state)
    num_tuned = len(lessons) + _TUNE_LESSONS
    total = num_tuned + _GATE_LESSONS
    progress(fit.state.num_done, total)
    fit.run(lessons, progress=lambda done, _: progress(done, total), saved=saved, cancelled=cancelled)
    manifest = MapManifest(
        source=reader.fingerprint,
        source_geometry=reader.geometry,
        receiver=host.fingerprint,
        receiver_geometry=host.geometry,
        port=port_id,
        method=_METHODS[fit.solver],
        pairing=pairing_of(reader, host),
        layer_strategy=options.strategy or LayerStrategy.LINEAR,
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
    unseen = list(fact_lessons(_TUNE_LESSONS, seed=_TUNE_SEED, num_questions=6))
    tuning = Sitting.of(
        reader,
        Exam(host, unseen, cancelled=cancelled),
        closing=plan.closing,
        progress=lambda done: progress(len(lessons) + done, total),
        cancelled=cancelled,
    )
    chosen, _ = best_of(tuning, made, port, cancelled=cancelled)
    return gated(
        reader,
        host,
        chosen,
        port,
        critical,
        standing=standing,
        progress=lambda done: progress(num_tuned + done, total),
        cancelled=cancelled,
    )


def gated(
    reader: Reader,
    host: ModelHost,
    alignment: AlignmentMap,
    port: Port | None,
    critical: tuple[int, ...],
    *,
    standing: Standing | None = None,
    progress: Callable[[int], None] = lambda done: None,
    cancelled: Callable[[], bool] = never,
) -> AlignmentMap:
    """The map with the gate's verdict in its manifest, from facts that nothing was fitted or chosen on.

    `standing`, where there is one, is judged on the same readings: the new map is admitted only if that one
    holds on them and does no better. `progress` is told how many texts the source has read.
    """
    lessons = list(fact_lessons(_GATE_LESSONS, seed=_GATE_SEED, num_questions=_GATE_QUESTIONS))
    exam = Exam(host, lessons, cancelled=cancelled)
    closing = alignment.manifest.closing
    sitting = Sitting.of(reader, exam, closing=closing, progress=progress, cancelled=cancelled)
    gate = verdict_on(reader, sitting, alignment, port, layers=critical, cancelled=cancelled)
    if gate.admitted and standing is not None:
        known = standing.alignment
        if known.manifest.closing != closing:
            sitting = Sitting.of(reader, exam, closing=known.manifest.closing, cancelled=cancelled)
        of_known = verdict_on(reader, sitting, known, standing.port, layers=critical, cancelled=cancelled)
        gate = beside(gate, of_known, known.manifest.id)
    return replace(alignment, manifest=replace(alignment.manifest, gate=gate))


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
