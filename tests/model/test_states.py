"""kvnet.model.states: a model's keys and values from its own residual stream, and from any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    LlamaConfig,
    Olmo2Config,
    Qwen2Config,
    Qwen3Config,
)

from kvnet.alignment import Intake, row_width
from kvnet.model.cache import export_layers
from kvnet.model.causal import CausalModel
from kvnet.model.loader import LoadedModel
from kvnet.model.slots import rows_of_layers
from kvnet.model.states import join_taken

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
}
TAKES_STATES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES),
}
TAKES_ROWS = {
    "norms behind the parts": Gemma2Config(**SIZES, sliding_window=64, layer_types=["full_attention"] * 3),
    "a norm across heads": Olmo2Config(**{k: v for k, v in SIZES.items() if k != "head_dim"}),
    "no such layers": BloomConfig(vocab_size=50, hidden_size=32, n_layer=3, n_head=4),
}


def model_of(config: Any) -> CausalModel:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)  # biases and norms that start as 0 and 1 count
    return CausalModel(LoadedModel("tiny", Path(), model, None))


def read(model: CausalModel, intake: Intake) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """(rows, states) of a dozen tokens, read in two passes."""
    cache = model.new_cache()
    with model.recording_states(intake) as states:
        model.prefill(range(5, 17), cache, token_block=7)
    return rows_of_layers(export_layers(cache), model.geometry, torch.arange(12), seq_len=12), states


@pytest.mark.parametrize("name", TAKES_STATES)
def test_own_states_give_own_keys_and_values(name: str) -> None:
    model = model_of(TAKES_STATES[name])
    intake = model.intake((2, 1))
    assert (intake.state_layers, intake.hidden_size) == ((1, 2), 32)
    rows, states = read(model, intake)
    taken = join_taken(intake, rows, states)
    assert taken.shape == (12, intake.width) == (12, 2 * 2 * 16 + 32 + 32)
    assert torch.allclose(model.rows_of(intake, taken), rows, atol=1e-4)


@pytest.mark.parametrize("name", TAKES_ROWS)
def test_a_model_built_otherwise_takes_keys_and_values(name: str) -> None:
    model = model_of(TAKES_ROWS[name])
    intake = model.intake((1, 2))
    assert intake == Intake(model.geometry)
    assert intake.width == row_width(model.geometry)
    taken = torch.randn(3, intake.width)
    assert model.rows_of(intake, taken) is taken


def test_the_first_layer_has_no_state() -> None:
    model = model_of(TAKES_STATES["llama"])
    assert model.intake((0,)).state_layers == ()
    assert model.intake((0, 2)).state_layers == (2,)


def test_a_state_says_nothing_to_other_layers() -> None:
    model = model_of(TAKES_STATES["llama"])
    intake = model.intake((2,))
    rows, states = read(model, intake)
    moved = model.rows_of(intake, join_taken(intake, rows, {2: states[2] + 1}))
    halves, moved_halves = rows.chunk(3, 1), moved.chunk(3, 1)
    assert torch.equal(torch.cat(halves[:2], 1), torch.cat(moved_halves[:2], 1))
    assert not torch.allclose(halves[2], moved_halves[2], atol=0.01)


def test_gradients_flow_through_states_only_when_asked() -> None:
    model = model_of(TAKES_STATES["llama"])
    intake = model.intake((1,))
    taken = torch.randn(4, intake.width, requires_grad=True)
    model.rows_of(intake, taken, graded=True).square().sum().backward()  # type: ignore[no-untyped-call]
    assert taken.grad is not None
    assert bool(taken.grad.ne(0).any(0).all())
    assert not model.rows_of(intake, taken).requires_grad


def test_nothing_watches_a_model_that_was_recorded() -> None:
    model = model_of(TAKES_STATES["llama"])
    intake = model.intake((1,))
    _, states = read(model, intake)
    model.prefill([1, 2], model.new_cache())
    assert len(states[1]) == 12
