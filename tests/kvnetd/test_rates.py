"""What was measured outlives a restart, and never stands in the way of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from kvnetd.rates import MAX_KEPT, Rates


def test_rates_are_those_of_before_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "rates.json"
    rates = Rates(path)
    rates.sent("bob", 1000, 0.5)
    rates.sent("bob", 3000, 1.0)
    rates.read("sha256:aa", 100, 0.1)
    again = Rates(path)
    assert again.link("bob") == rates.link("bob")
    assert again.link("bob").seconds(5000) == pytest.approx(1.5)
    assert again.reading("sha256:aa").seconds(200) == pytest.approx(0.2)
    assert not again.link("carol").is_known


@pytest.mark.parametrize("text", ["", "{", "[]", '{"links": 3}', '{"links":{"a":["x"]},"readings":{}}'])
def test_file_that_cannot_be_read_is_measured_anew(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rates.json"
    path.write_text(text)
    rates = Rates(path)
    assert not rates.link("a").is_known
    rates.sent("a", 10, 1.0)
    assert Rates(path).link("a").is_known


def test_only_the_youngest_are_kept() -> None:
    rates = Rates()
    for number in range(MAX_KEPT + 1):
        rates.sent(f"peer {number}", 10, 1.0)
    assert not rates.link("peer 0").is_known
    assert rates.link(f"peer {MAX_KEPT}").is_known
