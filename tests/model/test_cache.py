"""Which caches kvnet moves, and that moving them changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvnet.errors import UnsupportedModel
from kvnet.model.cache import (
    LayerKV,
    build_cache,
    cache_seq_len,
    export_layers,
    geometry_of,
    new_cache,
    observe_geometry,
    refuse_unsupported,
)
from kvnet.types import DType

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
GPT2 = {"vocab_size": 64, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
MOE = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
MLA = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}

SUPPORTED: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 16},
    "mistral": {**SMALL, "sliding_window": None},
    "gemma": {**SMALL, "head_dim": 16},
    "phi": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 2},
    "qwen3_moe": {**SMALL, **MOE},
    "gpt2": GPT2,
    "falcon": SMALL,  # multi-query: one KV head, whatever num_key_value_heads says
}
UNSUPPORTED: dict[str, tuple[str, dict[str, Any], str]] = {
    "mistral_window": ("mistral", {**SMALL, "sliding_window": 16}, "layer 0 .*SlidingWindow"),
    "qwen2_window": (
        "qwen2",
        {**SMALL, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
        "layer 1 .*sliding_attention",
    ),
    "gemma2": ("gemma2", {**SMALL, "sliding_window": 16}, "layer 0 .*sliding_attention"),
    "gemma3": ("gemma3_text", {**SMALL, "sliding_window": 16}, "layer 0 .*sliding_attention"),
    "gemma3n": ("gemma3n_text", {**SMALL, "num_hidden_layers": 20}, "gemma3n_text"),
    "llama4": ("llama4_text", SMALL, "layer 0 .*chunked_attention"),
    "deepseek_v2": ("deepseek_v2", {**SMALL, **MLA}, "layer 0 .*latent attention"),
    "deepseek_v3": ("deepseek_v3", {**SMALL, **MLA}, "layer 0 .*latent attention"),
    "mamba": ("mamba", SMALL, "layer 0 .*linear_attention"),
    "jamba": ("jamba", {**SMALL, "num_experts": 2}, "layer 0 .*linear_attention"),
    "qwen3_next": ("qwen3_next", {**SMALL, "num_hidden_layers": 4}, "layer 0 .*linear_attention"),
    "falcon_h1": ("falcon_h1", SMALL, "layer 0 .*hybrid"),
    "t5": ("t5", {"vocab_size": 64}, "encoder-decoder"),
}
TOKEN_IDS = torch.tensor([[5, 9, 13, 2, 40, 7, 21, 33]])


def small_model(model_type: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **values)).eval()


@torch.no_grad()
def prefill(model: Any, token_ids: torch.Tensor, cache: Any = None) -> Any:
    past = cache_seq_len(cache) if cache is not None else 0
    mask = torch.ones(1, past + token_ids.shape[1], dtype=torch.long)
    return model(input_ids=token_ids, past_key_values=cache, attention_mask=mask, use_cache=True)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_exported_and_rebuilt_cache_continues_like_the_whole_prompt(model_type: str) -> None:
    model = small_model(model_type, SUPPORTED[model_type])
    refuse_unsupported(model.config)
    whole = prefill(model, TOKEN_IDS).logits[0, -1]
    layers = export_layers(prefill(model, TOKEN_IDS[:, :5]).past_key_values)
    rebuilt = build_cache(layers, model.config)
    assert torch.allclose(prefill(model, TOKEN_IDS[:, 5:], rebuilt).logits[0, -1], whole, atol=1e-5)


@pytest.mark.parametrize("model_type", SUPPORTED)
def test_observed_geometry_is_the_shape_of_the_real_cache(model_type: str) -> None:
    model = small_model(model_type, SUPPORTED[model_type])
    cache = prefill(model, TOKEN_IDS).past_key_values
    geometry = observe_geometry(cache, geometry_of(model.config, DType.FLOAT32))
    shape = (1, geometry.num_kv_heads, TOKEN_IDS.shape[1], geometry.head_dim)
    assert {tuple(layer.keys.shape) for layer in export_layers(cache)} == {shape}
    assert len(cache) == geometry.num_layers


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_model_without_plain_whole_prefix_cache_is_refused_by_name(case: str) -> None:
    model_type, values, message = UNSUPPORTED[case]
    with pytest.raises(UnsupportedModel, match=message):
        refuse_unsupported(AutoConfig.for_model(model_type, **values))


def test_shared_kv_layers_are_refused_by_index() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    config.num_kv_shared_layers = 1
    with pytest.raises(UnsupportedModel, match=r"layer 1 .*KV-shared"):
        refuse_unsupported(config)


def test_multimodal_rope_is_refused() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    config.rope_parameters["mrope_section"] = [2, 1, 1]
    with pytest.raises(UnsupportedModel, match="M-RoPE"):
        refuse_unsupported(config)


def test_model_that_returns_no_cache_is_refused() -> None:
    claimed = geometry_of(AutoConfig.for_model("llama", **SMALL), DType.FLOAT32)
    with pytest.raises(UnsupportedModel, match="NoneType"):
        observe_geometry(None, claimed)


def test_values_of_another_width_than_keys_are_refused() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    cache = new_cache(config)
    for layer_idx in range(2):
        cache.update(torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 4), layer_idx)
    with pytest.raises(UnsupportedModel, match="layer 0"):
        observe_geometry(cache, geometry_of(config, DType.FLOAT32))


def test_cache_of_sliding_layers_is_not_exported() -> None:
    cache = new_cache(AutoConfig.for_model("mistral", **{**SMALL, "sliding_window": 16}))
    with pytest.raises(UnsupportedModel, match="layer 0"):
        export_layers(cache)


def test_built_cache_shares_no_storage_with_its_layers() -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    layers = [LayerKV(i, torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)) for i in range(2)]
    for layer, copied in zip(layers, export_layers(build_cache(layers, config)), strict=True):
        copied.keys.add_(1)
        copied.values.add_(1)
        assert not layer.keys.any()
        assert not layer.values.any()


@pytest.mark.parametrize("order", [[0], [1, 0], [0, 1, 2]])
def test_cache_is_built_from_all_layers_in_order(order: list[int]) -> None:
    config = AutoConfig.for_model("llama", **SMALL)
    layers = [LayerKV(i, torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)) for i in order]
    with pytest.raises(ValueError, match="the model has 2"):
        build_cache(layers, config)


def test_layers_of_different_lengths_are_a_bug() -> None:
    cache = new_cache(AutoConfig.for_model("llama", **SMALL))
    for layer_idx, seq_len in enumerate((3, 4)):
        cache.update(torch.zeros(1, 2, seq_len, 8), torch.zeros(1, 2, seq_len, 8), layer_idx)
    with pytest.raises(AssertionError, match=r"\[3, 4\]"):
        cache_seq_len(cache)


def test_each_layer_is_shown_once_per_pass_in_order() -> None:
    model = small_model("llama", SMALL)
    seen: list[LayerKV] = []
    prefill(model, TOKEN_IDS, new_cache(model.config, seen.append))
    assert [layer.layer_idx for layer in seen] == [0, 1]
    assert {layer.keys.shape[-2] for layer in seen} == {TOKEN_IDS.shape[1]}


def test_rope_keeps_theta_type_and_scaling_parameters() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 32.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    config = AutoConfig.for_model("llama", **SMALL, rope_parameters=rope)
    parsed = geometry_of(config, DType.BFLOAT16).rope
    assert (parsed.rope_type, parsed.rope_theta, parsed.partial_rotary_factor) == ("llama3", 5e5, 1.0)
    assert parsed.extra == {key: rope[key] for key in rope if key not in {"rope_type", "rope_theta"}}


def test_partial_rotary_factor_is_read() -> None:
    assert geometry_of(AutoConfig.for_model("phi", **SMALL), DType.FLOAT32).rope.partial_rotary_factor == 0.5


@pytest.mark.parametrize(
    ("model_type", "values", "rope_type"), [("gpt2", {}, "none"), ("gptj", {"rotary_dim": 4}, "gptj")]
)
def test_rope_outside_of_rope_parameters_is_not_taken_for_none(
    model_type: str, values: dict[str, Any], rope_type: str
) -> None:
    config = AutoConfig.for_model(model_type, **GPT2, **values)
    assert geometry_of(config, DType.FLOAT32).rope.rope_type == rope_type
