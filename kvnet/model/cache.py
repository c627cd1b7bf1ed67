"""The only place that touches transformers' cache classes. Knows no bytes, no text, no peers.

Axis order, always: [batch, num_kv_heads, seq_len, head_dim].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from transformers.cache_utils import Cache as Cache  # the one name others annotate with
from transformers.cache_utils import DynamicCache, DynamicLayer

from kvnet.errors import UnsupportedModel
from kvnet.types import DType, Geometry, Rope

_REMEDY: Final = "use a model whose layers all keep plain keys and values of the whole prefix"


@dataclass(frozen=True, slots=True)
class LayerKV:
    """One layer's keys and values, each [1, num_kv_heads, seq_len, head_dim]."""

    layer_idx: int
    keys: torch.Tensor
    values: torch.Tensor


class _TappedCache(DynamicCache):
    """A DynamicCache that shows each layer's keys and values as soon as they are computed."""

    def __init__(self, config: Any, on_update: Callable[[LayerKV], None]) -> None:
        super().__init__(config=config)
        self._on_update = on_update

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        self._on_update(LayerKV(layer_idx, keys, values))
        return keys, values


def new_cache(
    config: Any, on_update: Callable[[LayerKV], None] | None = None, before: Sequence[LayerKV] = ()
) -> DynamicCache:
    """A cache that holds copies of `before`; `on_update` sees all of a layer's positions in each pass."""
    cache = DynamicCache(config=config) if on_update is None else _TappedCache(config, on_update)
    for layer in before:
        DynamicCache.update(cache, layer.keys, layer.values, layer.layer_idx)  # untapped
    return cache


class _AwaitedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer whose first `seq_len` positions are known to be, and waited for when they are read."""

    def __init__(self, seq_len: int, take: Callable[[], LayerKV]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seq_len = seq_len
        self._take = take

    def get_seq_length(self) -> int:
        return super().get_seq_length() if self.is_initialized else self._seq_len

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            landed = self._take()
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = landed.keys, landed.values
        return super().update(key_states, value_states, *args, **kwargs)


def awaiting_cache(config: Any, seq_len: int, take: Callable[[int], LayerKV]) -> Cache:
    """A cache of `seq_len` positions whose layers are taken, `take(layer_idx)`, when a pass comes to them.

    `take` gives keys and values [1, num_kv_heads, seq_len, head_dim] on the model's device, and may wait.
    """
    cache = DynamicCache(config=config)
    cache.layers = [
        _AwaitedLayer(seq_len, partial(take, layer_idx)) for layer_idx in range(len(cache.layers))
    ]
    return cache


def export_layers(cache: Cache) -> tuple[LayerKV, ...]:
    """Every layer's keys and values as they are: no copy, and only for caches of plain layers.

    Raises UnsupportedModel if a layer holds anything else.
    """
    layers = []
    for layer_idx, layer in enumerate(cache.layers):
        if type(layer) is not DynamicLayer or layer.keys is None or layer.values is None:
            raise UnsupportedModel(
                f"layer {layer_idx}: the cache holds a {type(layer).__name__}, "
                f"kvnet moves full_attention layers; {_REMEDY}"
            )
        layers.append(LayerKV(layer_idx, layer.keys, layer.values))
    return tuple(layers)


def build_cache(layers: Sequence[LayerKV], config: Any) -> DynamicCache:
    """A fresh cache that holds copies of `layers`, so generation cannot change what it was given."""
    cache = DynamicCache(config=config)
    if [layer.layer_idx for layer in layers] != list(range(len(cache.layers))):
        raise ValueError(f"got {len(layers)} layers, the model has {len(cache.layers)}")
    for layer in layers:
        cache.update(layer.keys, layer.values, layer.layer_idx)  # concatenates, hence copies (tested)
    return cache


def layers_between(layers: Sequence[LayerKV], start: int, stop: int) -> tuple[LayerKV, ...]:
    """Views of positions start..stop of every layer."""
    return tuple(
        LayerKV(layer.layer_idx, layer.keys[..., start:stop, :], layer.values[..., start:stop, :])
        for layer in layers
    )


def join_layers(parts: Sequence[Sequence[LayerKV]]) -> tuple[LayerKV, ...]:
    """Layers of tokens that follow each other, put behind one another."""
    return tuple(
        LayerKV(
            same[0].layer_idx,
            torch.cat([layer.keys for layer in same], -2),
            torch.cat([layer.values for layer in same], -2),
        )
        for same in zip(*parts, strict=True)
    )


def copy_layers(cache: Cache, start: int, stop: int) -> tuple[LayerKV, ...]:
    """Copies of positions start..stop of every layer of a cache that was used."""
    copies = []
    for layer_idx, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise AssertionError(f"layer {layer_idx} keeps no plain keys and values, or was never filled")
        keys, values = (half[..., start:stop, :].clone() for half in (layer.keys, layer.values))
        copies.append(LayerKV(layer_idx, keys, values))
    return tuple(copies)


def extend_cache(cache: Cache, layers: Sequence[LayerKV], device: torch.device) -> Cache:
    """The same cache with the slots of `layers` behind its own."""
    for layer in layers:
        cache.update(layer.keys.to(device), layer.values.to(device), layer.layer_idx)
    return cache


def crop_cache(cache: Cache, seq_len: int) -> None:
    """Drop what lies behind the first `seq_len` positions."""
    surplus = cache_seq_len(cache) - seq_len
    if surplus:
        cache.crop(-surplus)


def cache_seq_len(cache: Cache) -> int:
    """Positions the cache holds, the same in every layer."""
    lengths = {cache.get_seq_length(layer_idx) for layer_idx in range(len(cache))}
    if len(lengths) != 1:
        raise AssertionError(f"layers of one cache hold different lengths: {sorted(lengths)}")
    return int(lengths.pop())


def geometry_of(config: Any, dtype: DType) -> Geometry:
    """Shape of the cache that a model with this config fills, as far as its config tells."""
    text = config.get_text_config(decoder=True)
    num_heads = text.num_attention_heads
    return Geometry(
        num_layers=text.num_hidden_layers,
        num_kv_heads=getattr(text, "num_key_value_heads", None) or num_heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        dtype=dtype,
        rope=_rope_of(text),
    )


def _rope_of(text_config: Any) -> Rope:
    parameters = dict(getattr(text_config, "rope_parameters", None) or {})
    if not parameters:
        # GPT-J and CodeGen rotate too, but say so in their own way.
        rope_type = "none" if getattr(text_config, "rotary_dim", None) is None else "gptj"
        return Rope(rope_type=rope_type, rope_theta=0.0)
    rope_type = str(parameters.pop("rope_type", "default"))
    is_stretched = rope_type in ("yarn", "longrope") and not parameters.get("factor")
    if rope_type == "dynamic" or is_stretched:  # their frequencies depend on it (FORMAT.md §8)
        parameters["max_position_embeddings"] = text_config.max_position_embeddings
    return Rope(
        rope_type=rope_type,
        rope_theta=float(parameters.pop("rope_theta", 10000.0)),
        partial_rotary_factor=float(parameters.pop("partial_rotary_factor", None) or 1.0),
        extra=parameters,
    )


def refuse_unsupported(config: Any) -> None:
    """Raise UnsupportedModel, naming the layer, unless every layer keeps plain keys and values.

    Reads the config alone, so that no weights are loaded in vain; `observe_geometry` looks at a real cache.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{config.model_type} is an encoder-decoder, kvnet needs a causal decoder; {_REMEDY}"
        )
    text = config.get_text_config(decoder=True)
    _refuse_layer_types(text)
    if getattr(text, "kv_lora_rank", None):
        raise _unsupported(text, 0, "multi-head latent attention (kv_lora_rank)")
    num_shared = getattr(text, "num_kv_shared_layers", None) or 0
    if num_shared:
        raise _unsupported(text, text.num_hidden_layers - num_shared, "KV-shared (num_kv_shared_layers)")
    parameters = getattr(text, "rope_parameters", None) or {}
    if "mrope_section" in parameters:
        raise _unsupported(text, 0, "M-RoPE (mrope_section)")


def _refuse_layer_types(text_config: Any) -> None:
    """Look at the layers transformers itself chooses: only an exact DynamicLayer is plain."""
    try:
        layers = DynamicCache(config=text_config).layers
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise UnsupportedModel(
            f"{text_config.model_type}: transformers builds no cache from its config ({exc}); {_REMEDY}"
        ) from exc
    layer_types = getattr(text_config, "layer_types", None)
    for layer_idx, layer in enumerate(layers):
        if type(layer) is not DynamicLayer:
            layer_type = layer_types[layer_idx] if layer_types else type(layer).__name__
            raise _unsupported(text_config, layer_idx, layer_type)


def observe_geometry(cache: Any, claimed: Geometry) -> Geometry:
    """The geometry of a cache that a model really filled; the config's claim is only a first guess.

    Some configs count heads under other names (Falcon's multi-query, GPT-NeoX), some models return
    no cache at all, and some keep keys and values of different widths.
    Raises UnsupportedModel for a cache that is not one plain shape in every layer.
    """
    if not isinstance(cache, Cache):
        raise UnsupportedModel(f"the model returns a {type(cache).__name__} for a cache; {_REMEDY}")
    layers = export_layers(cache)
    if len(layers) != claimed.num_layers:
        raise UnsupportedModel(
            f"the cache has {len(layers)} layers, the config says {claimed.num_layers}; {_REMEDY}"
        )
    first = layers[0].keys
    for layer in layers:
        for tensor in (layer.keys, layer.values):
            if tensor.shape != first.shape or tensor.dtype != first.dtype:
                raise UnsupportedModel(
                    f"layer {layer.layer_idx} holds {tensor.dtype} {list(tensor.shape)}, "
                    f"layer 0 keys hold {first.dtype} {list(first.shape)}; {_REMEDY}"
                )
    _, num_kv_heads, _, head_dim = first.shape
    dtype = DType(str(first.dtype).removeprefix("torch."))
    return replace(claimed, num_kv_heads=num_kv_heads, head_dim=head_dim, dtype=dtype)


def _unsupported(text_config: Any, layer_idx: int, layer_type: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"layer {layer_idx} of {text_config.model_type} is {layer_type}, "
        f"kvnet moves full_attention layers; {_REMEDY}"
    )
