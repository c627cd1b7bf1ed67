"""How long until the first word: reading a text again against injecting a memory of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch

from kvnet.align.arms import Arm
from kvnet.codec.basis import Basis
from kvnet.codec.presets import Preset, find_preset
from kvnet.format.compress import compress, decompress, suited_compression
from kvnet.model.host import ModelHost
from kvnet.model.memory import encode_memory
from kvnet.model.quality import read_tokens
from kvnet.plan import plan_memory
from kvnet.protocols.protocol import CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab, all_cores
from kvnet.types import Compression, MemoryHeader, RawMemory

_QUESTION_TOKENS: Final = 8
_FIRST_ID: Final = 3  # behind the special tokens


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms `text`, `none`, `own` (the cache as it is, copied) and one a codec, from its wire bytes."""
    host = lab.host(setting["model"])
    log.model = host.name.rpartition(":")[2]
    with all_cores():
        for num_tokens in setting["lengths"]:
            _measure_length(lab, host, num_tokens, setting, log)


def _measure_length(lab: Lab, host: ModelHost, num_tokens: int, setting: Setting, log: CellLog) -> None:
    generator = torch.Generator().manual_seed(setting.seed)
    known = min(host.vocab_size, len(host.tokenizer))
    ids = torch.randint(_FIRST_ID, known, (num_tokens + _QUESTION_TOKENS,), generator=generator).tolist()
    text_ids, question_ids = ids[:num_tokens], ids[num_tokens:]
    memory = read_tokens(host, text_ids)

    def behind_text() -> None:
        host.prefill(ids, host.new_cache())

    def behind_nothing() -> None:
        host.prefill(question_ids, host.new_cache())

    def behind_memory() -> None:
        host.prefill(question_ids, host.inject(memory))

    arms: dict[str, tuple[Callable[[], None], dict[str, float]]] = {
        Arm.TEXT.value: (behind_text, {}),
        Arm.NONE.value: (behind_nothing, {}),
        Arm.OWN.value: (behind_memory, {"wire_nbytes": memory.header.raw_nbytes}),
    }
    for name in setting["codecs"]:
        preset = find_preset(name)
        basis = lab.basis(host) if preset.needs_basis else None
        started = time.perf_counter()
        wire = _Wire.of(encode_memory(memory, preset, basis=basis), preset)
        told = {"encode_s": time.perf_counter() - started, "wire_nbytes": wire.nbytes}
        behind_wire = partial(_answer_behind_wire, host, wire, basis, question_ids)
        arms[name] = (behind_wire, told)
    for repeat in range(
        -1, setting["repeats"]
    ):  # arms in turn, so that what else runs here slows all; one to warm up
        for arm, (answer, told) in arms.items():
            started = time.perf_counter()
            answer()
            values = {"ttft_s": time.perf_counter() - started, **told}
            if repeat >= 0:
                log.values(arm, values, source=host.name, lesson=repeat, question=0, length=num_tokens)


@dataclass(frozen=True, slots=True, eq=False)
class _Wire:
    """A memory as its chunks travel."""

    header: MemoryHeader
    chunks: tuple[tuple[int, Compression, bytes | memoryview], ...]  # (raw bytes, how compressed, compressed)

    @classmethod
    def of(cls, memory: RawMemory, preset: Preset) -> _Wire:
        coding, itemsize = memory.header.coding, memory.header.geometry.dtype.itemsize
        chunks = []
        for key, raw in zip(plan_memory(memory.header), memory.chunks, strict=True):
            wanted = suited_compression(preset.compression, coding, key.kind)
            chunks.append((len(raw), *compress(raw, wanted, level=preset.level, itemsize=itemsize)))
        return cls(memory.header, tuple(chunks))

    @property
    def nbytes(self) -> int:
        return sum(len(wire) for _, _, wire in self.chunks)

    def memory(self) -> RawMemory:
        itemsize = self.header.geometry.dtype.itemsize
        raw = (decompress(wire, used, nbytes, itemsize=itemsize) for nbytes, used, wire in self.chunks)
        return RawMemory(self.header, tuple(raw))


def _answer_behind_wire(host: ModelHost, wire: _Wire, basis: Basis | None, question_ids: list[int]) -> None:
    host.prefill(question_ids, host.inject(wire.memory(), basis=basis))


_SAME_WORK: Final = "it is as much work as a memory of the model's own, and no answer is judged"
PROTOCOL = Protocol(
    name="latency",
    version=1,
    question="From what length on is a memory faster than its text?",
    measure=measure,
    metrics={
        "ttft_s": "seconds from the wire bytes or the text to the first token",
        "encode_s": "seconds to code the memory, once",
        "wire_nbytes": "bytes of the memory on the wire",
    },
    without=dict.fromkeys((Arm.ZEROED, Arm.SHUFFLED, Arm.RAW), _SAME_WORK),
)
