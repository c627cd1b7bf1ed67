"""A calibration: for each layer and kind the matrices of its transform, as a safetensors file.

Knows nothing of how it was made. Source: FORMAT.md §8.3.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import safetensors.torch
import torch
from safetensors import SafetensorError

from kvnet.errors import MalformedFile
from kvnet.plan import MAX_BASIS_NBYTES
from kvnet.types import Geometry, Kind, sha256_hex

_KINDS: Final = {Kind.KEY: "key", Kind.VALUE: "value"}
_REMEDY: Final = "calibrate again, or ask its sender for it again"


@dataclass(frozen=True, slots=True, eq=False)
class LayerBasis:
    """z = (x - mean) @ forward is rounded to codes; x is mean + codes @ backward. All float32, on the CPU."""

    mean: torch.Tensor  # [C]
    forward: torch.Tensor  # [C, r]
    backward: torch.Tensor  # [r, C]

    @property
    def rank(self) -> int:
        """Components that are kept."""
        return self.forward.shape[1]


@dataclass(frozen=True, slots=True, eq=False)
class Basis:
    """The matrices of a model's every layer, and the bytes that name them."""

    layers: Mapping[tuple[int, Kind], LayerBasis]
    raw: bytes
    digest: str  # sha256:<hex> of `raw`

    @property
    def num_components(self) -> int:
        """Components kept, over all layers and kinds."""
        return sum(layer.rank for layer in self.layers.values())

    @classmethod
    def of(cls, layers: Mapping[tuple[int, Kind], LayerBasis]) -> Basis:
        """A new calibration; the same matrices always have the same bytes."""
        tensors = {
            f"{layer_idx}.{_KINDS[kind]}.{name}": getattr(layers[layer_idx, kind], name).float()
            for layer_idx, kind in sorted(layers)
            for name in ("mean", "forward", "backward")
        }
        # Copies: a basis may share one matrix between layers, and safetensors takes no shared memory.
        raw = safetensors.torch.save(
            {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
        )
        return cls(dict(layers), raw, sha256_hex(raw))

    def scaled(self, factor: float) -> Basis:
        """The same transform with steps `factor` times as large: fewer bits, more error."""
        return Basis.of(
            {
                place: LayerBasis(layer.mean, layer.forward / factor, layer.backward * factor)
                for place, layer in self.layers.items()
            }
        )

    @classmethod
    def from_bytes(cls, raw: bytes, geometry: Geometry) -> Basis:
        """Read a calibration of a model with this geometry. Raises MalformedFile for anything else."""
        if len(raw) > MAX_BASIS_NBYTES:
            raise MalformedFile(f"a calibration of {len(raw)} bytes, at most {MAX_BASIS_NBYTES}; {_REMEDY}")
        try:
            tensors = safetensors.torch.load(raw)
        except (SafetensorError, KeyError, ValueError, RuntimeError) as exc:
            raise MalformedFile(f"a calibration is no safetensors file ({exc}); {_REMEDY}") from exc
        layers = {}
        for layer_idx in range(geometry.num_layers):
            for kind, name in _KINDS.items():
                layers[layer_idx, kind] = _take(tensors, f"{layer_idx}.{name}", geometry)
        if tensors:
            raise MalformedFile(
                f"a calibration of {geometry.num_layers} layers holds {next(iter(tensors))[:60]!r}, "
                f"which belongs to none; {_REMEDY}"
            )
        return cls(layers, raw, sha256_hex(raw))

    def to_bytes(self) -> bytes:
        """The safetensors file. Inverse of `from_bytes`."""
        return self.raw


def _take(tensors: dict[str, torch.Tensor], prefix: str, geometry: Geometry) -> LayerBasis:
    """Remove one layer's three tensors from `tensors`, checked."""
    channels = geometry.num_kv_heads * geometry.head_dim
    try:
        mean, forward, backward = (tensors.pop(f"{prefix}.{n}") for n in ("mean", "forward", "backward"))
    except KeyError as exc:
        raise MalformedFile(f"a calibration lacks {exc.args[0]}; {_REMEDY}") from exc
    rank = forward.shape[-1] if forward.ndim == 2 else 0
    shapes = (tuple(mean.shape), tuple(forward.shape), tuple(backward.shape))
    if not 1 <= rank <= channels or shapes != ((channels,), (channels, rank), (rank, channels)):
        raise MalformedFile(
            f"{prefix} of a calibration has the shapes {shapes}, wanted ({channels},), ({channels}, r) "
            f"and (r, {channels}) with r of 1 to {channels}; {_REMEDY}"
        )
    for tensor in (mean, forward, backward):
        if tensor.dtype != torch.float32 or not bool(tensor.isfinite().all()):
            raise MalformedFile(f"{prefix} of a calibration is not of finite float32 numbers; {_REMEDY}")
    return LayerBasis(mean, forward, backward)
