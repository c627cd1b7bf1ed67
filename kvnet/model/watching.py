"""What questions attend to in a memory, and what they take from it, layer by layer.

Knows attention and how transformers is asked for another attention function; no texts, no maps. Beside
`kvnet.model.attention`, which sums up a long reading in tiles, this keeps every weight of a short question.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from kvnet.model.attention import attending_by, refuse_unknown_scores
from kvnet.model.plain_attention import attend

_IMPLEMENTATION: Final = "kvnet_watched"


@dataclass(slots=True)
class Watch:
    """By layer, of the last forward pass: `weights` [q_len, seq_len], the largest over heads, and `outputs`
    [q_len, num_heads * head_dim], before the output projection. float32.
    """

    weights: dict[int, torch.Tensor] = field(default_factory=dict)
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)


_watch: ContextVar[Watch] = ContextVar("kvnet_watch")


def _watched_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer while a watch is open. query [1, H, q, D], key [1, Hkv, n, D]."""
    refuse_unknown_scores(kwargs, "which cannot be watched; fit maps to it without anchors")
    weights, output = attend(query, key, value, scaling)  # [H, q, n], [q, H, D]
    watch = _watch.get()
    watch.weights[module.layer_idx] = weights.amax(0)
    watch.outputs[module.layer_idx] = output.flatten(1)
    return output[None].to(query.dtype), None


AttentionInterface.register(_IMPLEMENTATION, _watched_attention)
# We are causal without a mask; a model that computes its attention by itself needs one all the same.
AttentionMaskInterface.register(_IMPLEMENTATION, eager_mask)


@contextmanager
def watching(model: Any) -> Iterator[Watch]:
    """Watch every layer's attention of what `model` reads inside, in this thread.

    The model is as it was afterwards, whatever happened inside. A model that does not ask transformers for
    its attention function leaves the watch empty.
    """
    with attending_by(model, _IMPLEMENTATION, _watch, Watch()) as watch:
        yield watch
