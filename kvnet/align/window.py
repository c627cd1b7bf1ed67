"""The shape of a row, and rows stacked with their neighbours. Knows no models and no maps.

A row is one slot of a memory in content space, layer-major: of each layer its keys [num_kv_heads * head_dim],
then its values. A map reads a window of neighbouring rows, since models bind a fact at different slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
