"""kvnet.align.moments: streamed sums equal those of all rows at once, however they came."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvnet.align import moments as moments_module
from kvnet.align.moments import MomentPair, Moments
from kvnet.errors import NotFinite, RequestError, StateCorrupt

Rows = tuple[torch.Tensor, torch.Tensor]


def make_rows(num_rows: int, seed: int = 0, *, width_x: int = 5, width_y: int = 3) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, width_x, generator=generator) * 3 + 7
    y = x[:, :width_y] * 2 + torch.randn(num_rows, width_y, generator=generator)
    return x, y


def sums_of(*rows: Rows) -> Moments:
    moments = Moments(rows[0][0].shape[1], rows[0][1].shape[1])
    for x, y in rows:
        moments.add(x, y)
    return moments


def assert_same(one: Moments, other: Moments, *, exact: bool = False) -> None:
    assert one.num_rows == other.num_rows
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert torch.equal(ours, theirs) if exact else torch.allclose(ours, theirs, rtol=1e-10, atol=1e-9)
    assert one.weight == other.weight if exact else one.weight == pytest.approx(other.weight)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and panels so small that a few rows cross their borders."""
    monkeypatch.setattr(moments_module, "_BLOCK_ROWS", 16)
    monkeypatch.setattr(moments_module, "_PANEL_COLUMNS", 2)


def test_streamed_sums_equal_the_centred_products_of_all_rows() -> None:
    x, y = make_rows(100)
    moments = sums_of((x[:37], y[:37]), (x[37:], y[37:]))
    wide_x, wide_y = x.double(), y.double()
    centred_x, centred_y = wide_x - wide_x.mean(0), wide_y - wide_y.mean(0)
    assert moments.num_rows == moments.weight == 100
    assert torch.allclose(moments.mean_x, wide_x.mean(0), rtol=1e-13)
    assert torch.allclose(moments.xx, centred_x.T @ centred_x, rtol=1e-11)
    assert torch.allclose(moments.xy, centred_x.T @ centred_y, rtol=1e-11)
    assert torch.allclose(moments.yy, centred_y.square().sum(0), rtol=1e-11)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(0, 1000))
def test_cutting_a_stream_otherwise_changes_no_bit(counts: list[int], seed: int) -> None:
    x, y = make_rows(sum(counts), seed)
    assert_same(sums_of(*zip(x.split(counts), y.split(counts), strict=True)), sums_of((x, y)), exact=True)


@given(st.integers(0, 60), st.integers(0, 1000))
def test_merged_halves_equal_one_stream(count: int, seed: int) -> None:
    x, y = make_rows(60, seed)
    merged = sums_of((x[:count], y[:count]))
    merged.merge(sums_of((x[count:], y[count:])))
    assert_same(merged, sums_of((x, y)))


def test_a_row_of_weight_two_counts_as_two_rows_and_one_of_weight_zero_as_none() -> None:
    x, y = make_rows(30)
    weighted = Moments(5, 3)
    weighted.add(x, y, torch.tensor([2.0] * 10 + [1.0] * 10 + [0.0] * 10))
    repeated = sums_of((x[:10], y[:10]), (x[:20], y[:20]))
    assert weighted.weight == pytest.approx(30)
    for name in ("mean_x", "mean_y", "xx", "xy", "yy"):
        assert torch.allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-10)


def test_rows_without_weight_alone_leave_empty_sums() -> None:
    moments = Moments(5, 3)
    moments.add(*make_rows(20), torch.zeros(20))
    assert moments.weight == 0
    assert not moments.xx.any()


def test_small_variance_beside_a_large_mean_survives() -> None:
    # Uncentred float64 sums would hold 1e12 a row and lose a variance of 1e-6 to rounding.
    steps = torch.tensor([0.0, 2**-10] * 5000)  # exact beside 2**13 in float32
    moments = sums_of(((steps + 2**13)[:, None], steps[:, None]))
    assert moments.xx.item() == pytest.approx(10_000 * 2**-22, rel=1e-9)
    assert moments.xy.item() == pytest.approx(10_000 * 2**-22, rel=1e-9)


@given(st.integers(0, 60), st.integers(0, 1000))
def test_resumed_equals_uninterrupted_to_the_bit(count: int, seed: int) -> None:
    x, y = make_rows(60, seed)
    saved = safetensors.torch.save(sums_of((x[:count], y[:count])).to_tensors())
    resumed = Moments.from_tensors(safetensors.torch.load(saved))
    resumed.add(x[count:], y[count:])
    assert_same(resumed, sums_of((x, y)), exact=True)


def test_select_equals_the_sums_of_those_columns() -> None:
    x, y = make_rows(50)
    x_columns, y_columns = torch.tensor([4, 0, 3]), torch.tensor([2])
    selected = sums_of((x, y)).select(x_columns, y_columns)
    assert_same(selected, sums_of((x[:, x_columns], y[:, y_columns])))


def test_selected_sums_take_more_rows() -> None:
    x, y = make_rows(50)
    columns = torch.tensor([1, 2])
    selected = sums_of((x[:20], y[:20])).select(columns)
    selected.add(x[20:, columns], y[20:])
    assert_same(selected, sums_of((x[:, columns], y)))


def test_reading_between_two_rows_does_not_disturb_the_sums() -> None:
    x, y = make_rows(50)
    moments = sums_of((x[:20], y[:20]))
    assert torch.equal(moments.xx, moments.xx.T)
    moments.add(x[20:], y[20:])
    assert_same(moments, sums_of((x, y)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["x", "y", "weights"])
def test_row_that_is_not_finite_is_refused_before_it_touches_the_sums(bad: float, where: str) -> None:
    parts = dict(zip(("x", "y"), make_rows(20), strict=True)) | {"weights": torch.ones(20)}
    moments, untouched = sums_of(make_rows(10, 1)), sums_of(make_rows(10, 1))
    parts[where].view(-1)[-1] = bad
    with pytest.raises(NotFinite, match="NaN or infinity"):
        moments.add(**parts)
    assert_same(moments, untouched, exact=True)


def test_rows_of_other_widths_types_or_weights_are_refused() -> None:
    x, y = make_rows(4)
    moments = Moments(5, 3)
    for bad_x, bad_y, weights in (
        (x[:, :4], y, None),
        (x, y[:3], None),
        (x.double(), y, None),
        (x, y, torch.ones(4, 1)),
        (x, y, -torch.ones(4)),
    ):
        with pytest.raises(ValueError, match="wanted"):
            moments.add(bad_x, bad_y, weights)
    with pytest.raises(ValueError, match="do not join"):
        moments.merge(Moments(5, 4))
    assert moments.num_rows == 0


def test_sums_too_large_for_memory_are_refused_before_they_are_made() -> None:
    with pytest.raises(RequestError, match="fewer source layers"):
        Moments(1_000_000, 10)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("xx", None),
        ("xx", torch.zeros(5, 4, dtype=torch.float64)),
        ("xy", torch.zeros(5, 3)),
        ("yy", torch.full((3,), float("nan"), dtype=torch.float64)),
        ("mean_x", torch.zeros(1 << 20, dtype=torch.float64)),
        ("num_rows", torch.zeros(2, dtype=torch.int64)),
        ("weight", torch.tensor([float("inf")], dtype=torch.float64)),
        ("pending_x", torch.zeros(3, 5)),
        ("pending_weights", torch.zeros(16)),
        ("pending_weights", torch.tensor(1.0)),
    ],
)
def test_damaged_saved_sums_are_refused(name: str, tensor: torch.Tensor | None) -> None:
    tensors = sums_of(make_rows(20)).to_tensors()
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(StateCorrupt, match="start the fit again"):
        Moments.from_tensors(tensors)


def make_pair(contexts: range) -> MomentPair:
    pair = MomentPair.empty(5, 3, held_out_every=4)
    for context_idx in contexts:
        pair.add(context_idx, *make_rows(7, context_idx))
    return pair


def test_every_fourth_context_goes_whole_to_the_held_out_half() -> None:
    pair = make_pair(range(10))
    assert_same(pair.held_out, sums_of(make_rows(7, 3), make_rows(7, 7)))
    assert_same(pair.fit, sums_of(*(make_rows(7, idx) for idx in (0, 1, 2, 4, 5, 6, 8, 9))))


def test_merged_pairs_equal_one() -> None:
    pair = make_pair(range(5))
    pair.merge(make_pair(range(5, 10)))
    whole = make_pair(range(10))
    assert_same(pair.fit, whole.fit)
    assert_same(pair.held_out, whole.held_out)
    with pytest.raises(ValueError, match="every 3-th and 4-th"):
        pair.merge(MomentPair.empty(5, 3, held_out_every=3))


def test_resumed_pair_equals_an_uninterrupted_one_to_the_bit() -> None:
    resumed = MomentPair.from_tensors(make_pair(range(5)).to_tensors())
    for context_idx in range(5, 10):
        resumed.add(context_idx, *make_rows(7, context_idx))
    whole = make_pair(range(10))
    assert_same(resumed.fit, whole.fit, exact=True)
    assert_same(resumed.held_out, whole.held_out, exact=True)


@pytest.mark.parametrize("name", ["held_out_every", "fit.xx", "held_out.num_rows"])
def test_saved_pair_without_a_part_is_refused(name: str) -> None:
    tensors = make_pair(range(5)).to_tensors()
    del tensors[name]
    with pytest.raises(StateCorrupt, match="start the fit again"):
        MomentPair.from_tensors(tensors)


def test_pair_that_would_hold_out_everything_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted 2 or more"):
        MomentPair.empty(5, 3, held_out_every=1)
