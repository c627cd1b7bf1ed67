"""Tokens with the characters they cover, and what a node reads for whoever fits a map."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from kvnet.errors import NotFinite, RequestError
from kvnet.model.host import ModelHost
from kvnet.model.reading import read_text, refuse_not_finite
from kvnet.model.reference.catalog import REFERENCE_MODELS, reference_path
from kvnet.model.text import leading_bos, tokenize_context, tokenize_with_spans

TEXT = " The key,  says Zoë in 東京\n\n is blue. "
HARD = st.text(alphabet=" \t\n\u00a0\u3000ab.éß東👩\u200d\ufffd\u2581Ġ'", max_size=30)


@pytest.fixture(scope="module")
def tokenizers(host: ModelHost, byte_level_tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ...]:
    """Metaspace and byte level, with and without a blank before the first word."""
    references = [AutoTokenizer.from_pretrained(reference_path(name)) for name in REFERENCE_MODELS]
    return (host.tokenizer, byte_level_tokenizer, *references)


@given(text=st.text(max_size=40) | HARD)
def test_ids_are_those_of_a_context_and_spans_ascend_within_the_text(
    tokenizers: tuple[Any, ...], text: str
) -> None:
    for tokenizer in tokenizers:
        token_ids, spans = tokenize_with_spans(tokenizer, text)
        assert token_ids == tokenize_context(tokenizer, text)
        assert len(spans) == len(token_ids)
        assert all(0 <= start <= stop <= len(text) for start, stop in spans)
        assert all(one[0] <= next_[0] and one[1] <= next_[1] for one, next_ in pairwise(spans))


@given(text=st.text(max_size=40) | HARD)
def test_span_begins_with_a_blank_only_where_it_has_nothing_else(
    tokenizers: tuple[Any, ...], text: str
) -> None:
    for tokenizer in tokenizers:
        covered = [text[start:stop] for start, stop in tokenize_with_spans(tokenizer, text)[1]]
        assert not [piece for piece in covered if piece.strip() and piece[0].isspace()]


@given(text=st.text(max_size=40) | HARD)
def test_spans_cover_every_letter(tokenizers: tuple[Any, ...], text: str) -> None:
    for tokenizer in tokenizers:
        covered = {place for span in tokenize_with_spans(tokenizer, text)[1] for place in range(*span)}
        assert [text[place] for place in set(range(len(text))) - covered if not text[place].isspace()] == []


@pytest.mark.parametrize("name", REFERENCE_MODELS)
def test_word_begins_behind_its_blanks(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(reference_path(name))
    num_sinks = len(leading_bos(tokenizer))
    spans = tokenize_with_spans(tokenizer, "The  key")[1]
    assert spans[:num_sinks] == ((0, 0),) * num_sinks
    starts = [start for start, _ in spans[num_sinks:]]
    assert starts[0] == 0
    assert 5 in starts  # "key", however it is cut
    assert spans[-1][1] == 8


def test_tokenizer_that_does_not_tell_gives_no_spans(host: ModelHost) -> None:
    class Slow:
        is_fast = False
        bos_token_id = host.tokenizer.bos_token_id
        encode = host.tokenizer.encode

    assert tokenize_with_spans(Slow(), TEXT) == (host.tokenize_context(TEXT), ())


def test_offsets_that_do_not_ascend_are_not_believed(host: ModelHost) -> None:
    class Backward:
        is_fast = True
        bos_token_id = None

        def __call__(self, text: str, **choices: bool) -> dict[str, Any]:
            return {"input_ids": [5, 6], "offset_mapping": [(3, 4), (0, 1)]}

    assert tokenize_with_spans(Backward(), "a bc") == ([5, 6], ())


def test_token_that_covers_nothing_stands_behind_the_one_before(host: ModelHost) -> None:
    class Marking:
        is_fast = True
        bos_token_id = None

        def __call__(self, text: str, **choices: bool) -> dict[str, Any]:
            return {"input_ids": [5, 6, 7], "offset_mapping": [(0, 2), (0, 0), (2, 4)]}

    assert tokenize_with_spans(Marking(), "a bc")[1] == ((0, 2), (2, 2), (2, 4))


def test_text_read_with_spans_is_the_memory_of_the_text(host: ModelHost) -> None:
    memory, spans = read_text(host, TEXT)
    assert memory == host.capture(TEXT)
    assert spans == tokenize_with_spans(host.tokenizer, TEXT)[1]
    with pytest.raises(RequestError, match="empty"):
        read_text(host, " ")


@pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\xff"])
def test_reading_with_a_number_that_is_none_is_refused(host: ModelHost, bits: bytes) -> None:
    memory, _ = read_text(host, TEXT)
    refuse_not_finite(memory, "alice")
    for place in range(len(memory.chunks)):
        chunks = list(memory.chunks)
        chunks[place] = bytes(chunks[place])[:-4] + bits
        with pytest.raises(NotFinite, match=r"^alice holds NaN"):
            refuse_not_finite(replace(memory, chunks=tuple(chunks)), "alice")
