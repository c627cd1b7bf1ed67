"""A trained map ships only where it beats its closed form on facts that neither was made from."""

from __future__ import annotations

import pytest
import torch

from kvnet.align.choose import beats
from kvnet.align.exam import Marks


def marks(num_right: int, kl: float, *, num_questions: int = 200) -> Marks:
    right = torch.zeros(num_questions, dtype=torch.float64)
    right[:num_right] = 1
    return Marks(right, torch.full((num_questions,), kl, dtype=torch.float64))


@pytest.mark.parametrize(
    ("closed_form", "trained", "ships"),
    [
        (marks(100, 1.0), marks(150, 1.0), True),
        (marks(100, 1.0), marks(110, 9.0), True),  # KL has no say where recall has one
        (marks(100, 1.0), marks(101, 0.1), False),  # half a point is less than the margin
        (marks(100, 1.0), marks(102, 0.1), False),  # a point, but within what chance gives
        (marks(198, 0.1), marks(198, 0.0), False),
        (marks(150, 1.0), marks(100, 0.1), False),
    ],
)
def test_trained_map_ships_only_where_it_recalls_more(
    closed_form: Marks, trained: Marks, ships: bool
) -> None:
    assert beats(trained, closed_form, taught=0.9) is ships


@pytest.mark.parametrize(("kl", "ships"), [(0.8, True), (0.95, False)])
def test_kl_decides_where_the_text_teaches_nothing(kl: float, ships: bool) -> None:
    assert beats(marks(2, kl), marks(2, 1.0), taught=0.1) is ships
