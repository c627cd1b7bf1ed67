"""The plots of `stream`: the crossover, a waterfall of one transfer, goodput against concurrency."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import harness
from stream_fairness import Round
from stream_latency import Measured
from stream_trace import STAGES, by_layer


def plot_crossover(found: Sequence[Measured], path: Path) -> None:
    """Seconds to the first token against the length of what is asked about."""
    figure, axes = harness.new_figure("Time to first token against length, int8")
    tokens = [one.tokens for one in found]
    for name, values, marker in (
        ("receiver reads the text", [one.text_s for one in found], "o"),
        ("sender reads, kvnet streams (cold)", [one.cold_s for one in found], "s"),
        ("sender has the memory (warm)", [one.warm_s for one in found], "^"),
    ):
        axes.plot(tokens, [statistics.median(value) for value in values], marker=marker, label=name)
    texts, warm = ([statistics.median(getattr(one, way)) for one in found] for way in ("text_s", "warm_s"))
    crossing = crossover(list(zip(tokens, texts, warm, strict=True)))
    if crossing is not None:
        axes.axvline(crossing, color="grey", linestyle=":", label=f"text = warm at {crossing:.0f} tokens")
    axes.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="seconds")
    axes.set_xticks(tokens, [str(count) for count in tokens])
    axes.minorticks_off()
    axes.legend()
    harness.save_figure(figure, path)


def crossover(points: Sequence[tuple[int, float, float]]) -> float | None:
    """Where the second falls below the first, on straight lines between (tokens, text s, warm s); or None."""
    for (left, text_a, warm_a), (right, text_b, warm_b) in pairwise(points):
        before, after = warm_a - text_a, warm_b - text_b
        if before > 0 >= after:
            return left + (right - left) * before / (before - after)
    return None


def plot_waterfall(one: Measured, path: Path) -> None:
    """When each stage of each layer of a cold transfer was at work, since the question was asked."""
    figure, axes = harness.new_figure(f"One cold transfer of {one.tokens} tokens, layer by layer")
    for number, stage in enumerate(STAGES):
        for layer_idx, (began, ended) in by_layer(one.waterfall, stage).items():
            offset = (number - len(STAGES) / 2) / (len(STAGES) + 1)
            axes.barh(
                layer_idx + offset,
                max(ended - began, 0.0),
                left=began - one.asked_at,
                height=1 / (len(STAGES) + 1),
                color=f"C{number}",
                edgecolor=f"C{number}",  # what is shorter than a pixel is seen too
                linewidth=0.8,
                label=stage if layer_idx == 0 else None,
            )
    axes.invert_yaxis()
    axes.set(xlabel="seconds since the question", ylabel="layer", xlim=(0, None))
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.legend(ncols=2, title="align: none, the models are the same", loc="lower left")
    harness.save_figure(figure, path)


def plot_goodput(rounds: Sequence[Round], path: Path) -> None:
    """Total goodput of transfers that run at once."""
    figure, axes = harness.new_figure("Goodput of transfers at once, two daemons, loopback, 2 cores")
    at_once = [one.at_once for one in rounds]
    axes.plot(at_once, [one.gbps * 8 for one in rounds], marker="o")
    axes.set(xlabel="transfers at once", ylabel="Gbit/s in all", ylim=(0, None))
    axes.set_xticks(at_once)
    harness.save_figure(figure, path)
