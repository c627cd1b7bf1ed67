"""Pairing codes: written and read back alike, misread in no dangerous way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvnet.errors import RequestError
from kvnet.identity.codes import NUM_NUMBERS, NUM_SECRET_WORDS, WORDS, PairingCode, parse_code

codes = st.builds(
    PairingCode,
    st.integers(1, NUM_NUMBERS),
    st.tuples(*[st.sampled_from(WORDS)] * NUM_SECRET_WORDS),
)


@given(codes)
def test_code_that_is_written_is_read_back(code: PairingCode) -> None:
    assert parse_code(str(code)) == code
    assert parse_code(f"  {str(code).upper().replace('-', ' ')}\n") == code


def test_words_are_worth_24_bits() -> None:
    assert len(set(WORDS)) == 256
    assert all(word.isascii() and word.isalpha() and word.islower() for word in WORDS)
    assert NUM_SECRET_WORDS * math.log2(len(WORDS)) == 24


def test_no_two_words_differ_in_one_letter() -> None:
    """What is misheard or mistyped by a letter is no other word."""
    seen: dict[str, str] = {}
    for word in WORDS:
        for place in range(len(word)):
            without = f"{word[:place]}*{word[place + 1 :]}"
            assert seen.setdefault(without, word) == word


def test_two_codes_are_not_alike() -> None:
    assert len({str(PairingCode.generate()) for _ in range(50)}) == 50


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "7",
        "7-guitar-melody",
        "7-guitar-melody-canyon-acorn",
        "guitar-melody-canyon",
        "0-acorn-acorn-acorn",
        "100-acorn-acorn-acorn",
        "1_0-acorn-acorn-acorn",
        "\u0667-acorn-acorn-acorn",
        "7.0-acorn-acorn-acorn",
    ],
)
def test_text_that_is_no_code_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(RequestError, match="wants a number from 1 to 99 and 3 words") as refused:
        parse_code(text)
    assert not text or "acorn" not in refused.value.message


def test_misspelt_word_is_named_by_its_place_with_the_likely_one() -> None:
    with pytest.raises(RequestError, match="word 2 is none that kvnet uses; melody is"):
        parse_code("7-guitar-meldoy-canyon")
    with pytest.raises(RequestError, match="word 3 is none that kvnet uses; copy"):
        parse_code("7-guitar-melody-" + "x" * 10_000)


@pytest.mark.parametrize("number", ["007", "9" * 5000], ids=["three digits", "more than a number may have"])
def test_number_of_more_than_two_digits_is_refused(number: str) -> None:
    with pytest.raises(RequestError, match="wants a number from 1 to 99"):
        parse_code(f"{number}-acorn-acorn-acorn")
