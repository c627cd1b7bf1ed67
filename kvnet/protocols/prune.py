"""What zeroing heads by their entropy does: the seed's rule, and as many heads chosen otherwise."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from kvnet.codec.presets import PRESETS
from kvnet.format.attention import unpack_attention
from kvnet.model.memory import encode_memory
from kvnet.model.pruning import prunable_heads
from kvnet.plan import plan_memory
from kvnet.protocols.protocol import MARK_METRICS, CellLog, Protocol, Setting
from kvnet.protocols.settings import Lab
from kvnet.types import AttentionMetadata, Kind, RawMemory

Heads = tuple[tuple[int, int], ...]  # [layer, KV head]


def measure(lab: Lab, setting: Setting, log: CellLog) -> None:
    """Arms: `rule` below a threshold; `focused`, `diffuse`, `random` zero a number of heads."""
    trial = lab.trial_for(setting)
    host = trial.exam.host
    trial.log_controls(log)
    memories = [host.capture(lesson.text, attention=True) for lesson in trial.exam.lessons]
    told = [attention_of(memory) for memory in memories]
    num_kv_heads = host.geometry.num_kv_heads
    choices: list[tuple[str, dict[str, Any], list[Heads]]] = []
    for threshold in setting["thresholds"]:
        pruned = [prunable_heads(one, num_kv_heads=num_kv_heads, threshold=threshold) for one in told]
        choices.append(("rule", {"threshold": threshold}, pruned))
    for count in setting["heads"]:
        ranked = [rank_heads(one, num_kv_heads) for one in told]
        rng = random.Random(f"prune {setting.seed} {count}")
        choices.append(("focused", {"heads": count}, [one[:count] for one in ranked]))
        choices.append(("diffuse", {"heads": count}, [one[::-1][:count] for one in ranked]))
        choices.append(("random", {"heads": count}, [tuple(rng.sample(one, count)) for one in ranked]))
    for arm, parameters, pruned in choices:
        made = [
            encode_memory(memory, PRESETS["exact"], pruned_heads=heads)
            for memory, heads in zip(memories, pruned, strict=True)
        ]
        say = trial.behind_memories(made.__getitem__)
        trial.log_arm(
            log, arm, say, more=_share(pruned, num_kv_heads * host.geometry.num_layers), **parameters
        )


def attention_of(memory: RawMemory) -> tuple[AttentionMetadata, ...]:
    """What a memory tells of each layer's attention."""
    header = memory.header
    return tuple(
        unpack_attention(chunk, header, key.layer_idx)
        for key, chunk in zip(plan_memory(header), memory.chunks, strict=True)
        if key.kind is Kind.ATTENTION
    )


def rank_heads(told: Sequence[AttentionMetadata], num_kv_heads: int) -> Heads:
    """Every [layer, KV head], the most focused first: by the largest entropy of its query heads."""
    entropies = {}
    for layer in told:
        group = len(layer.entropy_per_head) // num_kv_heads
        for head in range(num_kv_heads):
            entropies[layer.layer_index, head] = max(
                layer.entropy_per_head[head * group : (head + 1) * group]
            )
    return tuple(sorted(entropies, key=entropies.__getitem__))


def _share(pruned: list[Heads], num_heads: int) -> Callable[[int], dict[str, float]]:
    return lambda i: {"pruned": len(pruned[i]) / num_heads}


PROTOCOL = Protocol(
    name="prune",
    version=1,
    question="What does pruning heads of low entropy really do?",
    measure=measure,
    metrics={**MARK_METRICS, "pruned": "share of the KV heads that were zeroed"},
)
