"""The bench `stream`: which rows are judged, what is run, where two curves cross, what a trace says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts" / "bench"))

from stream_latency import Measured, rows_of, text_of, words
from stream_plots import crossover
from stream_rivals import cache_nbytes
from stream_trace import Stamp, by_layer, read_trace


def _measured(tokens: int, *, cold_s: float = 10.9, warm_s: float = 0.2) -> Measured:
    return Measured(
        tokens,
        wire_nbytes=11_600_000,
        wire_s=0.1,
        cold_s=[cold_s],
        warm_s=[warm_s],
        text_s=[10.0],
        held_s=[0.1],
        prefill_s=[10.0],
        landed_s=[0.14],
        streamed_s=[0.12],
        native_token_s=[0.1] if tokens == 1000 else [],
        injected_token_s=[0.102] if tokens == 1000 else [],
    )


def test_rows_of_a_thousand_tokens_are_judged_and_met() -> None:
    assert [row.met for row in rows_of([_measured(1000)])] == [True, True, True, True]


def test_row_that_misses_its_target_says_so() -> None:
    slow = rows_of([_measured(1000, cold_s=11.1, warm_s=0.5)])
    assert [row.met for row in slow[:2]] == [False, False]


def test_other_lengths_are_shown_and_not_judged() -> None:
    rows = rows_of([_measured(64)])
    assert [(row.met, row.target) for row in rows] == [(None, "")] * 3


def test_cold_is_measured_against_the_wire_where_that_is_longer() -> None:
    slow_link = _measured(1000, cold_s=21.0)
    slow_link.wire_s = 20.0
    assert rows_of([slow_link])[0].value == pytest.approx(1.05)


def test_rows_have_the_names_that_every_bench_uses() -> None:
    flat = rows_of([_measured(2000)])[1].flat()
    assert list(flat)[:4] == ["metric", "value", "target", "met"]
    assert flat["target"] == ">= 35"
    json.dumps(flat)


def test_curves_cross_between_the_lengths_where_they_change_places() -> None:
    assert crossover([(10, 1.0, 2.0), (30, 3.0, 2.0)]) == pytest.approx(20)
    assert crossover([(10, 1.0, 0.5), (30, 3.0, 0.5)]) is None


def test_layer_lasts_from_its_first_chunk_to_the_end_of_its_last(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [("verify", 0, 1, 3.0, 4.0), ("verify", 0, 0, 1.0, 2.0), ("store", 0, 0, 2.0, 9.0)]
    names = ("stage", "layer_idx", "chunk", "began", "ended")
    path.write_text("".join(json.dumps(dict(zip(names, line, strict=True))) + "\n" for line in lines))
    stamps = read_trace(path)
    assert stamps[0] == Stamp("verify", 0, 0, 1.0, 2.0)
    assert by_layer(stamps, "verify") == {0: (1.0, 4.0)}


def test_words_are_as_many_tokens_as_asked_for() -> None:
    import random

    from tokenizers import Tokenizer

    from kvnet.model.reference.catalog import reference_path

    folder = reference_path("ref-a")
    assert folder is not None
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for seed in range(20):
        text = words(8, random.Random(seed))
        assert len(tokenizer.encode(text, add_special_tokens=False).ids) == 8
    assert len(tokenizer.encode(text_of(100, random.Random(0)), add_special_tokens=False).ids) == 99


def test_cache_of_a_thousand_tokens_has_the_bytes_of_the_geometry() -> None:
    assert cache_nbytes(1000) == 22_528_000
