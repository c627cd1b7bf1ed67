"""ask: answer a prompt, with memories, with a text that is read here, or with neither."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from kvnet.api import Answer, KvReport
from kvnet.errors import RequestError
from kvnet.model.generation import Generated, TextDelta
from kvnet.model.sampling import Sampling
from kvnet.model.segments import Segment
from kvnet.types import Tier
from kvnetd.actions.recall import Recalled, policy_of, recall
from kvnetd.services import Services

DEFAULT_MAX_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Question:
    """A request to generate. Memories, `memory` before `memories`, and `context` exclude each other."""

    prompt: str
    memory: str = ""
    context: str = ""
    max_tokens: int = 0
    temperature: float = 0.0
    top_p: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    memories: tuple[str, ...] = ()
    align: str = ""  # a kvnet.compat.Policy; the daemon's setting if empty
    peer: str = ""  # who has the memory, or shall read the context (kvnetd.actions.ask_peer)
    codec: str = ""  # in which it shall be sent
    stream_to: str = ""  # a peer that gets what is generated while it is (kvnetd.actions.ask_live)
    name: str = ""  # what that is called at both ends
    verify_text: bool = False  # compare each memory with this model's own reading of its text first


class Live(Protocol):
    """Whoever takes what comes of a generation while it goes on."""

    segment_tokens: int

    async def begin(self, recalled: Recalled) -> None:
        """What it goes on behind. Raises RequestError where nothing can be sent of it."""
        ...

    def take(self, segment: Segment) -> None:
        """More keys and values; returns at once."""
        ...


async def ask(
    services: Services, question: Question, live: Live | None = None
) -> AsyncGenerator[str | Answer, None]:
    """Yield the reply piece by piece and an Answer, with its kv report, last.

    `live` gets the keys and values that come of it.
    """
    began = time.perf_counter()
    wanted = (question.memory, *question.memories) if question.memory else question.memories
    if wanted and question.context:
        raise RequestError("both a memory and a text were given; give one")
    policy = policy_of(services, question.align)
    with services.log.span("generation", model=services.host.name) as span:
        recalled = await recall(services, wanted, policy, verify_text=question.verify_text)
        if live is not None:
            await live.begin(recalled)
        waited_s = time.perf_counter() - began
        generated: Generated | None = None
        segment_tokens = live.segment_tokens if live is not None else 0
        make_items = partial(_generate, services, question, recalled, segment_tokens)
        async with aclosing(services.runner.stream(make_items)) as items:
            async for item in items:
                if isinstance(item, TextDelta):
                    yield item.text
                elif isinstance(item, Generated):
                    generated = item
                elif live is not None:
                    live.take(item)
        if generated is None:
            raise AssertionError("the generation ended without a result")
        kv = KvReport(
            tier=recalled.tier.value,
            reused_tokens=generated.reused_tokens,
            recomputed_tokens=generated.recomputed_tokens,
            fallback="text" if recalled.tier is Tier.TEXT else "none",
            ttft_s=round(waited_s + generated.ttft_s, 6),
            codec=recalled.codecs,
            map=recalled.maps,
            untrusted_source=recalled.untrusted_source,
        )
        span.add(
            tier=kv.tier,
            map=kv.map,
            fallback=kv.fallback,
            reused_tokens=kv.reused_tokens,
            recomputed_tokens=kv.recomputed_tokens,
            new_tokens=len(generated.token_ids),
            ttft_s=kv.ttft_s,
            finish_reason=generated.finish_reason,
            memory=recalled.memory_ids,
        )
    yield Answer(
        text=generated.text,
        kv=kv,
        tokens=len(generated.token_ids),
        finish_reason=generated.finish_reason,
        seconds=round(time.perf_counter() - began, 6),
    )


def sampling_of(question: Question) -> Sampling:
    """How the reply is drawn."""
    return Sampling(
        max_tokens=question.max_tokens or DEFAULT_MAX_TOKENS,
        temperature=question.temperature,
        top_p=question.top_p or 1.0,
        stop=question.stop,
        seed=question.seed,
    )


def _generate(
    services: Services,
    question: Question,
    recalled: Recalled,
    segment_tokens: int,
    cancelled: Callable[[], bool],
) -> Iterator[TextDelta | Segment | Generated]:
    return services.host.generate(
        question.prompt,
        memory=recalled.memory,
        basis=recalled.basis,
        slots=recalled.slots,
        arriving=recalled.arriving,
        context=question.context or recalled.text,
        sampling=sampling_of(question),
        cancelled=cancelled,
        segment_tokens=segment_tokens,
    )
