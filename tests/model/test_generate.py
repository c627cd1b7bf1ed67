"""Answers: the same from a memory as from the model's own cache, streamed without broken characters."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from kvnet.errors import Cancelled, NotFinite, RequestError, TextTooLong
from kvnet.model.generation import Generated, TextDelta
from kvnet.model.host import ModelHost
from kvnet.model.sampling import Sampling
from kvnet.types import RawMemory

LoadHost = Callable[..., ModelHost]
QUESTIONS = tuple(
    f"{word} {rest}?"
    for word, rest in itertools.product(
        ("Who", "What", "Where", "Why"), ("opens", "talks", "is the key", "rusts", "reads")
    )
)
GREEDY = Sampling(max_tokens=16)


def ask(host: ModelHost, prompt: str, **given: Any) -> Generated:
    """The last item of a generation."""
    *_, last = host.generate(prompt, **{"sampling": GREEDY, **given})
    assert isinstance(last, Generated)
    return last


def continue_own_cache(host: ModelHost, context: str, prompt: str) -> tuple[torch.Tensor, list[int]]:
    """The baseline: the model reads both and goes on, with nothing exported in between."""
    cache = host.new_cache()
    host.next_logits(host.tokenize_context(context), cache)
    first = logits = host.next_logits(host.tokenize_question(prompt, after_memory=True), cache)
    token_ids: list[int] = []
    while len(token_ids) < GREEDY.max_tokens and int(logits.argmax()) not in host.eos_ids:
        token_ids.append(int(logits.argmax()))
        logits = host.next_logits(token_ids[-1:], cache)
    return first, token_ids


def agreement(one: tuple[int, ...], other: list[int]) -> tuple[int, int]:
    """Equal tokens, and how many there are to compare."""
    return sum(a == b for a, b in zip(one, other, strict=False)), max(len(one), len(other))


# Identity


def test_memory_gives_the_same_tokens_as_the_models_own_cache_in_float32(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    for text, question in itertools.product(texts, QUESTIONS):
        memory = host.capture(text)
        logits, token_ids = continue_own_cache(host, text, question)
        injected = host.next_logits(host.tokenize_question(question, after_memory=True), host.inject(memory))
        assert (logits - injected).abs().max() < 1e-3
        assert ask(host, question, memory=memory).token_ids == tuple(token_ids)


@pytest.mark.parametrize(
    "choices",
    [
        {"dtype": "bfloat16"},
        {"dtype": "float16"},
        {"quantization": "nf4"},
        {"quantization": "nf4", "dtype": "bfloat16"},
        {"quantization": "int8"},
    ],
    ids=lambda choices: "-".join(choices.values()),
)
def test_memory_gives_the_same_tokens_in_16_bits_and_quantized(
    load_host: LoadHost, texts: tuple[str, ...], choices: dict[str, str]
) -> None:
    host = load_host(**choices)
    equal = total = 0
    for text, question in zip(itertools.cycle(texts), QUESTIONS, strict=False):
        _, token_ids = continue_own_cache(host, text, question)
        reply = ask(host, question, memory=host.capture(text))
        same, compared = agreement(reply.token_ids, token_ids)
        equal, total = equal + same, total + compared
    assert equal / total >= 0.99


def test_memory_gives_the_same_tokens_as_the_text_in_float32(host: ModelHost, texts: tuple[str, ...]) -> None:
    for text, question in itertools.product(texts, QUESTIONS[:5]):
        from_text = ask(host, question, context=text)
        assert ask(host, question, memory=host.capture(text)).token_ids == from_text.token_ids


def test_memory_changes_the_answer(host: ModelHost, texts: tuple[str, ...]) -> None:
    answers = {ask(host, QUESTIONS[0], memory=host.capture(text)).token_ids for text in texts}
    assert len(answers | {ask(host, QUESTIONS[0]).token_ids}) == len(texts) + 1


def test_one_memory_asked_twice_answers_the_same(host: ModelHost, texts: tuple[str, ...]) -> None:
    memory = host.capture(texts[0])
    before = memory.chunks
    first = ask(host, "Who?", memory=memory)
    ask(host, "What opens at seven?", memory=memory)
    assert ask(host, "Who?", memory=memory).token_ids == first.token_ids
    assert memory.chunks == before


def test_chat_model_answers_from_a_memory_as_from_the_text(
    chat_host: ModelHost, texts: tuple[str, ...]
) -> None:
    from_text = ask(chat_host, "Who?", context=texts[0])
    assert ask(chat_host, "Who?", memory=chat_host.capture(texts[0])).token_ids == from_text.token_ids


# What a reply reports


def test_reply_counts_reused_and_recomputed_positions(host: ModelHost, texts: tuple[str, ...]) -> None:
    memory = host.capture(texts[0])
    num_question = len(host.tokenize_question("Who?", after_memory=True))
    reply = ask(host, "Who?", memory=memory)
    assert (reply.reused_tokens, reply.recomputed_tokens) == (memory.header.seq_len, num_question)
    from_text = ask(host, "Who?", context=texts[0])
    assert (from_text.reused_tokens, from_text.recomputed_tokens) == (0, memory.header.seq_len + num_question)
    alone = ask(host, "Who?")
    assert (alone.reused_tokens, alone.recomputed_tokens) == (0, num_question + 1)  # and its BOS
    assert 0 < reply.ttft_s < 5


def test_memory_that_was_not_injected_is_never_reported_as_reused(
    host: ModelHost, texts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "inject", lambda _, **__: host.new_cache())
    with pytest.raises(AssertionError, match="0 positions were reused"):
        ask(host, "Who?", memory=host.capture(texts[0]))


def test_deltas_add_up_to_the_text_and_the_text_to_the_tokens(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    num_clean = 0
    for text, question in itertools.product(texts, QUESTIONS):
        *deltas, last = host.generate(question, memory=host.capture(text), sampling=GREEDY)
        assert isinstance(last, Generated)
        assert "".join(delta.text for delta in deltas if isinstance(delta, TextDelta)) == last.text
        decoded = host.tokenizer.decode(last.token_ids, skip_special_tokens=True)
        if "\ufffd" not in decoded:  # a random model also writes bytes that are no text
            num_clean += 1
            assert last.text == decoded
    assert num_clean > 10


def test_reply_ends_at_max_tokens(host: ModelHost) -> None:
    reply = ask(host, "Who?", sampling=Sampling(max_tokens=3))
    assert (len(reply.token_ids), reply.finish_reason) == (3, "length")


def test_reply_ends_at_any_eos_id(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    reply = ask(host, "Who?")
    monkeypatch.setattr(host, "eos_ids", frozenset({2, reply.token_ids[4]}))
    shorter = ask(host, "Who?")
    first = reply.token_ids.index(reply.token_ids[4])
    assert (shorter.token_ids, shorter.finish_reason) == (reply.token_ids[:first], "stop")


def test_reply_ends_before_a_stop_string(host: ModelHost) -> None:
    reply = ask(host, "Who?")
    stop = reply.text[3:9]
    shorter = ask(host, "Who?", sampling=replace(GREEDY, stop=(stop,)))
    assert (shorter.text, shorter.finish_reason) == (reply.text.split(stop)[0], "stop")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_empty_prompt_is_refused(host: ModelHost, prompt: str) -> None:
    with pytest.raises(RequestError, match="empty"):
        ask(host, prompt)


def test_memory_and_context_together_are_refused(host: ModelHost, texts: tuple[str, ...]) -> None:
    with pytest.raises(RequestError, match="both"):
        ask(host, "Who?", memory=host.capture(texts[0]), context=texts[0])


def test_reply_that_would_outgrow_the_context_is_refused_before_it_begins(
    host: ModelHost, texts: tuple[str, ...]
) -> None:
    memory = host.capture(texts[0])
    num_question = len(host.tokenize_question("Who?", after_memory=True))
    room = host.max_seq_len - memory.header.seq_len - num_question
    with pytest.raises(TextTooLong, match="holds 256"):
        ask(host, "Who?", memory=memory, sampling=Sampling(max_tokens=room + 1))
    assert len(ask(host, "Who?", memory=memory, sampling=Sampling(max_tokens=room)).token_ids) <= room


def test_cancelled_generation_stops_at_the_next_token(host: ModelHost) -> None:
    gone = False
    generation = host.generate("Who?", sampling=GREEDY, cancelled=lambda: gone)
    assert isinstance(next(generation), TextDelta)
    gone = True
    with pytest.raises(Cancelled):
        next(generation)


def test_cancelled_before_the_prompt_is_read_computes_nothing(host: ModelHost) -> None:
    with pytest.raises(Cancelled):
        next(host.generate("Who?", sampling=GREEDY, cancelled=lambda: True))


def test_memory_of_nan_is_refused_instead_of_answered(host: ModelHost, texts: tuple[str, ...]) -> None:
    memory = host.capture(texts[0])
    poisoned = RawMemory(memory.header, tuple(b"\xff" * len(chunk) for chunk in memory.chunks))
    with pytest.raises(NotFinite, match="NaN"):
        ask(host, "Who?", memory=poisoned)


def test_same_seed_gives_the_same_reply_and_another_seed_another(host: ModelHost) -> None:
    replies = [
        ask(host, "Who?", sampling=Sampling(max_tokens=16, temperature=1.5, seed=seed)).token_ids
        for seed in (7, 7, 8)
    ]
    assert replies[0] == replies[1] != replies[2]


def test_without_a_seed_every_reply_draws_anew(host: ModelHost) -> None:
    sampling = Sampling(max_tokens=16, temperature=2.0)
    assert len({ask(host, "Who?", sampling=sampling).token_ids for _ in range(4)}) > 1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none")
@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_memory_gives_the_same_tokens_on_cuda(
    load_host: LoadHost, texts: tuple[str, ...], quantization: str
) -> None:
    host = load_host(device="cuda", dtype="float16", quantization=quantization)
    equal = total = 0
    for text, question in zip(itertools.cycle(texts), QUESTIONS, strict=False):
        _, token_ids = continue_own_cache(host, text, question)
        reply = ask(host, question, memory=host.capture(text))
        same, compared = agreement(reply.token_ids, token_ids)
        equal, total = equal + same, total + compared
    assert equal / total >= 0.99


def test_shipped_reference_model_answers_from_a_memory_as_from_the_text(cache_dir: Path) -> None:
    from kvnet.model.loader import ModelSpec
    from kvnet.model.reference.catalog import reference_path

    if reference_path("ref-a") is None:
        pytest.skip("ref-a is not in this checkout")
    host = ModelHost.load(ModelSpec("ref-a", device="cpu"), cache_dir)
    context = "The harbour opens at seven."
    from_text = ask(host, "The harbour opens at", context=context)
    assert ask(host, "The harbour opens at", memory=host.capture(context)).token_ids == from_text.token_ids
