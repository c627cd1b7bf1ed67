"""The wire's curve: rank and bits of a port against recall and bytes, and the wires that need no port."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import harness
import torch
from alignment_arms import count_facts, plain_nbytes, port_nbytes
from alignment_fits import fitted, plan_of
from alignment_rows import Row, pair_goal, result_of, row_of
from alignment_setup import Bridge, Pair, Trial, Workshop

from kvnet.align.exam import Marks
from kvnet.align.map import AlignmentMap
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.recipe import fit_lessons
from kvnet.alignment import row_width
from kvnet.codec.presets import PRESETS, Preset
from kvnet.model.host import ModelHost
from kvnet.model.memory import encode_memory
from kvnet.model.quality import count_wire_nbytes
from kvnet.model.slots import slots_of
from kvnet.model.text import tokenize_with_spans
from kvnet.types import DType, Fingerprint, Geometry, RawMemory

RANKS: Final = (8, 12, 16, 24, 32, 48, 64, 96, 128)
NOISES: Final = (0.0003, 0.001, 0.003, 0.01, 0.03)  # of each column's own spread


@dataclass(frozen=True, slots=True)
class CodedReader:
    """A reader whose memories come over a wire: coded, and read back."""

    host: ModelHost
    preset: Preset

    @property
    def fingerprint(self) -> Fingerprint:
        """The model's."""
        return self.host.fingerprint

    @property
    def geometry(self) -> Geometry:
        """The model's."""
        return self.host.geometry

    @property
    def num_sinks(self) -> int:
        """The model's."""
        return self.host.num_sinks

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        """A reading of each text, in order."""
        for text in texts:
            slots = slots_of(self.code(text), num_sinks=self.num_sinks)
            spans = tokenize_with_spans(self.host.tokenizer, text)[1]
            yield Reading(slots, spans[self.num_sinks :])

    def code(self, text: str) -> RawMemory:
        """The memory of a text as it travels."""
        return encode_memory(self.host.capture(text), self.preset, dtype=DType.FLOAT16)


def curve_rows(shop: Workshop, pairs: Sequence[Pair]) -> Iterator[Row]:
    """Rank and bits of the port against recall and bytes, and the wires that need no port."""
    for pair in pairs:
        bridge = shop.bridge(pair)
        trial = shop.trial(bridge.source, bridge.receiver, closing=bridge.closing)
        mapped = trial.exam.sit(trial.sitting.mapped(bridge.alignment, bridge.port).__getitem__)
        full = result_of(trial, "mapped, not on a wire", mapped)
        _, text_nbytes = plain_nbytes(bridge.source, trial)
        yield row_of("curve", pair, full)
        for row, nbytes in (
            *_port_rows(bridge, trial, full.gap_recovered.value),
            *_wire_rows(shop, bridge, trial),
        ):
            yield row | ({"bytes": nbytes, "wire/text": nbytes / text_nbytes} if nbytes else {})
        yield from _noise_rows(shop, bridge, trial)


def _port_rows(bridge: Bridge, trial: Trial, full_gap: float) -> Iterator[tuple[Row, float]]:
    if bridge.port is None:
        return
    _, text_nbytes = plain_nbytes(bridge.source, trial)
    least, _ = pair_goal(bridge.pair)
    for rank in sorted({*(rank for rank in RANKS if rank < bridge.port.rank), bridge.port.rank}):
        port, alignment = bridge.port.cut(rank), _cut(bridge.alignment, rank)
        for bits in (8, 4):
            harness.say(f"curve: {' to '.join(bridge.pair)}, rank {rank}, {bits} bits")
            slots = trial.sitting.mapped(alignment, port, bits=bits)
            result = result_of(trial, f"rank {rank}, {bits} bits", trial.exam.sit(slots.__getitem__))
            nbytes = port_nbytes(bridge.source, alignment, port, trial, bits)
            met = nbytes <= 2 * text_nbytes and result.gap_recovered.value >= max(full_gap, least) - 0.02
            goal = f"gap>=max(mapped,{least:g})-0.02 wire/text<=2"
            yield row_of("curve", bridge.pair, result, goal=goal, met=met), nbytes


def _wire_rows(shop: Workshop, bridge: Bridge, trial: Trial) -> Iterator[tuple[Row, float]]:
    """The whole cache on the wire and the map here; the whole map there and its rows on the wire."""
    source, receiver = bridge.source, bridge.receiver
    lessons = fit_lessons(shop.size.equal_lessons)
    plan = plan_of(bridge.alignment, shop.critical(receiver.name))
    texts = [lesson.text + bridge.closing for lesson in trial.exam.lessons]
    harness.say(f"curve: {' to '.join(bridge.pair)}, a map into rows")
    rows_map = fitted(shop, bridge, LocalReader(source), plan, lessons, port=None)
    for preset, fits in ((PRESETS["exact"], ("coordinates", "rows")), (PRESETS["int8"], ("coordinates",))):
        reader = CodedReader(source, preset)
        name = "fp16" if preset.name == "exact" else preset.name
        arrived = replace(trial.sitting, source=tuple(reader.read(texts)))
        nbytes = sum(count_wire_nbytes(reader.code(text), preset) for text in texts) / count_facts(trial)
        for end in fits:
            alignment, port = (rows_map, None) if end == "rows" else (bridge.alignment, bridge.port)
            marks = trial.exam.sit(arrived.mapped(alignment, port).__getitem__)
            yield _plain(trial, bridge, f"{name} cache, then mapped to {end}", marks), nbytes
        if preset.name == "int8":
            harness.say(f"curve: {' to '.join(bridge.pair)}, a map fitted on int8 caches")
            aware = fitted(shop, bridge, reader, plan, lessons, port=bridge.port)
            marks = trial.exam.sit(arrived.mapped(aware, bridge.port).__getitem__)
            yield _plain(trial, bridge, f"{name} cache, mapped by a map fitted on such", marks), nbytes
    slots = trial.sitting.mapped(rows_map, None)
    halved = [replace(one, rows=one.rows.half().float()) for one in slots]
    num_sent = sum(one.num_slots for one in slots)
    nbytes = 2 * row_width(receiver.geometry) * num_sent / count_facts(trial)
    yield _plain(trial, bridge, "mapped to rows there, fp16 rows", trial.exam.sit(halved.__getitem__)), nbytes


def _noise_rows(shop: Workshop, bridge: Bridge, trial: Trial) -> Iterator[Row]:
    """Noise on the source's rows before the map: what it amplifies."""
    every = torch.cat([reading.slots.rows for reading in trial.sitting.source])
    spread = every.std(0)
    for noise in NOISES:
        generator = torch.Generator().manual_seed(shop.seed)
        source = []
        for reading in trial.sitting.source:
            clean = reading.slots.rows
            added = noise * spread * torch.randn(clean.shape, generator=generator)
            source.append(replace(reading, slots=replace(reading.slots, rows=clean + added)))
        noisy = replace(trial.sitting, source=tuple(source))
        marks = trial.exam.sit(noisy.mapped(bridge.alignment, bridge.port).__getitem__)
        yield _plain(trial, bridge, f"noise of {noise:g} of the spread, then mapped", marks)


def _cut(alignment: AlignmentMap, rank: int) -> AlignmentMap:
    """The map into the first coordinates."""
    residual = alignment.residual
    if residual is not None:
        residual = replace(residual, outer=residual.outer[:, :rank])
    encoder, bias = alignment.encoder[:, :rank], alignment.bias[:rank]
    return replace(alignment, encoder=encoder, bias=bias, residual=residual, familiar=None)


def _plain(trial: Trial, bridge: Bridge, name: str, marks: Marks) -> Row:
    return row_of("curve", bridge.pair, result_of(trial, name, marks))
