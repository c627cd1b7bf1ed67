"""align train: a residual on a map whose closed form falls short, kept where it is the better map."""

from __future__ import annotations

import importlib.util
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from kvnet.align.corpus import Lesson, digest_lessons, fact_lessons
from kvnet.align.map import AlignmentMap
from kvnet.align.reading import Reader
from kvnet.align.recipe import Standing, find_critical_layers
from kvnet.align.train import NUM_STEPS, train_map
from kvnet.align.train_state import StepReport, TrainState, plot_curve
from kvnet.alignment import MapManifest, Method
from kvnet.api import CurvePoint, TrainProgress, TrainReport
from kvnet.errors import Cancelled, MissingExtra, RequestError
from kvnet.version import VERSION
from kvnetd.actions.align import describe
from kvnetd.actions.fit import lessons_of, map_to_here, reader_of, require_source, signed, standing_map
from kvnetd.fitting import Cancelled as IsCancelled
from kvnetd.fitting import telling
from kvnetd.holding import holding
from kvnetd.kept import TRAININGS, KeptState
from kvnetd.mapping import LoadedMap, loaded_map
from kvnetd.services import Services, utc_seconds
from kvnetd.store.alignments import AlignmentRecord

Curve = tuple[StepReport, ...]

DEFAULT_LESSONS: Final = 320
MOST_LESSONS: Final = 10_000  # what the source reads of them is held in memory
MOST_STEPS: Final = 100_000
_SEED: Final = 15  # of texts that no fit, no contest and no gate ever sees
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """Which map, who reads for it and what, as for a fit; how long, and where the curve shall be drawn."""

    alignment: str
    peer: str = ""
    source: str = ""
    corpus: str = ""
    lessons: int = 0
    steps: int = 0  # the training's number if 0
    plots: str = ""  # absolute path of a folder; no picture if empty


async def train(
    services: Services, request: TrainRequest
) -> AsyncGenerator[TrainProgress | TrainReport, None]:
    """Train a map to the hosted model; what it came to is told last. Kept only if it beats the closed form.

    A training that ends before its time leaves its state, and the same request goes on from it. Raises
    RequestError, TooFewSamples, UnknownAlignment, IncompatibleModel, MissingExtra, Cancelled, TooBusy while a
    fit goes on, and what the peer or the loader raises.
    """
    began = time.perf_counter()
    with (
        services.log.span("alignment", receiver=services.host.name, peer=request.peer) as span,
        holding(services, "a training"),
    ):
        manifest = _trainable(services, request)
        span.add(map=manifest.id, source=manifest.source.model)
        if request.plots:
            await services.in_pool(_make_folder, request.plots)
        lessons = await services.in_pool(
            lessons_of,
            request.corpus,
            request.lessons,
            _fresh_lessons,
            default=DEFAULT_LESSONS,
            most=MOST_LESSONS,
        )
        span.add(lessons=len(lessons))
        loaded = await loaded_map(services, manifest)
        made, curve = loaded.alignment, Curve()
        async with reader_of(services, request.peer, request.source) as reader:
            require_source(reader, manifest)
            standing = await standing_map(services, reader, request.peer)
            steps = telling(services, _training(services, reader, loaded, lessons, request.steps, standing))
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, TrainProgress):
                        yield step
                    else:
                        made, curve = step
        record = None
        if made is not loaded.alignment:
            record = await _keep(services, made, loaded)
            gate = made.manifest.gate
            span.add(map=record.id, admitted=gate.admitted, gap_recovered=gate.gap_recovered.value)
        span.add(port=manifest.port, count=curve[-1].step)
    yield TrainReport(
        closed_form=manifest.id,
        trained=describe(services, record) if record else None,
        curve=tuple(map(_point_of, curve)),
        plot=await services.in_pool(_draw, curve, request.plots, manifest) if request.plots else "",
        seconds=round(time.perf_counter() - began, 3),
    )


def _training(
    services: Services,
    reader: Reader,
    loaded: LoadedMap,
    lessons: Sequence[Lesson],
    num_steps: int,
    standing: Standing | None,
) -> Callable[[Callable[[TrainProgress], None], IsCancelled], tuple[AlignmentMap, Curve]]:
    """The training as the model's thread does it."""
    total = num_steps or NUM_STEPS
    # Not the number of steps: whoever asks for more goes on from where fewer led.
    depends_on = {"kvnet": VERSION, "map": loaded.manifest.id, "corpus": digest_lessons(lessons)}

    def act(tell: Callable[[TrainProgress], None], cancelled: IsCancelled) -> tuple[AlignmentMap, Curve]:
        kept = KeptState(services.config.home.root / TRAININGS, depends_on, TrainState)
        state = kept.load()
        last = list(state.curve[-1:]) if state else []

        def told(done: int, total: int) -> None:
            tell(TrainProgress(done, total, _point_of(last[0]) if last else None))

        def judged(point: StepReport) -> None:
            last[:] = [point]
            told(point.step, total)

        def saved(state: TrainState) -> None:
            kept.note(state, at_once=state.num_done >= total)  # the contest and the gate follow

        try:
            found = train_map(
                reader,
                services.host,
                loaded.alignment,
                loaded.port,
                find_critical_layers(services.host, cancelled=cancelled),
                lessons,
                created_at=utc_seconds(),
                standing=standing,
                num_steps=total,
                state=state,
                report=judged,
                progress=told,
                saved=saved,
                cancelled=cancelled,
            )
        except BaseException as exc:
            if isinstance(exc, RequestError) and not isinstance(exc, Cancelled):
                kept.drop()  # it diverged, or cannot be: from the same state it would again
            else:
                kept.save()
            raise
        kept.drop()
        return found

    return act


async def _keep(services: Services, made: AlignmentMap, loaded: LoadedMap) -> AlignmentRecord:
    verified = await services.runner.run(signed, services, made, loaded.port)
    return await services.in_store(services.alignments.put, verified)


def _trainable(services: Services, request: TrainRequest) -> MapManifest:
    if not 0 <= request.steps <= MOST_STEPS:
        raise RequestError(f"{request.steps} steps: train 1 to {MOST_STEPS}")
    manifest = map_to_here(services, request.alignment, "train")
    if manifest.method is Method.TRAINED:
        raise RequestError(f"{manifest.id}: was trained already; train the map it came from, or fit one anew")
    return manifest


def _fresh_lessons(count: int) -> list[Lesson]:
    return list(fact_lessons(count, seed=_SEED))


def _point_of(point: StepReport) -> CurvePoint:
    return CurvePoint(*astuple(point))


def _make_folder(plots: str) -> None:
    """Told before the training, not after. Blocks. Raises MissingExtra, RequestError."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtra(
            "the curve is drawn by matplotlib, which is not installed; pip install matplotlib, or leave out "
            "--plots"
        )
    folder = Path(plots)
    if not folder.is_absolute():
        raise RequestError(f"plots {plots:.200}: give the folder's absolute path")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise RequestError(f"plots {plots:.200}: no such folder ({exc.strerror}); name another") from exc


def _draw(curve: Curve, plots: str, manifest: MapManifest) -> str:
    """The picture's path; "" where it cannot be written, which costs the picture and not the training."""
    path = Path(plots) / f"training_{manifest.id[:16]}.png"
    try:
        plot_curve(curve, path)
    except OSError as exc:
        _log.warning("the curve of a training cannot be drawn: %s", exc)
        return ""
    return str(path)
