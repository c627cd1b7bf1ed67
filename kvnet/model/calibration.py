"""Learn a model's transform basis: which directions of its keys and values its next tokens depend on.

The metric is the model's own: M = E[g gT] with g the gradient of log p(a sampled next token) by a row of
keys or values in content space (the Fisher information, so that KL is about 1/2 dT M d for a small error d).
The basis is the Karhunen-Loeve transform of rows weighted by M's root; one step for all its components is
reverse water-filling (Cover & Thomas, Elements of Information Theory, 10.3.3).
Knows no files and no codes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch

from kvnet.codec.basis import Basis, LayerBasis
from kvnet.codec.pack import TORCH_DTYPES
from kvnet.codec.piece import Piece
from kvnet.codec.rope import rope_strip
from kvnet.errors import RequestError
from kvnet.model.cache import LayerKV, export_layers
from kvnet.model.host import ModelHost
from kvnet.model.passages import Continuation, Passage, cut_texts
from kvnet.types import Kind

_log = logging.getLogger(__name__)

Place = tuple[int, Kind]  # layer, and keys or values

DEFAULT_KL: Final = 0.001  # nats a position that the steps are made for, to first order
_SKIPPED_TOKENS: Final = 1  # the first position is an outlier that compact keeps exact anyway
_METRIC_FLOOR: Final = 0.03  # of the mean sensitivity: an unseen direction is not worthless
_SELDOM: Final = 0.0005  # a component whose code is seldom anything but zero is dropped
_SAMPLED_ROWS: Final = 1 << 14  # rows of a layer that decide which ones
_LARGEST_CODE: Final = 120  # that calibration makes, of 127
_PLAIN_STEP: Final = 0.5  # standard deviations, where no gradients are to be had
_ROWS_PER_CHANNEL: Final = 4


@dataclass(frozen=True, slots=True)
class Calibration:
    """A basis, and what it rests on."""

    basis: Basis
    num_tokens: int
    weighted: bool  # by the model's sensitivity; False where the model has no gradients


def calibrate(host: ModelHost, texts: Sequence[str], *, seed: int = 0) -> Calibration:
    """Calibrate on texts like those that will be remembered. Raises as `calibrate_on`."""
    return calibrate_on(host, cut_texts(host, texts), seed=seed)


def calibrate_on(
    host: ModelHost, passages: Sequence[Passage], *, seed: int = 0, kl: float = DEFAULT_KL
) -> Calibration:
    """Read every context, weigh its rows by the gradients of what follows, and make the basis.

    `kl` (nats a predicted position) sets the rate: twice as large a value takes about half a bit off each
    component that is coded. The same passages and seed give the same basis on the same machine.
    Raises RequestError for less text than a basis needs.
    """
    channels = host.geometry.num_kv_heads * host.geometry.head_dim
    wanted = _ROWS_PER_CHANNEL * channels
    num_tokens = sum(len(passage.context_ids) for passage in passages)
    if num_tokens < wanted:
        raise RequestError(
            f"the texts have {num_tokens} tokens to calibrate on, {host.name} needs {wanted}; give more text"
        )
    moments = {
        (layer_idx, kind): _Moments(channels)
        for layer_idx in range(host.geometry.num_layers)
        for kind in (Kind.KEY, Kind.VALUE)
    }
    generator = torch.Generator().manual_seed(seed)
    weighted = True
    num_scored = 0
    for passage in passages:
        rows = _content_rows(host, passage.context_ids)
        for place, block in rows.items():
            moments[place].add_rows(block[_SKIPPED_TOKENS:])
        for continuation in passage.continuations if weighted else ():
            gradients = _gradients(host, rows, continuation, generator)
            if gradients is None:
                weighted = False
                break
            for place, gradient in gradients.items():
                moments[place].add_gradients(gradient[_SKIPPED_TOKENS:])
            num_scored += len(continuation.token_ids) - continuation.first_scored
    # The rate-distortion argument: uniform noise of step^2/12 in each coordinate of the metric.
    step = (24 * kl / (len(moments) * channels)) ** 0.5
    layers = {
        place: _layer_basis(found, step, num_scored if weighted else 0) for place, found in moments.items()
    }
    return Calibration(Basis.of(layers), num_tokens, weighted)


class _Moments:
    """Running sums over rows and gradients of one layer's keys or values, in float64."""

    def __init__(self, channels: int) -> None:
        self.num_rows = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.square = torch.zeros(channels, channels, dtype=torch.float64)
        self.metric = torch.zeros(channels, channels, dtype=torch.float64)
        self.sampled: list[torch.Tensor] = []
        self._room = _SAMPLED_ROWS

    def add_rows(self, rows: torch.Tensor) -> None:
        """Rows [T, C] of a context."""
        wide = rows.double()
        self.num_rows += len(rows)
        self.total += wide.sum(0)
        self.square += wide.T @ wide
        self.sampled.append(rows[: self._room])
        self._room -= len(self.sampled[-1])

    def add_gradients(self, gradients: torch.Tensor) -> None:
        """Gradients [T, C] of one continuation's log-probability by a context's rows."""
        wide = gradients.double()
        self.metric += wide.T @ wide


def _content_rows(host: ModelHost, token_ids: Sequence[int]) -> dict[Place, torch.Tensor]:
    """Read a context: float32 rows [T, C] of every layer's keys (content space) and values, on the CPU."""
    cache = host.new_cache()
    host.prefill(token_ids, cache)
    strip = rope_strip(host.geometry.rope, host.geometry.head_dim, len(token_ids))
    piece = _whole(host, len(token_ids))
    rows = {}
    for layer in export_layers(cache):
        for kind, tensor in ((Kind.KEY, layer.keys), (Kind.VALUE, layer.values)):
            block = tensor[0].to("cpu", torch.float32, copy=True)  # [1, H, T, D] -> [H, T, D]
            if strip is not None and kind is Kind.KEY:
                block = strip.encode(block, 0, piece)
            rows[layer.layer_idx, kind] = block.permute(1, 0, 2).flatten(1)  # [H, T, D] -> [T, H*D]
    return rows


def _gradients(
    host: ModelHost, rows: dict[Place, torch.Tensor], continuation: Continuation, generator: torch.Generator
) -> dict[Place, torch.Tensor] | None:
    """d sum of log p(sampled token) / d rows, [T, C] each; None if this model has no such gradients.

    Tokens are drawn from the model's own distribution, as the Fisher information wants it.
    """
    leaves = {place: block.clone().requires_grad_() for place, block in rows.items()}
    try:
        with torch.enable_grad():
            logits = host.graded_logits(continuation.token_ids, _layers(host, leaves))
            scores = logits[continuation.first_scored :].float().log_softmax(-1)
            drawn = torch.multinomial(scores.detach().exp().cpu(), 1, generator=generator).to(scores.device)
            found = torch.autograd.grad(scores.gather(1, drawn).sum(), list(leaves.values()))
    except (RuntimeError, NotImplementedError) as exc:
        _log.warning("calibration.unweighted model=%s reason=%s", host.name, str(exc).split("\n")[0])
        return None
    return dict(zip(leaves, found, strict=True))


def _layers(host: ModelHost, rows: dict[Place, torch.Tensor]) -> list[LayerKV]:
    """Inverse of `_content_rows`, through which gradients flow."""
    num_tokens = len(next(iter(rows.values())))
    strip = rope_strip(host.geometry.rope, host.geometry.head_dim, num_tokens)
    piece = _whole(host, num_tokens)
    dtype = TORCH_DTYPES[host.geometry.dtype]
    layers = []
    for layer_idx in range(host.geometry.num_layers):
        keys, values = (
            rows[layer_idx, kind].view(piece.token_shape).permute(1, 0, 2)  # [T, H*D] -> [H, T, D]
            for kind in (Kind.KEY, Kind.VALUE)
        )
        turned = keys if strip is None else strip.decode(keys.clone(), 0, piece)  # turns in place
        keys, values = (half[None].to(host.device, dtype) for half in (turned, values))
        layers.append(LayerKV(layer_idx, keys, values))
    return layers


def _layer_basis(found: _Moments, step: float, num_scored: int) -> LayerBasis:
    """The weighted Karhunen-Loeve transform of one layer's keys or values, steps folded in."""
    mean = found.total / found.num_rows
    covariance = found.square / found.num_rows - torch.outer(mean, mean)
    channels = len(mean)
    identity = torch.eye(channels, dtype=torch.float64)
    sensitivity = float(found.metric.trace()) / channels / max(1, num_scored)
    if sensitivity > 0:
        weight = found.metric / (found.metric.trace() / channels) + _METRIC_FLOOR * identity
        size = step / sensitivity**0.5
    else:
        weight = identity
        size = _PLAIN_STEP * max(float(covariance.trace()) / channels, 0.0) ** 0.5
    scales, directions = torch.linalg.eigh(weight)
    root = directions * scales.sqrt() @ directions.T
    inverse = directions / scales.sqrt() @ directions.T
    _, axes = torch.linalg.eigh(root @ covariance @ root)
    axes = axes.flip(1)  # the strongest first
    codes = (torch.cat(found.sampled).double() - mean) @ root @ axes / size  # [n, C]
    # A byte holds no larger code: the few components that need one get a larger step of their own.
    sizes = size * (codes.abs().amax(0) / _LARGEST_CODE).clamp_min(1)
    used = (codes.abs() > 0.5).double().mean(0) > _SELDOM
    used[0] = True  # a basis has at least one component
    forward = root @ axes[:, used] / sizes[used]  # [C, r]
    backward = axes.T[used] @ inverse * sizes[used, None]  # [r, C]
    return LayerBasis(mean.float(), forward.float(), backward.float())


def _whole(host: ModelHost, num_tokens: int) -> Piece:
    return Piece(host.geometry, 0, num_tokens, num_tokens)
