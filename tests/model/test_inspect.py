"""The structure study reports the real cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvnet.errors import TextTooLong
from kvnet.model.host import ModelHost
from kvnet.model.inspect import PROMPTS, CacheReport, inspect_cache, report_to_plain
from kvnet.model.loader import ModelSpec


@pytest.fixture(scope="module")
def report(host: ModelHost) -> CacheReport:
    return inspect_cache(host)


def test_structure_is_written_as_in_appendix_b(report: CacheReport) -> None:
    for row in report.rows:
        shape = [1, 2, row.cached_tokens, 16]
        plain = json.loads(json.dumps(report_to_plain(report)))["rows"][0]["structure"]
        assert plain["num_layers"] == 3
        assert [layer["layer_idx"] for layer in plain["layers"]] == [0, 1, 2]
        if row is report.rows[0]:
            assert plain["layers"][2] == {
                "layer_idx": 2,
                "key_shape": shape,
                "value_shape": shape,
                "key_dtype": "torch.float32",
                "value_dtype": "torch.float32",
            }


def test_last_generated_token_was_never_fed_back(report: CacheReport, host: ModelHost) -> None:
    for row in report.rows:
        assert row.prompt_tokens == len(host.tokenize_context(row.prompt))
        assert row.generated_tokens == 20
        assert row.cached_tokens == row.prompt_tokens + row.generated_tokens - 1


def test_reply_that_ended_by_itself_is_cached_whole(
    host: ModelHost, report: CacheReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt_ids = host.tokenize_context(PROMPTS["identity"])
    first = int(host.next_logits(prompt_ids, host.new_cache()).argmax())
    second = int(host.next_logits([*prompt_ids, first], host.new_cache()).argmax())
    assert first != second
    monkeypatch.setattr(host, "eos_ids", frozenset({second}))
    row = inspect_cache(host).rows[1]
    assert row.generated_tokens == 1
    assert row.cached_tokens == row.prompt_tokens + 1


def test_bytes_are_those_of_the_geometry(report: CacheReport, host: ModelHost) -> None:
    assert report.token_nbytes == host.geometry.token_nbytes
    for row in report.rows:
        assert row.nbytes == row.cached_tokens * report.token_nbytes


def test_projection_says_which_lengths_the_context_reaches(
    checkpoint: Callable[..., Any], cache_dir: Path
) -> None:
    folder = checkpoint(max_position_embeddings=2048)
    report = inspect_cache(ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir))
    sizes = [(size.tokens, size.nbytes // report.token_nbytes, size.fits) for size in report.projected]
    assert sizes == [(100, 100, True), (1000, 1000, True), (4096, 4096, False), (8192, 8192, False)]


def test_all_three_prompts_of_the_seed_are_asked(report: CacheReport) -> None:
    assert [row.name for row in report.rows] == ["consciousness", "identity", "ai_communication"]
    assert len({row.continuation for row in report.rows}) == 3


def test_context_too_small_for_the_study_is_refused(checkpoint: Callable[..., Any], cache_dir: Path) -> None:
    folder = checkpoint(max_position_embeddings=24)
    host = ModelHost.load(ModelSpec(str(folder), device="cpu"), cache_dir)
    with pytest.raises(TextTooLong):
        inspect_cache(host)
