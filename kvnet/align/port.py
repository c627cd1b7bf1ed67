"""A port: the few coordinates in which a model takes slots that others made for it, and what they stand for.

Learned from the model's own reading alone, so one port serves every sender. Knows no senders, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.alignment import Intake
from kvnet.errors import MalformedFile, NotFinite, TooFewSamples

LARGEST_CODE: Final = {8: 127, 4: 7}
_METRIC_FLOOR: Final = 1e-4  # of the mean sensitivity: an unseen direction is not worthless
_MOST_SAMPLES: Final = 6144  # rows, and as many gradients: the eigenproblem is of this size
_SHARE_WITHIN: Final = {8: 1.0, 4: 0.995}  # of coordinates that a step's largest code reaches
_REMEDY: Final = "make it again, or ask its owner for it again"


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """z = (taken - mean) @ project; taken is mean + z @ basis; z is about code * step. All float32.

    What is taken of a slot [width] is as `intake` says. project [width, rank], basis [rank, width], mean
    [width], steps [rank] by number of bits.
    """

    intake: Intake
    project: torch.Tensor
    basis: torch.Tensor
    mean: torch.Tensor
    steps: Mapping[int, torch.Tensor]

    @property
    def rank(self) -> int:
        """Coordinates of a slot."""
        return self.basis.shape[0]

    def to_coordinates(self, taken: torch.Tensor) -> torch.Tensor:
        """[n, width] of this model's own slots -> [n, rank]."""
        return (taken - self.mean) @ self.project

    def to_taken(self, coordinates: torch.Tensor) -> torch.Tensor:
        """[n, rank] -> [n, width]. Inverse of `to_coordinates` up to what the port leaves out."""
        return self.mean + coordinates @ self.basis

    def quantize(self, coordinates: torch.Tensor, bits: int) -> torch.Tensor:
        """[n, rank] -> int8 codes of `bits` bits, symmetric about 0 (FORMAT.md §8, port coding)."""
        most = LARGEST_CODE[bits]
        return (coordinates / self.steps[bits]).round().clamp(-most, most).to(torch.int8)

    def dequantize(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        """Inverse of `quantize` up to rounding."""
        return codes.float() * self.steps[bits]

    @classmethod
    def identity(cls, intake: Intake) -> Port:
        """The port whose coordinates are what is taken itself: for maps that end in no other."""
        width = intake.width
        steps = {bits: torch.ones(width) for bits in LARGEST_CODE}
        return _Taken(intake, torch.empty(width, 0), torch.empty(0, width), torch.zeros(width), steps)

    def cut(self, rank: int) -> Port:
        """The port of the first `rank` coordinates: they are in order of what they carry."""
        steps = {bits: step[:rank] for bits, step in self.steps.items()}
        return Port(self.intake, self.project[:, :rank], self.basis[:rank], self.mean, steps)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a port's file holds (FORMAT.md §10)."""
        named = {"project": self.project, "basis": self.basis, "mean": self.mean}
        return named | {f"step{bits}": step for bits, step in self.steps.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], *, rank: int, intake: Intake) -> Port:
        """Inverse of `to_tensors`, checked against what its manifest says.

        Raises MalformedFile for other tensors, NotFinite for numbers that no port has (FORMAT.md §10.3).
        """
        width = intake.width
        shapes = {"project": (width, rank), "basis": (rank, width), "mean": (width,)}
        shapes |= {f"step{bits}": (rank,) for bits in LARGEST_CODE}
        taken = take_tensors(tensors, shapes, what="port")
        steps = {bits: taken[f"step{bits}"] for bits in LARGEST_CODE}
        if any(bool((step <= 0).any()) for step in steps.values()):
            raise NotFinite(f"a port has a step that is not above 0; {_REMEDY}")
        return cls(intake, taken["project"], taken["basis"], taken["mean"], steps)


class _Taken(Port):
    """The port of a map that ends in no other: it has no matrices, which would do nothing at great cost."""

    __slots__ = ()

    @property
    def rank(self) -> int:
        return len(self.mean)

    def to_coordinates(self, taken: torch.Tensor) -> torch.Tensor:
        return taken

    def to_taken(self, coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates


def take_tensors(
    tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], *, what: str
) -> dict[str, torch.Tensor]:
    """Exactly the named tensors in these shapes, as float32. Raises MalformedFile, NotFinite."""
    if tensors.keys() != shapes.keys():
        raise MalformedFile(f"a {what} holds {sorted(tensors)}, wanted {sorted(shapes)}; {_REMEDY}")
    for name, shape in shapes.items():
        if tuple(tensors[name].shape) != shape:
            raise MalformedFile(
                f"{name} of a {what} is {list(tensors[name].shape)}, wanted {list(shape)}; {_REMEDY}"
            )
        if not bool(tensors[name].isfinite().all()):
            raise NotFinite(f"{name} of a {what} holds NaN or infinity, wanted finite numbers; {_REMEDY}")
    return {name: tensor.float() for name, tensor in tensors.items()}


def learn_port(taken: torch.Tensor, gradients: torch.Tensor, rank: int, intake: Intake) -> Port:
    """The port in which what a model takes of its own slots [n, W] loses least, weighed by its answers.

    `gradients` [m, W] are of log-probabilities of answers by what is taken; the metric is M = E[g gT], the
    Fisher information, and the coordinates are the principal components under it. Both are found in the
    span of at most 6,144 samples, so the cost does not grow with the square of the width.
    Raises TooFewSamples for fewer rows than coordinates.
    """
    taken, gradients = _sample(taken), _sample(gradients)
    if len(taken) <= rank:
        raise TooFewSamples(
            f"a port of {rank} coordinates was asked for from {len(taken)} rows; give more text"
        )
    mean = taken.mean(0)
    centred = (taken - mean).double()  # [n, W]
    wide = gradients.double()
    # In units of their own size: else a large model's small ones make a basis beyond what halves hold.
    wide = wide / (wide.square().sum() / max(1, wide.numel())).sqrt().clamp_min(1e-30)
    floor = _METRIC_FLOOR if bool(wide.any()) else 1.0
    # X M, with M = GᵀG / m + floor: the samples' span is enough, as no direction outside it is ever sent.
    weighed = (centred @ wide.T) @ wide / max(1, len(wide)) + floor * centred  # [n, W]
    values, vectors = torch.linalg.eigh(weighed @ centred.T / len(centred))  # [n, n]
    values, vectors = values.flip(0)[:rank].clamp_min(1e-30), vectors.flip(1)[:, :rank]
    scaled = vectors / (values * len(centred)).sqrt()  # [n, rank]
    project, basis = weighed.T @ scaled, scaled.T @ centred
    coordinates = centred @ project
    steps = {bits: _steps(coordinates, bits).float() for bits in LARGEST_CODE}
    return Port(intake, project.float(), basis.float(), mean.float(), steps)


def _steps(coordinates: torch.Tensor, bits: int) -> torch.Tensor:
    """[rank] steps at which nearly all of [n, rank] coordinates fit their codes."""
    reach = coordinates.abs().quantile(_SHARE_WITHIN[bits], 0)
    return reach.clamp_min(1e-12) / LARGEST_CODE[bits]


def _sample(rows: torch.Tensor) -> torch.Tensor:
    if len(rows) <= _MOST_SAMPLES:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, _MOST_SAMPLES).long()]
