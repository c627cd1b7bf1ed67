"""Text to tokens with one BOS, and tokens to text without half characters."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from kvnet.errors import UnsupportedModel
from kvnet.model.host import ModelHost
from kvnet.model.text import StopStrings, TextStream

# Tokens


def test_context_begins_with_exactly_one_bos(host: ModelHost) -> None:
    token_ids = host.tokenize_context("The harbour opens.")
    assert token_ids[0] == host.tokenizer.bos_token_id
    assert token_ids.count(host.tokenizer.bos_token_id) == 1


def test_question_has_a_bos_only_when_nothing_precedes_it(host: ModelHost) -> None:
    bos = host.tokenizer.bos_token_id
    follows = host.tokenize_question("Who?", after_memory=True)
    assert bos not in follows
    assert host.tokenize_question("Who?", after_memory=False) == [bos, *follows]


def test_context_and_question_are_tokenized_apart_as_they_are_together(host: ModelHost) -> None:
    apart = host.tokenize_context("The key.") + host.tokenize_question("Who?", after_memory=True)
    assert apart == host.tokenize_context("The key. Who?")


def test_chat_template_is_rendered_whole_and_with_one_bos(chat_host: ModelHost) -> None:
    first = chat_host.tokenizer.decode(chat_host.tokenize_question("Who?", after_memory=False))
    after = chat_host.tokenizer.decode(chat_host.tokenize_question("Who?", after_memory=True))
    assert first.count("<s>") == 1
    assert "<s>" not in after
    assert after.strip() == "<|user|>Who?<|end|><|assistant|>"


def test_literal_bos_in_a_template_is_stripped_after_a_memory(chat_host: ModelHost) -> None:
    tokenizer = chat_host.tokenizer
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "<s>[INST] {{ messages[0]['content'] }} [/INST]"
        first = chat_host.tokenize_question("Who?", after_memory=False)
        assert chat_host.tokenize_question("Who?", after_memory=True) == first[1:]
    finally:
        tokenizer.chat_template = before


def test_turn_opener_that_is_named_bos_is_not_cut_off(chat_host: ModelHost) -> None:
    tokenizer = chat_host.tokenizer
    before = tokenizer.chat_template, tokenizer._tokenizer.post_processor
    try:  # as SmolLM2: BOS is "<|im_start|>", and texts do not begin with it
        tokenizer._tokenizer.post_processor = type(before[1])(single="$A", special_tokens=[])
        tokenizer.chat_template = "<s>user {{ messages[0]['content'] }}</s>"
        after = chat_host.tokenize_question("Who?", after_memory=True)
        assert after[0] == tokenizer.bos_token_id
        assert chat_host.tokenize_context("Who?")[0] != tokenizer.bos_token_id
    finally:
        tokenizer.chat_template, tokenizer._tokenizer.post_processor = before


def test_chat_template_that_refuses_the_question_is_an_unsupported_model(chat_host: ModelHost) -> None:
    tokenizer = chat_host.tokenizer
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = "{{ raise_exception('a system turn must come first') }}"
        with pytest.raises(UnsupportedModel, match="a system turn must come first"):
            chat_host.tokenize_question("Who?", after_memory=False)
    finally:
        tokenizer.chat_template = before


# Text as a stream


@pytest.fixture(scope="module")
def tokenizers(
    host: ModelHost, byte_level_tokenizer: PreTrainedTokenizerFast
) -> tuple[PreTrainedTokenizerFast, ...]:
    return host.tokenizer, byte_level_tokenizer


def stream(tokenizer: Any, token_ids: list[int]) -> Iterator[str]:
    texts = TextStream(tokenizer)
    yield from map(texts.push, token_ids)
    yield texts.flush()


@given(text=st.text(max_size=60))
def test_streamed_text_is_the_decoded_text(
    tokenizers: tuple[PreTrainedTokenizerFast, ...], text: str
) -> None:
    for tokenizer in tokenizers:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = list(stream(tokenizer, token_ids))
        assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=True)
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", ["a b  c", "Zürich 東京 x", "👩‍🚀 sails", " leading", "one\ntwo", "é" * 5])
def test_blanks_and_characters_of_many_tokens_arrive_whole(
    tokenizers: tuple[PreTrainedTokenizerFast, ...], text: str
) -> None:
    for tokenizer in tokenizers:
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        pieces = list(stream(tokenizer, token_ids))
        assert "".join(pieces) == tokenizer.decode(token_ids)
        assert all(piece.encode().decode() == piece and "\ufffd" not in piece for piece in pieces)


def test_half_a_character_at_the_end_is_flushed_as_a_replacement(host: ModelHost) -> None:
    token_ids = host.tokenizer.encode("a 東", add_special_tokens=False)[:-1]
    *pieces, rest = stream(host.tokenizer, token_ids)
    assert "\ufffd" not in "".join(pieces)
    assert set(rest.strip()) == {"\ufffd"}


@given(
    text=st.text(alphabet="ab.", max_size=30),
    stops=st.lists(st.text(alphabet="ab.", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 30), max_size=8),
)
def test_stop_strings_are_found_wherever_the_text_is_cut(
    text: str, stops: list[str], cuts: list[int]
) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    matcher = StopStrings(stops)
    shown = ""
    for start, stop in itertools.pairwise(edges):
        if not matcher.found:
            shown += matcher.push(text[start:stop])
    shown += matcher.flush()
    assert matcher.found == any(stop in text for stop in stops)
    assert not any(stop in shown for stop in stops)
    assert text.startswith(shown)
    if not matcher.found:
        assert shown == text


def test_text_that_cannot_begin_a_stop_string_is_not_held_back() -> None:
    matcher = StopStrings(["\n\nQ:"])
    assert [matcher.push(text) for text in ("one", " two\n", "three\n\n", "Q")] == [
        "one",
        " two",
        "\nthree",
        "",
    ]
    assert matcher.push("uit") == "\n\nQuit"
