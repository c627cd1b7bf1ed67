"""Whether a memory is what its model makes of a text: slots of it beside an own reading. Knows no peers.

Quantized memories are compared in their own coding, so what it loses is in both alike; what is left are the
differences of arithmetic between two machines, and what somebody changed.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Final

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.presets import Preset
from kvnet.model.generation import never
from kvnet.model.host import ModelHost
from kvnet.model.memory import digest_tokens, encode_memory, refuse_incompatible
from kvnet.model.slots import slots_of
from kvnet.types import Coding, Compression, DType, Geometry, Kind, MemoryHeader, RawMemory, Scheme

# Errors that honest memories stay under, with some room (tests/model/test_spotcheck.py).
_OF_DTYPE: Final = {DType.FLOAT32: 1e-3, DType.FLOAT16: 5e-2, DType.BFLOAT16: 2e-1}
_OF_STEP: Final = {8: 2e-2, 4: 2e-1}  # numbers that fall on another step of the coding
_OF_TRANSFORM: Final = 0.6  # of some components it keeps the sign alone
_OF_OTHER_WEIGHTS: Final = 0.7  # the same model, quantized otherwise


@dataclass(frozen=True, slots=True)
class SpotCheck:
    """What was compared; a slot is one position's keys and values in one layer."""

    is_same_text: bool  # else nothing was compared: the memory's tokens are not those of the text
    slots: int  # that the memory has
    samples: int  # that were compared
    agreement: float  # the share of those whose error is below `tolerance`
    worst_error: float  # of keys or values, relative to this node's own
    tolerance: float
    seed: int

    @property
    def agrees(self) -> bool:
        """Whether nothing that was looked at speaks against the memory."""
        return self.is_same_text and self.agreement == 1


def chance_to_find(share: float, samples: int) -> float:
    """At least so likely one of `samples` slots is among those that were changed, a `share` of all."""
    return 1 - (1 - share) ** samples


def check_text(
    host: ModelHost,
    memory: RawMemory,
    text: str,
    *,
    samples: int,
    seed: int,
    basis: Basis | None = None,
    cancelled: Callable[[], bool] = never,
) -> SpotCheck:
    """Read `text` and compare `samples` slots of `memory`, chosen by `seed`; 0 compares all of them.

    `basis` is the memory's, and must be one that this node trusts: one can be made that hides anything.
    Heads that were set to zero count as changed. An edit smaller than the tolerance goes unnoticed.
    Raises IncompatibleModel for another geometry, RequestError for an empty text, TextTooLong, Cancelled, and
    what `unpack_memory` raises.
    """
    header = memory.header
    refuse_incompatible(header, host.geometry)
    slots, tolerance = header.geometry.num_layers * header.seq_len, _tolerance(host, header)
    if digest_tokens(host.tokenize_context(text)) != header.token_digest:
        return SpotCheck(False, slots, 0, 0.0, 0.0, tolerance, seed)
    own = _as_coded(host.capture(text, cancelled=cancelled), header)
    errors = _errors(own, memory, basis if header.coding.scheme is Scheme.TRANSFORM else None).flatten()
    count = min(samples or slots, slots)
    chosen = errors[sorted(random.Random(seed).sample(range(slots), count))]  # noqa: S311  # no secret
    agreeing = int((chosen <= tolerance).sum())  # NaN does not
    return SpotCheck(True, slots, count, agreeing / count, float(chosen.max()), tolerance, seed)


def _as_coded(own: RawMemory, header: MemoryHeader) -> RawMemory:
    """Our reading, quantized as the memory is. A transform is left out: it is compared within its basis."""
    is_grouped = header.coding.scheme is Scheme.GROUPED
    if not is_grouped and header.geometry.dtype is own.header.geometry.dtype:
        return own
    coding = replace(header.coding, pruned_heads=()) if is_grouped else Coding()
    preset = Preset("as it came", coding, Compression.NONE)
    return encode_memory(own, preset, dtype=header.geometry.dtype)


def _errors(own: RawMemory, memory: RawMemory, basis: Basis | None) -> torch.Tensor:
    """[num_layers, seq_len], the larger of keys' and values'."""
    geometry = memory.header.geometry
    ours = _rows(own, geometry, None)
    theirs = _rows(memory, geometry, basis)
    found = []
    for place in product(range(geometry.num_layers), (Kind.KEY, Kind.VALUE)):
        mine, other = ours[place], theirs[place]
        if basis is None:
            found.append(_relative(mine, other))
            continue
        layer = basis.layers[place]
        steps, change = (mine - layer.mean) @ layer.forward, (other - mine) @ layer.forward  # [T, r]
        within = change.abs().amax(1) / (1 + steps.abs().amax(1))
        found.append(torch.maximum(within, _relative(mine, other) / 2))  # half: it may lie outside the basis
    return torch.stack(found).reshape(geometry.num_layers, 2, -1).amax(1)


def _rows(memory: RawMemory, geometry: Geometry, basis: Basis | None) -> dict[tuple[int, Kind], torch.Tensor]:
    """float32 [seq_len, num_kv_heads * head_dim] of each layer's keys, without rotation, and values."""
    parts = slots_of(memory, num_sinks=0, basis=basis).rows.chunk(2 * geometry.num_layers, 1)
    return dict(zip(product(range(geometry.num_layers), (Kind.KEY, Kind.VALUE)), parts, strict=True))


def _relative(mine: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """|difference| / |own| of each of [n, w]; a row counts at least a thousandth of the others."""
    norm = mine.norm(dim=1)
    floor = (norm.mean() * 1e-3).clamp_min(torch.finfo(norm.dtype).tiny)
    found: torch.Tensor = (mine - other).norm(dim=1) / norm.clamp_min(floor)
    return found


def _tolerance(host: ModelHost, header: MemoryHeader) -> float:
    theirs, ours = header.fingerprint, host.fingerprint
    if (theirs.weights_digest, theirs.quantization) != (ours.weights_digest, ours.quantization):
        return _OF_OTHER_WEIGHTS
    if header.coding.scheme is Scheme.TRANSFORM:
        return _OF_TRANSFORM
    arithmetic = max(_OF_DTYPE[header.geometry.dtype], _OF_DTYPE[host.geometry.dtype])
    if header.coding.scheme is Scheme.RAW:
        return arithmetic
    return arithmetic + _OF_STEP[min(header.coding.key_bits, header.coding.value_bits)]
