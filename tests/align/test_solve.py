"""kvnet.align.solve: planted maps are found, and what a solver claims to be best is best."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.moments import Moments
from kvnet.align.solve import (
    SHORT_LAMBDAS,
    Block,
    LinearMap,
    Solver,
    choose_solver,
    head_blocks,
    held_out_error,
    solve_blocks,
    solve_by_rows,
    solve_grid,
    solve_low_rank,
    solve_procrustes,
    solve_ridge,
)
from kvnet.align.window import RowShape, stack_window
from kvnet.errors import SingularStatistics, TooFewSamples


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sums_of(x: torch.Tensor, y: torch.Tensor) -> Moments:
    moments = Moments(x.shape[1], y.shape[1])
    moments.add(x, y)
    return moments


def loud_and_quiet(num_rows: int, seed: int, *, quiet: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs that all follow four loud directions, and outputs that hang on what little else they hold."""
    plan, draw = seeded(99), seeded(seed)
    loadings = torch.randn(4, 32, generator=plan) * 3
    reads = torch.randn(32, 8, generator=plan).double()
    # The part of `reads` that no loud direction reaches.
    loud, _ = torch.linalg.qr(loadings.double().T)  # [32, 4]
    reads = reads - loud @ (loud.T @ reads)
    x = torch.randn(num_rows, 4, generator=draw) @ loadings
    x = x + quiet * torch.randn(num_rows, 32, generator=draw) + 5
    y = ((x.double() - 5) @ reads / quiet + 1).float()
    return x, y


def r2_from_rows(fitted: LinearMap, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    wanted = y.double()
    residual = (wanted - fitted.apply(x)).square().sum(0)
    return 1 - residual / (wanted - wanted.mean(0)).square().sum(0)


def test_quiet_signal_is_recovered_with_a_tiny_lambda_and_lost_with_a_usual_one() -> None:
    moments = sums_of(*loud_and_quiet(2000, 1))
    x, y = loud_and_quiet(500, 2)
    assert r2_from_rows(solve_ridge(moments, 1e-9), x, y).min() > 0.99
    assert r2_from_rows(solve_ridge(moments, 1e-2), x, y).max() < 0.2


def test_float32_sums_lose_the_signal_that_float64_sums_keep() -> None:
    x, y = loud_and_quiet(2000, 1, quiet=7e-4)
    fresh_x, fresh_y = loud_and_quiet(500, 2, quiet=7e-4)
    centred_x, centred_y = x - x.mean(0), y - y.mean(0)
    rough = (centred_x.T @ centred_x).double()  # summed in float32, solved in float64
    rough.diagonal().add_(1e-9 * rough.diagonal().mean())
    weight = torch.linalg.solve(rough, (centred_x.T @ centred_y).double())
    from_float32 = LinearMap(weight, y.mean(0).double() - x.mean(0).double() @ weight)
    assert r2_from_rows(from_float32, fresh_x, fresh_y).max() < 0.5
    assert r2_from_rows(solve_ridge(sums_of(x, y), 1e-9), fresh_x, fresh_y).min() > 0.98


@given(st.integers(0, 1000), st.sampled_from([0.0, 1e-9, 1e-2, 3.0]))
def test_ridge_is_where_its_own_loss_has_no_slope(seed: int, relative_lambda: float) -> None:
    x, y = torch.randn(40, 6, generator=seeded(seed)) + 2, torch.randn(40, 3, generator=seeded(seed + 1)) - 4
    fitted = solve_ridge(sums_of(x, y), relative_lambda)
    centred = x.double() - x.double().mean(0)
    penalty = relative_lambda * centred.square().sum(0).mean()
    residual = fitted.apply(x) - y.double()
    slope = centred.T @ residual + penalty * fitted.weight
    assert slope.abs().max() < 1e-9
    assert residual.mean(0).abs().max() < 1e-9  # the bias is not damped


def test_constant_inputs_are_no_obstacle_to_a_damped_fit() -> None:
    x, y = torch.randn(50, 4, generator=seeded(0)), torch.randn(50, 2, generator=seeded(1))
    padded = torch.cat([x, torch.full((50, 3), 8.0)], 1)
    fitted = solve_ridge(sums_of(padded, y), 1e-9)
    assert not fitted.weight[4:].any()
    assert torch.allclose(fitted.apply(padded), solve_ridge(sums_of(x, y), 0.0).apply(x), atol=1e-6)


@pytest.mark.parametrize("copies", ["exact", "scaled"])
def test_sums_without_a_solution_are_refused_in_one_sentence(copies: str) -> None:
    x = torch.randn(100, 8, generator=seeded(0))
    x = torch.cat([x, x if copies == "exact" else x * 0.37], 1)
    with pytest.raises(SingularStatistics, match="100 rows of 16 inputs have no solution"):
        solve_ridge(sums_of(x, x[:, :2].clone()), 0.0)


def test_inputs_that_never_vary_are_refused() -> None:
    moments = sums_of(torch.ones(50, 4), torch.randn(50, 2, generator=seeded(0)))
    for solve in (lambda: solve_ridge(moments, 1e-3), lambda: solve_procrustes(moments)):
        with pytest.raises(SingularStatistics, match="50 rows of 4 inputs"):
            solve()


@pytest.mark.parametrize("relative_lambda", [-1e-9, math.nan, math.inf])
def test_lambda_that_is_no_share_is_a_bug(relative_lambda: float) -> None:
    with pytest.raises(ValueError, match="wanted a finite number"):
        solve_ridge(sums_of(*loud_and_quiet(50, 0)), relative_lambda)


def test_grid_gives_each_lambda_what_ridge_alone_gives() -> None:
    moments = sums_of(*loud_and_quiet(200, 0))
    found = list(solve_grid(moments, [1e-9, 1e-5, 1e-2]))
    assert [relative_lambda for relative_lambda, _ in found] == [1e-9, 1e-5, 1e-2]
    for relative_lambda, fitted in found:
        alone = solve_ridge(moments, relative_lambda)
        assert torch.equal(fitted.weight, alone.weight)
        assert torch.equal(fitted.bias, alone.bias)


def test_grid_leaves_out_a_lambda_without_a_solution_and_fails_if_none_has_one() -> None:
    x = torch.randn(100, 8, generator=seeded(0)).repeat(1, 2)
    moments = sums_of(x, x[:, :2].clone())
    assert [relative_lambda for relative_lambda, _ in solve_grid(moments, [0.0, 1e-6])] == [1e-6]
    with pytest.raises(SingularStatistics):
        list(solve_grid(moments, [0.0]))


@given(st.integers(0, 1000))
def test_held_out_error_from_sums_equals_that_from_rows(seed: int) -> None:
    fitted = solve_ridge(sums_of(*loud_and_quiet(60, seed)), 1e-4)
    x, y = loud_and_quiet(70, seed + 1)
    assert torch.allclose(held_out_error(fitted, sums_of(x, y)), r2_from_rows(fitted, x, y), rtol=1e-6)


def test_held_out_error_sees_a_wrong_bias() -> None:
    x, y = loud_and_quiet(200, 0)
    fitted = solve_ridge(sums_of(x, y), 1e-9)
    moved = LinearMap(fitted.weight, fitted.bias + y.std(0).double())
    scores = held_out_error(moved, sums_of(x, y))
    assert torch.allclose(scores, r2_from_rows(moved, x, y), rtol=1e-6)
    assert scores.max() < 0.1


def test_output_that_does_not_vary_scores_zero_and_spoils_no_other() -> None:
    x, y = loud_and_quiet(200, 0)
    y[:, 3] = 0.1
    moments = sums_of(x, y)
    scores = held_out_error(solve_ridge(moments, 1e-9), moments)
    assert scores[3] == 0
    assert scores[[0, 1, 2, 4]].min() > 0.99


def test_judging_on_no_rows_is_refused() -> None:
    with pytest.raises(TooFewSamples, match="no row was held out"):
        held_out_error(LinearMap(torch.zeros(4, 2), torch.zeros(2)), Moments(4, 2))


@pytest.mark.parametrize("relative_lambda", [0.0, 0.3])
def test_no_rank_one_map_has_less_loss_than_the_low_rank_one(relative_lambda: float) -> None:
    x, y = torch.randn(30, 4, generator=seeded(0)), torch.randn(30, 2, generator=seeded(1))
    y += x @ torch.randn(4, 2, generator=seeded(2))
    moments = sums_of(x, y)
    wide_x, wide_y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    penalty = relative_lambda * wide_x.square().sum(0).mean()

    def loss(weight: torch.Tensor) -> float:
        return float((wide_y - wide_x @ weight).square().sum() + penalty * weight.square().sum())

    # Every rank-one weight is u vᵀ; for a fixed v the best u is the ridge of y v.
    gram = wide_x.T @ wide_x + penalty * torch.eye(4, dtype=torch.float64)
    by_hand = []
    for angle in torch.linspace(0, math.pi, 721, dtype=torch.float64):
        direction = torch.stack([angle.cos(), angle.sin()])
        by_hand.append(
            loss(torch.outer(torch.linalg.solve(gram, wide_x.T @ (wide_y @ direction)), direction))
        )
    fitted = solve_low_rank(moments, 1, relative_lambda)
    assert torch.linalg.matrix_rank(fitted.weight) == 1
    assert loss(fitted.weight) <= min(by_hand) * (1 + 1e-12)
    assert loss(fitted.weight) == pytest.approx(min(by_hand), rel=1e-4)
    plain = solve_ridge(moments, relative_lambda).weight
    assert loss(plain) < loss(fitted.weight)
    left, strengths, right = torch.linalg.svd(plain)
    # Cutting the ridge's own singular values is another map, and a worse one.
    assert loss(fitted.weight) < loss(strengths[0] * torch.outer(left[:, 0], right[0]))


def test_full_rank_is_the_ridge_and_other_ranks_are_bugs() -> None:
    moments = sums_of(*loud_and_quiet(100, 0))
    assert torch.allclose(solve_low_rank(moments, 8, 1e-3).weight, solve_ridge(moments, 1e-3).weight)
    for rank in (0, 9):
        with pytest.raises(ValueError, match="allowed are 1 to 8"):
            solve_low_rank(moments, rank, 1e-3)


def test_low_rank_beats_ridge_on_few_rows_where_the_truth_is_of_low_rank() -> None:
    truth = torch.randn(64, 2, generator=seeded(0)) @ torch.randn(2, 64, generator=seeded(1)) / 8
    x = torch.randn(1024, 64, generator=seeded(2))
    y = x @ truth + torch.randn(1024, 64, generator=seeded(3))
    few, held_out = sums_of(x[:96], y[:96]), sums_of(x[96:], y[96:])
    low_rank = held_out_error(solve_low_rank(few, 2, 1e-2), held_out).mean()
    ridge = max(
        held_out_error(fitted, held_out).mean() for _, fitted in solve_grid(few, [1e-6, 1e-2, 0.3, 1])
    )
    assert low_rank > ridge + 0.05


def planted_turn(width_x: int, width_y: int) -> torch.Tensor:
    turn, _ = torch.linalg.qr(torch.randn(max(width_x, width_y), max(width_x, width_y), generator=seeded(7)))
    return turn[:width_x, :width_y]


def test_procrustes_finds_a_planted_rotation_from_few_noisy_rows_where_ridge_does_not() -> None:
    turn = planted_turn(32, 32)
    x = torch.randn(1000, 32, generator=seeded(0)) + 3
    y = 2 * x @ turn + 5 + 0.5 * torch.randn(1000, 32, generator=seeded(1))
    few, held_out = sums_of(x[:40], y[:40]), sums_of(x[40:], y[40:])
    best_ridge = max(
        held_out_error(fitted, held_out).mean()
        for _, fitted in solve_grid(few, [1e-9, 1e-3, 1e-2, 0.1, 0.3, 1])
    )
    assert best_ridge < 0.8
    assert held_out_error(solve_procrustes(few), held_out).mean() > 0.84


@pytest.mark.parametrize(("width_x", "width_y"), [(12, 12), (8, 12), (12, 8)])
def test_procrustes_is_an_orthogonal_map_times_a_scale_also_between_unequal_widths(
    width_x: int, width_y: int
) -> None:
    turn = planted_turn(width_x, width_y)
    x = torch.randn(200, width_x, generator=seeded(0))
    moments = sums_of(x, 3 * x @ turn - 1)
    fitted = solve_procrustes(moments)
    narrow = fitted.weight if width_x >= width_y else fitted.weight.T
    products = narrow.T @ narrow
    scale = products[0, 0].sqrt()
    assert torch.allclose(products, scale**2 * torch.eye(len(products), dtype=torch.float64), atol=1e-9)
    # Among maps of orthonormal rows or columns it has the most covariance; the planted one is no better.
    covariance = (fitted.weight / scale * moments.xy).sum()
    assert covariance >= (turn.double() * moments.xy).sum() * (1 - 1e-6)
    if width_x <= width_y:  # where inputs are dropped, the most covariance is not quite the planted map
        assert torch.allclose(fitted.weight, 3 * turn.double(), atol=1e-5)
        assert torch.allclose(fitted.apply(x), 3 * (x @ turn).double() - 1, atol=1e-4)


def test_solver_follows_the_rows_an_input_has() -> None:
    assert choose_solver(500, 1000) is Solver.RIDGE
    assert choose_solver(499, 1000) is Solver.LOW_RANK
    assert choose_solver(50, 1600) is Solver.LOW_RANK
    assert choose_solver(49, 1600) is Solver.PROCRUSTES
    assert choose_solver(32, 4) is Solver.RIDGE
    with pytest.raises(TooFewSamples, match="31 rows to fit a map of 4 inputs, wanted 32"):
        choose_solver(31, 4)


SOURCE, TARGET = RowShape(3, 2, 4), RowShape(2, 2, 3)


def ridge(moments: Moments) -> LinearMap:
    return solve_ridge(moments, 1e-6)


def drawn(num_rows: int, width: int = 96) -> Moments:
    x = torch.randn(num_rows, width, generator=seeded(0))
    return sums_of(x, torch.randn(num_rows, 8, generator=seeded(1)))


def test_short_samples_choose_low_rank_and_then_an_orthogonal_map_by_themselves() -> None:
    tiny = (1e-9, 1e-7)
    assert [one for one, _ in solve_by_rows(drawn(60), tiny)] == list(tiny)
    low_rank = dict(solve_by_rows(drawn(40), tiny))
    assert tuple(low_rank) == SHORT_LAMBDAS  # smaller ones would fit noise
    assert {int(torch.linalg.matrix_rank(one.weight)) for one in low_rank.values()} == {2}
    assert [one for one, _ in solve_by_rows(drawn(40), (1e-9, 0.5))] == [0.5]
    ((relative_lambda, turn),) = solve_by_rows(drawn(40, width=1600), tiny)
    gram = turn.weight.T @ turn.weight
    assert relative_lambda == 0
    assert torch.allclose(gram, gram[0, 0] * torch.eye(8, dtype=torch.float64), atol=1e-9)
    with pytest.raises(TooFewSamples):
        list(solve_by_rows(drawn(31), tiny))


def test_rows_suffice_for_the_widest_block_or_not() -> None:
    """Forty rows are few for 96 inputs, and enough for each of two halves of them."""
    halves = [Block(torch.arange(48) + 48 * half, torch.arange(4) + 4 * half) for half in range(2)]
    ((_, found),) = solve_by_rows(drawn(40), (1e-3,), halves)
    apart = solve_blocks(drawn(40), halves, partial(solve_ridge, relative_lambda=1e-3))
    assert torch.equal(found.weight, apart.weight)
    assert int(torch.linalg.matrix_rank(found.weight[:48, :4])) == 4


def test_blocks_that_have_no_solution_are_told_of() -> None:
    x = torch.ones(40, 8)
    halves = [Block(torch.arange(4), torch.arange(1)), Block(torch.arange(4) + 4, torch.arange(1) + 1)]
    with pytest.raises(SingularStatistics):
        list(solve_by_rows(sums_of(x, torch.ones(40, 2)), (0.0,), halves))


def test_head_blocks_see_their_head_further_away_too() -> None:
    far = RowShape(1, 2, 4)
    blocks = head_blocks(SOURCE, TARGET, 2, far, 3)
    columns = torch.cat([block.x_columns for block in blocks])
    assert columns.sort().values.tolist() == list(range(2 * SOURCE.width + 3 * far.width))
    # Head 1 of the far layer's keys at the first of the far offsets.
    assert set(range(2 * SOURCE.width + 4, 2 * SOURCE.width + 8)) <= set(blocks[1].x_columns.tolist())


def test_head_blocks_split_the_columns_by_head_and_leave_none_out() -> None:
    blocks = head_blocks(SOURCE, TARGET, 3)
    assert len(blocks) == 2
    assert torch.cat([block.x_columns for block in blocks]).sort().values.tolist() == list(
        range(3 * SOURCE.width)
    )
    assert torch.cat([block.y_columns for block in blocks]).sort().values.tolist() == list(
        range(TARGET.width)
    )
    # Head 1 of layer 0's keys at the second offset, and the same head of the target's layer 1, values.
    assert set(range(SOURCE.width + 4, SOURCE.width + 8)) <= set(blocks[1].x_columns.tolist())
    assert blocks[1].y_columns[-3:].tolist() == list(range(TARGET.width - 3, TARGET.width))


def test_unequal_numbers_of_heads_make_one_block_that_is_the_full_ridge() -> None:
    target = RowShape(2, 3, 2)
    blocks = head_blocks(SOURCE, target, 1)
    assert len(blocks) == 1
    x = torch.randn(200, SOURCE.width, generator=seeded(0))
    moments = sums_of(x, torch.randn(200, target.width, generator=seeded(1)))
    local, full = solve_blocks(moments, blocks, ridge), solve_ridge(moments, 1e-6)
    assert torch.allclose(local.weight, full.weight, atol=1e-12)


def test_head_local_map_equals_a_ridge_of_each_head_and_needs_fewer_rows() -> None:
    window = (-1, 1)
    blocks = head_blocks(SOURCE, TARGET, 3)
    truth = torch.zeros(3 * SOURCE.width, TARGET.width)
    for block in blocks:
        planted = torch.randn(len(block.x_columns), len(block.y_columns), generator=seeded(5))
        truth[block.x_columns[:, None], block.y_columns] = planted
    x = stack_window(torch.randn(1000, SOURCE.width, generator=seeded(0)), window)
    y = x @ truth + 4 * torch.randn(1000, TARGET.width, generator=seeded(1)) + 2
    few, held_out = sums_of(x[:160], y[:160]), sums_of(x[160:], y[160:])
    local = solve_blocks(few, blocks, ridge)
    assert not local.weight[truth == 0].any()
    for block in blocks:
        alone = solve_ridge(sums_of(x[:160, block.x_columns], y[:160, block.y_columns]), 1e-6)
        assert torch.allclose(
            local.weight[block.x_columns[:, None], block.y_columns], alone.weight, atol=1e-9
        )
        assert torch.allclose(local.bias[block.y_columns], alone.bias, atol=1e-9)
    full = solve_ridge(few, 1e-6)
    assert held_out_error(local, held_out).mean() > held_out_error(full, held_out).mean() + 0.1
