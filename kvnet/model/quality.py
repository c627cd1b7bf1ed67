"""What a coding costs in quality, measured: a decoded memory against the uncompressed one.

Both continue over the same tokens, teacher-forced, and their predictions are compared. Knows no text but its
own probe, no files, no peers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from typing import Final

import torch

from kvnet.codec.basis import Basis
from kvnet.codec.presets import PRESETS, Preset
from kvnet.format.compress import compress, suited_compression
from kvnet.model.cache import export_layers
from kvnet.model.host import ModelHost
from kvnet.model.memory import encode_memory, pack_memory
from kvnet.model.passages import Continuation, Passage, world_passage
from kvnet.model.reference.catalog import REFERENCE_MODELS
from kvnet.plan import plan_memory
from kvnet.types import RawMemory, canonical_json, sha256_hex

DEFAULT_BOUND: Final = 0.01  # nats
_PROBE: Final = resources.files("kvnet.model") / "probe.txt"
_REMEMBERED_SHARE: Final = 0.75  # of the probe; the rest follows the memory
_PROBE_FACTS: Final = 12
_PROBE_QUESTIONS: Final = 4


@dataclass(frozen=True, slots=True)
class Quality:
    """How far a memory's predictions are from those of the uncompressed one."""

    kl: float  # nats, mean over positions of KL(uncompressed || decoded)
    top1: float  # share of positions whose most likely token is the same
    tokens_checked: int
    probe_digest: str  # sha256:<hex> of the tokens that followed


@dataclass(frozen=True, slots=True)
class Candidate:
    """A preset as measured on the probe."""

    preset: str
    wire_nbytes: int
    quality: Quality


@dataclass(frozen=True, slots=True)
class Choice:
    """The preset that `auto` means for a model, and what it was chosen from."""

    preset: str
    bound: float  # nats
    candidates: tuple[Candidate, ...]


def measure_quality(
    host: ModelHost,
    coded: RawMemory,
    plain: RawMemory,
    *,
    basis: Basis | None = None,
    plain_basis: Basis | None = None,
    continuations: Sequence[Continuation] = (),
) -> Quality | None:
    """Measure a memory against the one it was encoded from, by what the model predicts after each.

    Without `continuations`, the end of the packaged text follows, as much of it as the context holds; None
    where it holds none, since nothing can be measured then. Raises what `ModelHost.inject` raises.
    """
    followed = continuations or _packaged_continuation(host, coded.header.seq_len)
    if not followed:
        return None
    predict = partial(_predict, host, continuations=followed)
    return compare(predict(plain, basis=plain_basis), predict(coded, basis=basis), digest_probe(followed))


def compare(plain: torch.Tensor, coded: torch.Tensor, probe_digest: str) -> Quality:
    """Quality from log-probabilities [positions, vocab_size] after the plain and the coded memory."""
    divergence = (plain.exp() * (plain - coded)).sum(-1)  # [positions]
    same = plain.argmax(-1) == coded.argmax(-1)
    kl = max(0.0, float(divergence.mean()))  # rounding may leave it below zero
    return Quality(kl, float(same.double().mean()), len(plain), probe_digest)


def choose_preset(
    host: ModelHost,
    *,
    basis: Basis | None = None,
    bound: float = DEFAULT_BOUND,
    probe: Sequence[Passage] = (),
) -> Choice:
    """Measure every preset on the probe and choose; presets that need a basis only with one."""
    passages = tuple(probe) or probe_of(host)
    presets = [preset for preset in PRESETS.values() if basis is not None or not preset.needs_basis]
    candidates = measure_presets(host, presets, passages, basis=basis)
    return Choice(decide(candidates, bound), bound, candidates)


def decide(candidates: Iterable[Candidate], bound: float) -> str:
    """The cheapest preset whose KL is at most `bound` nats; `exact` if none is."""
    good = [candidate for candidate in candidates if candidate.quality.kl <= bound]
    return min(good, key=lambda candidate: candidate.wire_nbytes).preset if good else "exact"


def measure_presets(
    host: ModelHost, presets: Sequence[Preset], passages: Sequence[Passage], *, basis: Basis | None = None
) -> tuple[Candidate, ...]:
    """Wire bytes and quality of presets over all passages, in the host's own dtype."""
    memories = [read_tokens(host, passage.context_ids) for passage in passages]
    plain = torch.cat([_predict(host, m, p.continuations) for m, p in zip(memories, passages, strict=True)])
    digest = digest_probe([c for passage in passages for c in passage.continuations])
    candidates = []
    for preset in presets:
        coded = [encode_memory(memory, preset, basis=basis) for memory in memories]
        after = [
            _predict(host, m, p.continuations, basis=basis) for m, p in zip(coded, passages, strict=True)
        ]
        wire_nbytes = sum(count_wire_nbytes(memory, preset) for memory in coded)
        candidates.append(Candidate(preset.name, wire_nbytes, compare(plain, torch.cat(after), digest)))
    return tuple(candidates)


def count_wire_nbytes(memory: RawMemory, preset: Preset) -> int:
    """Bytes of a memory's chunks as the preset compresses them."""
    coding, itemsize = memory.header.coding, memory.header.geometry.dtype.itemsize
    return sum(
        len(
            compress(
                chunk,
                suited_compression(preset.compression, coding, key.kind),
                level=preset.level,
                itemsize=itemsize,
            )[1]
        )
        for key, chunk in zip(plan_memory(memory.header), memory.chunks, strict=True)
    )


def probe_of(host: ModelHost) -> tuple[Passage, ...]:
    """The packaged text, as much as fits; for a reference model also facts and questions of its world."""
    token_ids = tuple(host.tokenize_context(_PROBE.read_text(encoding="utf-8"))[: host.max_seq_len])
    cut = int(len(token_ids) * _REMEMBERED_SHARE)
    passages = [Passage(token_ids[:cut], (Continuation(token_ids[cut:]),))]
    if host.name in REFERENCE_MODELS:
        passage, _ = world_passage(host, random.Random(0), _PROBE_FACTS, _PROBE_QUESTIONS)  # noqa: S311
        passages.append(passage)
    return tuple(passages)


def digest_probe(continuations: Sequence[Continuation]) -> str:
    """SHA-256 over the tokens, and which of their predictions count."""
    plain = [[list(c.token_ids), c.first_scored] for c in continuations]
    return sha256_hex(b"kvnet/probe/v1\0" + canonical_json(plain))


def _packaged_continuation(host: ModelHost, seq_len: int) -> tuple[Continuation, ...]:
    """The end of the packaged text, as much of it as fits behind `seq_len` tokens; nothing if none does."""
    room = host.max_seq_len - seq_len
    token_ids = host.tokenize_question(_PROBE.read_text(encoding="utf-8"), after_memory=True)
    rest = token_ids[int(len(token_ids) * _REMEMBERED_SHARE) :]
    return (Continuation(tuple(rest[:room])),) if room > 0 else ()


def read_tokens(host: ModelHost, token_ids: Sequence[int]) -> RawMemory:
    """The uncompressed memory of a context."""
    cache = host.new_cache()
    host.prefill(token_ids, cache)
    return pack_memory(
        export_layers(cache), fingerprint=host.fingerprint, geometry=host.geometry, token_ids=token_ids
    )


def _predict(
    host: ModelHost,
    memory: RawMemory,
    continuations: Sequence[Continuation],
    *,
    basis: Basis | None = None,
) -> torch.Tensor:
    """Log-probabilities float32 [positions, vocab_size] after each counted token of each continuation."""
    predictions = []
    for continuation in continuations:
        logits = host.all_logits(continuation.token_ids, host.inject(memory, basis=basis))
        predictions.append(logits[continuation.first_scored :].float().log_softmax(-1).cpu())
    return torch.cat(predictions)
