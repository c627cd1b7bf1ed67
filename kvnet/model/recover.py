"""The tokens of a memory, from the memory alone. Knows one model and its own memories; no peers, no files.

A key and a value of layer 0 depend on their token alone, so the nearest of the vocabulary's own names it:
whoever holds a whole cache holds its text. That makes a fallback of it, and a warning (SECURITY.md).
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import torch

from kvnet.codec.basis import Basis
from kvnet.errors import RequestError
from kvnet.model.cache import LayerKV
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_tokens, refuse_incompatible
from kvnet.model.slots import rows_of_layers, slots_of
from kvnet.types import RawMemory

_BLOCK: Final = 512  # tokens of the vocabulary that are read at a time


def recover_text(host: ModelHost, memory: RawMemory, *, basis: Basis | None = None) -> str:
    """The text that `host` once read into this memory, its own first token left out.

    Certain: the tokens found must have the digest that the memory's header was signed with.
    Raises RequestError where they have not, which a strongly quantized memory may do, and IncompatibleModel
    for a memory of another geometry.
    """
    refuse_incompatible(memory.header, host.geometry)
    slots = slots_of(memory, num_sinks=0, basis=basis)
    width = 2 * host.geometry.num_kv_heads * host.geometry.head_dim
    rows = slots.rows[:, :width]  # layer 0
    token_ids = _nearest(rows, _code_book(host))
    if digest_tokens(token_ids) != memory.header.token_digest:
        raise RequestError(
            f"the text of memory {memory.header.id[:12]}… cannot be told from its numbers for certain; "
            "remember it again with its text kept"
        )
    return str(host.tokenizer.decode(token_ids[host.num_sinks :]))


def _nearest(rows: torch.Tensor, codes: torch.Tensor) -> list[int]:
    """For each of [n, w] the index of the closest of [v, w], after both were scaled alike."""
    scale = codes.std(0).clamp_min(1e-6)
    rows, codes = rows / scale, codes / scale
    found: list[int] = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        distance = codes.square().sum(1) - 2 * block @ codes.T  # [b, v], up to |block|^2
        found += distance.argmin(1).tolist()
    return found


def _code_book(host: ModelHost) -> torch.Tensor:
    """[vocab_size, width of one layer's row]: layer 0 of every token, in content space."""
    found = []
    vocab_size, block = host.vocab_size, min(_BLOCK, host.max_seq_len)
    for start in range(0, vocab_size, block):
        token_ids = range(start, min(vocab_size, start + block))
        found.append(_first_layer(host, token_ids))
    return torch.cat(found)


class _ReadEnough(Exception):
    """Layer 0 is known; the others are not wanted."""


def _first_layer(host: ModelHost, token_ids: range) -> torch.Tensor:
    seen: list[LayerKV] = []

    def stop_after(layer: LayerKV) -> None:
        seen.append(layer)
        raise _ReadEnough

    with suppress(_ReadEnough):
        host.prefill(token_ids, host.new_cache(stop_after), token_block=_BLOCK)
    positions = torch.arange(len(token_ids))
    return rows_of_layers(seen, host.geometry, positions, seq_len=len(token_ids))
