"""The sums that a linear fit needs, streamed: rows come in, no row is kept. Knows no solver and no models.

Sums are float64 and centred: the signal that recall hangs on lies in directions whose variance float32 would
round away. Blocks are joined by the pairwise update of Chan, Golub and LeVeque ("Updating formulae and a
pairwise algorithm for computing sample variances", 1979), written as one more row of the block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.errors import NotFinite, RequestError, StateCorrupt

MAX_MOMENTS_NBYTES: Final = 4 << 30
_BLOCK_ROWS: Final = 1024  # rows held until they are worth a matrix product
_PANEL_COLUMNS: Final = 512  # only panels right of the diagonal are summed: 1.7 times as fast at width 5120
_EVERY: Final = "held_out_every"
_SUMS: Final = ("mean_x", "mean_y", "xx", "xy", "yy")
_PENDING: Final = ("pending_x", "pending_y", "pending_weights")


class Moments:
    """Weighted mean and centred sums of products of paired rows x [n, width_x] and y [n, width_y].

    Memory depends on the widths alone. Rows are summed in blocks of a fixed size, so how a stream was cut
    into calls of `add` changes no bit. `xx` is Σ w (x - mean_x)ᵀ(x - mean_x), `xy` alike with y, and `yy` the
    diagonal of the same of y.
    """

    __slots__ = ("_mean_x", "_mean_y", "_num_pending", "_pending", "_weight", "_xx", "_xy", "_yy", "num_rows")

    def __init__(self, width_x: int, width_y: int) -> None:
        """Empty sums. Raises RequestError where they would take more than MAX_MOMENTS_NBYTES."""
        nbytes = 8 * width_x * (width_x + width_y) + 12 * _BLOCK_ROWS * (width_x + width_y)
        if nbytes > MAX_MOMENTS_NBYTES:
            raise RequestError(
                f"a fit of {width_x} inputs and {width_y} outputs sums in {nbytes} bytes, at most "
                f"{MAX_MOMENTS_NBYTES}; choose fewer source layers or a smaller window"
            )
        self.num_rows = 0
        self._weight = 0.0
        self._mean_x = torch.zeros(width_x, dtype=torch.float64)
        self._mean_y = torch.zeros(width_y, dtype=torch.float64)
        self._xx = torch.zeros(width_x, width_x, dtype=torch.float64)
        self._xy = torch.zeros(width_x, width_y, dtype=torch.float64)
        self._yy = torch.zeros(width_y, dtype=torch.float64)
        self._pending: tuple[torch.Tensor, ...] = ()  # x, y and weights, once the first row has come
        self._num_pending = 0

    @property
    def width_x(self) -> int:
        """Inputs."""
        return len(self._mean_x)

    @property
    def width_y(self) -> int:
        """Outputs."""
        return len(self._mean_y)

    @property
    def weight(self) -> float:
        """Sum of the rows' weights: their number, where none were given."""
        self._fold()
        return self._weight

    @property
    def mean_x(self) -> torch.Tensor:
        """Weighted mean of the inputs, float64 [width_x]."""
        self._fold()
        return self._mean_x

    @property
    def mean_y(self) -> torch.Tensor:
        """Weighted mean of the outputs, float64 [width_y]."""
        self._fold()
        return self._mean_y

    @property
    def xx(self) -> torch.Tensor:
        """Centred products of the inputs, float64 [width_x, width_x]; not to be written to."""
        self._fold()
        for start in range(0, self.width_x, _PANEL_COLUMNS):
            stop = start + _PANEL_COLUMNS
            self._xx[stop:, start:stop] = self._xx[start:stop, stop:].T
        return self._xx

    @property
    def xy(self) -> torch.Tensor:
        """Centred products of inputs and outputs, float64 [width_x, width_y]; not to be written to."""
        self._fold()
        return self._xy

    @property
    def yy(self) -> torch.Tensor:
        """Centred squares of the outputs, float64 [width_y]."""
        self._fold()
        return self._yy

    def add(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Take in rows x [n, width_x] and y [n, width_y], float32, and weights [n] of 0 or more.

        Raises NotFinite for NaN or infinity; nothing of these rows has then been added.
        """
        if weights is None:
            weights = torch.ones(len(x))
        self._check(x, y, weights)
        if not self._pending:
            self._pending = self._buffers()
        taken = 0
        while taken < len(x):
            count = min(len(x) - taken, _BLOCK_ROWS - self._num_pending)
            into = slice(self._num_pending, self._num_pending + count)
            for buffer, part in zip(self._pending, (x, y, weights), strict=True):
                buffer[into] = part[taken : taken + count]
            self._num_pending += count
            taken += count
            if self._num_pending == _BLOCK_ROWS:
                self._fold()
        self.num_rows += len(x)

    def merge(self, other: Moments) -> None:
        """Take in all that another stream of the same widths has summed."""
        if (other.width_x, other.width_y) != (self.width_x, self.width_y):
            raise ValueError(
                f"sums of {other.width_x} to {other.width_y} do not join {self.width_x} to {self.width_y}"
            )
        self._fold()
        step_x, step_y = self._move_mean(other.weight, other.mean_x, other.mean_y)
        self._sum_products(step_x[None], step_y[None])
        self._xx += other.xx
        self._xy += other.xy
        self._yy += other.yy
        self.num_rows += other.num_rows

    def select(self, x_columns: torch.Tensor, y_columns: torch.Tensor | None = None) -> Moments:
        """The sums as if only these columns had come, int64 [n]; None is every output."""
        if y_columns is None:
            y_columns = torch.arange(self.width_y)
        part = Moments(len(x_columns), len(y_columns))
        part.num_rows, part._weight = self.num_rows, self.weight
        part._mean_x, part._mean_y = self.mean_x[x_columns], self.mean_y[y_columns]
        part._xx = self.xx[x_columns[:, None], x_columns]
        part._xy, part._yy = self.xy[x_columns[:, None], y_columns], self.yy[y_columns]
        return part

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """All of the state, to be saved before the next `add`.

        A fit that goes on from it ends in the same bits as one that was never interrupted.
        """
        tensors = {
            "num_rows": torch.tensor([self.num_rows]),
            "weight": torch.tensor([self._weight], dtype=torch.float64),
        }
        tensors |= {name: getattr(self, f"_{name}") for name in _SUMS}
        pending = self._pending or self._buffers()
        tensors |= {
            name: buffer[: self._num_pending].clone() for name, buffer in zip(_PENDING, pending, strict=True)
        }
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Moments:
        """Inverse of `to_tensors`. Raises StateCorrupt for anything else."""
        try:
            moments = cls(tensors["mean_x"].numel(), tensors["mean_y"].numel())
            for name in _SUMS:
                _restore(getattr(moments, f"_{name}"), tensors[name], name)
            num_rows, weight = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.float64)
            _restore(num_rows, tensors["num_rows"], "num_rows")
            _restore(weight, tensors["weight"], "weight")
            moments.num_rows, moments._weight = int(num_rows), float(weight)
            moments._num_pending = min(len(tensors["pending_weights"]), _BLOCK_ROWS - 1)
            moments._pending = moments._buffers()
            for name, buffer in zip(_PENDING, moments._pending, strict=True):
                _restore(buffer[: moments._num_pending], tensors[name], name)
        except (KeyError, RequestError, RuntimeError, TypeError) as exc:
            raise StateCorrupt(f"saved sums of a fit cannot be read ({exc}); start the fit again") from exc
        return moments

    def _check(self, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> None:
        wanted = ((len(x), self.width_x), (len(x), self.width_y), (len(x),))
        if (x.shape, y.shape, weights.shape) != wanted:
            raise ValueError(
                f"rows of {list(x.shape)} and {list(y.shape)} with weights {list(weights.shape)}, "
                f"wanted n times {self.width_x} and {self.width_y}"
            )
        if x.dtype != torch.float32 or y.dtype != torch.float32:
            raise ValueError(f"rows of {x.dtype} and {y.dtype}, wanted float32")
        for name, part in (("source rows", x), ("target rows", y), ("weights", weights)):
            if not bool(part.isfinite().all()):
                raise NotFinite(
                    f"{name} of a fit hold NaN or infinity, wanted finite numbers; leave them out"
                )
        if bool((weights < 0).any()):
            raise ValueError(f"a weight of {weights.min().item()}, wanted 0 or more")

    def _buffers(self) -> tuple[torch.Tensor, ...]:
        return (
            torch.empty(_BLOCK_ROWS, self.width_x),
            torch.empty(_BLOCK_ROWS, self.width_y),
            torch.empty(_BLOCK_ROWS),
        )

    def _fold(self) -> None:
        """Add the pending rows to the sums."""
        count, self._num_pending = self._num_pending, 0
        if count == 0:
            return
        x, y, weights = (buffer[:count].double() for buffer in self._pending)
        total = float(weights.sum())
        if total == 0:
            return
        mean_x, mean_y = weights @ x / total, weights @ y / total
        step_x, step_y = self._move_mean(total, mean_x, mean_y)
        scale = weights.sqrt()[:, None]
        self._sum_products(
            torch.cat([x.sub_(mean_x).mul_(scale), step_x[None]]),
            torch.cat([y.sub_(mean_y).mul_(scale), step_y[None]]),
        )

    def _move_mean(
        self, weight: float, mean_x: torch.Tensor, mean_y: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Join means of so much weight to ours; returns the row whose products the move adds to the sums."""
        total = self._weight + weight
        share = weight / total if total else 0.0
        step_x, step_y = mean_x - self._mean_x, mean_y - self._mean_y
        scale = (self._weight * share) ** 0.5
        self._mean_x = self._mean_x + share * step_x
        self._mean_y = self._mean_y + share * step_y
        self._weight = total
        return scale * step_x, scale * step_y

    def _sum_products(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Add xᵀx, from the diagonal's panels to the right, xᵀy and the diagonal of yᵀy."""
        for start in range(0, self.width_x, _PANEL_COLUMNS):
            stop = start + _PANEL_COLUMNS
            self._xx[start:stop, start:].addmm_(x[:, start:stop].T, x[:, start:])
        self._xy.addmm_(x.T, y)
        self._yy += y.square().sum(0)


@dataclass(frozen=True, slots=True, eq=False)
class MomentPair:
    """Sums to fit on and sums to judge on: every `held_out_every`-th context goes to the second, whole."""

    fit: Moments
    held_out: Moments
    held_out_every: int

    @classmethod
    def empty(cls, width_x: int, width_y: int, held_out_every: int) -> MomentPair:
        """Both halves without rows."""
        if held_out_every < 2:
            raise ValueError(f"every {held_out_every}-th context held out, wanted 2 or more")
        return cls(Moments(width_x, width_y), Moments(width_x, width_y), held_out_every)

    def add(
        self, context_idx: int, x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor | None = None
    ) -> None:
        """Take in rows of one context, as `Moments.add` does; its index decides the half."""
        is_held_out = context_idx % self.held_out_every == self.held_out_every - 1
        (self.held_out if is_held_out else self.fit).add(x, y, weights)

    def merge(self, other: MomentPair) -> None:
        """Take in another pair, half by half."""
        if other.held_out_every != self.held_out_every:
            raise ValueError(
                f"pairs that hold out every {other.held_out_every}-th and {self.held_out_every}-th"
            )
        self.fit.merge(other.fit)
        self.held_out.merge(other.held_out)

    def select(self, x_columns: torch.Tensor, y_columns: torch.Tensor | None = None) -> MomentPair:
        """Both halves as if only these columns had come."""
        fit, held_out = (half.select(x_columns, y_columns) for half in (self.fit, self.held_out))
        return MomentPair(fit, held_out, self.held_out_every)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """All of the state, to be saved before the next `add`."""
        tensors = {_EVERY: torch.tensor([self.held_out_every])}
        for prefix, half in (("fit", self.fit), ("held_out", self.held_out)):
            tensors |= {f"{prefix}.{name}": tensor for name, tensor in half.to_tensors().items()}
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> MomentPair:
        """Inverse of `to_tensors`. Raises StateCorrupt for anything else."""
        fit, held_out = (
            Moments.from_tensors(
                {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
            )
            for prefix in ("fit.", "held_out.")
        )
        if _EVERY not in tensors:
            raise StateCorrupt(f"saved sums of a fit lack {_EVERY}, wanted both halves; start the fit again")
        return cls(fit, held_out, int(tensors[_EVERY].item()))


def _restore(into: torch.Tensor, saved: torch.Tensor, name: str) -> None:
    """Copy a saved tensor, which must be of the same kind and finite."""
    if saved.shape != into.shape or saved.dtype != into.dtype or not bool(saved.isfinite().all()):
        raise TypeError(f"{name} is {saved.dtype} {list(saved.shape)} or not finite")
    into.copy_(saved)
