"""kvnet.align.port: what a port keeps, what its codes lose, and what it takes from a file."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.port import LARGEST_CODE, Port, learn_port, take_tensors
from kvnet.alignment import Intake, row_width
from kvnet.errors import MalformedFile, NotFinite, TooFewSamples
from tests.builders import make_geometry

INTAKE = Intake(make_geometry(num_layers=1, num_kv_heads=3))
WIDTH, RANK = INTAKE.width, 6


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(num_rows: int, seed: int = 0) -> torch.Tensor:
    """Rows whose directions differ in strength, far from 0."""
    spread = torch.linspace(1, 8, WIDTH)
    turn = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=seeded(99)))[0]
    return (torch.randn(num_rows, WIDTH, generator=seeded(seed)) * spread) @ turn + 5


def flat_gradients(num: int = 400, seed: int = 1) -> torch.Tensor:
    return torch.randn(num, WIDTH, generator=seeded(seed))


def there_and_back(port: Port, rows: torch.Tensor) -> torch.Tensor:
    return port.to_taken(port.to_coordinates(rows))


def loss(port: Port, rows: torch.Tensor, gradients: torch.Tensor) -> float:
    """What the port leaves out, under E[g gT]: the mean squared change of a log-probability."""
    return float(((there_and_back(port, rows) - rows) @ gradients.T).square().mean())


@pytest.fixture(scope="module")
def port() -> Port:
    return learn_port(drawn(300), flat_gradients(), RANK, INTAKE)


# Learning


def test_port_of_full_rank_loses_nothing_of_rows_it_never_saw() -> None:
    port = learn_port(drawn(300), flat_gradients(), WIDTH, INTAKE)
    rows = drawn(50, seed=7)
    assert torch.allclose(there_and_back(port, rows), rows, atol=1e-3)


def test_rows_of_few_directions_pass_through_a_port_of_more() -> None:
    def few(seed: int) -> torch.Tensor:
        return torch.randn(90, 4, generator=seeded(seed)) @ drawn(4, seed=3) + 2

    port = learn_port(few(0), flat_gradients(), 10, INTAKE)
    assert torch.allclose(there_and_back(port, few(1)), few(1), atol=1e-3)


def test_each_coordinate_carries_no_more_than_the_one_before() -> None:
    rows = drawn(300)
    port = learn_port(rows, flat_gradients(), WIDTH, INTAKE)
    carried = port.to_coordinates(rows).var(0)
    assert bool((carried[1:] <= carried[:-1] * 1.0001).all())
    losses = [loss(port.cut(rank), rows, flat_gradients()) for rank in range(1, WIDTH + 1)]
    assert losses == sorted(losses, reverse=True)


def test_first_coordinates_of_a_port_are_the_smaller_port(port: Port) -> None:
    smaller, cut = learn_port(drawn(300), flat_gradients(), 3, INTAKE), port.cut(3)
    assert cut.rank == 3
    for name, tensor in smaller.to_tensors().items():
        assert torch.allclose(cut.to_tensors()[name], tensor, rtol=1e-3, atol=1e-5)


def test_port_without_gradients_is_that_of_principal_components() -> None:
    rows = drawn(300)
    port = learn_port(rows, torch.zeros(0, WIDTH), RANK, INTAKE)
    centred = rows - rows.mean(0)
    *_, directions = torch.linalg.svd(centred, full_matrices=False)
    expected = centred @ directions[:RANK].T @ directions[:RANK] + rows.mean(0)
    assert torch.allclose(there_and_back(port, rows), expected, atol=1e-3)


def test_port_weighed_by_gradients_keeps_a_quiet_direction_that_answers_read() -> None:
    """What is loud is not read, and what is read is quiet: principal components keep the wrong ones."""
    rows = drawn(300)
    quiet = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=seeded(99)))[0][:RANK]  # strengths 1 to 2.5
    gradients = torch.randn(400, RANK, generator=seeded(2)) @ quiet
    weighed, plain = (learn_port(rows, g, RANK, INTAKE) for g in (gradients, torch.zeros(0, WIDTH)))
    fresh = drawn(100, seed=5)
    everything = float(((fresh - fresh.mean(0)) @ gradients.T).square().mean())
    assert loss(weighed, fresh, gradients) < 1e-3 * everything
    assert loss(plain, fresh, gradients) > 0.9 * everything


@pytest.mark.parametrize("size", [1e-9, 1e-3, 1e6])
def test_size_of_the_gradients_changes_nothing(port: Port, size: float) -> None:
    found = learn_port(drawn(300), flat_gradients() * size, RANK, INTAKE)
    for name, tensor in port.to_tensors().items():
        assert torch.allclose(found.to_tensors()[name], tensor, rtol=1e-3, atol=1e-5)


def test_learning_changes_neither_rows_nor_gradients() -> None:
    rows, gradients = drawn(50), flat_gradients(50)
    learn_port(rows, gradients, 4, INTAKE)
    assert torch.equal(rows, drawn(50))
    assert torch.equal(gradients, flat_gradients(50))


@pytest.mark.parametrize("num_rows", [0, 1, RANK])
def test_fewer_rows_than_coordinates_are_refused(num_rows: int) -> None:
    with pytest.raises(
        TooFewSamples, match=f"a port of {RANK} coordinates was asked for from {num_rows} rows"
    ):
        learn_port(drawn(num_rows), flat_gradients(), RANK, INTAKE)


def test_more_rows_than_the_bound_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvnet.align.port._MOST_SAMPLES", 40)
    rows = torch.arange(400.0)[:, None] + drawn(400) / 100
    assert torch.allclose(learn_port(rows, flat_gradients(), RANK, INTAKE).mean, rows.mean(0), atol=1.0)


# Codes


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=8),
    st.floats(2**-10, 2**10, width=32),
    st.sampled_from(sorted(LARGEST_CODE)),
)
def test_code_is_within_half_a_step_of_what_it_reaches(values: list[float], step: float, bits: int) -> None:
    coordinates = torch.tensor([values])
    steps = dict.fromkeys(LARGEST_CODE, torch.full((len(values),), step))
    nothing = torch.zeros(len(values), 0)
    port = Port(INTAKE, nothing.T, nothing, torch.zeros(0), steps)
    codes = port.quantize(coordinates, bits)
    assert codes.dtype is torch.int8
    assert int(codes.abs().max()) <= LARGEST_CODE[bits]
    reach = LARGEST_CODE[bits] * step
    reached = coordinates.clamp(-reach, reach)
    assert bool(((port.dequantize(codes, bits) - reached).abs() <= step * 0.5001).all())


@given(st.lists(st.integers(-7, 7), min_size=RANK, max_size=RANK), st.sampled_from(sorted(LARGEST_CODE)))
def test_codes_come_back_from_the_coordinates_they_stand_for(values: list[int], bits: int) -> None:
    port = learn_port(drawn(60), flat_gradients(60), RANK, INTAKE)
    codes = torch.tensor([values], dtype=torch.int8)
    assert torch.equal(port.quantize(port.dequantize(codes, bits), bits), codes)


def test_steps_reach_every_coordinate_in_8_bits_and_nearly_every_one_in_4(port: Port) -> None:
    coordinates = port.to_coordinates(drawn(300)).abs()
    assert bool((coordinates <= port.steps[8] * 127 * 1.0001).all())
    within = (coordinates <= port.steps[4] * 7).double().mean(0)
    assert bool((within >= 0.99).all())
    assert bool((within < 1).all())


def test_8_bits_lose_less_than_4_and_little(port: Port) -> None:
    coordinates = port.to_coordinates(drawn(300))
    lost = {
        bits: float((port.dequantize(port.quantize(coordinates, bits), bits) - coordinates).std())
        for bits in (8, 4)
    }
    assert lost[8] < 0.02 * float(coordinates.std())
    assert lost[8] < lost[4] / 4


# Identity


INTAKES = {
    "keys and values": Intake(make_geometry()),
    "states": Intake(make_geometry(), state_layers=(1, 2), hidden_size=7),
}


@pytest.mark.parametrize("name", INTAKES)
def test_coordinates_of_the_identity_are_what_is_taken(name: str) -> None:
    intake = INTAKES[name]
    port = Port.identity(intake)
    taken = torch.randn(5, intake.width, generator=seeded(0))
    assert (port.rank, port.intake) == (intake.width, intake)
    assert torch.equal(port.to_coordinates(taken), taken)
    assert torch.equal(port.to_taken(taken), taken)


def test_identity_of_a_large_model_takes_no_square_of_its_rows() -> None:
    geometry = make_geometry(num_layers=80, num_kv_heads=8, head_dim=128)  # a square of 107 GB
    port = Port.identity(Intake(geometry))
    assert sum(tensor.nbytes for tensor in port.to_tensors().values()) == 3 * 4 * row_width(geometry)


# States


def test_port_is_as_wide_as_what_its_model_takes() -> None:
    intake = INTAKES["states"]
    halves = 2 * intake.geometry.num_kv_heads * intake.geometry.head_dim
    assert intake.widths == (halves, 7, 7)
    taken = torch.randn(90, intake.width, generator=seeded(1))
    port = learn_port(taken, torch.randn(80, intake.width, generator=seeded(2)), RANK, intake)
    assert (port.intake, port.cut(2).intake) == (intake, intake)
    assert port.mean.shape == (halves + 7 + 7,)
    found = Port.from_tensors(port.to_tensors(), rank=RANK, intake=intake)
    assert (found.intake, found.basis.shape) == (intake, port.basis.shape)
    with pytest.raises(MalformedFile, match="wanted"):
        Port.from_tensors(port.to_tensors(), rank=RANK, intake=INTAKES["keys and values"])


# Tensors


def test_port_comes_back_from_its_tensors(port: Port) -> None:
    found = Port.from_tensors(port.to_tensors(), rank=RANK, intake=INTAKE)
    for name, tensor in port.to_tensors().items():
        assert torch.equal(found.to_tensors()[name], tensor)


def test_halves_become_float32(port: Port) -> None:
    tensors = port.to_tensors() | {"basis": port.basis.half()}
    assert Port.from_tensors(tensors, rank=RANK, intake=INTAKE).basis.dtype is torch.float32


@pytest.mark.parametrize("name", ["project", "basis", "mean", "step8", "step4"])
def test_tensor_that_is_missing_or_of_another_shape_is_refused(port: Port, name: str) -> None:
    tensors = port.to_tensors()
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {name: tensors[name][..., :-1]},
        tensors | {name: tensors[name][None]},
    ):
        with pytest.raises(MalformedFile, match=name):
            Port.from_tensors(changed, rank=RANK, intake=INTAKE)


def test_tensor_that_no_port_has_is_refused(port: Port) -> None:
    with pytest.raises(MalformedFile, match="surprise"):
        Port.from_tensors(port.to_tensors() | {"surprise": port.mean}, rank=RANK, intake=INTAKE)


def test_port_of_other_numbers_than_its_manifest_says_is_refused(port: Port) -> None:
    narrower = Intake(make_geometry(num_layers=1, num_kv_heads=2))
    for rank, intake in ((RANK + 1, INTAKE), (RANK, narrower)):
        with pytest.raises(MalformedFile, match="wanted"):
            Port.from_tensors(port.to_tensors(), rank=rank, intake=intake)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["project", "basis", "mean", "step8", "step4"])
def test_number_that_is_not_finite_is_refused(port: Port, name: str, value: float) -> None:
    tensors = {key: tensor.clone() for key, tensor in port.to_tensors().items()}
    tensors[name].view(-1)[-1] = value
    with pytest.raises(NotFinite, match=f"{name} of a port holds NaN or infinity"):
        Port.from_tensors(tensors, rank=RANK, intake=INTAKE)


@pytest.mark.parametrize("bits", sorted(LARGEST_CODE))
@pytest.mark.parametrize("step", [0.0, -1.0])
def test_step_that_is_not_above_0_is_refused(port: Port, bits: int, step: float) -> None:
    broken = port.steps[bits].clone()
    broken[2] = step
    tensors = replace(port, steps=dict(port.steps) | {bits: broken}).to_tensors()
    with pytest.raises(NotFinite, match="a step that is not above 0"):
        Port.from_tensors(tensors, rank=RANK, intake=INTAKE)


def test_refusal_names_what_was_read() -> None:
    with pytest.raises(MalformedFile, match=r"a map holds \['a'\], wanted \['b'\]; make it again"):
        take_tensors({"a": torch.zeros(1)}, {"b": (1,)}, what="map")
