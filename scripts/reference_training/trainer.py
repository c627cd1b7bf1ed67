"""Train one reference model on one core. Knows models, rows and the clock; no files but checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from reference_training.curriculum import ANSWER_WEIGHT, STAGES, Row, RowSource, Stage


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to train; `lr` is held for `hold_share` of the way, then falls linearly.

    Training is over after `num_steps` or `limit_s`, whichever is first; only the former repeats
    exactly on another machine.
    """

    num_steps: int
    limit_s: float
    lr: float
    hold_share: float = 0.65
    warmup_steps: int = 50
    tokens_per_step: int = 1536
    advance_above: float = 0.9
    repeat_share: float = 0.1


@dataclass(slots=True)
class Progress:
    """Where the curriculum stands: running accuracies are of answer tokens, 0 to 1."""

    stage_idx: int = 0
    num_facts: int = STAGES[0].min_facts
    step: int = 0
    in_repeat_phase: bool = True
    repeat_accuracy: float = 0.0
    accuracy: float = 0.0
    milestones: list[str] = field(default_factory=list)


def train(
    model: LlamaForCausalLM,
    rows: RowSource,
    schedule: Schedule,
    report: Callable[[Progress, float, float], None],
    *,
    progress: Progress | None = None,
) -> Progress:
    """Train `model` in place until the schedule is over; `report(progress, loss, seconds)` each step.

    A model that was trained before goes on from its `progress` in the curriculum.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.98), weight_decay=0.01)
    progress = progress or Progress()
    started = time.monotonic()
    model.train()
    while True:
        elapsed_s = time.monotonic() - started
        fraction = max(progress.step / schedule.num_steps, elapsed_s / schedule.limit_s)
        if fraction >= 1.0:
            break
        progress.step += 1
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr * _lr_factor(progress.step, fraction, schedule)
        is_repeat, counts, batch = _draw(rows, progress, schedule)
        ids, weights = to_tensors(batch)
        loss, accuracy = _step(model, optimizer, ids.to(model.device), weights.to(model.device))
        if is_repeat:
            progress.repeat_accuracy += 0.1 * (accuracy - progress.repeat_accuracy)
            progress.in_repeat_phase &= progress.repeat_accuracy < 0.8
        elif counts:
            progress.accuracy += 0.1 * (accuracy - progress.accuracy)
        _advance(progress, schedule, elapsed_s)
        report(progress, loss, elapsed_s)
    model.eval()  # type: ignore[no-untyped-call]
    return progress


def resumed(progress: Progress) -> Progress:
    """The same place in the curriculum, for a new schedule."""
    return Progress(
        progress.stage_idx,
        progress.num_facts,
        in_repeat_phase=progress.in_repeat_phase,
        milestones=progress.milestones,
    )


def at_the_end() -> Progress:
    """The last place in the curriculum."""
    return Progress(len(STAGES) - 1, STAGES[-1].max_facts, in_repeat_phase=False)


def to_tensors(batch: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and weights, [rows, seq_len], cut to the shortest row so that nothing is padding."""
    seq_len = min(len(row.ids) for row in batch)
    ids = torch.tensor([row.ids[:seq_len] for row in batch])
    return ids, torch.tensor([row.weights[:seq_len] for row in batch])


def _step(
    model: LlamaForCausalLM,
    optimizer: torch.optim.Optimizer,
    ids: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[float, float]:
    """One update; returns the weighted loss in nats and the share of answer tokens predicted."""
    logits = model(ids, use_cache=False).logits[:, :-1]  # [rows, seq_len - 1, vocab]
    targets, weights = ids[:, 1:], weights[:, 1:]
    nats = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    loss = (nats * weights).sum() / weights.sum()
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    is_answer = weights == ANSWER_WEIGHT
    right = (logits.detach().argmax(-1) == targets)[is_answer]
    return loss.item(), right.float().mean().item()


def _draw(rows: RowSource, progress: Progress, schedule: Schedule) -> tuple[bool, bool, list[Row]]:
    """The next batch: (whether it is repeats, whether it counts for advancing, its rows)."""
    rng = rows.rng
    if progress.in_repeat_phase or rng.random() < schedule.repeat_share:
        max_tokens = 24 if progress.in_repeat_phase else 64
        num_rows = schedule.tokens_per_step // (max_tokens + max_tokens // 2)
        batch = [rows.repeat_row(max_tokens) for _ in range(4 * num_rows)]
        return True, False, sorted(batch, key=lambda row: len(row.ids))[-num_rows:]
    stage_idx, num_facts = progress.stage_idx, progress.num_facts
    if rng.random() < 0.2:
        stage_idx = rng.randint(0, stage_idx)
        num_facts = min(num_facts, STAGES[stage_idx].max_facts)
    stage = STAGES[stage_idx]
    if rng.random() < stage.short_share:
        num_facts = rng.randint(2, min(stage.short_max, num_facts))
    counts = (stage_idx, num_facts) == (progress.stage_idx, progress.num_facts)
    max_questions = 20
    batch = _fill(rows, stage, num_facts, max_questions, schedule.tokens_per_step)
    return False, counts, batch


def _fill(rows: RowSource, stage: Stage, num_facts: int, max_questions: int, num_tokens: int) -> list[Row]:
    batch = [rows.recall_row(stage, num_facts, max_questions)]
    num_rows = max(2, round(num_tokens / len(batch[0].ids)))
    batch += [rows.recall_row(stage, num_facts, max_questions) for _ in range(num_rows - 1)]
    return batch


def _advance(progress: Progress, schedule: Schedule, elapsed_s: float) -> None:
    """Add facts, or move to the next stage, once the running accuracy is high enough."""
    if progress.accuracy <= schedule.advance_above:
        return
    stage = STAGES[progress.stage_idx]
    if progress.num_facts < stage.max_facts:
        progress.num_facts = min(stage.max_facts, progress.num_facts + stage.growth)
        progress.accuracy = min(progress.accuracy, schedule.advance_above - 0.2)
    elif progress.stage_idx + 1 < len(STAGES):
        progress.stage_idx += 1
        progress.num_facts = STAGES[progress.stage_idx].min_facts
        progress.accuracy = 0.5
    else:
        return
    progress.milestones.append(
        f"stage {progress.stage_idx} facts {progress.num_facts} step {progress.step} {elapsed_s:.0f}s"
    )


def _lr_factor(step: int, fraction: float, schedule: Schedule) -> float:
    warm = min(1.0, step / schedule.warmup_steps)
    if fraction <= schedule.hold_share:
        return warm
    return warm * max(0.02, (1.0 - fraction) / (1.0 - schedule.hold_share))
