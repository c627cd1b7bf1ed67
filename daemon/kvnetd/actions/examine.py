"""align eval: a map examined on facts that it never saw, beside everything it must be compared with."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from kvnet.align.arms import EVERY_ARM, Arm, ArmResult, measure_arms
from kvnet.align.corpus import fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting
from kvnet.align.reading import Reader
from kvnet.alignment import MapManifest
from kvnet.api import ArmReport, Evaluation, Progress
from kvnet.errors import RequestError
from kvnetd.actions.fit import map_to_here, reader_of, require_source
from kvnetd.fitting import Cancelled, Told, working
from kvnetd.holding import holding
from kvnetd.mapping import LoadedMap, loaded_map
from kvnetd.services import Services

DEFAULT_QUESTIONS: Final = 320
MOST_QUESTIONS: Final = 10_000
_QUESTIONS_EACH: Final = 8  # asked of one text
_SEED: Final = 6  # of texts that neither a fit nor its gate ever sees


@dataclass(frozen=True, slots=True)
class EvaluateRequest:
    """Which map, and who reads for it: as for a fit, or the map's own source by its name."""

    alignment: str
    peer: str = ""
    source: str = ""
    questions: int = 0


async def evaluate(
    services: Services, request: EvaluateRequest
) -> AsyncGenerator[Progress | Evaluation, None]:
    """The table of a map on facts that it was never fitted or judged on, controls included; it comes last.

    Raises RequestError, IncompatibleModel, UnknownAlignment, TooBusy while a fit goes on, and what the peer
    or the loader raises.
    """
    began = time.perf_counter()
    manifest = _examinable(services, request)
    source = request.source or ("" if request.peer else manifest.source.model)
    with (
        services.log.span("alignment", receiver=services.host.name, peer=request.peer) as span,
        holding(services, "an examination"),
    ):
        span.add(map=manifest.id, source=manifest.source.model)
        found: list[ArmResult] = []
        async with reader_of(services, request.peer, source) as reader:
            require_source(reader, manifest)
            loaded = await loaded_map(services, manifest)
            steps = working(services, _examining(services, reader, loaded, request.questions))
            async with aclosing(steps):
                async for step in steps:
                    if isinstance(step, Progress):
                        yield step
                    else:
                        found = step
        of_arm = {one.arm: one for one in found}
        span.add(count=found[0].num_questions, gap_recovered=of_arm[Arm.MAPPED].gap_recovered.value)
    yield Evaluation(
        alignment=manifest.id,
        source=manifest.source.model,
        receiver=manifest.receiver.model,
        arms=tuple(
            ArmReport(one.arm, one.recall, one.gap_recovered, one.kl, one.num_questions) for one in found
        ),
        not_applicable=tuple(arm.value for arm in EVERY_ARM if arm.value not in of_arm),
        seconds=round(time.perf_counter() - began, 3),
    )


def _examining(
    services: Services, reader: Reader, loaded: LoadedMap, num_questions: int
) -> Callable[[Told, Cancelled], list[ArmResult]]:
    """The examination as the model's thread does it."""
    count = -(-(num_questions or DEFAULT_QUESTIONS) // _QUESTIONS_EACH)

    def act(told: Told, cancelled: Cancelled) -> list[ArmResult]:
        lessons = list(fact_lessons(count, seed=_SEED, num_questions=_QUESTIONS_EACH))
        exam = Exam(services.host, lessons, cancelled=cancelled)
        sitting = Sitting.of(
            reader,
            exam,
            closing=loaded.manifest.closing,
            progress=lambda done: told(done, count + len(EVERY_ARM)),
            cancelled=cancelled,
        )
        return measure_arms(
            sitting,
            loaded.alignment,
            loaded.port,
            progress=lambda done, num_arms: told(count + done, count + num_arms),
            cancelled=cancelled,
        )

    return act


def _examinable(services: Services, request: EvaluateRequest) -> MapManifest:
    if not 0 <= request.questions <= MOST_QUESTIONS:
        raise RequestError(f"{request.questions} questions: ask 1 to {MOST_QUESTIONS}")
    return map_to_here(services, request.alignment, "examine")
