"""What one model's memory tells another one through a map, as computed and as it travels."""

from __future__ import annotations

from kvnet.align.arms import Arm, memories_of
from kvnet.align.examine import Sitting
from kvnet.align.reading import LocalReader
from kvnet.errors import RequestError
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `mapped`, `port8`, `port4`, `random` (a random map), and `used`: what a node takes undoubted."""
    source_name, name = pair_of(setting["path"])
    source, receiver = lab.host(source_name), lab.host(name)
    trial = lab.trial(
        task=setting["task"],
        model=name,
        other=source_name,
        lessons=setting["lessons"],
        questions=setting["questions"],
        seed=setting.seed,
    )
    bridge = lab.bridge(source, receiver)
    closing = bridge.alignment.manifest.closing
    sitting = Sitting.of(LocalReader(source), trial.exam, closing=closing)
    mapped = sitting.mapped(bridge.alignment, bridge.port)
    trial.log_controls(log, mapped, source=source_name)
    strange = [bridge.alignment.strangeness(bridge.alignment.encode(one.slots)[0]) for one in sitting.source]

    def told(lesson: int) -> dict[str, float]:
        return {"strangeness": strange[lesson], "sent": mapped[lesson].num_slots / mapped[lesson].span}

    made = memories_of(sitting, bridge.alignment, bridge.port, setting.seed)
    for arm in (Arm.MAPPED, Arm.PORT8, Arm.PORT4, Arm.RANDOM):
        if arm in made:
            trial.log_arm(log, arm.value, trial.behind(made[arm]()), source=source_name, more=told)
    wired = sitting.mapped(bridge.alignment, bridge.port, bits=8)
    used = trial.behind(sitting.admitted(bridge.alignment, wired))
    trial.log_arm(log, "used", used, source=source_name, more=told)


def pair_of(path: str) -> tuple[str, str]:
    """(source, receiver) of `a+b`. Raises RequestError for anything else."""
    names = path.split("+")
    if len(names) != 2 or not all(names):
        raise RequestError(f"path is {path!r:.60}, wanted two models as in ref-a+ref-b")
    return names[0], names[1]


PROTOCOL = Protocol(
    name="cross-model",
    version=1,
    question="What does alignment keep of a memory that another model made?",
    measure=measure,
    metrics={
        **MARK_METRICS,
        "strangeness": "above 1 the map was not fitted on such texts",
        "sent": "share of the text's positions that have a slot",
    },
)
