"""The next token: greedy, by temperature, from a nucleus; and values out of range."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from kvnet.errors import RequestError
from kvnet.model.sampling import Sampling, new_generator, pick_token


def test_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0])
    sampling = Sampling(temperature=1e-9, seed=0)
    assert pick_token(logits, sampling, new_generator(sampling)) == 1


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.log(torch.tensor([0.1, 0.5, 0.05, 0.35]))
    for top_p, wanted in ((0.01, {1}), (0.49, {1}), (0.6, {1, 3}), (0.86, {0, 1, 3}), (1.0, {0, 1, 2, 3})):
        sampling = Sampling(temperature=1.0, top_p=top_p, seed=0)
        generator = new_generator(sampling)
        assert {pick_token(logits, sampling, generator) for _ in range(400)} == wanted


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 0},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"seed": 2**63},
        {"stop": ("",)},
        {"stop": ("x" * 257,)},
        {"stop": ("x",) * 17},
    ],
)
def test_sampling_out_of_range_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Sampling(**values)
