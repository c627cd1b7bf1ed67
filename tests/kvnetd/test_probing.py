"""How much a model that nobody asked yet is made to read, so that whoever asks next does not wait for it."""

from __future__ import annotations

import pytest
from kvnetd.probing import FEW_TOKENS, MANY_S, MANY_TOKENS, many_tokens


@pytest.mark.parametrize(("few_s", "wanted"), [(0.0, 128), (0.01, 128), (0.1, 80), (0.3, 32), (5.0, 32)])
def test_slow_model_reads_fewer_tokens(few_s: float, wanted: int) -> None:
    assert many_tokens(few_s) == wanted


def test_what_is_read_takes_no_longer_than_allowed_unless_the_least_does() -> None:
    for few_s in (0.001, 0.02, 0.1, 0.2):
        expected_s = few_s * many_tokens(few_s) / FEW_TOKENS
        assert expected_s <= MANY_S or many_tokens(few_s) == MANY_TOKENS[0]
