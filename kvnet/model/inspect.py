"""What a model's cache looks like: the structure study of the first seed, on this node's model.

Greedy generation from three prompts, and the cache it leaves behind. Knows no peers, no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from kvnet.model.cache import Cache, export_layers
from kvnet.model.host import ModelHost
from kvnet.types import to_plain

PROMPTS: Final[dict[str, str]] = {
    "consciousness": "The meaning of consciousness is",
    "identity": "Hello, my name is Lyra and I",
    "ai_communication": "When two AI systems communicate they",
}
MAX_NEW_TOKENS: Final = 20
_PROJECTED_TOKENS: Final = (100, 1000, 4096, 8192)


@dataclass(frozen=True, slots=True)
class LayerStructure:
    """One layer's tensors, each shape [batch, num_kv_heads, seq_len, head_dim]."""

    layer_idx: int
    key_shape: tuple[int, ...]
    value_shape: tuple[int, ...]
    key_dtype: str
    value_dtype: str


@dataclass(frozen=True, slots=True)
class CacheStructure:
    """A cache as the seed's Appendix B writes it down."""

    num_layers: int
    layers: tuple[LayerStructure, ...]


@dataclass(frozen=True, slots=True)
class PromptRow:
    """What one prompt left in the cache.

    The last generated token was never fed back, so `cached_tokens` is one less than the sum of the
    two counts before it, unless the model ended its reply by itself.
    """

    name: str
    prompt: str
    prompt_tokens: int
    generated_tokens: int
    cached_tokens: int
    nbytes: int
    continuation: str
    structure: CacheStructure


@dataclass(frozen=True, slots=True)
class ProjectedSize:
    """Cache size at a length; `fits` tells whether the model's context reaches that far."""

    tokens: int
    nbytes: int
    fits: bool


@dataclass(frozen=True, slots=True)
class CacheReport:
    """The study's tables for one model."""

    model: str
    quantization: str
    max_seq_len: int
    token_nbytes: int
    rows: tuple[PromptRow, ...]
    projected: tuple[ProjectedSize, ...]


def describe_cache(cache: Cache) -> CacheStructure:
    """Shapes and dtypes of every layer."""
    layers = tuple(
        LayerStructure(
            layer_idx=layer.layer_idx,
            key_shape=tuple(layer.keys.shape),
            value_shape=tuple(layer.values.shape),
            key_dtype=str(layer.keys.dtype),
            value_dtype=str(layer.values.dtype),
        )
        for layer in export_layers(cache)
    )
    return CacheStructure(len(layers), layers)


def inspect_cache(host: ModelHost, *, max_new_tokens: int = MAX_NEW_TOKENS) -> CacheReport:
    """Generate from each prompt and look at the cache. Raises TextTooLong for a tiny context."""
    rows = tuple(_inspect_prompt(host, name, max_new_tokens) for name in PROMPTS)
    token_nbytes = rows[0].nbytes // rows[0].cached_tokens
    return CacheReport(
        model=host.name,
        quantization=host.fingerprint.quantization,
        max_seq_len=host.max_seq_len,
        token_nbytes=token_nbytes,
        rows=rows,
        projected=tuple(
            ProjectedSize(tokens, tokens * token_nbytes, fits=tokens <= host.max_seq_len)
            for tokens in _PROJECTED_TOKENS
        ),
    )


def report_to_plain(report: CacheReport) -> dict[str, Any]:
    """The report as JSON-ready values."""
    plain: dict[str, Any] = to_plain(report)
    return plain


def _inspect_prompt(host: ModelHost, name: str, max_new_tokens: int) -> PromptRow:
    prompt_ids = host.tokenize_context(PROMPTS[name])
    cache = host.new_cache()
    generated: list[int] = []
    fed = prompt_ids
    while len(generated) < max_new_tokens:
        token_id = int(host.next_logits(fed, cache).argmax())
        if token_id in host.eos_ids:
            break
        generated.append(token_id)
        fed = [token_id]
    layers = export_layers(cache)
    return PromptRow(
        name=name,
        prompt=PROMPTS[name],
        prompt_tokens=len(prompt_ids),
        generated_tokens=len(generated),
        cached_tokens=layers[0].keys.shape[-2],
        nbytes=sum(layer.keys.nbytes + layer.values.nbytes for layer in layers),
        continuation=host.tokenizer.decode(generated, skip_special_tokens=True),
        structure=describe_cache(cache),
    )
