"""How the next token is chosen. Knows logits; no models, no text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.errors import RequestError

MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARS: Final = 256
_MAX_SEED: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to continue a text; the default is greedy. Raises RequestError for a value out of range."""

    max_tokens: int = 256
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    seed: int | None = None  # None draws one
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise RequestError(f"max_tokens is {self.max_tokens}, it must be at least 1")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise RequestError(f"temperature is {self.temperature}, it must be 0 (greedy) or more")
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p is {self.top_p}, it must be above 0 and at most 1")
        if self.seed is not None and not 0 <= self.seed <= _MAX_SEED:
            raise RequestError(f"seed is {self.seed}, it must be between 0 and {_MAX_SEED}")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"{len(self.stop)} stop strings, at most {MAX_STOP_STRINGS} are allowed")
        if not all(0 < len(stop) <= MAX_STOP_CHARS for stop in self.stop):
            raise RequestError(f"a stop string must have 1 to {MAX_STOP_CHARS} characters")


def new_generator(sampling: Sampling) -> torch.Generator:
    """A random number generator for one generation; on the CPU, so every device draws the same."""
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed)
    return generator


def pick_token(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token's id from `logits` [vocab_size]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    # float64: a temperature close to zero must not overflow, it means greedy.
    scaled = (logits.double().cpu() - logits.max().item()) / sampling.temperature
    probabilities = torch.softmax(scaled, dim=-1)
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the fewest tokens that together reach `top_p`; at least one token stays."""
    ordered, indices = probabilities.sort(descending=True)
    mass_before = ordered.cumsum(-1) - ordered
    ordered[mass_before >= top_p] = 0
    return torch.zeros_like(probabilities).scatter_(0, indices, ordered)
