"""What a model attended to while it read: per layer, in blocks of query rows, in one go with the reading.

Knows attention, its statistics (FORMAT.md §8.4) and how transformers is asked for another attention function;
no caches, no bytes, no texts.

While a recording is open, the model's attention function is ours: softmax(Q Kᵀ · scaling) V in float32, whose
weights exist one tile at a time and are summed up before they are dropped. Statistics beside the model's own
function would need every score a second time, which on small models costs half a prefill. The price: keys and
values of layers behind the first differ from an unrecorded reading by rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import torch
from transformers import AttentionInterface

from kvnet.errors import UnsupportedModel
from kvnet.plan import MAX_IMPORTANT_TOKENS
from kvnet.types import AttentionMetadata

T = TypeVar("T")

_IMPLEMENTATION: Final = (
    "kvnet_recorded"  # has no mask function, so transformers builds no mask: we are causal
)
_REMEDY: Final = "capture without attention metadata"
_UNKNOWN_SCORES: Final = ("softcap", "s_aux", "position_bias", "sliding_window")  # that change the weights
# Sums of exponentials that lost nothing to float32's range; others are computed again, shifted.
_LEAST_TOTAL: Final = 1e-25
_MOST_TOTAL: Final = 1e30
_EXP_FLOOR: Final = -80.0  # far below it, exp leaves its vectorised path for nothing
_MIN_BLOCK: Final = 16  # query positions
_MAX_BLOCK: Final = 64  # larger ones compute too much of what lies behind a query
_ONE_BLOCK: Final = 192  # unless all fit into one
_TILE_ELEMENTS: Final = {"cpu": 1 << 18}  # of float32, two such tiles stay in a core's second-level cache
_DEVICE_TILE_ELEMENTS: Final = 1 << 24  # accelerators want few launches
# Of the largest logit, between our attention and the model's own; activations of 16 bits round much earlier.
_TOLERANCE: Final = {torch.float32: 1e-3}
_HALF_TOLERANCE: Final = 0.05


class AttentionRecorder:
    """Statistics of one reading that begins at position 0, in one pass or in several.

    Keeps three numbers a layer, head and position, and one a layer and position.
    """

    def __init__(self) -> None:
        self._layers: dict[int, list[torch.Tensor]] = {}  # by layer, then by pass: see _attend
        self._received: dict[int, torch.Tensor] = {}  # [seq_len] float64, summed over heads and queries

    @property
    def layer_indices(self) -> list[int]:
        """The layers that were seen, ascending."""
        return sorted(self._layers)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        layer_idx: int,
        scaling: float | None = None,
        tile_elements: int | None = None,
    ) -> torch.Tensor:
        """Causal attention [1, q_len, num_heads, head_dim] of the last q_len positions; records its weights.

        query [1, num_heads, q_len, head_dim], key and value [1, num_kv_heads, seq_len, head_dim]; earlier
        positions were recorded before. `tile_elements` bounds how many weights exist at a time (at least
        16 positions of one KV head's queries do).
        """
        q_len, seq_len = query.shape[2], key.shape[2]
        received = self._received.get(layer_idx)
        recorded = 0 if received is None else len(received)
        if query.shape[0] != 1 or recorded + q_len != seq_len:
            raise ValueError(
                f"layer {layer_idx}: a batch of {query.shape[0]}, {q_len} queries after {recorded} recorded "
                f"positions on {seq_len} keys; record one text from position 0"
            )
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        elements = tile_elements or _TILE_ELEMENTS.get(query.device.type, _DEVICE_TILE_ELEMENTS)
        output, rows, now_received = _attend(query, key, value, scaling=scaling, tile_elements=elements)
        if received is not None:
            now_received[:recorded] += received
        self._received[layer_idx] = now_received
        self._layers.setdefault(layer_idx, []).append(rows)
        return output

    def metadata(self) -> tuple[AttentionMetadata, ...]:
        """One value a layer, in order. Source: FORMAT.md §8.4."""
        if not self._layers:
            return ()
        indices = self.layer_indices
        rows = torch.stack([torch.cat(self._layers[i], 2) for i in indices], 1)  # [3, L, Hkv, n, g]
        received = torch.stack([self._received[i] for i in indices])  # [L, n]
        seq_len = received.shape[1]
        entropies = _mean_entropies(rows)
        shares = _mean_text_shares(rows, received[:, 0])
        # Position t has been seen from seq_len - t queries.
        means = received / torch.arange(seq_len, 0, -1, device=received.device)
        order = torch.argsort(means, dim=1, descending=True, stable=True)[:, :MAX_IMPORTANT_TOKENS]
        values = zip(indices, shares.tolist(), entropies.tolist(), order.tolist(), strict=True)
        return tuple(AttentionMetadata(i, share, tuple(e), tuple(best)) for i, share, e, best in values)


def _mean_entropies(rows: torch.Tensor) -> torch.Tensor:
    """[L, num_heads] in nats, over positions from 1. rows [3, L, num_kv_heads, n, group]."""
    total, weighted_score, _ = rows[:, :, :, 1:]
    # -sum(p ln p) = ln Z - sum(w s) / Z, whatever was subtracted from the scores s of a row.
    entropy = total.log() - weighted_score / total
    count = max(1, entropy.shape[2])
    means: torch.Tensor = entropy.sum(2, dtype=torch.float64) / count  # [L, Hkv, g]
    return means.clamp_(min=0).flatten(1)  # [L, Hkv, g] -> [L, H]


def _mean_text_shares(rows: torch.Tensor, received_by_first: torch.Tensor) -> torch.Tensor:
    """[L] over heads and positions from 2: what goes neither to position 0 nor to oneself.

    `received_by_first` [L] is what position 0 got from all heads and positions. Position 0 gives it all it
    has, position 1 what it does not keep.
    """
    _, num_layers, num_kv_heads, seq_len, group = rows.shape
    if seq_len < 3:
        return received_by_first.new_zeros(num_layers)
    own = rows[2].exp() / rows[0]  # [L, Hkv, n, g]
    num_heads = num_kv_heads * group
    to_first = received_by_first - num_heads - (num_heads - own[:, :, 1].sum((1, 2)))
    to_oneself = own[:, :, 2:].sum((1, 2, 3), dtype=torch.float64)
    return (1 - (to_first + to_oneself) / (num_heads * (seq_len - 2))).clamp_(0, 1)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    tile_elements: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The output [1, q_len, num_heads, head_dim], its rows, and what each position received [seq_len].

    A row is one query of one head. Of each, the rows returned [3, num_kv_heads, q_len, group] hold the sum of
    its weights, the sum of weight times score, and its score on its own position; weights are exponentials
    of scores, not divided by their sum.
    """
    _, num_heads, q_len, head_dim = query.shape
    _, num_kv_heads, seq_len, value_dim = value.shape
    group = num_heads // num_kv_heads
    shape = (num_kv_heads, q_len, group)
    grouped = torch.mul(
        query[0].float().reshape(num_kv_heads, group, q_len, head_dim).transpose(1, 2),  # -> [Hkv, T, g, D]
        scaling,
        out=query.new_empty(*shape, head_dim, dtype=torch.float32),
    )
    keys, values = key[0].float(), value[0].float()  # [Hkv, N, D]
    own_scores = (grouped * keys[:, seq_len - q_len :, None]).sum(-1)
    rows, mixed = grouped.new_empty(3, *shape), grouped.new_empty(*shape, value_dim)
    for shift in (False, True):
        rows[2] = own_scores
        received = query.new_zeros(seq_len, dtype=torch.float64)
        _attend_in_tiles(
            grouped.flatten(1, 2), keys, values, mixed.flatten(1, 2), rows.flatten(2), received,
            group=group, tile_elements=tile_elements, shift=shift,
        )  # fmt: skip
        least, most = torch.aminmax(rows[0])
        if float(least) > _LEAST_TOTAL and float(most) < _MOST_TOTAL:  # false for NaN
            break
    output = torch.div(
        mixed.transpose(0, 1),  # [Hkv, T, g, D] -> [T, Hkv, g, D]
        rows[0].transpose(0, 1).unsqueeze(-1),
        out=grouped.new_empty(q_len, num_kv_heads, group, value_dim),
    )
    return output.view(1, q_len, num_heads, value_dim).to(query.dtype), rows, received


def _attend_in_tiles(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mixed: torch.Tensor,
    rows: torch.Tensor,
    received: torch.Tensor,
    *,
    group: int,
    tile_elements: int,
    shift: bool,
) -> None:
    """A tile is the rows of a block of positions, for as many KV heads as fit, on the keys up to its end.

    Fills `mixed` and `rows` and adds to `received`, as `_attend_heads` does.
    """
    num_kv_heads, num_rows, _ = queries.shape
    seq_len, q_len = keys.shape[1], num_rows // group
    widest = q_len if q_len <= _ONE_BLOCK else _MAX_BLOCK
    block = min(widest, max(_MIN_BLOCK, tile_elements // (group * seq_len)))
    heads = max(1, min(num_kv_heads, tile_elements // (block * group * seq_len)))
    causal = queries.new_ones(block, block).tril_()  # [t, t]
    causal = causal[:, None].expand(block, group, block).flatten(0, 1)  # -> [t * g, t]
    for head in range(0, num_kv_heads, heads):
        part = slice(head, head + heads)
        inputs = (queries[part], keys[part].transpose(1, 2), values[part])
        _attend_heads(*inputs, causal, shift=shift, mixed=mixed[part], rows=rows[:, part], received=received)


def _attend_heads(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    causal: torch.Tensor,
    *,
    shift: bool,
    mixed: torch.Tensor,
    rows: torch.Tensor,
    received: torch.Tensor,
) -> None:
    """Tile after tile: queries [h, T * g, D] on keys [h, D, N] and values [h, N, D].

    Fills `mixed` [h, T * g, D], not yet divided by the sum of weights, and `rows` [3, h, T * g]. With
    `shift`, each row's largest score is subtracted from its scores, so that no exponential overflows.
    """
    num_rows, (block_rows, block) = queries.shape[1], causal.shape
    group = block_rows // block
    past = values.shape[1] - num_rows // group
    totals, weighted_scores, own_scores = rows
    for start in range(0, num_rows, block_rows):
        stop = min(num_rows, start + block_rows)
        place = (slice(None), slice(start, stop))
        before, seen = past + start // group, past + stop // group
        scores = torch.bmm(queries[place], keys[..., :seen])  # [h, t * g, n]
        visible = causal[: stop - start, : seen - before]
        if shift:
            scores[..., before:].masked_fill_(visible == 0, -torch.inf)
            top = scores.amax(-1, keepdim=True)
            scores.sub_(top).clamp_(min=_EXP_FLOOR)
            own_scores[place] -= top.squeeze(-1)
        weights = scores.exp()
        weights[..., before:].mul_(visible)
        total = torch.sum(weights, -1, out=totals[place])
        torch.sum(scores.mul_(weights), -1, out=weighted_scores[place])
        received[:seen] += torch.mv(weights.flatten(0, 1).t(), total.reciprocal().flatten())
        torch.bmm(weights, values[:, :seen], out=mixed[place])


_recorder: ContextVar[AttentionRecorder] = ContextVar("kvnet_attention_recorder")


def _recorded_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer while a recording is open; being causal, it needs no mask."""
    refuse_unknown_scores(kwargs, f"which attention metadata does not know; {_REMEDY}")
    output = _recorder.get().attend(query, key, value, layer_idx=module.layer_idx, scaling=scaling)
    return output, None


AttentionInterface.register(_IMPLEMENTATION, _recorded_attention)


@contextmanager
def recording(model: Any) -> Iterator[AttentionRecorder]:
    """Record every layer's attention of what `model` reads inside, from position 0 on, in this thread.

    The model is as it was afterwards, whatever happened inside.
    """
    with attending_by(model, _IMPLEMENTATION, _recorder, AttentionRecorder()) as recorder:
        yield recorder


@contextmanager
def attending_by(model: Any, implementation: str, current: ContextVar[T], seen: T) -> Iterator[T]:
    """Let `model` attend by a registered function inside, in this thread, to which `seen` is `current`.

    The model is as it was afterwards, whatever happened inside.
    """
    config = model.config.get_text_config(decoder=True)
    before = config._attn_implementation
    token = current.set(seen)
    config._attn_implementation = implementation
    try:
        yield seen
    finally:
        config._attn_implementation = before
        current.reset(token)


def refuse_unknown_scores(arguments: Mapping[str, Any], remark: str) -> None:
    """Raise UnsupportedModel, ending in `remark`, if something but the scores makes the weights."""
    for name in _UNKNOWN_SCORES:
        if arguments.get(name) is not None:
            raise UnsupportedModel(f"this model's attention uses {name}, {remark}")


def refuse_unrecordable(model: Any, read: Callable[[], torch.Tensor]) -> None:
    """Raise UnsupportedModel unless a recording sees every layer and changes nothing.

    `read` lets the model read a few tokens from position 0 into a fresh cache, and returns their logits. It
    is called with and without a recording: a model that does not ask transformers for its attention function
    is not seen at all, and one that adds something of its own to the scores gives other logits.
    """
    name, num_layers = model.config.model_type, model.config.get_text_config(decoder=True).num_hidden_layers
    wanted = read()
    try:
        with recording(model) as recorder:
            got = read()
    except (AttributeError, KeyError, NotImplementedError, ValueError) as exc:
        raise UnsupportedModel(f"{name} takes no other attention function ({exc}); {_REMEDY}") from exc
    if recorder.layer_indices != list(range(num_layers)):
        num_seen = len(recorder.layer_indices)
        raise UnsupportedModel(
            f"{name} shows the attention of {num_seen} of its {num_layers} layers; {_REMEDY}"
        )
    tolerance = _TOLERANCE.get(wanted.dtype, _HALF_TOLERANCE)
    if not torch.allclose(got, wanted, rtol=0, atol=tolerance * float(wanted.abs().max())):
        raise UnsupportedModel(
            f"{name} computes its attention in a way of its own, not as softmax(Q K^T) V; {_REMEDY}"
        )
