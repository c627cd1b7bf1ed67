"""kvnet.align.familiar: texts of other words lie far out, texts like the fit's do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align.artefacts import load_map, load_port
from kvnet.align.corpus import FAMILIAR, Lesson, calibration_lessons, fact_lessons
from kvnet.align.familiar import Familiar, familiar_of
from kvnet.align.map import AlignmentMap
from kvnet.align.moments import Moments
from kvnet.align.reading import LocalReader
from kvnet.alignment import MapManifest, PortManifest
from kvnet.files.alignments import VerifiedAlignment, read_alignment_file
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec
from kvnet.model.reference.catalog import packaged_alignments

UNSEEN_SEED = 77  # none of the recipe's


@dataclass(frozen=True, slots=True)
class Packaged:
    """The map that comes with kvnet from ref-a to ref-b, and the model that it takes memories of."""

    host: ModelHost
    alignment: AlignmentMap

    def strangeness(self, lessons: Sequence[Lesson]) -> list[float]:
        """Of each lesson of which the map sends anything."""
        closing = self.alignment.manifest.closing
        readings = LocalReader(self.host).read([lesson.text + closing for lesson in lessons])
        encoded = [self.alignment.encode(reading.slots)[0] for reading in readings]
        return [self.alignment.strangeness(one) for one in encoded if len(one)]


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Packaged:
    torch.set_num_threads(1)
    host = ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))
    files = [read_alignment_file(path) for path in packaged_alignments()]
    ports: dict[str, VerifiedAlignment] = {
        one.manifest.id: one for one in files if isinstance(one.manifest, PortManifest)
    }
    for one in files:
        manifest = one.manifest
        if isinstance(manifest, MapManifest) and (manifest.source.model, manifest.receiver.model) == (
            "ref-a",
            "ref-b",
        ):
            return Packaged(host, load_map(one, load_port(ports[manifest.port])))
    raise AssertionError("no map from ref-a to ref-b comes with kvnet")


# On real texts


def test_texts_like_those_of_the_fit_are_not_strange(packaged: Packaged) -> None:
    found = packaged.strangeness(list(calibration_lessons(24, seed=UNSEEN_SEED)))
    assert len(found) == 24
    assert 0 < max(found) < 1


def test_texts_of_other_words_are_strange(packaged: Packaged) -> None:
    other_words = replace(FAMILIAR, split="heldout")
    found = packaged.strangeness(list(fact_lessons(12, seed=UNSEEN_SEED, style=other_words)))
    assert len(found) > 6
    assert min(found) > 1


def test_one_strange_slot_makes_a_memory_strange(packaged: Packaged) -> None:
    familiar = packaged.alignment.familiar
    assert familiar is not None
    usual = familiar.mean.repeat(5, 1)
    assert packaged.alignment.strangeness(usual) == 0
    usual[3] *= 100
    assert packaged.alignment.strangeness(usual) > 1


def test_map_that_does_not_say_how_far_it_goes_knows_everything(packaged: Packaged) -> None:
    silent = replace(packaged.alignment, familiar=None)
    assert silent.strangeness(torch.full((2, silent.encoder.shape[1]), 1e9)) == 0


# The numbers


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fitted(num_rows: int = 4000, width: int = 6, rank: int = 5) -> tuple[Familiar, torch.Tensor]:
    """What an encoder is familiar with, and what it makes of the rows it was fitted on."""
    x = torch.randn(num_rows, width, generator=seeded(1)) * torch.tensor([9.0, 5.0, 3.0, 1.0, 0.5, 0.1])
    encoder = torch.randn(width, rank, generator=seeded(2))
    z = x @ encoder + 3
    sums = Moments(width, rank)
    sums.add(x, z)
    return familiar_of(encoder, sums), z


def test_directions_have_unit_variance_on_calibration_and_do_not_covary() -> None:
    familiar, z = fitted()
    scaled = ((z - familiar.mean) @ familiar.scale).double()
    covariance = scaled.T @ scaled / len(scaled)
    assert torch.allclose(covariance, torch.eye(5, dtype=torch.float64), atol=1e-3)
    assert torch.allclose(familiar.mean, z.mean(0), atol=1e-4)


def test_directions_that_never_varied_are_left_out_and_no_more_than_64_are_kept() -> None:
    x = torch.randn(500, 80, generator=seeded(1))
    sums = Moments(80, 80)
    sums.add(x, x)
    assert familiar_of(torch.eye(80), sums).scale.shape == (80, 64)
    flat = torch.zeros(80, 80)
    flat[:, :3] = torch.randn(80, 3, generator=seeded(2))
    assert familiar_of(flat, sums).scale.shape == (80, 3)
    assert familiar_of(torch.zeros(80, 80), sums) is None


def test_bound_is_four_times_what_all_but_one_in_twenty_reach() -> None:
    familiar, z = fitted()
    bounded = familiar.reaching([z[:1500], z[1500:]])
    distances = ((z - familiar.mean) @ familiar.scale).square().mean(1)
    within = [bounded.strangeness(row[None]) <= 0.25 for row in z[:400]]
    assert float(bounded.bound) == pytest.approx(4 * float(distances.quantile(0.95)), rel=1e-5)
    assert 0.9 < sum(within) / len(within) < 0.99


@pytest.mark.parametrize("encoded", [[], [torch.zeros(0, 5)]])
def test_bound_from_no_rows_is_four_times_the_mean_square_of_calibration(encoded: list[torch.Tensor]) -> None:
    familiar, z = fitted()
    bounded = familiar.reaching(encoded)
    assert float(bounded.bound) == 4
    assert bounded.strangeness(z) > 0.25
    assert bounded.strangeness(torch.zeros(0, 5)) == 0


@given(
    rank=st.integers(1, 6),
    width=st.integers(1, 4),
    seed=st.integers(0, 99),
    bound=st.floats(2**-10, 2**10, width=32),
)
def test_what_becomes_tensors_comes_back(rank: int, width: int, seed: int, bound: float) -> None:
    generator = seeded(seed)
    familiar = Familiar(
        torch.randn(rank, generator=generator),
        torch.randn(rank, width, generator=generator),
        torch.tensor(bound),
    )
    tensors = familiar.to_tensors()
    assert Familiar.shapes(tensors, rank=rank) == {name: tuple(one.shape) for name, one in tensors.items()}
    found = Familiar.from_tensors(tensors)
    assert torch.equal(found.mean, familiar.mean)
    assert torch.equal(found.scale, familiar.scale)
    assert torch.equal(found.bound, familiar.bound)


def test_strangeness_is_what_the_format_says_number_by_number() -> None:
    """FORMAT.md §10.2: the mean over the columns of ((z - known_mean) · known_scale)², over known_bound."""
    known = {
        "known_mean": torch.tensor([1.0, 0.0]),
        "known_scale": torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        "known_bound": torch.tensor([10.0]),
    }
    familiar = Familiar.from_tensors(known)
    # (3, 2) - (1, 0) = (2, 2), by the columns 4, 2, 4: (16 + 4 + 16) / 3 = 12
    assert familiar.strangeness(torch.tensor([[1.0, 0.0], [3.0, 2.0]])) == pytest.approx(1.2)
