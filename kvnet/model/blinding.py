"""Layers that do not see some of the slots before them, as if these held nothing there.

Knows attention and how transformers is asked for another attention function; no texts, no memories. A zeroed
slot still draws softmax mass; a hidden one does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from kvnet.model.attention import attending_by, refuse_unknown_scores
from kvnet.model.plain_attention import attend

_IMPLEMENTATION: Final = "kvnet_blinded"


@dataclass(frozen=True, slots=True)
class Blindfold:
    """`layers` do not see the slots from `start` up to `stop`."""

    layers: frozenset[int]
    start: int
    stop: int


_blindfold: ContextVar[Blindfold] = ContextVar("kvnet_blindfold")


def _blinded_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer. query [1, H, q, D], key and value [1, Hkv, n, D]."""
    refuse_unknown_scores(kwargs, "which cannot be blinded; choose another model")
    blindfold = _blindfold.get()
    is_blind = module.layer_idx in blindfold.layers
    slots = slice(blindfold.start, blindfold.stop) if is_blind else slice(0, 0)
    _, output = attend(query, key, value, scaling, hidden_slots=slots)
    return output[None].to(query.dtype), None  # [q, H, D] -> [1, q, H, D]


AttentionInterface.register(_IMPLEMENTATION, _blinded_attention)
# We are causal without a mask; a model that computes its attention by itself needs one all the same.
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


@contextmanager
def blinding(model: Any, blindfold: Blindfold) -> Iterator[None]:
    """Blind layers of `model` in what it reads inside, in this thread; it is as it was afterwards."""
    with attending_by(model, _IMPLEMENTATION, _blindfold, blindfold):
        yield
