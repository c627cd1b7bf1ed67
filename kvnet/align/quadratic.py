"""The quadratic part of a map: products of a first guess, in closed form. Knows no models.

Where a model finds the name of a fact depends on how it is phrased, so a map has to choose among slots, which
no linear one can: attention is a product of what is sought and what is there.

    features -> lift (a linear guess at the strongest coordinates) -> their pairwise products -> outer

What comes out is added to the encoder's. The same ridge fits both, on the products beside the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch

from kvnet.align.solve import LinearMap


@dataclass(frozen=True, slots=True, eq=False)
class Quadratic:
    """lift [feature_width, d], lift_bias [d], outer [d * (d + 1) / 2, rank]; all float32."""

    lift: torch.Tensor
    lift_bias: torch.Tensor
    outer: torch.Tensor

    def apply(self, features: torch.Tensor) -> torch.Tensor:
        """[n, feature_width] -> [n, rank], to be added."""
        return self.products(features) @ self.outer

    def products(self, features: torch.Tensor) -> torch.Tensor:
        """[n, feature_width] -> [n, d * (d + 1) / 2]."""
        return products_of(torch.addmm(self.lift_bias, features, self.lift))

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """Its part of a map's file."""
        return {"lift": self.lift, "lift_bias": self.lift_bias, "quadratic": self.outer}

    @staticmethod
    def shapes(
        tensors: Mapping[str, torch.Tensor], *, feature_width: int, rank: int
    ) -> dict[str, tuple[int, ...]]:
        """What its part of a map's file must be, of as many directions as the file's bias has."""
        width = tensors["lift_bias"].numel() if "lift_bias" in tensors else 0
        return {
            "lift": (feature_width, width),
            "lift_bias": (width,),
            "quadratic": (num_products(width), rank),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Quadratic:
        """Inverse of `to_tensors`, of tensors whose shapes are known to be right."""
        return cls(tensors["lift"], tensors["lift_bias"], tensors["quadratic"])


def num_products(width: int) -> int:
    """Pairs among `width` numbers, each with itself included."""
    return width * (width + 1) // 2


def products_of(lifted: torch.Tensor) -> torch.Tensor:
    """[n, d] -> [n, d * (d + 1) / 2]: row-major upper triangle of each row's outer product."""
    first, second = _pairs(lifted.shape[1])
    return lifted[:, first] * lifted[:, second]


def lift_of(guess: LinearMap, features: torch.Tensor, width: int) -> LinearMap:
    """The first `width` coordinates of a linear guess, each scaled to unit variance on `features`."""
    guessed = guess.apply(features)[:, :width]
    mean, spread = guessed.mean(0), guessed.std(0).clamp_min(1e-12)
    return LinearMap(guess.weight[:, :width] / spread, (guess.bias[:width] - mean) / spread)


@lru_cache(maxsize=4)
def _pairs(width: int) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = torch.triu_indices(width, width)
    return first, second
