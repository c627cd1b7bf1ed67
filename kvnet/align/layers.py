"""Which source layers a target's layers are predicted from. Knows no models.

Everything is read off the sums of a fit by taking columns; nothing is measured again.
"""

from __future__ import annotations

import torch

from kvnet.align.moments import MomentPair, Moments
from kvnet.align.solve import held_out_error, solve_ridge
from kvnet.align.window import RowShape
from kvnet.alignment import LayerStrategy


def pick_source_layers(
    strategy: LayerStrategy,
    num_source_layers: int,
    num_target_layers: int,
    *,
    table: torch.Tensor | None = None,
    num_picked: int = 1,
) -> tuple[tuple[int, ...], ...]:
    """For each target layer its source layers, ascending.

    `linear` is the one layer at the nearest relative depth. `skip` is the layer of the same index, and none
    for target layers beyond the source's last. `learned` is the `num_picked` layers with the highest entries
    in their column of `table` (of `held_out_table`), the shallower first among equals.
    """
    match strategy:
        case LayerStrategy.LINEAR:
            return tuple(
                (_same_depth(layer_idx, num_source_layers, num_target_layers),)
                for layer_idx in range(num_target_layers)
            )
        case LayerStrategy.SKIP:
            return tuple(
                (layer_idx,) if layer_idx < num_source_layers else ()
                for layer_idx in range(num_target_layers)
            )
        case LayerStrategy.LEARNED:
            if table is None or table.shape != (num_source_layers, num_target_layers):
                raise ValueError(f"no held-out table of {num_source_layers} by {num_target_layers} layers")
            best_first = table.argsort(dim=0, descending=True, stable=True)[:num_picked]
            return tuple(tuple(sorted(column)) for column in best_first.T.tolist())


def held_out_table(
    pair: MomentPair, source: RowShape, target: RowShape, relative_lambda: float
) -> torch.Tensor:
    """How well each source layer alone predicts each target layer: float64 [source layers, target layers].

    Entries are held-out R², the mean over the target layer's keys and values. Inputs of `pair` are stacked
    windows of `source` rows, of which a layer brings all its offsets; outputs are `target` rows. Raises
    SingularStatistics as `solve_ridge` does.
    """
    columns = source.columns(_num_offsets(pair.fit, source, target))
    table = torch.zeros(source.num_layers, target.num_layers, dtype=torch.float64)
    for layer_idx in range(source.num_layers):
        part = pair.select(columns[:, layer_idx].flatten())
        scores = held_out_error(solve_ridge(part.fit, relative_lambda), part.held_out)
        table[layer_idx] = scores.view(target.num_layers, target.layer_width).mean(1)  # [layers, columns]
    return table


def _same_depth(layer_idx: int, num_source_layers: int, num_target_layers: int) -> int:
    """First to first, last to last, the others to the nearest in between."""
    return round(layer_idx * (num_source_layers - 1) / max(1, num_target_layers - 1))


def _num_offsets(moments: Moments, source: RowShape, target: RowShape) -> int:
    if moments.width_x % source.width or moments.width_y != target.width:
        raise ValueError(
            f"sums of {moments.width_x} to {moments.width_y} are not of rows of {source.width} "
            f"to {target.width}"
        )
    return moments.width_x // source.width
