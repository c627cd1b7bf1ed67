"""Keys from content space to their positions, and the ropes by which that can be done (FORMAT.md §8).

Imports nothing of kvnet. A rope comes as the header's plain values.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.second_reader.strict import Refused, number

Floats = NDArray[np.float32]

_NEEDED = {
    "linear": "factor",
    "dynamic": "factor",
    "yarn": "original_max_position_embeddings",
    "longrope": "original_max_position_embeddings",
    "llama3": "factor low_freq_factor high_freq_factor original_max_position_embeddings",
}
_SPARED = {
    "dynamic": "max_position_embeddings",
    "yarn": "factor max_position_embeddings attention_factor mscale mscale_all_dim beta_fast beta_slow",
    "longrope": "factor max_position_embeddings attention_factor",
    "proportional": "factor",
}


def check_turns(header: dict[str, Any]) -> None:
    """Refuse keys in content space that are raw, or have a rope by which they cannot be turned forward."""
    rope, half = header["rope"], _turned(header["rope"], header["headDim"])
    if header["coding"]["scheme"] == "raw" or not _can_turn(
        rope["ropeType"], rope["ropeTheta"], rope["extra"], half
    ):
        raise Refused("malformed_file", "keys in content space cannot be turned by this rope")


def _can_turn(kind: str, theta: float, extra: dict[str, Any], half: int) -> bool:
    needed = [extra.get(name) for name in _NEEDED.get(kind, "").split()]
    spared = [extra.get(name) for name in _SPARED.get(kind, "").split()]
    given = [value for value in spared if value is not None and not (number(value) and value == 0)]
    if not 1 <= theta <= 1e12 or not all(map(_in_range, needed + given)):
        return False
    if kind == "llama3":
        return bool(extra["high_freq_factor"] != extra["low_freq_factor"])
    if kind == "yarn" and (theta == 1 or not isinstance(extra.get("truncate", True), bool)):
        return False
    if kind == "longrope":
        lists = [extra.get("short_factor"), extra.get("long_factor")]
        if not all(isinstance(x, list) and len(x) == half and all(map(_in_range, x)) for x in lists):
            return False
        if extra["original_max_position_embeddings"] < 2:
            return False
    if kind not in ("yarn", "longrope"):
        return True
    if _stretch(extra) is None and not (kind == "longrope" and extra.get("attention_factor")):
        return False
    return 0.25 <= attention_factor(kind, extra) <= 4


def _in_range(value: Any) -> bool:
    return number(value) and 1e-6 <= value <= 1e12


def _turned(rope: dict[str, Any], dim: int) -> int:
    """Pairs that the model rotates."""
    return int(dim * rope["partialRotaryFactor"]) // 2


def _stretch(extra: dict[str, Any]) -> float | None:
    if extra.get("factor"):
        return float(extra["factor"])
    if extra.get("max_position_embeddings"):
        return float(extra["max_position_embeddings"] / extra["original_max_position_embeddings"])
    return None


def attention_factor(kind: str, extra: dict[str, Any]) -> float:
    """a of a rope that passed the checks."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if extra.get("attention_factor"):
        return float(extra["attention_factor"])
    log_stretch = max(0.0, math.log(_stretch(extra) or 1))
    if kind == "longrope":
        return math.sqrt(1 + log_stretch / math.log(extra["original_max_position_embeddings"]))
    weights = (extra.get("mscale"), extra.get("mscale_all_dim"))
    if not all(weights):
        return 1 + 0.1 * log_stretch
    above, below = (1 + 0.1 * float(weight) * log_stretch for weight in weights if weight)
    return above / below


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # what is not finite is refused once decoded
def frequencies(rope: dict[str, Any], dim: int, num_read: int) -> NDArray[np.float64]:
    """f(i) for each pair; none where nothing is rotated."""
    kind, theta, extra, half = rope["ropeType"], rope["ropeTheta"], rope["extra"], _turned(rope, dim)
    if half == 0:
        return np.zeros(0)
    if kind == "proportional":
        whole = np.float64(theta) ** (-np.arange(dim // 2) / (dim // 2)) / (extra.get("factor") or 1)
        return np.where(np.arange(dim // 2) < half, whole, 0.0)
    i = np.arange(half)
    limit = extra.get("max_position_embeddings")
    if kind == "dynamic" and limit and half > 1:
        growth = 1 + extra["factor"] * (max(num_read, limit) / limit - 1)
        theta = theta * growth ** (half / (half - 1))
    plain = np.float64(theta) ** (-i / half)
    if kind == "linear":
        return np.asarray(plain / extra["factor"])
    if kind == "yarn":
        return _yarn(plain, math.log(theta), extra)
    if kind == "longrope":
        is_long = num_read > extra["original_max_position_embeddings"]
        return np.asarray(plain / np.array(extra["long_factor" if is_long else "short_factor"], np.float64))
    return _llama3(plain, extra) if kind == "llama3" else np.asarray(plain)


def _yarn(plain: NDArray[np.float64], log_theta: float, extra: dict[str, Any]) -> NDArray[np.float64]:
    half = len(plain)
    bounds = [
        half * math.log(extra["original_max_position_embeddings"] / (2 * math.pi * turns)) / log_theta
        for turns in (extra.get("beta_fast") or 32, extra.get("beta_slow") or 1)
    ]
    if extra.get("truncate", True):
        bounds = [float(np.floor(bounds[0])), float(np.ceil(bounds[1]))]
    low, high = max(bounds[0], 0.0), min(bounds[1], 2 * half - 1)
    ramp = np.clip((np.arange(half) - low) / (0.001 if low == high else high - low), 0, 1)
    stretch = _stretch(extra) or 1.0
    return np.asarray(plain * (1 - ramp) + plain / stretch * ramp)


def _llama3(plain: NDArray[np.float64], extra: dict[str, Any]) -> NDArray[np.float64]:
    factor, low, high, trained = (extra[name] for name in _NEEDED["llama3"].split())
    waves = 2 * np.pi / plain
    q = (trained / waves - low) / (high - low)
    between = (1 - q) * plain / factor + q * plain
    slow = np.where(waves > trained / low, plain / factor, between)
    return np.where(waves < trained / high, plain, slow)


@np.errstate(over="ignore", invalid="ignore")
def turn_forward(x: Floats, first_position: int, freqs: NDArray[np.float64], scale: float) -> Floats:
    """Keys [num_kv_heads, n, head_dim] from content space to their positions; `scale` is a."""
    half = len(freqs)
    angles = (first_position + np.arange(x.shape[1], dtype=np.float64))[:, None] * freqs  # [n, half]
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a = np.float32(scale)
    turned = (a * (first * cos - second * sin), a * (second * cos + first * sin), x[..., 2 * half :])
    return np.concatenate(turned, axis=-1)
