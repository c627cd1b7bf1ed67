"""A map: from slots of one model to slots of another. Knows no models, no files, no fit, no training.

slots -> windows of neighbours, near and far -> (anchors) -> encoder (+ products) (+ residual) -> port or rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from kvnet.align.port import Port, take_tensors
from kvnet.align.quadratic import Quadratic
from kvnet.align.residual import Residual
from kvnet.align.window import choose_layers, stack_windows
from kvnet.alignment import MapManifest, Method, feature_width
from kvnet.errors import IncompatibleModel
from kvnet.model.slots import Slots
from kvnet.types import Geometry

_SENT_ABOVE = 0.5  # of an anchor's score, which was fitted to 0 and 1


@dataclass(frozen=True, slots=True, eq=False)
class AlignmentMap:
    """encoder [feature_width, rank], bias [rank]: coordinates of the receiver's port, or its rows.

    anchor [feature_width], anchor_bias []: a slot is sent if its score is above one half; None sends all. A
    map that was fitted on anchors makes nothing of other slots, so of a text without any it sends none.
    quadratic: products of a first guess that are added to the encoder's; residual: what training adds.
    """

    manifest: MapManifest
    encoder: torch.Tensor
    bias: torch.Tensor
    anchor: torch.Tensor | None = None
    anchor_bias: torch.Tensor | None = None
    quadratic: Quadratic | None = None
    residual: Residual | None = None

    def encode(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """(coordinates or rows [m, rank], which of the source's slots they are for: int64 [m], ascending).

        Raises IncompatibleModel for slots of another geometry than the map was fitted to.
        """
        features, at = self.features_of(slots)
        encoded = self.closed_form(features)
        return (encoded if self.residual is None else encoded + self.residual.apply(features)), at

    def closed_form(self, features: torch.Tensor) -> torch.Tensor:
        """[m, feature_width] -> [m, rank], without what training adds."""
        encoded = torch.addmm(self.bias, features, self.encoder)
        return encoded if self.quadratic is None else encoded + self.quadratic.apply(features)

    def features_of(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """(what is seen of each slot that is sent [m, feature_width], which these are: int64 [m]).

        Raises IncompatibleModel as `encode` does.
        """
        self._refuse_other(slots)
        if self.anchor is None or self.anchor_bias is None:
            at = torch.arange(slots.num_slots)
        else:
            score = score_slots(slots.rows, self.manifest, self.anchor) + self.anchor_bias
            at = (score > _SENT_ABOVE).nonzero()[:, 0]
        return stack_features(slots.rows, self.manifest, at), at

    def apply(self, slots: Slots, port: Port | None = None, *, bits: int | None = None) -> Slots:
        """The receiver's slots, at the positions of the source's. `port` is the one the manifest names.

        With `bits` its coordinates are quantised as on the wire.
        """
        rows, at = self.encode(slots)
        if port is not None:
            coordinates = rows if bits is None else port.dequantize(port.quantize(rows, bits), bits)
            rows = port.to_rows(coordinates)
        return Slots(self.manifest.receiver_geometry, rows, slots.positions[at], slots.span)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a map's file holds (FORMAT.md §10)."""
        named = {"encoder": self.encoder, "encoder_bias": self.bias}
        if self.anchor is not None and self.anchor_bias is not None:
            named |= {"anchor": self.anchor[:, None], "anchor_bias": self.anchor_bias[None]}
        for part in (self.quadratic, self.residual):
            named |= {} if part is None else part.to_tensors()
        return named

    @classmethod
    def from_tensors(
        cls, manifest: MapManifest, tensors: Mapping[str, torch.Tensor], *, rank: int
    ) -> AlignmentMap:
        """Inverse of `to_tensors`, checked against the manifest. Raises MalformedFile, NotFinite."""
        width = feature_width(manifest)
        shapes: dict[str, tuple[int, ...]] = {"encoder": (width, rank), "encoder_bias": (rank,)}
        if "anchor" in tensors:
            shapes |= {"anchor": (width, 1), "anchor_bias": (1,)}
        is_quadratic = "lift" in tensors
        if is_quadratic:
            shapes |= Quadratic.shapes(tensors, feature_width=width, rank=rank)
        is_trained = manifest.method is Method.TRAINED
        if is_trained:
            shapes |= Residual.shapes(tensors, feature_width=width, rank=rank)
        taken = take_tensors(tensors, shapes, what="map")
        return cls(
            manifest,
            taken["encoder"],
            taken["encoder_bias"],
            anchor=taken["anchor"][:, 0] if "anchor" in taken else None,
            anchor_bias=taken["anchor_bias"][0] if "anchor" in taken else None,
            quadratic=Quadratic.from_tensors(taken) if is_quadratic else None,
            residual=Residual.from_tensors(taken) if is_trained else None,
        )

    def _refuse_other(self, slots: Slots) -> None:
        got, wanted = _shape(slots.geometry), _shape(self.manifest.source_geometry)
        if got != wanted:
            raise IncompatibleModel(
                f"the slots have {got} layers, KV heads and head_dim, "
                f"the map of {self.manifest.source.model} takes {wanted}; use its own map"
            )


def _shape(geometry: Geometry) -> tuple[int, int, int]:
    return geometry.num_layers, geometry.num_kv_heads, geometry.head_dim


def stack_features(rows: torch.Tensor, manifest: MapManifest, at: torch.Tensor | None = None) -> torch.Tensor:
    """[n, row_width] -> [m, feature_width]: the windows of the slots `at`, as the manifest describes them."""
    return stack_windows(
        rows,
        manifest.source_geometry.num_layers,
        manifest.source_layers,
        manifest.window,
        manifest.far_layers,
        manifest.far_window,
        at,
    )


def score_slots(rows: torch.Tensor, manifest: MapManifest, anchor: torch.Tensor) -> torch.Tensor:
    """[n]: `stack_features(rows, manifest) @ anchor` without building the windows."""
    num_layers = manifest.source_geometry.num_layers
    near, (low, high) = choose_layers(rows, num_layers, manifest.source_layers), manifest.window
    near_width = (high - low + 1) * near.shape[1]
    score = _score_window(near, anchor[:near_width], low)
    if manifest.far_window is not None:
        far = choose_layers(rows, num_layers, manifest.far_layers)
        score += _score_window(far, anchor[near_width:], manifest.far_window[0])
    return score


def _score_window(chosen: torch.Tensor, anchor: torch.Tensor, low: int) -> torch.Tensor:
    """[n]: `stack_window(chosen) @ anchor`, an offset's share at a time."""
    num_slots, width = chosen.shape
    shares = chosen @ anchor.view(-1, width).T  # [n, window]
    score = torch.zeros(num_slots)
    for place in range(shares.shape[1]):
        offset = low + place
        first, stop = max(0, -offset), min(num_slots, num_slots - offset)
        if first < stop:
            score[first:stop] += shares[first + offset : stop + offset, place]
    return score
