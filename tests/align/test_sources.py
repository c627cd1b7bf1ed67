"""Which source layers a map sees: all that there is room for, or those that a strategy picks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from kvnet.align import sources
from kvnet.align.corpus import Lesson, fact_lessons
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.port import Port
from kvnet.align.reading import LocalReader
from kvnet.align.sources import source_layers_for
from kvnet.alignment import Intake, LayerStrategy, windows_width
from kvnet.errors import RequestError
from kvnet.model.host import ModelHost
from kvnet.model.loader import ModelSpec

PLAN = FitPlan((), window=(-2, 0), far_window=(-9, -3), far_layers=(0,))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> ModelHost:
    torch.set_num_threads(1)
    return ModelHost.load(ModelSpec("ref-a"), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def lessons() -> list[Lesson]:
    return list(fact_lessons(20, seed=9, fact_counts=(4,)))


def width_of(host: ModelHost, layers: tuple[int, ...], plan: FitPlan = PLAN) -> int:
    """Numbers that a row is predicted from."""
    return windows_width(host.geometry, layers, plan.window, plan.far_layers, plan.far_window)


def test_far_window_counts_among_what_a_map_may_see(host: ModelHost, monkeypatch: pytest.MonkeyPatch) -> None:
    every = tuple(range(host.geometry.num_layers))
    enough = width_of(host, every)
    for most, num_picked in ((enough, len(every)), (enough - 1, len(every) - 1)):
        monkeypatch.setattr(sources, "MOST_FEATURES", most)
        found = source_layers_for(LocalReader(host), host, [], PLAN, None)
        assert len(found) == num_picked
        assert width_of(host, found) <= most
    monkeypatch.setattr(sources, "MOST_FEATURES", width_of(host, (0,)) - 1)
    with pytest.raises(RequestError, match="choose a smaller window"):
        source_layers_for(LocalReader(host), host, [], PLAN, None)


def test_what_a_map_may_see_can_be_summed() -> None:
    """And no fit that is let through here is refused for its sums after its texts were read."""
    assert 8 * sources.MOST_FEATURES**2 < 2 << 30


def test_each_strategy_is_obeyed_where_it_is_asked_for(host: ModelHost, lessons: list[Lesson]) -> None:
    num_layers = host.geometry.num_layers
    every = tuple(range(num_layers))
    for strategy in (None, LayerStrategy.LINEAR, LayerStrategy.SKIP):
        assert source_layers_for(LocalReader(host), host, lessons, PLAN, strategy) == every


def test_learned_layers_are_those_with_the_least_held_out_error(
    host: ModelHost, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model to itself each layer is told best by itself."""
    monkeypatch.setattr(sources, "_NUM_LEARNED", 1)
    reader = LocalReader(host)
    every = tuple(range(host.geometry.num_layers))
    assert source_layers_for(reader, host, lessons, PLAN, LayerStrategy.LEARNED) == every
    table = sources._compare_layers(reader, host, lessons, "", lambda: False)
    assert table.argmax(0).tolist() == list(every)
    only_second = torch.zeros_like(table)
    only_second[1] = 1
    monkeypatch.setattr(sources, "_compare_layers", lambda *_: only_second)
    assert source_layers_for(reader, host, lessons, PLAN, LayerStrategy.LEARNED) == (1,)


def test_head_local_fit_sees_of_each_head_its_namesake_alone(host: ModelHost, lessons: list[Lesson]) -> None:
    every = tuple(range(host.geometry.num_layers))
    plan = replace(PLAN, source_layers=every, head_local=True)
    fit = Fit.begin(LocalReader(host), host, Port.identity(Intake(host.geometry)), plan)
    fit.run(lessons)
    ((_, found), *_) = fit.candidates((1e-3,))
    geometry = host.geometry
    inputs = found.weight.view(-1, geometry.num_kv_heads, geometry.head_dim, found.weight.shape[1])
    weight = inputs.view(*inputs.shape[:3], -1, geometry.num_kv_heads, geometry.head_dim)
    for head in range(geometry.num_kv_heads):
        for other in range(geometry.num_kv_heads):
            assert bool(weight[:, head, :, :, other].any()) is (head == other)
