"""Runs to look at: written by the real writer, with numbers that are drawn, not measured."""

from __future__ import annotations

import random
from pathlib import Path

from kvnet.experiments.folder import RunFolder
from kvnet.experiments.record import Closed, Event, Failure, Manifest, Margin, ModelRecord

CONTROLS = ("none", "text")
CHANCE = {"none": 0.05, "text": 0.95, "kept": 0.9, "zeroed": 0.02}


def a_manifest(**changes: object) -> Manifest:
    told: dict[str, object] = {
        "name": "keep",
        "protocol": "keep",
        "protocol_version": 1,
        "question": "How much of a cache can be lost?",
        "controls": CONTROLS,
        "margins": (Margin("right", 0.1),),
        "models": (ModelRecord("ref-a", "sha256:aa", "sha256:bb", "float32", rope="default"),),
        "seeds": (0, 1),
        "command": "kvnet exp run keep --sweep fraction=0.25,0.5,1.0",
        **changes,
    }
    return Manifest(**told)  # type: ignore[arg-type]


def an_event(cell: str = "c", arm: str = "text", right: float = 1.0, **changes: object) -> Event:
    told: dict[str, object] = {"task": "facts", "model": "ref-a", "lesson": 0, "question": 0, **changes}
    return Event(cell, "keep", arm, {"right": right, "kl": 0.5}, **told)  # type: ignore[arg-type]


def write_cell(folder: RunFolder, cell: str, *, fraction: float, seed: int = 0, lessons: int = 8) -> None:
    """A cell with every control and one arm of its own, whose recall is `fraction` of the text's."""
    source = random.Random(f"{cell}{seed}")
    parameters = {"fraction": fraction}
    for arm, chance in CHANCE.items():
        scale = fraction if arm == "kept" else 1.0
        own = {"parameters": parameters} if arm == "kept" else {}
        for lesson in range(lessons):
            for question in range(4):
                right = float(source.random() < chance * scale)
                where = {"seed": seed, "lesson": lesson, "question": question}
                folder.append(an_event(cell, arm, right, **where, **own))
    folder.append(Closed(cell, 0.5, parameters, seed))


def write_run(runs_dir: Path, *, fractions: tuple[float, ...] = (0.25, 0.5, 1.0), lessons: int = 8) -> Path:
    """A sweep with two seeds; its last cell failed."""
    cells = [(f"{i}-{seed}", fraction, seed) for i, fraction in enumerate(fractions) for seed in (0, 1)]
    with RunFolder.create(runs_dir, a_manifest(total_cells=len(cells) + 1)) as folder:
        for cell, fraction, seed in cells:
            write_cell(folder, cell, fraction=fraction, seed=seed, lessons=lessons)
        reason = "fraction is 7, wanted at most 1 <script>alert(1)</script>"
        folder.append(Failure("bad", reason, "request_invalid", {"fraction": 7.0}))
        folder.finish(failed_cells=1)
        return folder.path
