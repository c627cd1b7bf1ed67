"""What alignment costs: seconds to fit a map, and to apply one at a real model's geometry."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import harness
import torch
from alignment_rows import Row, verdict
from alignment_setup import Bridge, Pair, Workshop

from kvnet.align.fit_state import FitPlan
from kvnet.align.map import AlignmentMap
from kvnet.align.port import LARGEST_CODE, Port
from kvnet.align.reading import LocalReader
from kvnet.align.recipe import (
    DEFAULT_LESSONS,
    DEFAULT_RANK,
    fit_lessons,
    make_map,
)
from kvnet.align.sources import source_layers_for
from kvnet.alignment import MapManifest, feature_width, intake_of
from kvnet.model.cache import LayerKV, export_layers
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.slots import Slots, rows_of_layers

_SHAPED: Final = ("random:tinyllama nf4", "random:tinyllama nf4")
_MOST_FIT_S: Final = 90.0
_MOST_SHARE: Final = 0.1
_TOKENS: Final = 1000
_FIRST_ORDINARY_ID: Final = 8  # ids before it are specials
_REPEATS: Final = 3
_WARM_UP: Final = 16  # tokens before the clock runs
_MADE_AT: Final = "1970-01-01T00:00:00Z"


def fit_rows(shop: Workshop, pair: Pair) -> Iterator[Row]:
    """One map from scratch: both models read the shipped lessons, then the solve, the choice and the gate."""
    bridge, cores = shop.bridge(pair), os.cpu_count() or 1
    critical = shop.critical(pair[1])
    harness.say(f"systems: {pair[0]} to {pair[1]}, a fit on {DEFAULT_LESSONS} lessons, {cores} threads")
    with _threads(cores):
        began, began_cpu = time.perf_counter(), time.process_time()
        made = make_map(
            LocalReader(bridge.source),
            bridge.receiver,
            fit_lessons(),
            created_at=_MADE_AT,
            port=bridge.port,
            port_id="",
            critical=critical,
        )
        seconds, cpu_s = time.perf_counter() - began, time.process_time() - began_cpu
    figures = {"cpu_s": cpu_s, "features": feature_width(made.manifest)}
    goal, met = f"seconds<={_MOST_FIT_S:g}", seconds <= _MOST_FIT_S
    yield _row(pair, "fit from scratch", seconds, goal=goal, met=met) | figures


def apply_rows(shop: Workshop, folder: Path, pair: Pair) -> Iterator[Row]:
    """A map between models of TinyLlama's geometry, applied to a cache, against the receiver's prefill."""
    bridge, cores = shop.bridge(pair), os.cpu_count() or 1
    harness.say(f"systems: TinyLlama's geometry in NF4, {_TOKENS} tokens, {cores} threads")
    spec = ModelSpec(harness.random_checkpoint("tinyllama"), quantization="nf4", device="cpu")
    host = ModelHost.load(spec, folder)
    port = _random_port(host, bridge)
    every = _random_map(host, bridge, port)
    share = _sent_share(shop, bridge)
    with _threads(cores):
        layers, prefill_s = _prefill(host, random.Random(shop.seed))
        yield _row(_SHAPED, "prefill", prefill_s)
        some = _sending(every, _strip(host, layers), share)
        for name, alignment, sent in (("as sparse as shipped", some, share), ("every slot", every, 1.0)):
            # From the cache as it came to one to ask behind, the receiver's own first token included.
            seconds = _median_s(partial(_apply, host, layers, alignment, port))
            ratio = seconds / prefill_s
            goal, met = f"ratio<={_MOST_SHARE:g}", ratio <= _MOST_SHARE
            figures = {"ratio": ratio, "sent": sent, "features": feature_width(alignment.manifest)}
            yield _row(_SHAPED, f"map, {name}", seconds, goal=goal, met=met) | figures


def _prefill(host: ModelHost, rng: random.Random) -> tuple[tuple[LayerKV, ...], float]:
    """The cache of so many tokens behind the model's own first one, and the seconds to compute it."""
    ids = [rng.randrange(_FIRST_ORDINARY_ID, len(host.tokenizer)) for _ in range(host.num_sinks + _TOKENS)]
    host.prefill(ids[:_WARM_UP], host.new_cache())
    cache, began = host.new_cache(), time.perf_counter()
    host.prefill(ids, cache, token_block=len(ids))
    return export_layers(cache), time.perf_counter() - began


def _strip(host: ModelHost, layers: Sequence[LayerKV]) -> Slots:
    positions = torch.arange(host.num_sinks, host.num_sinks + _TOKENS)
    rows = rows_of_layers(layers, host.geometry, positions, seq_len=host.num_sinks + _TOKENS)
    return Slots(host.geometry, rows, positions - host.num_sinks, _TOKENS)


def _apply(host: ModelHost, layers: Sequence[LayerKV], alignment: AlignmentMap, port: Port) -> None:
    host.inject_slots(alignment.apply(_strip(host, layers), port, rows_of=host.rows_of))


def _random_port(host: ModelHost, bridge: Bridge) -> Port:
    """A port of random numbers, with states in the layers at the depth of those that the shipped one has."""
    shipped = bridge.port.intake if bridge.port else intake_of(bridge.alignment.manifest)
    rank = bridge.port.rank if bridge.port else DEFAULT_RANK
    num_layers, num_shipped = host.geometry.num_layers, shipped.geometry.num_layers
    intake = host.intake(
        [i for i in range(num_layers) if i * num_shipped // num_layers in shipped.state_layers]
    )
    width = intake.width
    generator = torch.Generator().manual_seed(0)
    project = torch.randn(width, rank, generator=generator)
    basis = torch.randn(rank, width, generator=generator)
    steps = {bits: torch.ones(rank) for bits in LARGEST_CODE}
    return Port(intake, project, basis / width, torch.zeros(width), steps)


def _random_map(host: ModelHost, bridge: Bridge, port: Port) -> AlignmentMap:
    """A map of the shape that the recipe would fit between two such models, of random numbers."""
    shipped = bridge.alignment.manifest
    plan = FitPlan(
        source_layers=(),
        window=shipped.window,
        far_window=shipped.far_window,
        far_layers=shipped.far_layers,
    )
    manifest: MapManifest = replace(
        shipped,
        source=host.fingerprint,
        source_geometry=host.geometry,
        receiver=host.fingerprint,
        receiver_geometry=host.geometry,
        source_layers=source_layers_for(LocalReader(host), host, (), plan, None),
        num_sinks=host.num_sinks,
    )
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(feature_width(manifest), port.rank, generator=generator)
    return AlignmentMap(manifest, encoder / len(encoder), torch.zeros(port.rank))


def _sending(alignment: AlignmentMap, slots: Slots, share: float) -> AlignmentMap:
    """The map with an anchor that chooses this share of the slots."""
    anchor = alignment.encoder[:, 0].clone()
    scores = alignment.encode(slots)[0][:, 0]
    bias = 0.5 - scores.quantile(1 - share)  # a slot is sent whose score is above one half
    return replace(alignment, anchor=anchor, anchor_bias=bias)


def _sent_share(shop: Workshop, bridge: Bridge) -> float:
    """The share of slots that a shipped map sends of fresh texts."""
    sitting = shop.tuning(bridge.source, bridge.receiver, bridge.closing)
    sent = sum(len(bridge.alignment.encode(reading.slots)[1]) for reading in sitting.source)
    return sent / sum(reading.slots.num_slots for reading in sitting.source)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """This many threads inside: a receiver has all of its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _median_s(work: Callable[[], None]) -> float:
    work()
    seconds = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[_REPEATS // 2]


def _row(pair: Pair, arm: str, seconds: float, *, goal: str = "", met: bool | None = None) -> Row:
    named = {"table": "systems", "source": pair[0], "target": pair[1], "arm": arm}
    return {**named, "seconds": seconds, "goal": goal, "met": verdict(met)}
