"""Rotary frequencies from a rope's parameters, for every scaling of transformers. Knows numbers, no tensors.

Source: FORMAT.md §8, Content space. The scalings: linear (arXiv 2306.15595), NTK-aware (bloc97 and emozilla;
`dynamic`), YaRN (arXiv 2309.00071), LongRoPE (arXiv 2402.13753), Llama 3.1 (arXiv 2407.21783).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from kvnet.types import Rope

_LEAST: Final = 1e-6  # between these, no quotient of two parameters and no power of them overflows
_MOST: Final = 1e12
MAX_ATTENTION_FACTOR: Final = 4.0  # and its inverse is the least
# What §8 reads of `extra` by type: numbers that must be there, and numbers that may.
_REQUIRED: Final = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("original_max_position_embeddings",),
    "longrope": ("original_max_position_embeddings",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
_LIMIT: Final = "max_position_embeddings"
_STRETCH: Final = ("attention_factor", "factor", _LIMIT)
_OPTIONAL: Final = {
    "dynamic": (_LIMIT,),
    "yarn": (*_STRETCH, "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
    "longrope": _STRETCH,
    "proportional": ("factor",),
}


def frequencies_of(rope: Rope, head_dim: int, seq_len: int | None) -> tuple[float, ...]:
    """Radians per position of each pair (i, i + half) of dimensions, half being how many there are.

    `seq_len` is how many positions the model had been given, counted from 0, when it turned the keys
    (`dynamic` and `longrope` depend on it); None is any within its original context. Empty for a model that
    rotates nothing. The rope has passed `check_rope`.
    """
    half = _num_turned(rope, head_dim)
    if rope.rope_theta <= 0 or half == 0:
        return ()
    if rope.rope_type == "proportional":
        return _proportional(rope, half, head_dim // 2)
    scale = _SCALINGS.get(rope.rope_type)
    return _plain(rope.rope_theta, half) if scale is None else scale(rope, half, seq_len or 0)


def attention_factor_of(rope: Rope) -> float:
    """What the model multiplies turned dimensions by. The rope has passed `check_rope`."""
    extra = rope.extra
    if rope.rope_type not in ("yarn", "longrope"):
        return 1.0
    if extra.get("attention_factor"):
        return float(extra["attention_factor"])
    stretch = _stretch(extra)
    if rope.rope_type == "longrope":
        context = float(extra["original_max_position_embeddings"])
        return math.sqrt(1 + math.log(stretch) / math.log(context)) if stretch > 1 else 1.0
    mscale, mscale_all_dim = extra.get("mscale"), extra.get("mscale_all_dim")
    if mscale and mscale_all_dim:
        return _mscale(stretch, mscale) / _mscale(stretch, mscale_all_dim)
    return _mscale(stretch, 1.0)


def check_rope(rope: Rope, head_dim: int) -> str:
    """Why keys cannot be turned by this rope, or ""."""
    if not _is_turn(rope.rope_theta, least=1.0):
        return f"rope_theta is {rope.rope_theta}, so nothing says how to turn keys"
    kind, extra = rope.rope_type, rope.extra
    for name in _REQUIRED.get(kind, ()):
        if not _is_turn(extra.get(name)):
            return f"rope {kind} without a {name} to turn keys by"
    for name in _OPTIONAL.get(kind, ()):
        if not _is_turn_or_none(extra.get(name)):
            return f"rope {kind} with a {name} of {extra[name]!r:.40}, allowed is {_LEAST} to {_MOST}"
    if kind == "llama3" and extra["low_freq_factor"] == extra["high_freq_factor"]:
        return "rope llama3 with one frequency factor for low and high"
    if kind in ("yarn", "longrope"):
        return _check_stretched(rope, _num_turned(rope, head_dim))
    return ""


def same_rope(one: Rope, other: Rope) -> bool:
    """Whether two ropes turn keys alike, as far as both tell.

    `max_position_embeddings` counts only where both state it: a memory of before it was stated is its model's
    all the same. Source: FORMAT.md §2, rope.
    """
    if _LIMIT in one.extra and _LIMIT in other.extra:
        return one == other
    return _without_limit(one) == _without_limit(other)


def _without_limit(rope: Rope) -> Rope:
    return replace(rope, extra={name: value for name, value in rope.extra.items() if name != _LIMIT})


def _check_stretched(rope: Rope, half: int) -> str:
    """The rest of what yarn and longrope need; their numbers are numbers."""
    kind, extra = rope.rope_type, rope.extra
    if kind == "yarn":
        if rope.rope_theta == 1 or not isinstance(extra.get("truncate", True), bool):
            return "rope yarn with a rope_theta of 1, or a truncate that is neither true nor false"
    elif not all(_is_factors(extra.get(name), half) for name in ("short_factor", "long_factor")):
        return f"rope longrope without {half} numbers each as short_factor and long_factor"
    elif extra["original_max_position_embeddings"] < 2:
        return "rope longrope with an original_max_position_embeddings below 2"
    if not _stretch(extra) and (kind == "yarn" or not extra.get("attention_factor")):
        return f"rope {kind} without a factor to turn keys by"
    factor = attention_factor_of(rope)
    if not 1 / MAX_ATTENTION_FACTOR <= factor <= MAX_ATTENTION_FACTOR:
        return f"rope {kind} multiplies keys by {factor:.3g}, allowed is 0.25 to {MAX_ATTENTION_FACTOR:g}"
    return ""


def _is_turn(value: object, *, least: float = _LEAST) -> bool:
    """A number that angles may be computed with: no bool, and no quotient near it overflows."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= _MOST


def _is_turn_or_none(value: object) -> bool:
    """The same, or one of the ways to say that there is none: nothing, or the number 0."""
    return value is None or _is_turn(value) or (not isinstance(value, bool) and value == 0)


def _is_factors(value: object, half: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == half and all(map(_is_turn, value))


def _num_turned(rope: Rope, head_dim: int) -> int:
    """Pairs of dimensions that the model turns."""
    return int(head_dim * rope.partial_rotary_factor) // 2


def _stretch(extra: Mapping[str, Any]) -> float:
    """How many times longer than its original context a model may read; 0 if nothing says so."""
    limit = extra.get(_LIMIT) or 0.0
    return float(extra.get("factor") or limit / extra["original_max_position_embeddings"])


def _mscale(stretch: float, weight: float) -> float:
    return 0.1 * weight * math.log(stretch) + 1 if stretch > 1 else 1.0


def _plain(theta: float, half: int) -> tuple[float, ...]:
    return tuple(theta ** (-i / half) for i in range(half))


def _proportional(rope: Rope, num_turned: int, half: int) -> tuple[float, ...]:
    factor = rope.extra.get("factor") or 1.0
    turned = (rope.rope_theta ** (-i / half) / factor for i in range(num_turned))
    return (*turned, *[0.0] * (half - num_turned))


def _linear(rope: Rope, half: int, _: int) -> tuple[float, ...]:
    factor = float(rope.extra["factor"])
    return tuple(f / factor for f in _plain(rope.rope_theta, half))


def _dynamic(rope: Rope, half: int, seq_len: int) -> tuple[float, ...]:
    """The base grows once more was read than max_position_embeddings, which a header may leave out."""
    context = rope.extra.get(_LIMIT) or 0.0
    if not context or half == 1:
        return _plain(rope.rope_theta, half)
    growth = 1 + rope.extra["factor"] * (max(seq_len, context) / context - 1)
    return _plain(rope.rope_theta * growth ** (half / (half - 1)), half)


def _yarn(rope: Rope, half: int, _: int) -> tuple[float, ...]:
    """Pairs that turn often in the original context are kept, those that turn seldom are slowed down."""
    extra, theta = rope.extra, rope.rope_theta
    context, stretch = extra["original_max_position_embeddings"], _stretch(extra)

    def pair_of(num_turns: float) -> float:
        """Which pair, as a fraction, turns so often in the original context."""
        return half * math.log(context / (num_turns * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(extra.get("beta_fast") or 32), pair_of(extra.get("beta_slow") or 1)
    if extra.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    width = (high - low) or 0.001

    def scaled(i: int, frequency: float) -> float:
        slowed = min(max((i - low) / width, 0), 1)
        return frequency * (1 - slowed) + frequency / stretch * slowed

    return tuple(scaled(i, f) for i, f in enumerate(_plain(theta, half)))


def _longrope(rope: Rope, half: int, seq_len: int) -> tuple[float, ...]:
    is_long = seq_len > rope.extra["original_max_position_embeddings"]
    factors = rope.extra["long_factor" if is_long else "short_factor"]
    return tuple(f / factor for f, factor in zip(_plain(rope.rope_theta, half), factors, strict=True))


def _llama3(rope: Rope, half: int, _: int) -> tuple[float, ...]:
    factor, low, high, context = (float(rope.extra[name]) for name in _REQUIRED["llama3"])

    def scaled(frequency: float) -> float:
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            return frequency
        if wavelength > context / low:
            return frequency / factor
        smooth = (context / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency

    return tuple(map(scaled, _plain(rope.rope_theta, half)))


_SCALINGS: Final[Mapping[str, Callable[[Rope, int, int], tuple[float, ...]]]] = {
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
