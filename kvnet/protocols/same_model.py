"""Phase 2.1 of the seed: read A, hand the cache to a fresh start on B, compare with B alone."""

from __future__ import annotations

from kvnet.model.quality import read_tokens
from kvnet.protocols.protocol import CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms beside the controls: the memory whole, as `capture` gives it and a node injects it."""
    trial = lab.trial_for(setting)
    host = trial.exam.host
    trial.log_controls(log)
    memories = [read_tokens(host, host.tokenize_context(lesson.text)) for lesson in trial.exam.lessons]
    trial.log_arm(log, "injected", trial.behind_memories(memories.__getitem__))


PROTOCOL = Protocol(
    name="same-model",
    version=1,
    question="Does injecting a cache make the same model remember what it has read?",
    measure=measure,
)
