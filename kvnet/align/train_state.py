"""What a training keeps between its steps, and its curve as a picture. Knows no models and no lessons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import torch

from kvnet.align.residual import Residual
from kvnet.errors import StateCorrupt


@dataclass(frozen=True, slots=True)
class StepReport:
    """A point of the curve, after `step` steps: KL in nats on lessons that are trained on and on held-out
    ones, and the share of whole answers right on the latter.
    """

    step: int
    train_kl: float
    held_out_recall: float
    held_out_kl: float


@dataclass(slots=True, eq=False)
class TrainState:
    """All that a training keeps. `residual` and `best` are in the measures of its Scales."""

    residual: Residual  # its tensors are leaves that the optimizer moves
    optimizer: torch.optim.Adam  # Kingma and Ba, arXiv 1412.6980
    best: Residual  # as of the best point of the curve
    curve: list[StepReport]
    num_done: int

    @classmethod
    def begin(cls, residual: Residual) -> TrainState:
        """Before the first step. The learning rate is for each run to set."""
        leaves = residual.changed(lambda tensor: tensor.clone().requires_grad_())
        return cls(leaves, torch.optim.Adam(leaves.to_tensors().values()), residual, [], 0)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """What a later run resumes from, to be saved before the next step; it ends in the same bits."""
        tensors = {
            "num_done": torch.tensor([self.num_done]),
            "curve": torch.tensor([astuple(point) for point in self.curve], dtype=torch.float64).view(-1, 4),
        }
        for name, leaf in self.residual.to_tensors().items():
            tensors[name] = leaf.detach()
            tensors |= {f"adam.{key}.{name}": part for key, part in self.optimizer.state[leaf].items()}
        return tensors | {f"best.{name}": tensor for name, tensor in self.best.to_tensors().items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> TrainState:
        """Inverse of `to_tensors`. Raises StateCorrupt for anything else."""
        try:
            width, rank = tensors["residual_in"].shape[0], tensors["residual_out"].shape[1]
            shapes = Residual.shapes(tensors, feature_width=width, rank=rank)
            kept, best = (
                Residual.from_tensors({name: _take(tensors, start + name, shapes[name]) for name in shapes})
                for start in ("", "best.")
            )
            state = cls.begin(kept)
            state.best = best
            state.num_done = int(tensors["num_done"].item())
            state.curve = [StepReport(int(step), *rest) for step, *rest in tensors["curve"].tolist()]
            for name, leaf in state.residual.to_tensors().items() if state.num_done else ():
                adam = {"step": (), "exp_avg": shapes[name], "exp_avg_sq": shapes[name]}
                state.optimizer.state[leaf] = {
                    key: _take(tensors, f"adam.{key}.{name}", shape) for key, shape in adam.items()
                }
        except (IndexError, KeyError, RuntimeError, TypeError, ValueError) as exc:
            raise StateCorrupt(f"a saved training cannot be read ({exc}); start the training again") from exc
        return state


def _take(tensors: Mapping[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A copy of a saved tensor, which must be finite and of this shape."""
    tensor = tensors[name]
    if tensor.shape != shape or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} is {list(tensor.shape)} or not finite, wanted {list(shape)}")
    return tensor.clone()


def plot_curve(curve: Sequence[StepReport], path: Path) -> None:
    """A PNG: KL of both kinds of lessons, and held-out recall, against steps. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    kl_axes = figure.subplots()
    steps = [point.step for point in curve]
    kl_axes.plot(steps, [point.train_kl for point in curve], "C0--", label="KL, trained on")
    kl_axes.plot(steps, [point.held_out_kl for point in curve], "C0", label="KL, held out")
    kl_axes.set(xlabel="steps", ylabel="KL to the text's own logits (nats)")
    recall_axes = kl_axes.twinx()
    recall_axes.plot(steps, [point.held_out_recall for point in curve], "C1", label="recall, held out")
    recall_axes.set(ylabel="recall of whole answers", ylim=(0, 1.02))
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
