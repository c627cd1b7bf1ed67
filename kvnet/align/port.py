"""A port: the few coordinates in which a model takes rows that others made for it, and what they stand for.

Learned from the model's own rows alone, so one port serves every sender. Knows no senders, no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.alignment import row_width
from kvnet.errors import MalformedFile, NotFinite, TooFewSamples
from kvnet.types import Geometry

LARGEST_CODE: Final = {8: 127, 4: 7}
_METRIC_FLOOR: Final = 1e-4  # of the mean sensitivity: an unseen direction is not worthless
_MOST_SAMPLES: Final = 6144  # rows, and as many gradients: the eigenproblem is of this size
_SHARE_WITHIN: Final = {8: 1.0, 4: 0.995}  # of coordinates that a step's largest code reaches
_REMEDY: Final = "make it again, or ask its owner for it again"


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """z = (row - mean) @ project; row is mean + z @ basis; z is about code * step. All float32.

    project [row_width, rank], basis [rank, row_width], mean [row_width], steps [rank] by number of bits.
    """

    project: torch.Tensor
    basis: torch.Tensor
    mean: torch.Tensor
    steps: Mapping[int, torch.Tensor]

    @property
    def rank(self) -> int:
        """Coordinates of a slot."""
        return self.basis.shape[0]

    def to_coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        """[n, row_width] of this model's own rows -> [n, rank]."""
        return (rows - self.mean) @ self.project

    def to_rows(self, coordinates: torch.Tensor) -> torch.Tensor:
        """[n, rank] -> [n, row_width]. Inverse of `to_coordinates` up to what the port leaves out."""
        return self.mean + coordinates @ self.basis

    def quantize(self, coordinates: torch.Tensor, bits: int) -> torch.Tensor:
        """[n, rank] -> int8 codes of `bits` bits, symmetric about 0 (FORMAT.md §8, port coding)."""
        most = LARGEST_CODE[bits]
        return (coordinates / self.steps[bits]).round().clamp(-most, most).to(torch.int8)

    def dequantize(self, codes: torch.Tensor, bits: int) -> torch.Tensor:
        """Inverse of `quantize` up to rounding."""
        return codes.float() * self.steps[bits]

    @classmethod
    def identity(cls, geometry: Geometry) -> Port:
        """The port whose coordinates are the rows themselves: for maps that end in rows."""
        width = row_width(geometry)
        steps = {bits: torch.ones(width) for bits in LARGEST_CODE}
        return _Rows(torch.empty(width, 0), torch.empty(0, width), torch.zeros(width), steps)

    def cut(self, rank: int) -> Port:
        """The port of the first `rank` coordinates: they are in order of what they carry."""
        steps = {bits: step[:rank] for bits, step in self.steps.items()}
        return Port(self.project[:, :rank], self.basis[:rank], self.mean, steps)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a port's file holds (FORMAT.md §10)."""
        named = {"project": self.project, "basis": self.basis, "mean": self.mean}
        return named | {f"step{bits}": step for bits, step in self.steps.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], *, rank: int, width: int) -> Port:
        """Inverse of `to_tensors`, checked against what its manifest says.

        Raises MalformedFile for other tensors, NotFinite for numbers that no port has (FORMAT.md §10.3).
        """
        shapes = {"project": (width, rank), "basis": (rank, width), "mean": (width,)}
        shapes |= {f"step{bits}": (rank,) for bits in LARGEST_CODE}
        taken = take_tensors(tensors, shapes, what="port")
        steps = {bits: taken[f"step{bits}"] for bits in LARGEST_CODE}
        if any(bool((step <= 0).any()) for step in steps.values()):
            raise NotFinite(f"a port has a step that is not above 0; {_REMEDY}")
        return cls(taken["project"], taken["basis"], taken["mean"], steps)


class _Rows(Port):
    """The port of a map that ends in rows: it has no matrices, which would do nothing at a row's square."""

    __slots__ = ()

    @property
    def rank(self) -> int:
        return len(self.mean)

    def to_coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        return rows

    def to_rows(self, coordinates: torch.Tensor) -> torch.Tensor:
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


def learn_port(rows: torch.Tensor, gradients: torch.Tensor, rank: int) -> Port:
    """The port in which own rows [n, W] lose least, weighed by what answers depend on.

    `gradients` [m, W] are of log-probabilities of answers by rows; the metric is M = E[g gT], the Fisher
    information, and the coordinates are the principal components of the rows under it. Both are found in the
    span of at most 6,144 samples, so the cost does not grow with the square of the width.
    Raises TooFewSamples for fewer rows than coordinates.
    """
    rows, gradients = _sample(rows), _sample(gradients)
    if len(rows) <= rank:
        raise TooFewSamples(
            f"a port of {rank} coordinates was asked for from {len(rows)} rows; give more text"
        )
    mean = rows.mean(0)
    centred = (rows - mean).double()  # [n, W]
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
    return Port(project.float(), basis.float(), mean.float(), steps)


def _steps(coordinates: torch.Tensor, bits: int) -> torch.Tensor:
    """[rank] steps at which nearly all of [n, rank] coordinates fit their codes."""
    reach = coordinates.abs().quantile(_SHARE_WITHIN[bits], 0)
    return reach.clamp_min(1e-12) / LARGEST_CODE[bits]


def _sample(rows: torch.Tensor) -> torch.Tensor:
    if len(rows) <= _MOST_SAMPLES:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, _MOST_SAMPLES).long()]
