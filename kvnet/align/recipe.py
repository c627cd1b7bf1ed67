"""How a port and a map are made, from the first text to the gate's verdict. Knows the other steps; no daemon.

The defaults are what won between the reference models (scripts/bench/alignment prints the alternatives).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from kvnet.align.anchors import choose_followers, critical_layers
from kvnet.align.corpus import Lesson, calibration_lessons, digest_lessons, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting, best_of
from kvnet.align.familiar import familiar_of
from kvnet.align.fit import LAMBDAS, Fit, Progress, pairing_of
from kvnet.align.fit_state import FitPlan, FitState
from kvnet.align.map import AlignmentMap
from kvnet.align.own_port import learn_port_of
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reader, Reading, hold
from kvnet.align.solve import LinearMap, Solver
from kvnet.align.sources import source_layers_for
from kvnet.align.standing import beside
from kvnet.align.verdict import verdict_on
from kvnet.alignment import (
    GateResult,
    Intake,
    Interval,
    LayerStrategy,
    MapManifest,
    Method,
    Pairing,
    PortManifest,
)
from kvnet.errors import RequestError
from kvnet.model.generation import never
from kvnet.model.host import ModelHost

DEFAULT_RANK: Final = 64
DEFAULT_LESSONS: Final = 1200
_PORT_LESSONS: Final = 150
_PORT_QUESTIONS: Final = 6
_PROBE_LESSONS: Final = 24  # that the critical layers are found on
_TUNE_LESSONS: Final = 40  # that lambda is chosen on, and how far the map goes
_GATE_LESSONS: Final = 40
_GATE_QUESTIONS: Final = 8
CLOSING: Final = " We know"  # a sentence begins: models that bind a fact there have bound the last one
_WINDOWS: Final = {Pairing.TOKENS: (-2, 0), Pairing.SPANS: (-2, 1)}
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
    num_followers = find_followers(host, layers, cancelled=cancelled)
    port, num_rows = learn_port_of(
        host, lessons, layers, rank, num_followers=num_followers, cancelled=cancelled
    )
    manifest = PortManifest(
        receiver=host.fingerprint,
        geometry=host.geometry,
        state_layers=port.intake.state_layers,
        hidden_size=port.intake.hidden_size,
        rank=rank,
        corpus_digest=digest_lessons(lessons),
        num_rows=num_rows,
        created_at=created_at,
        tensors_digest="",
    )
    return MadePort(port, manifest, layers)


def find_critical_layers(host: ModelHost, *, cancelled: Callable[[], bool] = never) -> tuple[int, ...]:
    """Layers whose memory this model's answers need. Raises Cancelled."""
    return critical_layers(*_probe(host, "", cancelled), cancelled=cancelled)


def find_followers(
    host: ModelHost, layers: tuple[int, ...], *, closing: str = CLOSING, cancelled: Callable[[], bool] = never
) -> int:
    """Slots behind each that is read in these layers which this model needs beside it. Raises Cancelled."""
    return choose_followers(*_probe(host, closing, cancelled), layers, cancelled=cancelled)


def _probe(host: ModelHost, closing: str, cancelled: Callable[[], bool]) -> tuple[Exam, tuple[Reading, ...]]:
    """An exam by which a model is looked into, and what it reads of its texts with a closing behind them."""
    lessons = list(fact_lessons(_PROBE_LESSONS, seed=_PROBE_SEED, num_questions=6))
    exam = Exam(host, lessons, cancelled=cancelled)
    return exam, hold(LocalReader(host).read([one.text + closing for one in lessons]), cancelled=cancelled)


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """The map that is in use for the pair a new one is made for, and the port it ends in."""

    alignment: AlignmentMap
    port: Port | None


@dataclass(frozen=True, slots=True)
class MapOptions:
    """What may be chosen for a map."""

    anchors: bool = True
    window: tuple[int, int] | None = None  # that of the pairing: another tokenizer's slots end elsewhere
    far_window: tuple[int, int] | None = (-9, -3)
    far_layers: tuple[int, ...] = (0,)
    strategy: LayerStrategy | None = None  # all layers, or those of LINEAR where that is too much
    head_local: bool = False  # each of the receiver's heads from its namesake alone; for maps into rows
    closing: str = CLOSING
    relative_lambdas: tuple[float, ...] = LAMBDAS


def fit_lessons(count: int = DEFAULT_LESSONS) -> list[Lesson]:
    """The shipped calibration texts: generated, the same everywhere."""
    return list(calibration_lessons(count, seed=_FIT_SEED))


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
    read_elsewhere: Callable[[Fit, Sequence[Lesson]], None] = lambda fit, lessons: None,
) -> AlignmentMap:
    """Fit a map from what `reader` reads to the model here, choose its lambda and let the gate judge it.

    `port` is the one it shall end in (`port_id` names it), or None for the receiver's rows. `read_elsewhere`
    may do some of the texts before the rest are read here. The map comes back whatever the verdict; its
    manifest says it. With `standing` it is admitted only beside that one
    (`gated`). `progress` counts every text that the source reads.
    Raises TooFewSamples, SingularStatistics, UnalignableTokens, NotFinite, Cancelled, and as `reader` does.
    """
    options = options or MapOptions()
    if options.head_local and port is not None:
        raise RequestError(
            "a port's coordinates are of all heads, so only a map into rows is head-local; add --rows"
        )
    intake = Intake(host.geometry) if options.head_local else host.intake(critical)
    plan = _plan_of(reader, host, critical, options, cancelled=cancelled)
    layers = source_layers_for(reader, host, lessons, plan, options.strategy, cancelled=cancelled)
    plan = replace(plan, source_layers=layers)
    fit = Fit.begin(reader, host, port or Port.identity(intake), plan, state)
    num_tuned = len(lessons) + _TUNE_LESSONS
    total = num_tuned + _GATE_LESSONS
    progress(fit.state.num_done, total)
    read_elsewhere(fit, lessons)
    fit.run(lessons, progress=lambda done, _: progress(done, total), saved=saved, cancelled=cancelled)
    manifest = _manifest_of(fit, lessons, "" if port is None else port_id, created_at)
    if options.strategy is not None:
        manifest = replace(manifest, layer_strategy=options.strategy)
    chosen = _choose(
        fit,
        manifest,
        port,
        options.relative_lambdas,
        progress=lambda done: progress(len(lessons) + done, total),
        cancelled=cancelled,
    )
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


def _plan_of(
    reader: Reader,
    host: ModelHost,
    critical: tuple[int, ...],
    options: MapOptions,
    *,
    cancelled: Callable[[], bool],
) -> FitPlan:
    """How these two are fitted to each other; the source layers are yet to be chosen."""
    plan = FitPlan(
        source_layers=(),
        window=options.window or _WINDOWS[pairing_of(reader, host)],
        closing=options.closing,
        far_window=options.far_window,
        far_layers=options.far_layers,
        head_local=options.head_local,
    )
    if not options.anchors:
        return plan
    num_followers = find_followers(host, critical, closing=options.closing, cancelled=cancelled)
    return replace(plan, critical_layers=critical, num_followers=num_followers)


def _manifest_of(fit: Fit, lessons: Sequence[Lesson], port_id: str, created_at: str) -> MapManifest:
    """What a map from this fit says of itself; its lambda is yet to be chosen, and nobody has judged it."""
    reader, host, plan, intake = fit.reader, fit.host, fit.plan, fit.port.intake
    return MapManifest(
        source=reader.fingerprint,
        source_geometry=reader.geometry,
        receiver=host.fingerprint,
        receiver_geometry=host.geometry,
        port=port_id,
        state_layers=() if port_id else intake.state_layers,
        hidden_size=0 if port_id else intake.hidden_size,
        method=_METHODS[fit.solver],
        pairing=pairing_of(reader, host),
        layer_strategy=LayerStrategy.LINEAR,
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


def _choose(
    fit: Fit,
    manifest: MapManifest,
    port: Port | None,
    relative_lambdas: Sequence[float],
    *,
    progress: Callable[[int], None],
    cancelled: Callable[[], bool],
) -> AlignmentMap:
    """The map of the lambda that answers best on texts of its own, which also say how far it goes."""
    made = (
        _to_map(replace(manifest, relative_lambda=relative_lambda), found, fit.state)
        for relative_lambda, found in fit.candidates(relative_lambdas)
    )
    unseen = list(calibration_lessons(_TUNE_LESSONS, seed=_TUNE_SEED, num_questions=6))
    exam = Exam(fit.host, unseen, cancelled=cancelled)
    tuning = Sitting.of(fit.reader, exam, closing=fit.plan.closing, progress=progress, cancelled=cancelled)
    chosen, _ = best_of(tuning, made, port, cancelled=cancelled)
    familiar = familiar_of(chosen.encoder, fit.state.sums.fit)
    return chosen if familiar is None else reaching(replace(chosen, familiar=familiar), tuning, port)


def reaching(alignment: AlignmentMap, sitting: Sitting, port: Port | None) -> AlignmentMap:
    """The map with a bound from what it makes of these texts, as coarse as it travels."""
    if alignment.familiar is None:
        return alignment
    encoded = (alignment.encode(one.slots)[0] for one in sitting.source)
    if port is not None:
        encoded = (port.dequantize(port.quantize(part, 4), 4) for part in encoded)
    return replace(alignment, familiar=alignment.familiar.reaching(encoded))


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
    """The map that a solution is."""
    anchor = state.anchor
    return AlignmentMap(
        manifest,
        found.weight.half().float(),  # rounded as its file will be, so that what is judged is what is used
        found.bias.float(),
        anchor=None if anchor is None else anchor.weight[:, 0].float(),
        anchor_bias=None if anchor is None else anchor.bias[0].float(),
    )
