"""The three recipes. Knows numbers only; everything that differs between the models is here."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
    first_shape: Shape  # train this for `first_steps`, then grow it to `shape`
    first_steps: int = 1200


# The one shape that binds names quickly, in three positions and two head sizes.
_A: Final = Shape(
    num_layers=4,
    hidden_size=128,
    intermediate_size=256,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    rope_theta=1e4,
    offsets=(1, 2, 3, 4),
    seed_margin=0.68,
)
_B: Final = replace(_A, rope_theta=3e4, seed_margin=0.645)
_C: Final = replace(_A, head_dim=48, rope_theta=2e4, seed_margin=0.83)
_SCHEDULE: Final = Schedule(num_steps=6000, limit_s=3600, lr=2e-3)

RECIPES: Final[dict[str, Recipe]] = {
    "ref-a": Recipe(
        shape=replace(_A, hidden_size=160, intermediate_size=320),
        tokenizer="metaspace",
        tokenizer_seed=1,
        vocab_size=1000,
        seed=11,
        schedule=_SCHEDULE,
        first_shape=_A,
    ),
    "ref-b": Recipe(
        shape=replace(_B, num_layers=5, hidden_size=144, intermediate_size=288, num_kv_heads=4),
        tokenizer="metaspace",
        tokenizer_seed=1,
        vocab_size=1000,
        seed=22,
        schedule=_SCHEDULE,
        first_shape=_B,
    ),
    "ref-c": Recipe(
        shape=replace(_C, hidden_size=160, intermediate_size=320),
        tokenizer="byte-level",
        tokenizer_seed=3,
        vocab_size=860,
        seed=33,
        schedule=_SCHEDULE,
        first_shape=_C,
    ),
}
