"""Turning keys to content space and back: a plain formula, round trips, positions far apart and far away."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.codec.piece import Piece
from kvnet.codec.rope import rope_strip, turn_keys
from kvnet.errors import IncompatibleModel
from kvnet.types import Rope
from tests.codec.strategies import fill, make_geometry, make_piece, pieces, rope_extras

POSITIONS = st.integers(0, 2**31)


@given(pieces(), st.integers(0, 10000))
def test_stripped_keys_come_back(made: tuple[Piece, torch.Tensor], num_read: int) -> None:
    piece, tensor = made
    strip = rope_strip(piece.geometry.rope, piece.head_dim, num_read)
    if strip is None:
        return
    keys = tensor.float()
    content = strip.encode(keys.clone(), 0, piece)
    assert torch.allclose(strip.decode(content, 0, piece), keys, atol=float(keys.abs().max()) * 1e-5)


@given(pieces(), st.data())
def test_keys_turned_to_any_positions_come_back(
    made: tuple[Piece, torch.Tensor], data: st.DataObject
) -> None:
    piece, tensor = made
    n = piece.num_tokens
    positions = torch.tensor(data.draw(st.lists(POSITIONS, min_size=n, max_size=n)))
    seq_len = data.draw(st.none() | st.integers(1, 10000))
    keys, rope = tensor.float(), piece.geometry.rope
    if rope.rope_theta == 0:
        with pytest.raises(IncompatibleModel, match="rope_theta is 0"):
            turn_keys(keys, positions, rope, piece.head_dim, forward=True, seq_len=seq_len)
        return
    before = keys.clone()
    there = turn_keys(keys, positions, rope, piece.head_dim, forward=True, seq_len=seq_len)
    back = turn_keys(there, positions, rope, piece.head_dim, forward=False, seq_len=seq_len)
    assert torch.allclose(back, keys, atol=float(keys.abs().max()) * 1e-5)
    assert torch.equal(keys, before)


@given(pieces())
def test_stage_and_function_turn_alike(made: tuple[Piece, torch.Tensor]) -> None:
    piece, tensor = made
    rope, keys = piece.geometry.rope, tensor.float()
    num_read = piece.start_pos + piece.seq_len
    strip = rope_strip(rope, piece.head_dim, num_read)
    if strip is None:
        return
    positions = piece.start_pos + piece.start + torch.arange(piece.num_tokens)
    for forward, stage in ((False, strip.encode), (True, strip.decode)):
        turned = turn_keys(keys, positions, rope, piece.head_dim, forward=forward, seq_len=num_read)
        assert torch.equal(turned, stage(keys.clone(), 0, piece))


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_key_is_turned_back_by_its_position_times_the_frequency_of_each_pair(factor: float) -> None:
    geometry = make_geometry(1, 12, rope=Rope("default", 500.0, factor))
    piece = make_piece(geometry, 5, start=1000)
    keys = fill("normal", piece, 0)
    strip = rope_strip(geometry.rope, 12, None)
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
    strip = rope_strip(piece.geometry.rope, piece.head_dim, None)
    assert strip is not None
    whole = strip.encode(keys.clone(), 0, piece)
    assert torch.equal(strip.encode(keys[:, 4:9].clone(), 4, piece), whole[:, 4:9])


def test_attention_factor_is_divided_out_of_turned_dimensions_alone() -> None:
    rope = Rope("yarn", 10000.0, 0.5, rope_extras(4)["yarn"] | {"attention_factor": 2.0})
    keys = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    content = turn_keys(keys, torch.tensor([0, 5, 9]), rope, 16, forward=False, seq_len=None)
    assert torch.allclose(content[..., :8].norm(dim=-1), keys[..., :8].norm(dim=-1) / 2)
    assert torch.equal(content[..., 8:], keys[..., 8:])
    assert torch.equal(content[:, 0, :8], keys[:, 0, :8] / 2)


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_keys_of_a_longer_reading_are_turned_by_its_own_frequencies(kind: str) -> None:
    rope = Rope(kind, 10000.0, 1.0, rope_extras(8, context=32)[kind])
    keys, positions = torch.ones(1, 4, 16), torch.arange(20, 24)

    def turned(seq_len: int | None) -> torch.Tensor:
        return turn_keys(keys, positions, rope, 16, forward=True, seq_len=seq_len)

    assert torch.equal(turned(32), turned(None))
    assert not torch.allclose(turned(33), turned(None), atol=1e-3)


def test_models_that_rotate_nothing_have_no_strip() -> None:
    assert rope_strip(Rope("none", 0.0), 64, None) is None
    assert rope_strip(Rope("default", 10000.0), 1, None) is None
    keys = torch.ones(1, 2, 4)
    for rope, head_dim in ((Rope("none", 0.0), 4), (Rope("default", 1e4, 0.2), 4)):
        turned = turn_keys(keys, torch.tensor([3, 4]), rope, head_dim, forward=True, seq_len=None)
        assert torch.equal(turned, keys)
        assert turned is not keys


@pytest.mark.parametrize(
    "rope", [Rope("gptj", 0.0), Rope("linear", 1e4), Rope("yarn", 1e4, extra={"factor": 4})]
)
def test_keys_of_a_rope_that_says_too_little_are_not_moved(rope: Rope) -> None:
    with pytest.raises(IncompatibleModel, match="cannot be moved"):
        turn_keys(torch.ones(1, 1, 4), torch.tensor([0]), rope, 4, forward=True, seq_len=None)


def test_far_positions_keep_their_angles() -> None:
    piece = make_piece(make_geometry(1, 2), 1, start=2**31 - 2)
    strip = rope_strip(piece.geometry.rope, 2, None)
    assert strip is not None
    content = strip.encode(torch.tensor([[[1.0, 0.0]]]), 0, piece)
    angle = math.fmod(2**31 - 2, 2 * math.pi)
    assert content.flatten().tolist() == pytest.approx([math.cos(angle), -math.sin(angle)], abs=1e-5)
