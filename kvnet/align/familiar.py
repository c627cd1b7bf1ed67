"""What a map is familiar with: how far out what it makes of a slot lies, against the texts it was fitted on.

A linear map says something about every slot. Of words that calibration never had it says nonsense, but that
lies far out: the directions in which calibration hardly varied are those that a small lambda lets grow. So
the squared distance in units of calibration's own variance (Mahalanobis 1936) tells the two apart. Knows no
models and no texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from kvnet.align.moments import Moments
from kvnet.errors import NotFinite

_MAX_DIRECTIONS: Final = 64
_MAX_WIDTH: Final = 2048  # of what a map makes: its covariance is of this size
_BEYOND: Final = 4.0  # times what all but one in twenty slots of texts like the fit's keep within
_WITHIN: Final = 0.95
_LEAST_BOUND: Final = 1e-6
_LEAST_VARIANCE: Final = 1e-8  # of the largest


@dataclass(frozen=True, slots=True, eq=False)
class Familiar:
    """mean [rank], scale [rank, d]: (z - mean) @ scale has unit variance on calibration. All float32.

    `bound` [] is the mean square of these d numbers from which on a slot is strange.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    bound: torch.Tensor

    def strangeness(self, encoded: torch.Tensor) -> float:
        """How far out the furthest row of [m, rank] lies, in bounds: above 1 it is strange. 0 of none."""
        return float((self._distance(encoded) / self.bound).max()) if len(encoded) else 0.0

    def reaching(self, encoded: Iterable[torch.Tensor]) -> Familiar:
        """The same with a bound of four times what most of these rows, of texts like the fit's, reach."""
        distances = [self._distance(part) for part in encoded if len(part)]
        reached = torch.cat(distances).quantile(_WITHIN) if distances else torch.tensor(1.0)
        return replace(self, bound=_BEYOND * reached.clamp_min(_LEAST_BOUND))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Its part of a map's file (FORMAT.md §10.2)."""
        return {"known_mean": self.mean, "known_scale": self.scale, "known_bound": self.bound[None]}

    @staticmethod
    def shapes(tensors: Mapping[str, torch.Tensor], *, rank: int) -> dict[str, tuple[int, ...]]:
        """What its part of a map's file must be, of as many directions as there are."""
        scale = tensors.get("known_scale")
        width = scale.shape[1] if scale is not None and scale.ndim == 2 else 0
        return {"known_mean": (rank,), "known_scale": (rank, width), "known_bound": (1,)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Familiar:
        """Inverse of `to_tensors`, of tensors whose shapes are known to be right.

        Raises NotFinite for a bound that nothing, or everything, would be within.
        """
        bound = tensors["known_bound"][0]
        if bound <= 0:
            raise NotFinite(f"a map has a known_bound of {float(bound):g}, wanted above 0; get the map again")
        return cls(tensors["known_mean"], tensors["known_scale"], bound)

    def _distance(self, encoded: torch.Tensor) -> torch.Tensor:
        return ((encoded - self.mean) @ self.scale).square().mean(1)  # [m]


def familiar_of(encoder: torch.Tensor, sums: Moments) -> Familiar | None:
    """What an encoder [width_x, rank] is familiar with, from the sums it was solved from; not its bound.

    None of one that makes nothing, or too much to look into.
    """
    weight = encoder.double()
    if weight.shape[1] > _MAX_WIDTH or not bool(weight.any()):
        return None
    covariance = weight.T @ (sums.xx @ weight) / sums.weight  # [rank, rank], of what it predicts
    variances, directions = torch.linalg.eigh(covariance)
    most = variances[-1].clamp_min(1e-30)
    kept = (variances > _LEAST_VARIANCE * most).nonzero()[:, 0].flip(0)[:_MAX_DIRECTIONS]
    scale = directions[:, kept] / variances[kept].sqrt()
    return Familiar(sums.mean_y.float(), scale.float(), torch.tensor(1.0))
