"""Models, maps and exams for the alignment bench, each made once. Knows no arms and prints no tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Final

import harness

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.corpus import FAMILIAR, Lesson, fact_lessons
from kvnet.align.exam import Exam, Marks
from kvnet.align.examine import Sitting
from kvnet.align.map import AlignmentMap
from kvnet.align.own_port import learn_port_of
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.align.recipe import (
    DEFAULT_LESSONS,
    DEFAULT_RANK,
    MapOptions,
    find_critical_layers,
    fit_lessons,
    make_map,
)
from kvnet.alignment import MapManifest, PortManifest
from kvnet.files.alignments import VerifiedAlignment, read_alignment_file
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec, Quantization
from kvnet.model.reference.catalog import REFERENCE_MODELS, packaged_alignments
from kvnet.model.reference.world import Style

Pair = tuple[str, str]  # names of the source and the receiver

STRANGERS: Final[tuple[Pair, ...]] = (("ref-a", "ref-b"), ("ref-b", "ref-a"))
EVERY_PAIR: Final[tuple[Pair, ...]] = tuple(permutations(REFERENCE_MODELS, 2))
QUESTIONS_PER_LESSON: Final = 8
FACT_COUNTS: Final = (8, 12, 16)
# Far from the seeds of the texts that maps are fitted, tuned and admitted on.
_EXAM_SEED: Final = 10_000
_TUNE_SEED: Final = 20_000
_TUNE_LESSONS: Final = 20
_PASSING_LAMBDA: Final = 1e-5  # right for few lessons
_MADE_AT: Final = "1970-01-01T00:00:00Z"  # of maps that nobody keeps


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured, and what maps are fitted on where one has to be."""

    num_questions: int  # of each cell
    passing_lessons: int  # for a packaged map that is missing
    port_lessons: int  # for its port
    equal_lessons: int  # for alternatives that are compared at equal data
    few_lessons: tuple[int, ...]  # what less and more data give


QUICK: Final = Size(104, 48, 24, 48, (32,))
WHOLE: Final = Size(1000, 400, 150, 400, (100, 1200))


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """A map between two models that are loaded here, and the port it ends in."""

    source: ModelHost
    receiver: ModelHost
    alignment: AlignmentMap
    port: Port | None
    is_packaged: bool

    @property
    def pair(self) -> Pair:
        """Names of both models."""
        return self.source.name, self.receiver.name

    @property
    def closing(self) -> str:
        """What the source reads behind a text."""
        return self.alignment.manifest.closing


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """Lessons that both models of a pair have read, with the receiver's marks without any memory."""

    sitting: Sitting
    none: Marks

    @property
    def exam(self) -> Exam:
        """The receiver's exam."""
        return self.sitting.exam


class Workshop:
    """Loads models, finds maps and sets exams; what was made once is kept."""

    def __init__(self, folder: Path, size: Size, seed: int) -> None:
        self.size = size
        self.seed = seed
        self.notes: list[str] = []
        self._folder = folder
        self._hosts: dict[tuple[str, Quantization], ModelHost] = {}
        self._ports: dict[str, Port] = {}
        self._bridges: dict[Pair, Bridge] = {}
        self._critical: dict[str, tuple[int, ...]] = {}
        self._exams: dict[tuple[int, object], tuple[Exam, Marks]] = {}
        self._packaged = [read_alignment_file(path) for path in packaged_alignments()]

    def host(self, name: str, quantization: Quantization = "none") -> ModelHost:
        """A reference model on the CPU."""
        key = (name, quantization)
        if key not in self._hosts:
            spec = ModelSpec(name, quantization=quantization, device="cpu")
            self._hosts[key] = ModelHost.load(spec, self._folder)
        return self._hosts[key]

    def critical(self, name: str) -> tuple[int, ...]:
        """Layers in which this model's answers read."""
        if name not in self._critical:
            self._critical[name] = find_critical_layers(self.host(name))
        return self._critical[name]

    def bridge(self, pair: Pair) -> Bridge:
        """The packaged map of a pair, or one that is fitted in passing."""
        if pair not in self._bridges:
            self._bridges[pair] = self._find_bridge(pair) or self._fit_bridge(pair)
        return self._bridges[pair]

    def trial(
        self,
        source: ModelHost,
        receiver: ModelHost,
        *,
        closing: str = "",
        style: Style = FAMILIAR,
        fact_counts: Sequence[int] = FACT_COUNTS,
    ) -> Trial:
        """An exam of fresh facts that the source has read too; `closing` behind each text."""
        asked = min(QUESTIONS_PER_LESSON, *fact_counts)
        count = -(-self.size.num_questions // asked)

        def draw() -> list[Lesson]:
            return list(
                fact_lessons(
                    count,
                    seed=_EXAM_SEED + self.seed,
                    style=style,
                    fact_counts=fact_counts,
                    num_questions=asked,
                )
            )

        return self.trial_of(source, receiver, draw, key=(style, tuple(fact_counts)), closing=closing)

    def trial_of(
        self,
        source: ModelHost,
        receiver: ModelHost,
        draw: Callable[[], list[Lesson]],
        *,
        key: object,
        closing: str = "",
    ) -> Trial:
        """A trial on the lessons that `draw` draws; `key` names them, so that a receiver reads them once."""
        kept = (id(receiver), key)
        if kept not in self._exams:
            exam = Exam(receiver, draw())
            self._exams[kept] = (exam, exam.sit(lambda _: None))
        exam, none = self._exams[kept]
        return Trial(Sitting.of(LocalReader(source), exam, closing=closing), none)

    def tuning(self, source: ModelHost, receiver: ModelHost, closing: str) -> Sitting:
        """A small exam that a lambda may be chosen on."""

        def draw() -> list[Lesson]:
            return list(fact_lessons(_TUNE_LESSONS, seed=_TUNE_SEED + self.seed, num_questions=6))

        return self.trial_of(source, receiver, draw, key="tuning", closing=closing).sitting

    def _find_bridge(self, pair: Pair) -> Bridge | None:
        source, receiver = (self.host(name) for name in pair)
        wanted = (source.fingerprint.digest, receiver.fingerprint.digest)
        for found in self._packaged:
            manifest = found.manifest
            if not isinstance(manifest, MapManifest):
                continue
            if (manifest.source.digest, manifest.receiver.digest) != wanted:
                continue
            port = self._packaged_port(manifest.port) if manifest.port else None
            return Bridge(source, receiver, load_map(found, port), port, is_packaged=True)
        return None

    def _packaged_port(self, port: str) -> Port:
        return load_port(next(found for found in self._ports_packaged() if found.manifest.id == port))

    def _ports_packaged(self) -> Iterable[VerifiedAlignment]:
        return (found for found in self._packaged if isinstance(found.manifest, PortManifest))

    def _fit_bridge(self, pair: Pair) -> Bridge:
        source, receiver = (self.host(name) for name in pair)
        num_lessons = self.size.passing_lessons
        harness.say(f"{pair[0]} to {pair[1]}: no packaged map of these models, fitting one in passing")
        self.notes.append(
            f"{pair[0]} to {pair[1]}: no packaged map; one was fitted in passing on {num_lessons} lessons, "
            f"where shipped ones have {DEFAULT_LESSONS}"
        )
        port = self._passing_port(receiver)
        alignment = make_map(
            LocalReader(source),
            receiver,
            fit_lessons(num_lessons),
            created_at=_MADE_AT,
            port=port,
            port_id="",
            critical=self.critical(receiver.name),
            options=MapOptions(relative_lambdas=(_PASSING_LAMBDA,)),
        )
        return Bridge(source, receiver, alignment, port, is_packaged=False)

    def _passing_port(self, receiver: ModelHost) -> Port:
        """The receiver's packaged port, or one from a few texts."""
        for found in self._ports_packaged():
            if found.manifest.receiver.digest == receiver.fingerprint.digest:
                return load_port(found)
        if receiver.name not in self._ports:
            lessons = list(fact_lessons(self.size.port_lessons, seed=2, num_questions=6))
            port, _ = learn_port_of(receiver, lessons, self.critical(receiver.name), DEFAULT_RANK)
            self._ports[receiver.name] = port
        return self._ports[receiver.name]
