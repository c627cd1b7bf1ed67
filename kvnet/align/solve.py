"""Linear maps from the sums of a fit: ridge, reduced rank, Procrustes. Knows no rows, no layers, no models.

A relative lambda is a share of the mean diagonal of the centred XᵀX, so it does not depend on the number of
rows. Tiny ones (1e-7 to 1e-9) are right where sums are float64 and rows abound: recall lies in low variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Final

import torch

from kvnet.align.moments import Moments
from kvnet.align.window import RowShape
from kvnet.errors import SingularStatistics, TooFewSamples

MIN_ROWS: Final = 32
RIDGE_ROWS_PER_INPUT: Final = 0.5
LOW_RANK_ROWS_PER_INPUT: Final = 1 / 32
SHORT_LAMBDAS: Final = (1e-2, 1e-1, 1.0)  # where rows are few: smaller ones fit noise
_KEPT_DIRECTIONS: Final = 1 / 4  # of the outputs, where rows are few
_FLOAT64_EPSILON: Final = torch.finfo(torch.float64).eps
_CONSTANT: Final = 1e-20  # variance relative to the squared mean, below what float32 rows can hold


class Solver(StrEnum):
    """How a map is solved for."""

    RIDGE = "ridge"
    LOW_RANK = "low_rank"
    PROCRUSTES = "procrustes"


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """y is predicted as x @ weight + bias. Both float64."""

    weight: torch.Tensor  # [width_x, width_y]
    bias: torch.Tensor  # [width_y]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [n, width_x] of any float type to float64 rows [n, width_y]."""
        return torch.addmm(self.bias, x.double(), self.weight)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Outputs that are predicted from these inputs alone."""

    x_columns: torch.Tensor  # int64
    y_columns: torch.Tensor  # int64


def choose_solver(num_rows: int, width: int) -> Solver:
    """Which solver so many fitting rows allow for `width` inputs. Raises TooFewSamples below MIN_ROWS.

    The rule of thumb for ridge is 5 rows an input. Between small models it still recovered 0.77 of the gap at
    0.4 rows an input and 0.93 to 0.95 at 0.8 to 0.9, lambda chosen on held-out contexts. So ridge is taken
    from one row for two inputs on, low rank down to one row for 32, and below only an orthogonal map, which
    has the fewest freedoms. The lower bound is judgement: with a lambda of 1e-2 and more, chosen on held-out
    rows, ridge and low rank were no worse than Procrustes on synthetic rows, one row for eight inputs.
    """
    if num_rows < MIN_ROWS:
        raise TooFewSamples(
            f"{num_rows} rows to fit a map of {width} inputs, wanted {MIN_ROWS} or more; use a longer corpus"
        )
    if num_rows >= RIDGE_ROWS_PER_INPUT * width:
        return Solver.RIDGE
    return Solver.LOW_RANK if num_rows >= LOW_RANK_ROWS_PER_INPUT * width else Solver.PROCRUSTES


def solve_by_rows(
    moments: Moments, relative_lambdas: Sequence[float], blocks: Sequence[Block] = ()
) -> Iterator[tuple[float, LinearMap]]:
    """The maps that so many rows allow for (`choose_solver`, of the widest block), each with its lambda.

    A ridge for each lambda; from few rows one of low rank for each lambda that is large enough, or of
    SHORT_LAMBDAS where none is; from fewer the orthogonal one, of lambda 0. `blocks` are solved apart; where
    there are none, everything is one. Raises TooFewSamples, and SingularStatistics if nothing has a solution.
    """
    solver = choose_solver(moments.num_rows, widest(blocks) or moments.width_x)
    if solver is Solver.PROCRUSTES:
        yield 0.0, solve_blocks(moments, blocks, solve_procrustes)
        return
    if solver is Solver.RIDGE and not blocks:
        yield from solve_grid(moments, relative_lambdas)
        return
    large = tuple(one for one in relative_lambdas if one >= SHORT_LAMBDAS[0]) or SHORT_LAMBDAS
    failure: SingularStatistics | None = None
    num_solved = 0
    for relative_lambda in relative_lambdas if solver is Solver.RIDGE else large:
        solve_part = solve_ridge if solver is Solver.RIDGE else _solve_few
        solve = partial(solve_part, relative_lambda=relative_lambda)
        try:
            found = solve_blocks(moments, blocks, solve)
        except SingularStatistics as exc:
            failure = exc
            continue
        num_solved += 1
        yield relative_lambda, found
    if failure is not None and num_solved == 0:
        raise failure


def widest(blocks: Sequence[Block]) -> int:
    """Inputs of the block that has most; 0 of none."""
    return max((len(block.x_columns) for block in blocks), default=0)


def solve_ridge(moments: Moments, relative_lambda: float) -> LinearMap:
    """Ridge regression with a bias, all outputs from one Cholesky factor.

    Raises SingularStatistics where the factor does not exist or is rounding noise.
    """
    return _with_bias(moments, _ridge_weight(moments, moments.xx, relative_lambda))


def solve_grid(moments: Moments, relative_lambdas: Sequence[float]) -> Iterator[tuple[float, LinearMap]]:
    """The ridge of each lambda, one at a time, leaving out those that have no solution.

    The sums are completed once and shared; one factor is made for each lambda, which up to about eight of
    them is cheaper than one eigendecomposition. Raises SingularStatistics if no lambda has a solution.
    """
    xx = moments.xx
    failure: SingularStatistics | None = None
    num_solved = 0
    for relative_lambda in relative_lambdas:
        try:
            weight = _ridge_weight(moments, xx, relative_lambda)
        except SingularStatistics as exc:
            failure = exc
            continue
        num_solved += 1
        yield relative_lambda, _with_bias(moments, weight)
    if failure is not None and num_solved == 0:
        raise failure


def solve_low_rank(moments: Moments, rank: int, relative_lambda: float) -> LinearMap:
    """The best map of this rank under the ridge's own loss: reduced-rank regression.

    Source: Izenman, "Reduced-rank regression for the multivariate linear model", 1975; with ridge, Mukherjee
    and Zhu, "Reduced rank ridge regression", 2011. Raises SingularStatistics as `solve_ridge` does.
    """
    if not 1 <= rank <= moments.width_y:
        raise ValueError(f"a rank of {rank}, allowed are 1 to {moments.width_y}")
    weight = _ridge_weight(moments, moments.xx, relative_lambda)
    fitted = weight.T @ moments.xy  # [width_y, width_y]: weightᵀ (xx + lambda) weight
    _, directions = torch.linalg.eigh((fitted + fitted.T) / 2)
    kept = directions[:, -rank:]  # [width_y, rank], eigenvalues ascend
    return _with_bias(moments, (weight @ kept) @ kept.T)


def solve_procrustes(moments: Moments) -> LinearMap:
    """The orthogonal map, times one scale, that fits best; semi-orthogonal where the widths differ.

    Source: Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966. With more inputs
    than outputs it maximises covariance, which is then not quite the least error. Raises SingularStatistics
    where inputs and outputs have nothing in common.
    """
    left, strengths, right = torch.linalg.svd(moments.xy, full_matrices=False)
    turn = left @ right  # [width_x, width_y]
    energy = float((turn * (moments.xx @ turn)).sum())
    strength = float(strengths.sum())
    if not (energy > 0 and strength > 0):
        raise _singular(moments, "an orthogonal map")
    return _with_bias(moments, turn * (strength / energy))


def held_out_error(fitted: LinearMap, moments: Moments) -> torch.Tensor:
    """R² of each output on the rows behind `moments`, float64 [width_y], from their sums alone.

    1 is exact, 0 as good as the rows' mean. An output that does not vary has nothing to explain and scores 0.
    """
    if moments.weight == 0:
        raise TooFewSamples("no row was held out to judge a map on; use more contexts")
    weight = fitted.weight.double()
    offset = moments.mean_y - moments.mean_x @ weight - fitted.bias  # mean residual
    explained = 2 * (weight * moments.xy).sum(0) - (weight * (moments.xx @ weight)).sum(0)
    total = moments.yy
    residual = total - explained + moments.weight * offset.square()
    varies = total > _CONSTANT * moments.weight * moments.mean_y.square()
    return torch.where(varies, 1 - residual / total.where(varies, 1), 0.0)


def head_blocks(
    source: RowShape,
    target: RowShape,
    num_offsets: int,
    far: RowShape | None = None,
    num_far_offsets: int = 0,
) -> tuple[Block, ...]:
    """What each target head is predicted from: the same head of every layer and offset, keys and values.

    The inputs are `num_offsets` of `source` rows and, behind them, `num_far_offsets` of `far` ones. Where the
    numbers of heads differ no head has a namesake, and there is one block of everything.
    """
    inputs, y_columns = [source.columns(num_offsets)], target.columns()[0]
    if far is not None:
        inputs.append(num_offsets * source.width + far.columns(num_far_offsets))
    if source.num_kv_heads != target.num_kv_heads:
        return (Block(torch.cat([part.flatten() for part in inputs]), y_columns.flatten()),)
    return tuple(
        # [offsets, layers, 2, head_dim] of the inputs, [layers, 2, head_dim] of the outputs
        Block(torch.cat([part[..., head, :].flatten() for part in inputs]), y_columns[..., head, :].flatten())
        for head in range(source.num_kv_heads)
    )


def solve_blocks(
    moments: Moments, blocks: Sequence[Block], solve: Callable[[Moments], LinearMap]
) -> LinearMap:
    """What `solve` makes of each block's sums; weights outside the blocks are 0. Without blocks, of all sums.

    Raises as `solve` does.
    """
    if not blocks:
        return solve(moments)
    weight = torch.zeros(moments.width_x, moments.width_y, dtype=torch.float64)
    for block in blocks:
        found = solve(moments.select(block.x_columns, block.y_columns))
        weight[block.x_columns[:, None], block.y_columns] = found.weight
    return _with_bias(moments, weight)


def _solve_few(moments: Moments, relative_lambda: float) -> LinearMap:
    rank = max(1, round(_KEPT_DIRECTIONS * moments.width_y))
    return solve_low_rank(moments, rank, relative_lambda)


def _ridge_weight(moments: Moments, xx: torch.Tensor, relative_lambda: float) -> torch.Tensor:
    if not (math.isfinite(relative_lambda) and relative_lambda >= 0):
        raise ValueError(f"a relative lambda of {relative_lambda}, wanted a finite number of 0 or more")
    damped = xx.clone()
    damped.diagonal().add_(relative_lambda * xx.diagonal().mean())
    factor, info = torch.linalg.cholesky_ex(damped)
    smallest_pivot = float(factor.diagonal().amin()) ** 2
    # A pivot below the rounding of the largest entry says nothing, even if it came out positive.
    if int(info) or not smallest_pivot > _FLOAT64_EPSILON * float(damped.diagonal().amax()):
        raise _singular(moments, f"a relative lambda of {relative_lambda:g}")
    weight = torch.cholesky_solve(moments.xy, factor)
    if not bool(weight.isfinite().all()):
        raise _singular(moments, f"a relative lambda of {relative_lambda:g}")
    return weight


def _with_bias(moments: Moments, weight: torch.Tensor) -> LinearMap:
    return LinearMap(weight, moments.mean_y - moments.mean_x @ weight)


def _singular(moments: Moments, what: str) -> SingularStatistics:
    return SingularStatistics(
        f"the sums of {moments.num_rows} rows of {moments.width_x} inputs have no solution to be trusted for "
        f"{what}; use a larger lambda or a longer corpus"
    )
