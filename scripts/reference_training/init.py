"""Build a small Llama and start it where induction heads form quickly. Knows weights; no data.

Two aids, both visible in the first weights only: position seeds (the heads of layer 0 start as soft
"look back d tokens" heads) and mimetic attention (queries resemble keys, outputs undo values).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

_NUM_SEEDED_PAIRS = 6  # the fastest rotary pairs tell neighbours apart
_NEIGHBOUR_GAP_NATS = 3.0
_SEED_COORDINATE_STDS = 4.0


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of one reference model, and how its layer 0 starts.

    `offsets` are the look-back distances of its heads. Few of them are better: all heads write into
    one subspace at first, and a token is found again by the bag of tokens before it. `seed_margin`
    is how much more of cos(angle), summed over the seeded rotary pairs, the right offset gets than
    its neighbour. The last `num_quiet_layers` layers add nothing at first: a deep model starts like
    a shallow one.
    """

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    offsets: tuple[int, ...]
    seed_margin: float
    num_quiet_layers: int = 0


def build_model(shape: Shape, vocab_size: int, seed: int) -> LlamaForCausalLM:
    """A freshly initialised, seeded `LlamaForCausalLM` in fp32 with tied embeddings."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=2048,
        initializer_range=0.7 * shape.hidden_size**-0.5,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        _make_mimetic(model, shape, query_scale=2.0 * (32 / shape.head_dim) ** 0.5)
        _seed_positions(model, shape)
        for layer in model.model.layers[shape.num_layers - shape.num_quiet_layers :]:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def _make_mimetic(model: LlamaForCausalLM, shape: Shape, *, query_scale: float) -> None:
    """Set W_q = query_scale * W_k (layers >= 1) and W_o to a multiple of W_v^T in each head.

    What a KV head copies has gain 1 after layer 0, however many query heads share it: at gain 1/2 names
    were never bound. In layer 0 all heads write into one subspace, 2 in sum.
    """
    dim, group_size = shape.head_dim, shape.num_heads // shape.num_kv_heads
    for layer_idx, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        if layer_idx == 0:
            attention.q_proj.weight.mul_(0.3)
            attention.k_proj.weight.mul_(0.3)
            for kv_head in range(1, shape.num_kv_heads):
                rows = slice(kv_head * dim, (kv_head + 1) * dim)
                attention.v_proj.weight[rows] = attention.v_proj.weight[:dim]
        for head in range(shape.num_heads):
            rows = slice(head * dim, (head + 1) * dim)
            kv_rows = slice(head // group_size * dim, (head // group_size + 1) * dim)
            if layer_idx > 0:
                attention.q_proj.weight[rows] = query_scale * attention.k_proj.weight[kv_rows]
            gain = 2.0 / shape.num_heads if layer_idx == 0 else 1.0 / group_size
            attention.o_proj.weight[:, rows] = gain * attention.v_proj.weight[kv_rows].T


def _seed_positions(model: LlamaForCausalLM, shape: Shape) -> None:
    """Let head j of layer 0 prefer the token `offsets[j]` back, by a constant embedding coordinate."""
    embedding = model.model.embed_tokens.weight
    embedding[:, 0] = _SEED_COORDINATE_STDS * model.config.initializer_range
    normed = float(embedding[0, 0] / embedding.pow(2).mean().sqrt())
    dim, half, pairs = shape.head_dim, shape.head_dim // 2, _NUM_SEEDED_PAIRS
    inv_freq = shape.rope_theta ** (-torch.arange(0, dim, 2).float() / dim)  # [head_dim / 2]
    amplitude = (_NEIGHBOUR_GAP_NATS / shape.seed_margin * dim**0.5) ** 0.5 / normed
    attention = model.model.layers[0].self_attn
    key = torch.zeros(dim)
    key[:pairs] = 1.0
    for kv_head in range(shape.num_kv_heads):
        attention.k_proj.weight[kv_head * dim : (kv_head + 1) * dim, 0] = amplitude * key
    for head, offset in enumerate(shape.offsets):
        angle = -offset * inv_freq[:pairs]
        query = torch.zeros(dim)
        query[:pairs], query[half : half + pairs] = torch.cos(angle), torch.sin(angle)
        attention.q_proj.weight[head * dim : (head + 1) * dim, 0] = amplitude * query
