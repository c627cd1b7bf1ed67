"""Published shapes of models whose weights are not needed to say how large their caches are."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from kvnet.model.cache import geometry_of, observe_geometry
from kvnet.types import DType, Geometry

# As their config.json files have them; vocabularies and MLPs, which no cache sees, are left small.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "tinyllama": {
        "hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    "llama-3-8b": {
        "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "llama-3-70b": {
        "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
        "max_position_embeddings": 8192,
    },
    "mistral-large": {
        "hidden_size": 12288, "num_hidden_layers": 88, "num_attention_heads": 96, "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
    },
}  # fmt: skip


def observe_shape(name: str) -> tuple[Geometry, int]:
    """(the geometry of the cache that a model of this shape fills at 16 bits, its context length).

    The model reads two tokens without weights, so its own code says what it keeps, not a formula.
    """
    config: Any = AutoConfig.for_model("llama", vocab_size=16, intermediate_size=16, **SHAPES[name])
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float16)  # type: ignore[no-untyped-call]
        output = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    geometry = observe_geometry(output.past_key_values, geometry_of(config, DType.FLOAT16))
    return geometry, int(config.max_position_embeddings)


def token_nbytes(geometry: Geometry) -> int:
    """Bytes of one token's keys and values."""
    return 2 * geometry.num_layers * geometry.num_kv_heads * geometry.head_dim * geometry.dtype.itemsize
