"""A map: from slots of one model to slots of another, in closed form. Knows no models, no files, no fit.

slots -> chosen source layers -> window of neighbours -> (anchors) -> encoder -> port or rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kvnet.align.port import Port, take_tensors
from kvnet.align.window import stack_window
from kvnet.alignment import MapManifest, feature_width, row_width
from kvnet.errors import IncompatibleModel
from kvnet.model.slots import Slots

_SENT_ABOVE = 0.5  # of an anchor's score, which was fitted to 0 and 1


@dataclass(frozen=True, slots=True, eq=False)
class AlignmentMap:
    """encoder [window * width of the chosen layers, rank], bias [rank]: coordinates of the receiver's port, or
    rows of the receiver. anchor [the same width], anchor_bias []: a slot is sent if its score is above one half;
    None sends all.
    """

    manifest: MapManifest
    encoder: torch.Tensor
    bias: torch.Tensor
    anchor: torch.Tensor | None = None
    anchor_bias: torch.Tensor | None = None

    def encode(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """(coordinates or rows [m, rank], which of the source's slots they are for: int64 [m], ascending).

        Raises IncompatibleModel for slots of another geometry than the map was fitted to.
        """
        self._refuse_other(slots)
        chosen = choose_layers(slots.rows, self.manifest)
        low, high = self.manifest.window
        if self.anchor is None or self.anchor_bias is None:
            at = torch.arange(slots.num_slots)
        else:
            score = score_slots(chosen, self.anchor, low) + self.anchor_bias
            at = (score > _SENT_ABOVE).nonzero()[:, 0]
            # A text without anchors is sent whole: less would leave nothing to read.
            at = at if len(at) else torch.arange(slots.num_slots)
        return stack_window(chosen, (low, high), at) @ self.encoder + self.bias, at

    def apply(self, slots: Slots, port: Port | None = None) -> Slots:
        """The receiver's slots, at the positions of the source's own. `port` is the one the manifest names."""
        encoded, at = self.encode(slots)
        rows = encoded if port is None else port.to_rows(encoded)
        return Slots(self.manifest.receiver_geometry, rows, slots.positions[at], slots.span)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a map's file holds (FORMAT.md §10)."""
        named = {"encoder": self.encoder, "encoder_bias": self.bias}
        if self.anchor is not None and self.anchor_bias is not None:
            named |= {"anchor": self.anchor[:, None], "anchor_bias": self.anchor_bias[None]}
        return named

    @classmethod
    def from_tensors(
        cls, manifest: MapManifest, tensors: Mapping[str, torch.Tensor], *, rank: int
    ) -> AlignmentMap:
        """Inverse of `to_tensors`, checked against the manifest. Raises MalformedFile."""
        width = feature_width(manifest)
        shapes: dict[str, tuple[int, ...]] = {"encoder": (width, rank), "encoder_bias": (rank,)}
        if "anchor" not in tensors:
            taken = take_tensors(tensors, shapes, what="map")
            return cls(manifest, taken["encoder"], taken["encoder_bias"])
        taken = take_tensors(tensors, shapes | {"anchor": (width, 1), "anchor_bias": (1,)}, what="map")
        anchor, anchor_bias = taken["anchor"][:, 0], taken["anchor_bias"][0]
        return cls(manifest, taken["encoder"], taken["encoder_bias"], anchor, anchor_bias)

    def _refuse_other(self, slots: Slots) -> None:
        wanted = self.manifest.source_geometry
        if slots.rows.shape[1] != row_width(wanted) or slots.geometry.num_layers != wanted.num_layers:
            raise IncompatibleModel(
                f"the slots have rows of {slots.rows.shape[1]} numbers in {slots.geometry.num_layers} layers, the "
                f"map of {self.manifest.source.model} takes {row_width(wanted)} in {wanted.num_layers}; use its own map"
            )


def choose_layers(rows: torch.Tensor, manifest: MapManifest) -> torch.Tensor:
    """[n, row_width] -> the columns of the manifest's source layers, in their order."""
    if manifest.source_layers == tuple(range(manifest.source_geometry.num_layers)):
        return rows
    layers = rows.chunk(manifest.source_geometry.num_layers, 1)
    return torch.cat([layers[layer_idx] for layer_idx in manifest.source_layers], 1)


def score_slots(chosen: torch.Tensor, anchor: torch.Tensor, low: int) -> torch.Tensor:
    """[n]: `stack_window(chosen) @ anchor` without building the window: an offset's share at a time."""
    num_slots, width = chosen.shape
    shares = chosen @ anchor.view(-1, width).T  # [n, window]
    score = torch.zeros(num_slots)
    for place in range(shares.shape[1]):
        offset = low + place
        first, stop = max(0, -offset), min(num_slots, num_slots - offset)
        if first < stop:
            score[first:stop] += shares[first + offset : stop + offset, place]
    return score
