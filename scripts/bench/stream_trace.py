"""A daemon that says when what happened to each chunk; and the reader of what it said.

Run as a program it is `kvnetd`, its functions wrapped: KVNET_BENCH_TRACE names the file. Nothing in kvnet
knows of it. Times are of the machine's monotonic clock, which all of its processes share.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "KVNET_BENCH_TRACE"
# In the order in which a chunk goes through them; each lasts from its beginning to its end.
STAGES = ("prefill", "encode", "wire", "verify", "store", "decode", "inject")


@dataclass(frozen=True, slots=True)
class Stamp:
    """One stage of one chunk: seconds of the machine's clock. `chunk` is -1 where it is of a whole layer."""

    stage: str
    layer_idx: int
    chunk: int
    began: float
    ended: float


def read_trace(*paths: Path) -> list[Stamp]:
    """All stamps of some daemons, oldest first."""
    lines = [line for path in paths for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted((Stamp(**json.loads(line)) for line in lines), key=lambda stamp: stamp.began)


def by_layer(stamps: Iterable[Stamp], stage: str) -> dict[int, tuple[float, float]]:
    """For each layer, when a stage of its first chunk began and of its last one ended."""
    spans: dict[int, tuple[float, float]] = {}
    for stamp in stamps:
        if stamp.stage == stage and stamp.layer_idx >= 0:
            began, ended = spans.get(stamp.layer_idx, (stamp.began, stamp.ended))
            spans[stamp.layer_idx] = min(began, stamp.began), max(ended, stamp.ended)
    return spans


class _Trace:
    def __init__(self, path: Path) -> None:
        self._out = path.open("a", buffering=1, encoding="utf-8")

    def say(self, stage: str, layer_idx: int, chunk: int, began: float, ended: float) -> None:
        line = {"stage": stage, "layer_idx": layer_idx, "chunk": chunk, "began": began, "ended": ended}
        self._out.write(json.dumps(line) + "\n")

    def wrap(self, owner: Any, name: str, stage: str, of: Callable[..., tuple[int, int]]) -> None:
        """`of` tells layer and chunk from a call's result and arguments."""
        act = getattr(owner, name)

        @functools.wraps(act)
        def traced(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = act(*args, **kwargs)
            self.say(stage, *of(result, *args), began, time.perf_counter())
            return result

        setattr(owner, name, traced)

    def wrap_async(self, owner: Any, name: str, stage: str, of: Callable[..., list[tuple[int, int]]]) -> None:
        """The same for a coroutine that is about several chunks."""
        act = getattr(owner, name)

        @functools.wraps(act)
        async def traced(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = await act(*args, **kwargs)
            ended = time.perf_counter()
            for layer_idx, chunk in of(result, *args):
                self.say(stage, layer_idx, chunk, began, ended)
            return result

        setattr(owner, name, traced)


def _install(trace: _Trace) -> None:
    """Wrap what a chunk goes through, at both ends."""
    from kvnetd.incoming import InboundTransfer
    from kvnetd.landing import Landing
    from kvnetd.live import LiveSource

    from kvnet.format.envelope import Envelope
    from kvnet.model.arriving import ArrivingMemory
    from kvnet.model.host import ModelHost
    from kvnet.transfer.sender import SenderSession
    from kvnet.transport import receiving
    from kvnet.transport.frames import FrameStream

    def of_key(key: Any) -> tuple[int, int]:
        return key.layer_idx, key.index

    def of_sent(_: object, __: object, chunk: Any) -> list[tuple[int, int]]:
        return [of_key(Envelope.unpack(chunk.envelope).key)]

    trace.wrap(LiveSource, "_code", "encode", lambda _, __, key, *rest: of_key(key))
    trace.wrap_async(FrameStream, "write_chunk", "wire", of_sent)
    trace.wrap(receiving, "verify_chunk", "verify", lambda result, *rest: of_key(result.envelope.key))
    trace.wrap_async(
        InboundTransfer, "store", "store", lambda _, __, chunks: [of_key(one.envelope.key) for one in chunks]
    )
    trace.wrap(Landing, "_add", "decode", lambda _, __, chunk: of_key(chunk.envelope.key))
    trace.wrap(ArrivingMemory, "layer", "inject", lambda _, __, layer_idx: (layer_idx, -1))
    _trace_acks(trace, SenderSession)
    _trace_reading(trace, ModelHost)


def _trace_acks(trace: _Trace, session: Any) -> None:
    acked = session.acked

    @functools.wraps(acked)
    def traced(self: Any, indices: Iterable[int]) -> bool:
        indices, now = list(indices), time.perf_counter()
        for index in indices:
            trace.say("ack", -1, index, now, now)
        return bool(acked(self, indices))

    session.acked = traced


def _trace_reading(trace: _Trace, host: Any) -> None:
    read_open = host.read_open

    @functools.wraps(read_open)
    def traced(self: Any, token_ids: Any, on_update: Callable[[Any], None], **options: Any) -> None:
        last = time.perf_counter()

        def on_layer(layer: Any) -> None:
            nonlocal last
            began, last = last, time.perf_counter()
            trace.say("prefill", layer.layer_idx, -1, began, last)
            on_update(layer)

        read_open(self, token_ids, on_layer, **options)

    host.read_open = traced


if __name__ == "__main__":
    from kvnetd.main import main

    _install(_Trace(Path(os.environ[VARIABLE])))
    sys.exit(main())
