"""Phase 1 of the seed: what shape a cache has, how its size grows, and what that means for larger models."""

from __future__ import annotations

from typing import Any, Final

import torch

from kvnet.align.arms import Arm
from kvnet.experiments.statistics import fit_line
from kvnet.model.cache import export_layers
from kvnet.model.host import ModelHost
from kvnet.protocols.protocol import CONTROLS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab, all_cores
from kvnet.protocols.shapes import observe_shape, token_nbytes
from kvnet.types import Geometry

# Tables 3.2 and 3.3 of the seed: tokens (prompt and reply), and projected lengths with what it wrote there.
SEED_PROMPTS: Final = {"consciousness": 26, "identity": 29, "ai_communication": 27}
_SEED_PROJECTED_MB: Final = {100: 2.2, 1000: 22.0, 4096: 90.0, 8192: 180.0}
_SEED_NBYTES_A_TOKEN: Final = {"llama-3-8b": 512_000, "llama-3-70b": 2_560_000, "mistral-large": 2_820_000}
_MB: Final = 1e6
_METRICS: Final = {
    "tokens": "tokens in the cache",
    "nbytes": "bytes of its keys and values",
    "bytes_per_token": "bytes",
    "intercept_nbytes": "bytes that the fitted line has at no tokens",
    "max_residual_nbytes": "bytes, how far the furthest measurement lies from the line",
    "mb": "10^6 bytes",
    "seed_mb": "what the seed says, 10^6 bytes",
    "seed_bytes_per_token": "what the seed says",
}


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms: `measured` caches of really read tokens, `prompt` of the seed's lengths, `projected` by shape."""
    host = lab.host(setting["model"])
    name = host.name.rpartition(":")[2]
    log.model = name
    with all_cores():
        sizes = {n: _measure(host, n) for n in sorted({*setting["lengths"], *SEED_PROMPTS.values()})}
    for num_tokens in setting["lengths"]:
        log.values("measured", _size(num_tokens, sizes[num_tokens]), length=num_tokens)
    fit = fit_line([float(n) for n in sizes], [float(nbytes) for nbytes in sizes.values()])
    fitted = {
        "bytes_per_token": round(fit.slope, 6),
        "intercept_nbytes": round(fit.intercept, 3) + 0.0,  # no negative zero
        "max_residual_nbytes": round(fit.max_residual, 3),
    }
    log.values("fitted", fitted)
    for prompt, num_tokens in SEED_PROMPTS.items():
        log.values("prompt", _size(num_tokens, sizes[num_tokens]), prompt=prompt)
    rows = {name: _describe(host.geometry, host.max_seq_len)}
    for shape in setting["shapes"]:
        geometry, limit = observe_shape(shape)
        rows.setdefault(shape, _describe(geometry, limit))
        _log_projected(log, shape, geometry, limit)
    tables = {
        "fit": fitted,
        "table_3_2_mb": {prompt: round(sizes[n] / _MB, 2) for prompt, n in SEED_PROMPTS.items()},
        "table_3_3_mb": {str(n): round(n * token_nbytes(host.geometry) / _MB, 2) for n in _SEED_PROJECTED_MB},
    }
    log.summary |= {**rows, **tables}


def _measure(host: ModelHost, num_tokens: int) -> int:
    """Bytes of the cache after really reading so many tokens."""
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(3, min(host.vocab_size, len(host.tokenizer)), (num_tokens,), generator=generator)
    cache = host.new_cache()
    host.prefill(ids.tolist(), cache)
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in export_layers(cache))


def _log_projected(log: CellLog, shape: str, geometry: Geometry, limit: int) -> None:
    each = token_nbytes(geometry)
    wrong = {} if shape not in _SEED_NBYTES_A_TOKEN else {"seed_bytes_per_token": _SEED_NBYTES_A_TOKEN[shape]}
    for num_tokens, seed_mb in _SEED_PROJECTED_MB.items():
        said = {"seed_mb": seed_mb} if shape == "tinyllama" else {}
        values = {**_size(num_tokens, num_tokens * each), **said, **wrong}
        log.values("projected", values, model=shape, length=num_tokens, fits=num_tokens <= limit)


def _size(num_tokens: int, nbytes: int) -> dict[str, float]:
    return {
        "tokens": num_tokens, "nbytes": nbytes, "bytes_per_token": nbytes / num_tokens, "mb": nbytes / _MB
    }  # fmt: skip


def _describe(geometry: Geometry, limit: int) -> dict[str, Any]:
    return {
        "layers": geometry.num_layers,
        "kv_heads": geometry.num_kv_heads,
        "head_dim": geometry.head_dim,
        "bytes_per_token": token_nbytes(geometry),
        "dtype": geometry.dtype.value,
        "max_tokens": limit,
    }


_NO_QUESTIONS: Final = "sizes are counted, nothing is asked, so no answer could be wrong"
PROTOCOL = Protocol(
    name="structure",
    version=1,
    question="What shape does a cache have, and how does its size grow with the text?",
    measure=measure,
    metrics=_METRICS,
    without=dict.fromkeys((Arm(arm) for arm in CONTROLS), _NO_QUESTIONS),
)
