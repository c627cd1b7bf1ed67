"""Random ropes of every scaling, with what FORMAT.md §8 reads of them. Imports nothing of kvnet."""

from __future__ import annotations

import random
from typing import Any

_FACTORS = ("short_factor", "long_factor")


def random_rope(rng: random.Random, dim: int) -> dict[str, Any]:
    """A header's `rope` by which keys of this head_dim can be turned."""
    rope: dict[str, Any] = {"ropeType": "default", "ropeTheta": rng.choice([10000.0, 10000, 500000.0])}
    if rng.random() < 0.4:
        rope["partialRotaryFactor"] = rng.choice([0.25, 0.5, 0.4])
    extras = _rope_extras(rng, int(dim * rope.get("partialRotaryFactor", 1.0)) // 2)
    kind = rng.choice(["default", "unheard of", *extras])
    return rope | {"ropeType": kind, "extra": extras.get(kind, {"factor": "any"})}


def _rope_extras(rng: random.Random, half: int) -> dict[str, dict[str, Any]]:
    """What each scaling reads; contexts so short that a memory may be longer."""
    context = rng.choice([8, 64, 8192])
    llama3: dict[str, Any] = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    factors = {name: [rng.choice([1, 1.5, 40.0]) for _ in range(half)] for name in _FACTORS}
    by_limit: dict[str, Any] = {"max_position_embeddings": 16 * context, "factor": None}
    stretch = rng.choice([{"factor": 4}, by_limit])
    grown = rng.choice([{}, {"max_position_embeddings": context}])
    yarn: dict[str, Any] = {"beta_fast": 16, "beta_slow": 0, "mscale": 0.707, "truncate": rng.random() < 0.5}
    yarn = rng.choice([{}, yarn, yarn | {"mscale_all_dim": 1.0}, {"attention_factor": 0.5}])
    return {
        "linear": {"factor": rng.choice([2, 4.0])},
        "dynamic": {"factor": 4.0} | grown,
        "yarn": {"original_max_position_embeddings": context} | stretch | yarn,
        "longrope": {"original_max_position_embeddings": context} | stretch | factors,
        "llama3": llama3 | {"original_max_position_embeddings": context},
        "proportional": rng.choice([{}, {"factor": 2.0}]),
    }
