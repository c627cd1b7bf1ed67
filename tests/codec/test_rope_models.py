"""Content space is what the model's projection gave: tiny random models of transformers, and their caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, DynamicCache, PreTrainedConfig

from kvnet.codec.rope import turn_keys
from kvnet.model.cache import export_layers, geometry_of
from kvnet.types import DType, Rope
from tests.codec.strategies import rope_extras

HEAD_DIM, NUM_TOKENS = 16, 40
SHORT, LONG = 64, 16  # original contexts, and whether the tokens go beyond
LLAMA = {"rope_theta": 10000.0}
YARN = rope_extras(HEAD_DIM // 2, LONG)["yarn"]
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("llama", {"rope_type": "default"}),
    **{
        kind: ("llama", {"rope_type": kind, **extra})
        for kind, extra in rope_extras(HEAD_DIM // 2, LONG).items()
    },
    "dynamic, within": ("llama", {"rope_type": "dynamic", "factor": 4.0, "max_position_embeddings": SHORT}),
    "longrope, within": ("llama", {"rope_type": "longrope", **rope_extras(HEAD_DIM // 2, SHORT)["longrope"]}),
    "yarn with weights": ("llama", {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.5}),
    "yarn untruncated": ("llama", {"rope_type": "yarn", **YARN, "truncate": False}),
    "yarn with its attention": ("llama", {"rope_type": "yarn", **YARN, "attention_factor": 1.75}),
    "half proportional": ("llama", {"rope_type": "proportional", "partial_rotary_factor": 0.5}),
    "half": ("phi", {"rope_type": "default", "partial_rotary_factor": 0.5}),
    "half linear": ("phi", {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}),
    "half yarn": ("phi", {"rope_type": "yarn", **YARN, "partial_rotary_factor": 0.5}),
    "normed keys": ("qwen3", {"rope_type": "default"}),
}
LENGTHLESS = [name for name in MODELS if not name.startswith(("dynamic", "longrope"))]


def make_config(name: str) -> PreTrainedConfig:
    """Two layers of four heads on two KV heads; keys of about 1."""
    model_type, parameters = MODELS[name]
    limit = parameters.get("max_position_embeddings", 8192)
    parameters = {key: value for key, value in parameters.items() if key != "max_position_embeddings"}
    return AutoConfig.for_model(
        model_type,
        hidden_size=4 * HEAD_DIM,
        head_dim=HEAD_DIM,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        max_position_embeddings=limit,
        initializer_range=0.1,
        rope_parameters=LLAMA | parameters,
    )


def rope_of(config: PreTrainedConfig) -> Rope:
    """What a header says of the model: its rope's parameters, and how far it may read."""
    rope = geometry_of(config, DType.FLOAT32).rope
    extra = {**rope.extra, "max_position_embeddings": config.max_position_embeddings}
    return Rope(rope.rope_type, rope.rope_theta, rope.partial_rotary_factor, extra)


def read(config: PreTrainedConfig, first: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Tokens read at positions first..: each layer's keys before rotation, and as cached; [H, T, D] each."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModel.from_config(config).eval()  # type: ignore[no-untyped-call]
        token_ids = torch.randint(0, 100, (1, NUM_TOKENS))
    projected: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: Any, output: torch.Tensor) -> None:
        projected.append(output.reshape(NUM_TOKENS, -1, HEAD_DIM).transpose(0, 1))

    for layer in model.layers:
        getattr(layer.self_attn, "k_norm", layer.self_attn.k_proj).register_forward_hook(keep)
    cache = DynamicCache(config=config)
    positions = torch.arange(first, first + NUM_TOKENS)[None]
    with torch.no_grad():
        model(input_ids=token_ids, position_ids=positions, past_key_values=cache, use_cache=True)
    return projected, [layer.keys[0] for layer in export_layers(cache)]


@pytest.mark.parametrize("name", MODELS)
def test_keys_turned_back_are_what_the_projection_gave_and_forward_what_was_cached(name: str) -> None:
    config = make_config(name)
    rope, positions = rope_of(config), torch.arange(NUM_TOKENS)
    projected, cached = read(config, 0)
    assert len(projected) == len(cached) == 2
    for before, after in zip(projected, cached, strict=True):
        content = turn_keys(after, positions, rope, HEAD_DIM, forward=False, seq_len=NUM_TOKENS)
        assert torch.allclose(content, before, rtol=0, atol=1e-5 * float(before.abs().max()))
        turned = turn_keys(content, positions, rope, HEAD_DIM, forward=True, seq_len=NUM_TOKENS)
        assert torch.allclose(turned, after, rtol=0, atol=1e-6 * float(after.abs().max()))
        assert not torch.allclose(before, after, atol=0.1)


@pytest.mark.parametrize("name", LENGTHLESS)
def test_prefix_moved_by_4096_is_what_the_model_reads_there(name: str) -> None:
    config = make_config(name)
    rope, positions = rope_of(config), torch.arange(NUM_TOKENS)
    _, here = read(config, 0)
    _, there = read(config, 4096)
    for at_0, at_4096 in zip(here, there, strict=True):
        content = turn_keys(at_0, positions, rope, HEAD_DIM, forward=False, seq_len=None)
        moved = turn_keys(content, positions + 4096, rope, HEAD_DIM, forward=True, seq_len=None)
        # transformers' float32 angles are off by up to 4096 * 2**-24 radians there.
        assert torch.allclose(moved, at_4096, rtol=0, atol=1e-3 * float(at_4096.abs().max()))
