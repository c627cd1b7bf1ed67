"""What a fit is asked for, and what it keeps on the way. Knows sums; no models, no texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kvnet.align.moments import MomentPair
from kvnet.align.solve import LinearMap
from kvnet.errors import StateCorrupt


@dataclass(frozen=True, slots=True)
class FitPlan:
    """What is fitted: from which source layers, which neighbours, and where."""

    source_layers: tuple[int, ...]
    window: tuple[int, int]
    critical_layers: tuple[int, ...] | None = None  # where attention finds anchors; None maps every slot
    num_followers: int = 0  # slots behind each anchor that are sent with it
    num_labelled: int = 200  # lessons that anchors are learned from
    closing: str = ""
    far_window: tuple[int, int] | None = None  # slots further away, of which far_layers alone are seen
    far_layers: tuple[int, ...] = ()
    head_local: bool = False  # predict a head from its namesake's numbers alone, where both have as many


@dataclass(slots=True)
class FitState:
    """All that a fit keeps: how far it is, the sums, and once known the anchors."""

    sums: MomentPair
    num_done: int = 0
    num_rows: int = 0
    anchor: LinearMap | None = None

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a later run resumes from, to be saved before the next lesson."""
        tensors = self.sums.to_tensors() | {"progress": torch.tensor([self.num_done, self.num_rows])}
        if self.anchor is not None:
            tensors |= {"anchor.weight": self.anchor.weight, "anchor.bias": self.anchor.bias}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> FitState:
        """Inverse of `to_tensors`. Raises StateCorrupt for sums that are none."""
        rest = dict(tensors)
        try:
            num_done, num_rows = rest.pop("progress").tolist()
            anchor = (
                LinearMap(rest.pop("anchor.weight"), rest.pop("anchor.bias"))
                if "anchor.weight" in rest
                else None
            )
        except (KeyError, TypeError, ValueError) as exc:
            raise StateCorrupt(f"a saved fit cannot be read ({exc}); start the fit again") from exc
        return cls(MomentPair.from_tensors(rest), num_done, num_rows, anchor)
