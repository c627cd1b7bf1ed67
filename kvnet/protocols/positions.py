"""Where a memory stands: moved, apart from its question; and the harness that found nothing."""

from __future__ import annotations

from dataclasses import replace

from kvnet.align.exam import Say
from kvnet.errors import RequestError
from kvnet.model.cache import Cache
from kvnet.model.text import leading_bos
from kvnet.protocols.original import VISIBLE, Fault, ask_all
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab
from kvnet.protocols.trial import Trial


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `moved` (memory and question), `apart` (the question alone),
    `second-bos`; and `harness:FAULT`, `harness:but-FAULT`, with `visible` faults or `every` one.
    """
    trial = lab.trial_for(setting)
    host = trial.exam.host
    trial.log_controls(log)
    for distance in setting["distances"]:
        moved = [
            replace(one.slots, positions=one.slots.positions + distance, span=one.slots.span + distance)
            for one in trial.own
        ]
        apart = [replace(one.slots, span=one.slots.span + distance) for one in trial.own]
        trial.log_arm(log, "moved", trial.behind(moved.__getitem__), distance=distance)
        trial.log_arm(log, "apart", trial.behind(apart.__getitem__), distance=distance)
    trial.log_arm(log, "second-bos", _behind_second_bos(trial))
    lessons = list(trial.exam.lessons[: setting["harness_lessons"]])
    lessons = [replace(one, questions=one.questions[: setting["harness_questions"]]) for one in lessons]
    for name, faults in _harnesses().items():
        for place, reply in enumerate(ask_all(host, lessons, faults)):
            values = {"right": reply.exact, "named": reply.named, "reply_tokens": reply.num_tokens}
            log.values(
                f"harness:{name}",
                values,
                source=host.name,
                lesson=reply.lesson,
                question=place,
                faults=len(faults),
            )


def _behind_second_bos(trial: Trial) -> Say:
    host = trial.exam.host
    bos = tuple(leading_bos(host.tokenizer))
    if not bos:
        raise RequestError(
            f"{host.name} begins no text with a BOS, so none can stand in the middle; choose another"
        )

    def begin(lesson_idx: int) -> tuple[Cache, int]:
        cache = host.inject_slots(trial.own[lesson_idx].slots)
        host.prefill(bos, cache)
        return cache, 0

    return trial.exam.behind(begin)


def _harnesses() -> dict[str, frozenset[Fault]]:
    """None, each alone, those that are plain to see, all, and all but each: what each fault adds."""
    every = frozenset(Fault)
    return {
        "sound": frozenset(),
        **{fault.value: frozenset({fault}) for fault in Fault},
        "visible": frozenset(VISIBLE),
        "every": every,
        **{f"but-{fault.value}": every - {fault} for fault in Fault},
    }


PROTOCOL = Protocol(
    name="positions",
    version=1,
    question="Does it matter where a memory stands, and what broke the harness that found 0 of 125?",
    measure=measure,
    metrics={
        **MARK_METRICS,
        "named": "share of greedy replies in which the answer occurs",
        "reply_tokens": "tokens of the greedy reply, 12 at most",
    },
)
