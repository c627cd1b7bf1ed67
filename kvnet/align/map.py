"""A map: from slots of one model to slots of another. Knows no models, no files, no fit, no training.

slots -> windows of neighbours, near and far -> (anchors) -> encoder (+ residual) -> (port) -> rows
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from kvnet.align.familiar import Familiar
from kvnet.align.port import Port, take_tensors
from kvnet.align.residual import Residual
from kvnet.align.window import choose_layers, stack_windows
from kvnet.alignment import Intake, MapManifest, Method, feature_width, intake_of
from kvnet.errors import IncompatibleModel
from kvnet.model.slots import Slots
from kvnet.types import Geometry

_SENT_ABOVE = 0.5  # of an anchor's score, which was fitted to 0 and 1

# What a receiver makes of what it takes: [n, intake.width] -> rows [n, row_width] (CausalModel.rows_of)
RowsOf = Callable[[Intake, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class AlignmentMap:
    """encoder [feature_width, rank], bias [rank]: coordinates of the receiver's port, or what it takes.

    anchor [feature_width], anchor_bias []: a slot is sent if its score is above one half; None sends all. A
    map that was fitted on anchors makes nothing of other slots, so of a text without any it sends none.
    residual: what training adds to the encoder's.
    familiar: what tells that a memory holds things which the map was not fitted on; None knows everything.
    """

    manifest: MapManifest
    encoder: torch.Tensor
    bias: torch.Tensor
    anchor: torch.Tensor | None = None
    anchor_bias: torch.Tensor | None = None
    residual: Residual | None = None
    familiar: Familiar | None = None

    def encode(self, slots: Slots) -> tuple[torch.Tensor, torch.Tensor]:
        """(coordinates or what is taken [m, rank], which of the source's slots they are for: int64 [m]).

        Raises IncompatibleModel for slots of another geometry than the map was fitted to.
        """
        features, at = self.features_of(slots)
        encoded = self.closed_form(features)
        return (encoded if self.residual is None else encoded + self.residual.apply(features)), at

    def closed_form(self, features: torch.Tensor) -> torch.Tensor:
        """[m, feature_width] -> [m, rank], without what training adds."""
        return torch.addmm(self.bias, features, self.encoder)

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

    def apply(
        self,
        slots: Slots,
        port: Port | None = None,
        *,
        rows_of: RowsOf | None = None,
        bits: int | None = None,
    ) -> Slots:
        """The receiver's slots, at the positions of the source's. `port` is the one the manifest names.

        `rows_of` is the receiver's own, without which only keys and values can be taken. With `bits` the
        port's coordinates are quantised as on the wire.
        """
        encoded, at = self.encode(slots)
        return self.finish(slots, encoded, at, port, rows_of=rows_of, bits=bits)

    def strangeness(self, encoded: torch.Tensor) -> float:
        """How far out the furthest of [m, rank] lies: above 1 the map was not fitted on such things."""
        return 0.0 if self.familiar is None else self.familiar.strangeness(encoded)

    def finish(
        self,
        slots: Slots,
        encoded: torch.Tensor,
        at: torch.Tensor,
        port: Port | None = None,
        *,
        rows_of: RowsOf | None = None,
        bits: int | None = None,
    ) -> Slots:
        """What `apply` gives, of slots that `encode` took to this."""
        taken, intake = encoded, intake_of(self.manifest)
        if port is not None:
            coordinates = taken if bits is None else port.dequantize(port.quantize(taken, bits), bits)
            taken, intake = port.to_taken(coordinates), port.intake
        if intake.state_layers and rows_of is None:
            raise ValueError("a map that ends in states needs the model whose they are")
        rows = taken if rows_of is None else rows_of(intake, taken)
        return Slots(self.manifest.receiver_geometry, rows, slots.positions[at], slots.span)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a map's file holds (FORMAT.md §10)."""
        named = {"encoder": self.encoder, "encoder_bias": self.bias}
        if self.anchor is not None and self.anchor_bias is not None:
            named |= {"anchor": self.anchor[:, None], "anchor_bias": self.anchor_bias[None]}
        for part in (self.residual, self.familiar):
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
        is_trained = manifest.method is Method.TRAINED
        if is_trained:
            shapes |= Residual.shapes(tensors, feature_width=width, rank=rank)
        is_familiar = "known_scale" in tensors
        if is_familiar:
            shapes |= Familiar.shapes(tensors, rank=rank)
        taken = take_tensors(tensors, shapes, what="map")
        return cls(
            manifest,
            taken["encoder"],
            taken["encoder_bias"],
            anchor=taken["anchor"][:, 0] if "anchor" in taken else None,
            anchor_bias=taken["anchor_bias"][0] if "anchor" in taken else None,
            residual=Residual.from_tensors(taken) if is_trained else None,
            familiar=Familiar.from_tensors(taken) if is_familiar else None,
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
