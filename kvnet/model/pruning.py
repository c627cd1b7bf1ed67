"""Which KV heads the seed's rule would zero. Knows attention metadata; no tensors, no models.

The zeroing itself is a stage of the codec chain, told of by `Coding.pruned_heads`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from kvnet.types import AttentionMetadata

DEFAULT_THRESHOLD: Final = 0.1  # nats, the seed's


def prunable_heads(
    attention: Sequence[AttentionMetadata], *, num_kv_heads: int, threshold: float = DEFAULT_THRESHOLD
) -> tuple[tuple[int, int], ...]:
    """[layer, KV head] pairs, ascending, all of whose query heads have an entropy below `threshold` (nats).

    A KV head serves consecutive query heads, as in transformers' grouped-query attention; one of them at or
    above the threshold keeps it. Zeroing what this names does damage: a low entropy marks the focused heads,
    those that look up one token, and a zero key still scores 0, so it draws softmax mass from the keys of
    whatever is read afterwards. Hence off by default; measure recall and KL before use.
    Raises ValueError if the query heads of a layer do not divide among `num_kv_heads`.
    """
    pairs: list[tuple[int, int]] = []
    for layer in sorted(attention, key=lambda layer: layer.layer_index):
        entropies = layer.entropy_per_head
        if num_kv_heads < 1 or not entropies or len(entropies) % num_kv_heads:
            raise ValueError(f"layer {layer.layer_index}: {len(entropies)} heads on {num_kv_heads} KV heads")
        group = len(entropies) // num_kv_heads
        pairs += [
            (layer.layer_index, kv_head)
            for kv_head in range(num_kv_heads)
            if max(entropies[kv_head * group : (kv_head + 1) * group]) < threshold
        ]
    return tuple(pairs)
