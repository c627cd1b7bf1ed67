"""What training adds to a map: a small network over the same window that the encoder reads. Knows no models.

features -> inner -> GELU -> outer, added to the encoder's coordinates. Its outer layer begins at zero, so a
trained map begins where the closed form ends. In a file it is three plain tensors (FORMAT.md §10.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch.nn.functional import gelu

HIDDEN_WIDTH: Final = 128
_LEAST_SPREAD: Final = 1e-2  # of the mean spread: what hardly varies is not blown up to look as if it did


@dataclass(frozen=True, slots=True, eq=False)
class Residual:
    """inner [feature_width, hidden], inner_bias [hidden], outer [hidden, rank]; all float32."""

    inner: torch.Tensor
    inner_bias: torch.Tensor
    outer: torch.Tensor

    @classmethod
    def begin(cls, feature_width: int, rank: int, *, seed: int, hidden_width: int = HIDDEN_WIDTH) -> Residual:
        """One that adds nothing yet. Features of unit variance give hidden ones of unit variance."""
        generator = torch.Generator().manual_seed(seed)
        inner = torch.randn(feature_width, hidden_width, generator=generator) / feature_width**0.5
        return cls(inner, torch.zeros(hidden_width), torch.zeros(hidden_width, rank))

    def apply(self, features: torch.Tensor) -> torch.Tensor:
        """[n, feature_width] -> [n, rank], to be added. GELU is x Φ(x), arXiv 1606.08415."""
        return gelu(torch.addmm(self.inner_bias, features, self.inner)) @ self.outer

    def changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Residual:
        """Another one, of what `change` makes of each tensor."""
        return Residual(change(self.inner), change(self.inner_bias), change(self.outer))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Its part of a map's file."""
        return {
            "residual_in": self.inner,
            "residual_in_bias": self.inner_bias,
            "residual_out": self.outer,
        }

    @staticmethod
    def shapes(
        tensors: Mapping[str, torch.Tensor], *, feature_width: int, rank: int
    ) -> dict[str, tuple[int, ...]]:
        """What its part of a map's file must be, of as many hidden numbers as the file's bias has."""
        hidden_width = tensors["residual_in_bias"].numel() if "residual_in_bias" in tensors else 0
        return {
            "residual_in": (feature_width, hidden_width),
            "residual_in_bias": (hidden_width,),
            "residual_out": (hidden_width, rank),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Residual:
        """Inverse of `to_tensors`, of tensors whose shapes are known to be right."""
        return cls(tensors["residual_in"], tensors["residual_in_bias"], tensors["residual_out"])


@dataclass(frozen=True, slots=True, eq=False)
class Scales:
    """What features and coordinates are measured in while a residual is trained, so that one learning rate
    suits all: mean and spread of features, each [feature_width], and reach [rank] of coordinates.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    reach: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor, coordinates: torch.Tensor) -> Scales:
        """From what a map reads, [n, feature_width], and what it makes of it, [n, rank]; two rows or more."""
        return cls(features.mean(0), _spread(features), _spread(coordinates))

    def fold(self, residual: Residual) -> Residual:
        """The residual for plain features and coordinates, from one of those that these scales measure."""
        inner = residual.inner / self.spread[:, None]
        return Residual(inner, residual.inner_bias - self.mean @ inner, residual.outer * self.reach)


def _spread(values: torch.Tensor) -> torch.Tensor:
    spread = values.std(0)
    # A column of one value throughout says nothing; neither do columns that are all alike.
    return spread.clamp_min(max(_LEAST_SPREAD * float(spread.mean()), torch.finfo(torch.float32).tiny))
