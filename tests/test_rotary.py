"""Frequencies of every scaling against transformers' own, and ropes by which keys cannot be turned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvnet.rotary import MAX_ATTENTION_FACTOR, attention_factor_of, check_rope, frequencies_of, same_rope
from kvnet.types import Rope
from tests.codec.strategies import rope_extras, ropes

HALF, CONTEXT = 64, 8192
EXTRAS = rope_extras(HALF, CONTEXT)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, extra) for kind, extra in EXTRAS.items()},
    "yarn with turns": ("yarn", EXTRAS["yarn"] | {"beta_fast": 16, "beta_slow": 2}),
    "yarn with weights": ("yarn", EXTRAS["yarn"] | {"mscale": 1.0, "mscale_all_dim": 0.707}),
    "yarn with one weight": ("yarn", EXTRAS["yarn"] | {"mscale": 0.5}),
    "yarn untruncated": ("yarn", EXTRAS["yarn"] | {"truncate": False}),
    "yarn with its attention": ("yarn", EXTRAS["yarn"] | {"attention_factor": 0.75}),
    "yarn of a pinch": ("yarn", EXTRAS["yarn"] | {"beta_fast": 1e-5, "beta_slow": 1e-5}),
    "yarn by its limit": ("yarn", EXTRAS["yarn"] | {"factor": None}),
    "longrope with its attention": ("longrope", EXTRAS["longrope"] | {"attention_factor": 1.25}),
    "longrope by its limit": ("longrope", {k: v for k, v in EXTRAS["longrope"].items() if k != "factor"}),
    "longrope of less": ("longrope", EXTRAS["longrope"] | {"factor": 1.0}),
    "proportional of a factor": ("proportional", {"factor": 4.0}),
    "a quarter, proportional": ("proportional", {"partial_rotary_factor": 0.25}),
    "half, linear": ("linear", EXTRAS["linear"] | {"partial_rotary_factor": 0.5}),
    "half, yarn": ("yarn", EXTRAS["yarn"] | {"partial_rotary_factor": 0.5}),
}


def rope_of(config: LlamaConfig) -> Rope:
    """What a header says of this model: its rope's parameters, and how far it may read."""
    extra: dict[str, Any] = dict(config.rope_parameters or {})
    kind, theta = extra.pop("rope_type"), extra.pop("rope_theta")
    partial = extra.pop("partial_rotary_factor", 1.0)
    return Rope(kind, theta, partial, extra | {"max_position_embeddings": config.max_position_embeddings})


@pytest.mark.parametrize("seq_len", [None, 100, CONTEXT, CONTEXT + 1, 20000, 100000])
@pytest.mark.parametrize(("kind", "extra"), VARIANTS.values(), ids=VARIANTS)
def test_frequencies_and_attention_factor_are_those_of_transformers(
    kind: str, extra: dict[str, Any], seq_len: int | None
) -> None:
    limit = CONTEXT if kind == "dynamic" else 16 * CONTEXT
    parameters = {"rope_type": kind, "rope_theta": 500000.0, **extra}
    parameters.pop("max_position_embeddings", None)
    config = LlamaConfig(
        hidden_size=4 * HALF, num_attention_heads=2, max_position_embeddings=limit, rope_parameters=parameters
    )
    wanted, attention_factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=seq_len)
    rope = rope_of(config)
    assert check_rope(rope, 2 * HALF) == ""
    assert frequencies_of(rope, 2 * HALF, seq_len) == pytest.approx(wanted.tolist(), rel=2e-5)
    assert attention_factor_of(rope) == pytest.approx(attention_factor)


@given(st.integers(1, 24).flatmap(lambda head_dim: st.tuples(ropes(head_dim), st.just(head_dim))))
def test_every_rope_that_passes_has_finite_frequencies(drawn: tuple[Rope, int]) -> None:
    rope, head_dim = drawn
    if check_rope(rope, head_dim):
        assert rope.rope_theta == 0
    frequencies = frequencies_of(rope, head_dim, 2**31)
    assert 2 * len(frequencies) <= head_dim
    assert all(0 <= f <= 1 for f in frequencies)


NUMBERS = st.sampled_from([None, 0, 1e-6, 1e-3, 1, 1.5, 2, 1e12])


@given(
    st.sampled_from([*EXTRAS, "default"]),
    st.sampled_from([1.0, 1 + 2**-52, 2.0, 1e12]),
    st.integers(1, 8),
    st.dictionaries(st.sampled_from(sorted({name for extra in EXTRAS.values() for name in extra})), NUMBERS),
    st.lists(st.sampled_from([1e-6, 1.0, 1e12]), min_size=8, max_size=8),
)
def test_no_rope_that_passes_overflows(
    kind: str, theta: float, half: int, extra: dict[str, Any], factors: list[float]
) -> None:
    lists = {"short_factor": factors[:half], "long_factor": factors[:half]}
    rope = Rope(kind, theta, 1.0, EXTRAS.get(kind, {}) | extra | lists)
    if check_rope(rope, 2 * half) == "":
        assert all(map(math.isfinite, frequencies_of(rope, 2 * half, 2**32)))
        assert 1 / MAX_ATTENTION_FACTOR <= attention_factor_of(rope) <= MAX_ATTENTION_FACTOR


def without(kind: str, *names: str) -> dict[str, Any]:
    return {name: value for name, value in EXTRAS[kind].items() if name not in names}


BAD: dict[str, tuple[Rope, str]] = {
    "theta below 1": (Rope("default", 0.5), "rope_theta is 0.5"),
    **{
        f"{kind} without {name}": (Rope(kind, 1e4, extra=without(kind, name)), f"without a {name}")
        for kind, name in [
            ("linear", "factor"),
            ("dynamic", "factor"),
            ("yarn", "original_max_position_embeddings"),
            ("yarn", "factor"),
            ("longrope", "original_max_position_embeddings"),
            ("longrope", "factor"),
            *(("llama3", name) for name in EXTRAS["llama3"]),
        ]
    },
    **{
        f"{kind} with {name} of {value!r:.9}": (Rope(kind, 1e4, extra=EXTRAS[kind] | {name: value}), name)
        for kind, name, value in [
            ("dynamic", "max_position_embeddings", -1),
            ("dynamic", "max_position_embeddings", True),
            ("yarn", "factor", "16"),
            ("yarn", "attention_factor", [1.0]),
            ("yarn", "beta_fast", 1e13),
            ("yarn", "beta_slow", False),
            ("yarn", "mscale", math.nan),
            ("yarn", "truncate", None),
            ("yarn", "truncate", 1),
            ("longrope", "short_factor", [1.0] * (HALF - 1)),
            ("longrope", "long_factor", [1.0] * (HALF + 1)),
            ("longrope", "long_factor", [0.0] * HALF),
            ("longrope", "long_factor", 1.0),
            ("longrope", "long_factor", "1" * HALF),
            ("longrope", "original_max_position_embeddings", 1),
            ("proportional", "factor", -2.0),
        ]
    },
    "yarn of one wavelength": (Rope("yarn", 1.0, extra=EXTRAS["yarn"]), "rope_theta of 1"),
    "yarn that shrinks keys": (Rope("yarn", 1e4, extra=EXTRAS["yarn"] | {"attention_factor": 0.24}), "0.24"),
    "longrope that swells": (Rope("longrope", 1e4, extra=EXTRAS["longrope"] | {"attention_factor": 5}), "5"),
    "yarn of an absurd weight": (
        Rope("yarn", 1e4, extra=EXTRAS["yarn"] | {"mscale": 20, "mscale_all_dim": 1e-6}),
        "multiplies keys by 6.55",
    ),
}


@pytest.mark.parametrize(("rope", "wanted"), BAD.values(), ids=BAD)
def test_rope_that_keys_cannot_be_turned_by_is_told_why(rope: Rope, wanted: str) -> None:
    assert wanted in check_rope(rope, 2 * HALF)


def test_longrope_with_its_own_attention_factor_needs_no_stretch() -> None:
    extra = without("longrope", "factor") | {"attention_factor": 1.5}
    assert check_rope(Rope("longrope", 1e4, extra=extra), 2 * HALF) == ""


def test_ropes_are_the_same_as_far_as_both_tell_their_limit() -> None:
    plain = Rope("yarn", 1e4, 0.5, {"original_max_position_embeddings": 64})
    short, long = (replace(plain, extra={**plain.extra, "max_position_embeddings": n}) for n in (128, 256))
    assert all(same_rope(a, b) for a, b in ((plain, short), (long, plain), (short, short), (plain, plain)))
    others = (short, *(replace(plain, **c) for c in ({"rope_theta": 2e4}, {"extra": {}}, {"rope_type": "x"})))
    assert not any(same_rope(a, b) for other in others for a, b in ((long, other), (other, long)))
