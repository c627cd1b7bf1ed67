"""States: the residual stream from which a model's own weights make the keys and values of a layer.

Knows how decoder layers of Llama's kind are built, and looks whether a model's are; no texts, no maps.

Between two models the residual stream is nearly a linear function of what the other one holds; what the MLP
and the norm make of it is not. So in the layers where answers read, a map aims at the stream as the attention
of the layer below has left it, and the receiver goes on from there by itself:

    state -> x = state + MLP(norm(state)) -> keys, values = W_k, W_v of norm(x)

which touches each slot alone. Source of the layer: Touvron et al. 2023, as transformers builds it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import nn

from kvnet.alignment import Intake

_TOLERANCE: Final = 0.02  # of the rows' size: what rounding in 16 bits, and two orders of it, may change


def layers_of(model: nn.Module) -> Sequence[Any] | None:
    """The decoder layers of a model, if each has the parts that states are read from; else None."""
    layers = getattr(getattr(model, "model", None), "layers", None)
    if not isinstance(layers, nn.ModuleList):
        return None
    parts = ("input_layernorm", "post_attention_layernorm", "mlp", "self_attn")
    projections = ("k_proj", "v_proj")
    for layer in layers:
        if not all(isinstance(getattr(layer, part, None), nn.Module) for part in parts):
            return None
        if not all(isinstance(getattr(layer.self_attn, part, None), nn.Module) for part in projections):
            return None
    return list(layers)


@contextmanager
def recording_states(model: nn.Module, state_layers: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """The states [num_tokens, hidden_size], float32, of `state_layers` in what is read inside, by layer.

    Of other models than those with `layers_of` none can be asked. Several passes are put behind each other.
    """
    layers = layers_of(model) if state_layers else []
    if layers is None:
        raise AssertionError("states were asked of a model that has none")
    found: dict[int, torch.Tensor] = {}
    with ExitStack() as stack:
        for layer_idx in state_layers:

            def record(_: nn.Module, args: tuple[torch.Tensor, ...], layer_idx: int = layer_idx) -> None:
                new = args[0][0].detach().float().cpu()  # [1, T, hidden] -> [T, hidden]
                known = found.get(layer_idx)
                found[layer_idx] = new if known is None else torch.cat([known, new])

            norm = layers[layer_idx - 1].post_attention_layernorm
            stack.callback(norm.register_forward_pre_hook(record).remove)
        yield found


def join_taken(intake: Intake, rows: torch.Tensor, states: Mapping[int, torch.Tensor]) -> torch.Tensor:
    """[n, row_width] and the states of `intake.state_layers` [n, hidden_size] -> [n, intake.width]."""
    halves = rows.chunk(intake.geometry.num_layers, 1)
    return torch.cat([states.get(layer_idx, part) for layer_idx, part in enumerate(halves)], 1)


def rows_of_taken(model: nn.Module, intake: Intake, taken: torch.Tensor) -> torch.Tensor:
    """float32 [n, intake.width] -> [n, row_width]: what the model's own weights make of it.

    Gradients flow through. Inverse of `join_taken` in that of a model's own states come its own rows.
    """
    if not intake.state_layers:
        return taken
    layers = layers_of(model)
    if layers is None:
        raise AssertionError("states were given to a model that takes none")
    parts = list(torch.split(taken, list(intake.widths), 1))
    for layer_idx in intake.state_layers:
        parts[layer_idx] = _halves(
            layers[layer_idx - 1], layers[layer_idx], parts[layer_idx], intake.geometry.head_dim
        )
    return torch.cat(parts, 1)


def _halves(below: Any, layer: Any, state: torch.Tensor, head_dim: int) -> torch.Tensor:
    """[n, hidden_size] -> [n, 2 * num_kv_heads * head_dim]: keys before their rotation, then values."""
    weight = layer.input_layernorm.weight
    stream = state.to(weight)[None]  # [1, n, hidden]: some norms and 4-bit layers want three axes
    stream = stream + below.mlp(below.post_attention_layernorm(stream))
    normed, attention = layer.input_layernorm(stream), layer.self_attn
    keys, values = attention.k_proj(normed), attention.v_proj(normed)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys.unflatten(-1, (-1, head_dim))).flatten(-2)  # a head at a time
    return torch.cat([keys, values], -1)[0].float().to(state.device)


def gives_its_rows(
    model: nn.Module, intake: Intake, rows: torch.Tensor, states: dict[int, torch.Tensor]
) -> bool:
    """Whether a model's own states really give its own rows [n, row_width], as in most models they do."""
    try:
        made = rows_of_taken(model, intake, join_taken(intake, rows, states))
    except (AttributeError, RuntimeError, TypeError, ValueError):  # parts of these names that work otherwise
        return False
    num_halves = 2 * intake.geometry.num_layers
    pairs = zip(made.chunk(num_halves, 1), rows.chunk(num_halves, 1), strict=True)
    return all(bool((a - b).abs().max() <= _TOLERANCE * b.abs().max()) for a, b in pairs)
