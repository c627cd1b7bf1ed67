"""The verdict on a map in every use that it has: what each is judged on is what is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import pytest
import torch

from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.exam import Exam
from kvnet.align.examine import Sitting
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader, Reading
from kvnet.align.verdict import verdict_on
from kvnet.alignment import GateResult, Intake, Use, row_width
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.types import Fingerprint, Geometry
from tests.files.alignment_files import make_map

CLOSING = " So."
NUM_LESSONS = 25
NUM_QUESTIONS = 8  # a verdict needs 200


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def exam(host: ModelHost) -> Exam:
    count = NUM_LESSONS
    return Exam(host, list(fact_lessons(count, seed=61, fact_counts=(8,), num_questions=NUM_QUESTIONS)))


@pytest.fixture(scope="module")
def fine_port(host: ModelHost) -> Port:
    """Rows as coordinates, in steps that say all with 8 bits and next to nothing with 4."""
    port = Port.identity(Intake(host.geometry))
    lessons = list(fact_lessons(4, seed=62))
    read = LocalReader(host).read([lesson.text for lesson in lessons])
    reach = torch.cat([reading.slots.rows for reading in read]).abs().amax(0).clamp_min(1e-6)
    return replace(port, steps={8: reach / 100, 4: reach * 9})


@dataclass
class Forgetful:
    """A reader that is the model itself, and holds nothing of a text behind which no closing stands."""

    host: ModelHost
    heard: list[str] = field(default_factory=list)
    forgets: bool = True
    num_sinks: int = 1

    @property
    def fingerprint(self) -> Fingerprint:
        return self.host.fingerprint

    @property
    def geometry(self) -> Geometry:
        return self.host.geometry

    def read(self, texts: Iterable[str]) -> Iterator[Reading]:
        for text in texts:
            self.heard.append(text)
            (reading,) = LocalReader(self.host).read([text])
            if self.forgets and not text.endswith(CLOSING):
                reading = replace(reading, slots=replace(reading.slots, rows=reading.slots.rows * 0))
            yield reading


def identity_map(host: ModelHost, **changes: object) -> AlignmentMap:
    width = row_width(host.geometry)
    plain = {
        "source": host.fingerprint,
        "receiver": host.fingerprint,
        "source_geometry": host.geometry,
        "receiver_geometry": host.geometry,
        "source_layers": tuple(range(host.geometry.num_layers)),
        "window": (0, 0),
    }
    return AlignmentMap(make_map(**plain | changes), torch.eye(width), torch.zeros(width))


def verdict(exam: Exam, reader: Forgetful, alignment: AlignmentMap, port: Port | None) -> GateResult:
    sitting = Sitting.of(reader, exam, closing=alignment.manifest.closing)
    return verdict_on(reader, sitting, alignment, port, layers=(0,))


def texts(lessons: Iterable[Lesson], closing: str = "") -> list[str]:
    return [lesson.text + closing for lesson in lessons]


def test_map_that_needs_its_closing_is_admitted_with_it_and_not_without(exam: Exam, host: ModelHost) -> None:
    reader = Forgetful(host)
    found = verdict(exam, reader, identity_map(host, closing=CLOSING), None)
    assert found.admitted, found.reason
    assert [(one.use, one.admitted) for one in found.uses] == [(Use.UNCLOSED, False)]
    assert found.uses[0].recall_mapped < 0.2 < 0.8 < found.recall_mapped
    assert reader.heard == texts(exam.lessons, CLOSING) + texts(exam.lessons)


def test_coordinates_of_4_bits_have_a_verdict_of_their_own(
    exam: Exam, host: ModelHost, fine_port: Port
) -> None:
    reader = Forgetful(host, forgets=False)
    alignment = identity_map(host, closing=CLOSING, port="port_" + "a" * 52)
    found = verdict(exam, reader, alignment, fine_port)
    assert found.admitted, found.reason
    assert {one.use: one.admitted for one in found.uses} == {
        Use.PORT4: False,
        Use.UNCLOSED: True,
        Use.UNCLOSED_PORT4: False,
    }


def test_map_without_port_and_closing_has_no_further_use_and_its_source_reads_once(
    exam: Exam, host: ModelHost
) -> None:
    reader = Forgetful(host, forgets=False)
    assert verdict(exam, reader, identity_map(host, closing=""), None).uses == ()
    assert reader.heard == texts(exam.lessons)


def test_texts_without_anchors_count_as_lost(exam: Exam, host: ModelHost) -> None:
    """Nothing is sent of them, so nothing stands behind the receiver's own first token but a gap."""
    width = row_width(host.geometry)
    alignment = identity_map(host, closing="")
    deaf = replace(alignment, anchor=torch.zeros(width), anchor_bias=torch.tensor(0.0))
    found = verdict(exam, Forgetful(host, forgets=False), deaf, None)
    assert not found.admitted
    assert found.recall_mapped < 0.2
