"""What cells are measured with: models, bases and maps, each loaded once in a process. Knows no protocols."""

from __future__ import annotations

import os
import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.corpus import Lesson
from kvnet.align.exam import AskedOf, Exam
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, hold
from kvnet.alignment import MapManifest
from kvnet.codec.basis import Basis
from kvnet.errors import UnknownAlignment, UnknownBasis
from kvnet.files.alignments import VerifiedAlignment, read_alignment_file
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import REFERENCE_MODELS, packaged_alignments, reference_basis
from kvnet.protocols.protocol import Setting
from kvnet.protocols.tasks import draw_lessons, find_task
from kvnet.protocols.trial import Trial

_KEPT_TRIALS: Final = 4


@dataclass(frozen=True, slots=True, eq=False)
class Bridge:
    """A map between two models, and the port it ends in."""

    alignment: AlignmentMap
    port: Port | None


class Lab:
    """Loads models and maps and sets exams; what was made once is kept, the newest exams alone."""

    def __init__(self, cache_dir: Path, *, device: str = "cpu") -> None:
        self._cache_dir = cache_dir
        self._device = device
        self._hosts: dict[str, ModelHost] = {}
        self._bridges: dict[tuple[str, str], Bridge] = {}
        self._trials: OrderedDict[tuple[Any, ...], Trial] = OrderedDict()
        self._packaged: list[VerifiedAlignment] = []

    def host(self, name: str) -> ModelHost:
        """A model by the name that --model takes. Raises UnknownModel, UnsupportedModel."""
        if name not in self._hosts:
            self._hosts[name] = ModelHost.load(ModelSpec(name, device=self._device), self._cache_dir)  # type: ignore[arg-type]
        return self._hosts[name]

    def basis(self, host: ModelHost) -> Basis:
        """The packaged calibration. Raises UnknownBasis for a model without one."""
        path = reference_basis(host.name)
        if path is None:
            raise UnknownBasis(
                f"{host.name} has no packaged calibration, and compact needs one; leave it out"
            )
        return Basis.from_bytes(path.read_bytes(), host.geometry)

    def bridge(self, source: ModelHost, receiver: ModelHost) -> Bridge:
        """The packaged map from one model to another. Raises UnknownAlignment where there is none."""
        key = (source.name, receiver.name)
        if key not in self._bridges:
            self._bridges[key] = self._find_bridge(source, receiver)
        return self._bridges[key]

    def trial_for(self, setting: Setting) -> Trial:
        """The trial that a cell's parameters ask for."""
        return self.trial(
            task=setting["task"],
            model=setting["model"],
            other=stranger_to(setting["model"], setting["other"]),
            lessons=setting["lessons"],
            questions=setting["questions"],
            seed=setting.seed,
        )

    def trial(
        self,
        *,
        task: str,
        model: str,
        other: str,
        lessons: int,
        questions: int,
        seed: int,
    ) -> Trial:
        """A task set to `model`, with memories of its own and of `other`, which is a stranger to it.

        Raises RequestError for a task that does not fit, and what loading raises.
        """
        key = (task, model, other, lessons, questions, seed)
        if key in self._trials:
            self._trials.move_to_end(key)
            return self._trials[key]
        drawn = draw_lessons(task, self.host(model), lessons, questions, seed)
        self._trials[key] = self.trial_of(find_task(task).name, model, other, drawn)
        while len(self._trials) > _KEPT_TRIALS:
            self._trials.popitem(last=False)
        return self._trials[key]

    def trial_of(
        self, task: str, model: str, other: str, lessons: Sequence[Lesson], asking: AskedOf | None = None
    ) -> Trial:
        """A trial on lessons that are given."""
        host, stranger = self.host(model), self.host(other)
        texts = [lesson.text for lesson in lessons]
        exam = Exam(host, lessons, asking=asking)
        own, others = (hold(LocalReader(one).read(texts)) for one in (host, stranger))
        return Trial(task, exam, own, others, stranger.name)

    def _find_bridge(self, source: ModelHost, receiver: ModelHost) -> Bridge:
        if not self._packaged:
            self._packaged = [read_alignment_file(path) for path in packaged_alignments()]
        wanted = (source.fingerprint.digest, receiver.fingerprint.digest)
        by_id = {str(found.manifest.id): found for found in self._packaged}
        for found in self._packaged:
            manifest = found.manifest
            if not isinstance(manifest, MapManifest):
                continue
            if (manifest.source.digest, manifest.receiver.digest) == wanted:
                port = load_port(by_id[manifest.port]) if manifest.port else None
                return Bridge(load_map(found, port), port)
        raise UnknownAlignment(
            f"no packaged map leads from {source.name} to {receiver.name}; choose two of the reference models"
        )


def stranger_to(model: str, other: str = "auto") -> str:
    """The model whose memories are given unmapped: `other`, or a reference model that is not `model`."""
    if other not in ("auto", model):
        return other
    return next(name for name in REFERENCE_MODELS[1:] + REFERENCE_MODELS[:1] if name != model)


def seed_everything(seed: int) -> None:
    """Generators that libraries may use by themselves; what is drawn here has its own."""
    random.seed(seed)
    torch.manual_seed(seed)


@contextmanager
def all_cores() -> Iterator[None]:
    """Let torch use every core inside, for models that gain by it."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
