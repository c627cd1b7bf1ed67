"""Turning keys to content space and back, against transformers' own frequencies and a plain formula."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from kvnet.codec.piece import Piece
from kvnet.codec.rope import rope_strip
from kvnet.types import Rope
from tests.codec.strategies import fill, make_geometry, make_piece, pieces

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@given(pieces())
def test_stripped_keys_come_back(made: tuple[Piece, torch.Tensor]) -> None:
    piece, tensor = made
    strip = rope_strip(piece.geometry.rope, piece.head_dim)
    if strip is None:
        return
    keys = tensor.float()
    content = strip.encode(keys.clone(), 0, piece)
    assert torch.allclose(content.norm(), keys.norm(), rtol=1e-4)
    assert torch.allclose(strip.decode(content, 0, piece), keys, atol=float(keys.abs().max()) * 1e-5)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_key_is_turned_back_by_its_position_times_the_frequency_of_each_pair(factor: float) -> None:
    geometry = make_geometry(1, 12, rope=Rope("default", 500.0, factor))
    piece = make_piece(geometry, 5, start=1000)
    keys = fill("normal", piece, 0)
    strip = rope_strip(geometry.rope, 12)
    assert strip is not None
    content = strip.encode(keys.clone(), 0, piece)
    half = int(12 * factor) // 2
    for token in range(5):
        for pair in range(half):
            angle = -(1000 + token) * 500.0 ** (-pair / half)
            a, b = keys[0, token, pair], keys[0, token, pair + half]
            turned = (a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle))
            assert content[0, token, pair].item() == pytest.approx(turned[0].item(), abs=1e-4)
            assert content[0, token, pair + half].item() == pytest.approx(turned[1].item(), abs=1e-4)
    assert torch.equal(content[..., 2 * half :], keys[..., 2 * half :])


def test_block_in_the_middle_of_a_chunk_is_turned_by_its_own_positions() -> None:
    piece = make_piece(make_geometry(), 10, start=7)
    keys = fill("normal", piece, 1)
    strip = rope_strip(piece.geometry.rope, piece.head_dim)
    assert strip is not None
    whole = strip.encode(keys.clone(), 0, piece)
    assert torch.equal(strip.encode(keys[:, 4:9].clone(), 4, piece), whole[:, 4:9])


@pytest.mark.parametrize(
    ("rope_type", "extra"), [("default", {}), ("linear", {"factor": 3.0}), ("llama3", LLAMA3)]
)
def test_frequencies_are_those_of_transformers(rope_type: str, extra: dict[str, Any]) -> None:
    parameters = {"rope_type": rope_type, "rope_theta": 500000.0, **extra}
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, max_position_embeddings=131072, rope_parameters=parameters
    )
    if rope_type == "default":
        wanted = 1 / 500000.0 ** (torch.arange(0, 128, 2) / 128)
    else:
        wanted, _ = ROPE_INIT_FUNCTIONS[rope_type](config, torch.device("cpu"))
    strip = rope_strip(Rope(rope_type, 500000.0, 1.0, extra), 128)
    assert strip is not None
    assert torch.allclose(torch.tensor(strip.frequencies), wanted.float(), rtol=1e-5)


def test_models_that_rotate_nothing_have_no_strip() -> None:
    assert rope_strip(Rope("none", 0.0), 64) is None
    assert rope_strip(Rope("default", 10000.0), 1) is None


def test_far_positions_keep_their_angles() -> None:
    piece = make_piece(make_geometry(1, 2), 1, start=2**31 - 2)
    strip = rope_strip(piece.geometry.rope, 2)
    assert strip is not None
    content = strip.encode(torch.tensor([[[1.0, 0.0]]]), 0, piece)
    angle = math.fmod(2**31 - 2, 2 * math.pi)
    assert content.flatten().tolist() == pytest.approx([math.cos(angle), -math.sin(angle)], abs=1e-5)
