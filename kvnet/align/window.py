"""The shape of a row, and rows stacked with their neighbours. Knows no models and no maps.

A row is one slot of a memory in content space, layer-major: of each layer its keys [num_kv_heads * head_dim],
then its values. A map reads a window of neighbouring rows, since models bind a fact at different slots, and
may see a few layers of rows further away, where a name stood some tokens back.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kvnet.types import Geometry


@dataclass(frozen=True, slots=True)
class RowShape:
    """What a row's columns stand for; `num_layers` counts the layers that are in the row."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    @property
    def width(self) -> int:
        """Columns of a row."""
        return self.num_layers * self.layer_width

    @property
    def layer_width(self) -> int:
        """Columns of one layer: keys and values."""
        return 2 * self.num_kv_heads * self.head_dim

    def columns(self, num_offsets: int = 1) -> torch.Tensor:
        """Column numbers of a stacked window, int64 [num_offsets, num_layers, 2, num_kv_heads, head_dim]."""
        shape = (num_offsets, self.num_layers, 2, self.num_kv_heads, self.head_dim)
        return torch.arange(num_offsets * self.width).view(shape)


def shape_of(geometry: Geometry, num_layers: int | None = None) -> RowShape:
    """What the columns of a model's rows stand for, or of those of so many of its layers."""
    layers = geometry.num_layers if num_layers is None else num_layers
    return RowShape(layers, geometry.num_kv_heads, geometry.head_dim)


def stack_windows(
    rows: torch.Tensor,
    num_layers: int,
    layers: tuple[int, ...],
    window: tuple[int, int],
    far_layers: tuple[int, ...] = (),
    far_window: tuple[int, int] | None = None,
    at: torch.Tensor | None = None,
) -> torch.Tensor:
    """What a map predicts from: float32 [m, windows_width] of rows [n, row_width] of one sequence.

    First `layers` of the slots of `window`, then `far_layers` of those of `far_window`, each lowest offset
    first and with zeros beyond the ends (FORMAT.md §10.2). `at`, int64 [m], picks the slots; None is all of
    them. Raises ValueError for a far window without layers, or with offsets of the near one.
    """
    near = stack_window(choose_layers(rows, num_layers, layers), window, at)
    if far_window is None:
        if far_layers:
            raise ValueError(f"far layers {list(far_layers)} without a far window, wanted both or neither")
        return near
    if not far_layers or (far_window[0] <= window[1] and window[0] <= far_window[1]):
        raise ValueError(f"a far window {far_window} of layers {list(far_layers)} beside a window {window}")
    far = stack_window(choose_layers(rows, num_layers, far_layers), far_window, at)
    return torch.cat([near, far], 1)


def choose_layers(rows: torch.Tensor, num_layers: int, layers: tuple[int, ...]) -> torch.Tensor:
    """[n, row_width] -> the columns of these layers, in their order."""
    if layers == tuple(range(num_layers)):
        return rows
    parts = rows.chunk(num_layers, 1)
    return torch.cat([parts[layer_idx] for layer_idx in layers], 1)


def stack_window(rows: torch.Tensor, window: tuple[int, int], at: torch.Tensor | None = None) -> torch.Tensor:
    """Rows [n, w] of one sequence, each beside its neighbours: [m, (high - low + 1) * w].

    `window` is (low, high), offsets in slots, both inclusive; the lowest offset comes first. Slots beyond the
    ends are zeros. `at`, int64 [m], picks the slots to stack for; None is all of them.
    """
    low, high = window
    num_slots, width = rows.shape
    if low > high:
        raise ValueError(f"a window from {low} to {high} is empty")
    if at is None:
        at = torch.arange(num_slots, device=rows.device)
    elif bool(((at < 0) | (at >= num_slots)).any()):
        raise ValueError(f"slots {at.min().item()} to {at.max().item()} of a sequence of {num_slots}")
    slots = at[:, None] + torch.arange(low, high + 1, device=rows.device)  # [m, offsets]
    stacked = rows[slots.clamp(0, max(0, num_slots - 1))]  # [m, offsets, w]
    stacked[(slots < 0) | (slots >= num_slots)] = 0
    return stacked.reshape(len(at), (high - low + 1) * width)
