"""Text to token ids and back, as a stream. Knows tokenizers; no tensors, no caches."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

from jinja2 import TemplateError

from kvnet.errors import UnsupportedModel

_BROKEN: Final = "\ufffd"  # what a decoder writes for bytes that are no character (yet)


def leading_bos(tokenizer: Any) -> list[int]:
    """The BOS id if this tokenizer begins texts with one by itself, else nothing."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and bos in tokenizer.encode("")[:1] else []


def tokenize_context(tokenizer: Any, text: str) -> list[int]:
    """A text that begins at position 0."""
    return [*leading_bos(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]


def tokenize_behind(tokenizer: Any, text: str) -> list[int]:
    """A text that goes on behind other tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def tokenize_with_spans(tokenizer: Any, text: str) -> tuple[list[int], tuple[tuple[int, int], ...]]:
    """`tokenize_context`, and for each id the characters of `text` it covers: first, and one after the last.

    A span has no blank before its first letter, whichever side of a word its tokenizer puts the blank on; a
    token of blanks alone keeps them. Spans ascend; of a BOS it is (0, 0). There are none where a tokenizer
    does not tell, or tells of an order that does not ascend.
    """
    bos = leading_bos(tokenizer)
    if not tokenizer.is_fast:
        return tokenize_context(tokenizer, text), ()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [(0, 0)] * len(bos)
    before = (0, 0)
    for start, stop in encoded["offset_mapping"]:
        before = _without_blanks(text, start, stop) if start < stop else (before[1], before[1])
        spans.append(before)
    ascending = all(a <= c and b <= d for (a, b), (c, d) in pairwise(spans))
    return [*bos, *encoded["input_ids"]], tuple(spans) if ascending else ()


def tokenize_question(tokenizer: Any, prompt: str, *, after_memory: bool) -> list[int]:
    """A prompt as the model expects it: a user turn if it has a chat template, else plain text.

    After a memory no second BOS is written; the sequence already has its own.
    """
    bos = leading_bos(tokenizer)
    ids = list(
        tokenizer.encode(_render(tokenizer, prompt, after_memory=after_memory), add_special_tokens=False)
    )
    if not bos:
        return ids
    # A template may write the BOS as plain text, where only its id gives it away.
    begins_with_bos = ids[:1] == bos
    if after_memory:
        return ids[1:] if begins_with_bos else ids
    return ids if begins_with_bos else bos + ids


def _render(tokenizer: Any, prompt: str, *, after_memory: bool) -> str:
    if not tokenizer.chat_template:
        return prompt
    # ChatML models name their turn opener as BOS without using it as one: dropping the id would cut
    # the turn, emptying the variable drops it only where a template writes it as a BOS.
    override = {"bos_token": ""} if after_memory else {}
    turn = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True, **override)
    except TemplateError as exc:
        raise UnsupportedModel(f"the model's chat template refuses a single user turn ({exc})") from exc
    return str(text)


def _without_blanks(text: str, start: int, stop: int) -> tuple[int, int]:
    covered = text[start:stop]
    letters = covered.lstrip()
    return (stop - len(letters), stop) if letters else (start, stop)


class TextStream:
    """Token ids in, text out, as soon as it is certain.

    Never emits half a character, and keeps the blanks between tokens: a tokenizer that marks words
    with a metaspace drops the blank of the first token it decodes, so each token is decoded together
    with the ones before it. The pieces add up to what decoding all ids at once gives; only for bytes
    that are no text may the two write different replacement characters.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._anchor = 0  # decoding starts here,
        self._shown = 0  # and ids before this one have been emitted

    def push(self, token_id: int) -> str:
        """The text that became certain with this token, often one word, sometimes nothing."""
        self._ids.append(token_id)
        fresh = self._fresh()
        if not fresh or fresh.endswith(_BROKEN):
            return ""
        self._advance()
        return fresh

    def flush(self) -> str:
        """The rest at the end, with a replacement character for bytes that stayed incomplete."""
        fresh = self._fresh()
        self._advance()
        return fresh

    def _fresh(self) -> str:
        before = self._decode(self._ids[self._anchor : self._shown])
        after = self._decode(self._ids[self._anchor :])
        return after[len(before) :]

    def _advance(self) -> None:
        self._anchor, self._shown = self._shown, len(self._ids)

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


class StopStrings:
    """Text in, text out, held back while it could still become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of all text so far that cannot belong to a stop string; sets `found` on a match."""
        self._held += text
        positions = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if positions:
            self.found = True
            return self._release(min(positions))
        return self._release(len(self._held) - self._overlap())

    def flush(self) -> str:
        """What was held back, at the end. Nothing after a match."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, num_chars: int) -> str:
        released, self._held = self._held[:num_chars], self._held[num_chars:]
        return released

    def _overlap(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0
