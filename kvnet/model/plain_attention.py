"""Causal attention written out, so that its weights can be seen, or slots hidden from it. Knows no models."""

from __future__ import annotations

import torch


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    *,
    hidden_slots: slice = slice(0, 0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [H, q, n] and output [q, H, D], float32: query [1, H, q, D], key and value [1, Hkv, n, D].

    The queries are the last q of the n positions; nothing is read at `hidden_slots`.
    """
    num_heads, q_len = query.shape[1:3]
    group, seq_len = num_heads // key.shape[1], key.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    keys, values = (half[0].float().repeat_interleave(group, 0) for half in (key, value))  # [H, n, D]
    scores = query[0].float() @ keys.transpose(1, 2) * scaling  # [H, q, n]
    hidden = torch.ones(q_len, seq_len, dtype=torch.bool, device=query.device).triu(seq_len - q_len + 1)
    hidden[:, hidden_slots] = True
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return weights, (weights @ values).transpose(0, 1)  # [H, q, D] -> [q, H, D]
