"""Make a trained model larger without changing what it computes. Knows weights; no data.

Small shapes learn to bind names in minutes where larger ones stall; a grown model starts from what
the small one has learnt and then trains on, all of it. As Net2Net (Chen, Goodfellow and Shlens 2016).
"""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM

from reference_training.init import Shape, build_model


def grow(small: LlamaForCausalLM, shape: Shape, seed: int) -> LlamaForCausalLM:
    """`small` in a larger `shape`: the same logits, and new weights that can learn.

    Layers, hidden size, MLP width and KV heads may grow; heads and head_dim stay. New coordinates are
    read by random weights and written by none, new layers add nothing, KV heads are copied.
    """
    vocab_size = small.config.vocab_size
    large = build_model(shape, vocab_size, seed)
    narrow = small.config.hidden_size
    with torch.no_grad():
        embedding = large.model.embed_tokens.weight
        embedding.zero_()
        embedding[:, :narrow] = small.model.embed_tokens.weight
        _copy_norm(large.model.norm.weight, small.model.norm.weight)
        for layer_idx, layer in enumerate(large.model.layers):
            if layer_idx < len(small.model.layers):
                _copy_layer(layer, small.model.layers[layer_idx], shape, small.config.num_key_value_heads)
            else:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
    return large


def _copy_layer(large: torch.nn.Module, small: torch.nn.Module, shape: Shape, num_kv_heads: int) -> None:
    attention, source = large.self_attn, small.self_attn
    _copy_norm(large.input_layernorm.weight, small.input_layernorm.weight)
    _copy_norm(large.post_attention_layernorm.weight, small.post_attention_layernorm.weight)
    _copy_reader(attention.q_proj.weight, source.q_proj.weight)
    for name in ("k_proj", "v_proj"):
        heads = getattr(source, name).weight.unflatten(0, (num_kv_heads, -1))  # [kv, D, hidden]
        copied = heads.repeat_interleave(shape.num_kv_heads // num_kv_heads, 0).flatten(0, 1)
        _copy_reader(getattr(attention, name).weight, copied)
    _copy_writer(attention.o_proj.weight, source.o_proj.weight)
    for name in ("gate_proj", "up_proj"):
        _copy_reader(getattr(large.mlp, name).weight, getattr(small.mlp, name).weight)
    _copy_writer(large.mlp.down_proj.weight, small.mlp.down_proj.weight)


def _copy_norm(large: torch.Tensor, small: torch.Tensor) -> None:
    # The mean square is taken over more coordinates, the new ones being zero.
    large[: len(small)] = small * (len(small) / len(large)) ** 0.5


def _copy_reader(large: torch.Tensor, small: torch.Tensor) -> None:
    """Weights [out, in] that read the residual stream: new inputs are zero now, so they may be random."""
    large[: small.shape[0], : small.shape[1]] = small


def _copy_writer(large: torch.Tensor, small: torch.Tensor) -> None:
    """Weights [out, in] that write to it: nothing into new coordinates, nothing from new inputs."""
    large.zero_()
    large[: small.shape[0], : small.shape[1]] = small
