"""What each coding of a cache costs: bytes on the wire against what the model says behind the decoded one."""

from __future__ import annotations

from kvnet.codec.presets import find_preset
from kvnet.model.memory import encode_memory
from kvnet.model.quality import count_wire_nbytes, read_tokens
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab

_HALF_NBYTES = 2


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """One arm a preset."""
    trial = lab.trial_for(setting)
    host = trial.exam.host
    trial.log_controls(log)
    memories = [read_tokens(host, host.tokenize_context(lesson.text)) for lesson in trial.exam.lessons]
    for name in setting["codecs"]:
        preset = find_preset(name)
        basis = lab.basis(host) if preset.needs_basis else None
        coded = [encode_memory(memory, preset, basis=basis) for memory in memories]
        sizes = []
        for memory, plain in zip(coded, memories, strict=True):
            nbytes = count_wire_nbytes(memory, preset)
            halves = plain.header.raw_nbytes // plain.header.geometry.dtype.itemsize * _HALF_NBYTES
            per_token = nbytes / plain.header.seq_len
            sizes.append({"wire_nbytes": nbytes, "bytes_per_token": per_token, "ratio": halves / nbytes})
        trial.log_arm(
            log, name, trial.behind_memories(coded.__getitem__, basis=basis), more=sizes.__getitem__
        )


PROTOCOL = Protocol(
    name="codec",
    version=1,
    question="What does each codec cost, in bytes and in what the model remembers?",
    measure=measure,
    metrics={
        **MARK_METRICS,
        "wire_nbytes": "bytes of the memory on the wire",
        "bytes_per_token": "bytes on the wire",
        "ratio": "times smaller than the same cache in float16",
    },
)
