"""ask: answer a prompt, with a memory, with a text that is read here, or with neither."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from kvnet.api import Answer, KvReport
from kvnet.codec.basis import Basis
from kvnet.codec.presets import preset_name
from kvnet.compat import require_tier
from kvnet.errors import RequestError
from kvnet.model.generation import Generated, TextDelta
from kvnet.model.sampling import Sampling
from kvnet.types import RawMemory, Tier
from kvnetd import encoding
from kvnetd.actions.memories import find
from kvnetd.services import Services

DEFAULT_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A request to generate. `memory` and `context` exclude each other."""

    prompt: str
    memory: str = ""
    context: str = ""
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0


async def ask(services: Services, question: Question) -> AsyncGenerator[str | Answer, None]:
    """Yield the reply piece by piece and an Answer, with its kv report, last."""
    began = time.perf_counter()
    if question.memory and question.context:
        raise RequestError("both a memory and a text were given; give one")
    with services.log.span("generation", model=services.host.name) as span:
        memory, basis, tier = await _load(services, question.memory)
        waited_s = time.perf_counter() - began
        generated: Generated | None = None
        make_items = partial(_generate, services, question, memory, basis)
        async with aclosing(services.runner.stream(make_items)) as items:
            async for item in items:
                if isinstance(item, TextDelta):
                    yield item.text
                else:
                    generated = item
        if generated is None:
            raise AssertionError("the generation ended without a result")
        kv = KvReport(
            tier=tier.value,
            reused_tokens=generated.reused_tokens,
            recomputed_tokens=generated.recomputed_tokens,
            fallback="none",
            ttft_s=round(waited_s + generated.ttft_s, 6),
            codec=preset_name(memory.header.coding) if memory else "",
        )
        span.add(
            tier=kv.tier,
            reused_tokens=kv.reused_tokens,
            recomputed_tokens=kv.recomputed_tokens,
            new_tokens=len(generated.token_ids),
            ttft_s=kv.ttft_s,
            finish_reason=generated.finish_reason,
            memory=memory.header.id if memory else "",
        )
    yield Answer(
        text=generated.text,
        kv=kv,
        tokens=len(generated.token_ids),
        finish_reason=generated.finish_reason,
        seconds=round(time.perf_counter() - began, 6),
    )


async def _load(services: Services, wanted: str) -> tuple[RawMemory | None, Basis | None, Tier]:
    if not wanted:
        return None, None, Tier.NONE
    record = await find(services, wanted)
    header = record.header
    tier = require_tier(
        (header.fingerprint, header.geometry), (services.host.fingerprint, services.host.geometry)
    )
    with services.log.span("injection", memory=record.id, tier=tier.value, tokens=header.seq_len):
        basis = await encoding.basis_of(services, header.coding)
        return await services.in_pool(services.memories.load, record), basis, tier


def _generate(
    services: Services,
    question: Question,
    memory: RawMemory | None,
    basis: Basis | None,
    cancelled: Callable[[], bool],
) -> Iterator[TextDelta | Generated]:
    sampling = Sampling(
        max_tokens=question.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=question.temperature,
        top_p=question.top_p or 1.0,
        stop=question.stop,
        seed=question.seed,
    )
    return services.host.generate(
        question.prompt,
        memory=memory,
        basis=basis,
        context=question.context or None,
        sampling=sampling,
        cancelled=cancelled,
    )
