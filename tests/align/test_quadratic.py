"""kvnet.align.quadratic: products in the order of FORMAT.md §10.2, and what only they can tell."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.map import AlignmentMap
from kvnet.align.moments import Moments
from kvnet.align.quadratic import Quadratic, lift_of, num_products, products_of
from kvnet.align.solve import LinearMap, solve_ridge
from kvnet.alignment import feature_width, row_width
from kvnet.errors import MalformedFile
from tests.files.alignment_files import make_map


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ridge(x: torch.Tensor, y: torch.Tensor) -> LinearMap:
    moments = Moments(x.shape[1], y.shape[1])
    moments.add(x, y)
    return solve_ridge(moments, 1e-9)


def r2(predicted: torch.Tensor, wanted: torch.Tensor) -> float:
    residual = (predicted - wanted).square().sum(0)
    return float((1 - residual / (wanted - wanted.mean(0)).square().sum(0)).min())


def random_quadratic(width: int, num_directions: int, rank: int) -> Quadratic:
    return Quadratic(
        torch.randn(width, num_directions, generator=seeded(1)) / width**0.5,
        torch.randn(num_directions, generator=seeded(2)),
        torch.randn(num_products(num_directions), rank, generator=seeded(3)),
    )


@given(st.lists(st.lists(st.integers(-99, 99), min_size=1, max_size=6), min_size=1, max_size=1))
def test_products_are_of_each_pair_ordered_by_the_first_and_then_by_the_second(rows: list[list[int]]) -> None:
    by_hand = [
        row[first] * row[second]
        for row in rows
        for first in range(len(row))
        for second in range(first, len(row))
    ]
    assert products_of(torch.tensor(rows, dtype=torch.float32)).flatten().tolist() == by_hand


@given(st.integers(0, 40))
def test_number_of_products_is_that_of_pairs(width: int) -> None:
    assert num_products(width) == products_of(torch.zeros(1, width)).shape[1]


def test_part_of_a_map_is_what_the_format_says_number_by_number() -> None:
    part, features = random_quadratic(7, 3, 2), torch.randn(4, 7, generator=seeded(4))
    for vector, found in zip(features.double(), part.apply(features), strict=True):
        lifted = vector @ part.lift.double() + part.lift_bias.double()
        expected = torch.zeros(2, dtype=torch.float64)
        place = 0
        for first in range(3):
            for second in range(first, 3):
                expected += lifted[first] * lifted[second] * part.outer[place].double()
                place += 1
        assert torch.allclose(found.double(), expected, atol=1e-5)


def test_lift_is_the_guess_at_the_first_coordinates_in_unit_variance() -> None:
    features = torch.randn(500, 6, generator=seeded(0)) * 3 + 2
    wanted = features @ torch.randn(6, 4, generator=seeded(1)) * torch.tensor([1.0, 100.0, 1e-3, 1.0])
    guess = ridge(features, wanted)
    lifted = lift_of(guess, features, 3).apply(features)
    assert lifted.shape == (500, 3)
    assert torch.allclose(lifted.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(lifted.std(0), torch.ones(3, dtype=torch.float64), atol=1e-9)
    guessed = guess.apply(features)[:, :3]
    assert torch.allclose(lifted * guessed.std(0) + guessed.mean(0), guessed, atol=1e-6)


def test_direction_that_never_varies_is_lifted_to_finite_numbers() -> None:
    features = torch.randn(50, 4, generator=seeded(0))
    constant = LinearMap(torch.zeros(4, 2, dtype=torch.float64), torch.full((2,), 7.0, dtype=torch.float64))
    assert torch.equal(
        lift_of(constant, features, 2).apply(features), torch.zeros(50, 2, dtype=torch.float64)
    )


def test_planted_product_is_found_on_products_and_not_by_a_linear_fit() -> None:
    """One coordinate is what stands in one of two places, and another input says in which."""

    def drawn(num_rows: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = torch.randn(num_rows, 8, generator=seeded(seed))
        inputs[:, 0] = inputs[:, 0].sign()
        mixed = inputs @ torch.linalg.qr(torch.randn(8, 8, generator=seeded(9)))[0]
        is_second = (inputs[:, 0] + 1) / 2
        chosen = (1 - is_second) * inputs[:, 1] + is_second * inputs[:, 2]
        # The other coordinates hold what the first guess needs to see.
        return mixed, torch.stack([inputs[:, 0], inputs[:, 1], inputs[:, 2], chosen], 1)

    (x, y), (fresh_x, fresh_y) = drawn(1500, 1), drawn(400, 2)
    linear = ridge(x, y)
    lift = lift_of(linear, x, 3)
    beside = ridge(torch.cat([x, products_of(lift.apply(x).float())], 1), y)
    width = x.shape[1]
    part = Quadratic(lift.weight.float(), lift.bias.float(), beside.weight[width:].float())
    predicted = torch.addmm(beside.bias.float(), fresh_x, beside.weight[:width].float()) + part.apply(fresh_x)
    assert r2(linear.apply(fresh_x)[:, 3:], fresh_y[:, 3:]) < 0.6
    assert r2(predicted[:, 3:], fresh_y[:, 3:]) > 0.999


@pytest.mark.parametrize("changed", ["lift", "lift_bias", "quadratic"])
@pytest.mark.parametrize("is_lost", [True, False])
def test_part_that_is_incomplete_or_disagrees_is_refused(changed: str, is_lost: bool) -> None:
    manifest = make_map()
    width, rank = feature_width(manifest), row_width(manifest.receiver_geometry)
    tensors = AlignmentMap(
        manifest, torch.zeros(width, rank), torch.zeros(rank), quadratic=random_quadratic(width, 4, rank)
    ).to_tensors()
    if is_lost:
        del tensors[changed]
    else:
        tensors[changed] = tensors[changed][..., :-1]
    with pytest.raises(MalformedFile, match=r"lift|quadratic"):
        AlignmentMap.from_tensors(manifest, tensors, rank=rank)
