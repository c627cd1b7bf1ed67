"""The three recipes. Knows numbers only; everything that differs between the models is here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from reference_training.init import Shape
from reference_training.trainer import Schedule

TokenizerScheme = Literal["metaspace", "byte-level"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that is needed to make one reference model again."""

    shape: Shape
    tokenizer: TokenizerScheme
    tokenizer_seed: int
    vocab_size: int
    seed: int
    schedule: Schedule
    echo_first: bool = False  # without it, stage 0 is a plateau for most shapes
    first_shape: Shape | None = None  # train this for `first_steps`, then grow it to `shape`
    first_steps: int = 0


RECIPES: Final[dict[str, Recipe]] = {
    "ref-a": Recipe(
        shape=Shape(
            num_layers=4,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rope_theta=1e4,
            offsets=(1, 2, 3, 4),
            seed_margin=0.68,
        ),
        tokenizer="metaspace",
        tokenizer_seed=1,
        vocab_size=800,
        seed=11,
        schedule=Schedule(num_steps=9000, limit_s=3600, lr=2e-3),
    ),
    "ref-b": Recipe(
        first_shape=Shape(
            num_layers=4,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            rope_theta=3e4,
            offsets=(1, 2, 3, 4),
            seed_margin=0.645,
        ),
        first_steps=1500,
        shape=Shape(
            num_layers=5,
            hidden_size=144,
            intermediate_size=288,
            num_heads=4,
            num_kv_heads=4,
            head_dim=32,
            rope_theta=3e4,
            offsets=(1, 2, 3, 4),
            seed_margin=0.645,
        ),
        tokenizer="metaspace",
        tokenizer_seed=1,
        vocab_size=800,
        seed=22,
        schedule=Schedule(num_steps=8000, limit_s=3300, lr=2e-3),
        echo_first=True,
    ),
    "ref-c": Recipe(
        shape=Shape(
            num_layers=4,
            hidden_size=128,
            intermediate_size=256,
            num_heads=4,
            num_kv_heads=2,
            head_dim=48,
            rope_theta=2e4,
            offsets=(1, 2, 3, 4),
            seed_margin=0.83,
        ),
        tokenizer="byte-level",
        tokenizer_seed=3,
        vocab_size=680,
        seed=33,
        schedule=Schedule(num_steps=8000, limit_s=3600, lr=2e-3),
        echo_first=True,
    ),
}
