"""The alignment bench's pictures: arms of every pair, and which layer tells of which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import harness
import torch
from alignment_rows import Row
from alignment_setup import Pair

from kvnet.align.arms import EVERY_ARM, Arm

_SHOWN: Final = tuple(arm for arm in EVERY_ARM if arm not in (Arm.TEXT, Arm.NONE))  # 1 and 0 by definition


def plot_arms(rows: Sequence[Row], folder: Path) -> None:
    """Bars of gap recovered with 95 % intervals: a group for each pair, a bar for each arm."""
    figure, axes = harness.new_figure("Gap recovered on held-out facts, 95 % intervals")
    found = {(row["source"], row["target"], row["arm"]): row for row in rows if row["table"] == "arms"}
    pairs = list(dict.fromkeys(key[:2] for key in found))
    width = 0.8 / len(_SHOWN)
    for place, arm in enumerate(_SHOWN):
        bars = [
            (index, row)
            for index, pair in enumerate(pairs)
            if (row := found.get((*pair, arm.value))) and row["gap_recovered"] is not None
        ]
        # Rounding may put an interval's end a hair beyond its middle.
        below = [max(0.0, row["gap_recovered"] - row["low"]) for _, row in bars]
        above = [max(0.0, row["high"] - row["gap_recovered"]) for _, row in bars]
        axes.bar(
            [index + (place + 0.5) * width - 0.4 for index, _ in bars],
            [row["gap_recovered"] for _, row in bars],
            width=width,
            color=f"C{place}",
            yerr=[below, above],
            error_kw={"linewidth": 0.6},
            label=arm.value,
        )
    axes.set_xticks(range(len(pairs)), [f"{source}\nto {target}" for source, target in pairs], fontsize=7)
    axes.set_ylabel("gap recovered")
    axes.set_ylim(top=1.25)  # room for the legend
    axes.legend(fontsize=6, ncols=4)
    harness.save_figure(figure, folder / "alignment_arms.png")


def plot_layers(table: torch.Tensor, pair: Pair, folder: Path) -> None:
    """A heatmap of held-out error, 1 - R², of [source layers, receiver layers]."""
    figure, axes = harness.new_figure(f"Held-out error of one {pair[0]} layer for one {pair[1]} layer")
    image = axes.imshow(1 - table.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
    for (source_idx, target_idx), score in zip(
        ((s, t) for s in range(table.shape[0]) for t in range(table.shape[1])),
        table.flatten().tolist(),
        strict=True,
    ):
        axes.text(
            target_idx, source_idx, f"{1 - score:.2f}", ha="center", va="center", color="white", fontsize=8
        )
    axes.set_xticks(range(table.shape[1]))
    axes.set_yticks(range(table.shape[0]))
    axes.set_xlabel(f"layer of {pair[1]}")
    axes.set_ylabel(f"layer of {pair[0]}")
    figure.colorbar(image, label="1 - R² on held-out contexts")
    harness.save_figure(figure, folder / f"alignment_layers_{pair[0]}_{pair[1]}.png")
