"""Who sees which sample when."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.data.loading.sampler import by_class, epoch_order, share, steps, stratified
from tests.each import each


@each("size", [1, 1000])
def test_an_epoch_s_order_is_a_permutation(size):
    for seed, epoch in ((0, 0), (0, 1), (7, 239)):
        order = epoch_order(seed, epoch, size)
        assert order.dtype == torch.int64
        assert torch.equal(order.sort().values, torch.arange(size))


def test_an_order_follows_seed_and_epoch_and_nothing_else():
    orders = [epoch_order(seed, epoch, 500) for seed in range(4) for epoch in range(4)]
    assert len(torch.stack(orders).unique(dim=0)) == 16
    torch.manual_seed(1)
    assert torch.equal(epoch_order(0, 0, 500), orders[0])


def test_every_place_in_the_order_is_equally_likely_for_a_row():
    places = torch.stack([epoch_order(0, epoch, 16).argsort() for epoch in range(800)])
    seen = torch.zeros(16, 16).scatter_add_(1, places.T, torch.ones(16, 800)).double()
    # Rows and columns have fixed sums: 15 * 15 degrees of freedom, and the variance of a cell is
    # 16 / 15 of what Pearson's statistic takes it for. Quantile 0.999; the keys are fixed.
    assert float(((seen - 50) ** 2 / 50).sum()) * 15 / 16 < 296.3


@each(("size", "batch"), [(100, 24), (24, 24)])
def test_a_step_covers_the_same_samples_for_every_number_of_workers(size, batch):
    order = epoch_order(3, 1, size)
    alone = steps(order, batch, 0, 1)
    assert alone.shape == (size // batch, batch)
    for world in (w for w in range(1, batch + 1) if batch % w == 0):
        parts = [steps(order, batch, rank, world) for rank in range(world)]
        assert all(part.shape == (size // batch, batch // world) for part in parts)
        together = torch.cat(parts, dim=1)
        assert torch.equal(together.sort(dim=1).values, alone.sort(dim=1).values)


def test_an_epoch_shows_a_sample_at_most_once_and_drops_the_last_partial_batch():
    order = epoch_order(0, 0, 103)
    shown = steps(order, 20, 0, 1).flatten()
    assert torch.equal(shown, order[:100])
    assert len(shown.unique()) == 100


@each(("classes", "count"), [(5, 3), (40, 4), (1, 2), (100, 1)])
def test_some_of_a_class_follow_each_other_where_the_first_of_them_was(classes, count):
    targets, order = (torch.arange(100) * 7 % 13) % classes, epoch_order(3, 0, 100)
    grouped = by_class(order, targets, count)
    assert torch.equal(grouped.sort().values, torch.arange(100))
    # By hand: a class's rows come in the order's turn, some at a time.
    waiting = {c: [r for r in order.tolist() if targets[r] == c] for c in range(classes)}
    expected: list[int] = []
    for row in order.tolist():
        rows = waiting[int(targets[row])]
        if row in rows:
            expected += rows[:count]
            del rows[:count]
    assert grouped.tolist() == expected


def test_what_is_dropped_differs_from_epoch_to_epoch():
    dropped = {tuple(epoch_order(0, epoch, 103)[100:].sort().values.tolist()) for epoch in range(9)}
    assert len(dropped) == 9


def test_a_batch_that_does_not_divide_among_the_workers_is_refused():
    with pytest.raises(ConfigError) as error:
        steps(torch.arange(100), 10, 0, 3)
    assert str(error.value) == (
        "a global batch of 10 does not divide among 3 workers; "
        "choose optim.batch or scale.workers so that it does"
    )


def test_a_batch_larger_than_the_dataset_is_refused():
    with pytest.raises(ConfigError) as error:
        steps(torch.arange(9), 10, 0, 1)
    assert str(error.value) == (
        "9 training samples are fewer than one batch of 10; choose a smaller optim.batch"
    )


@pytest.mark.slow
@given(size=st.integers(0, 200), world=st.integers(1, 40))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_shares_cover_every_row_once_and_are_nearly_equal(size, world):
    parts = [share(size, rank, world) for rank in range(world)]
    assert torch.equal(torch.cat(parts), torch.arange(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def counts(targets: torch.Tensor, rows: torch.Tensor, classes: int) -> list[int]:
    return torch.bincount(targets[rows], minlength=classes).tolist()


@given(sizes=st.lists(st.integers(5, 60), min_size=1, max_size=8), data=st.data())
@settings(derandomize=True, deadline=None, max_examples=15)
def test_a_stratified_choice_keeps_the_share_of_every_class(sizes, data):
    targets = torch.cat([torch.full((n,), label) for label, n in enumerate(sizes)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]
    count = data.draw(st.integers(0, len(targets)))
    rows = stratified(targets, count, 3, keyed_random.LIMIT)
    assert len(rows) == count
    assert torch.equal(rows, rows.unique()), "in rising order, none twice"
    # Webster's method: a common divisor turns all sizes into counts by rounding.
    chosen = counts(targets, rows, len(sizes))
    least = max((k - 0.5) / n for k, n in zip(chosen, sizes, strict=True))
    most = min((k + 0.5) / n for k, n in zip(chosen, sizes, strict=True))
    assert least <= most


def test_classes_of_equal_size_are_chosen_equally():
    targets = torch.arange(1000) % 10
    assert counts(targets, stratified(targets, 200, 0, keyed_random.LIMIT), 10) == [20] * 10
    uneven = counts(targets, stratified(targets, 205, 0, keyed_random.LIMIT), 10)
    assert sorted(uneven) == [20] * 5 + [21] * 5


@given(one=st.integers(0, 300), two=st.integers(0, 300))
@settings(derandomize=True, deadline=None, max_examples=15)
def test_a_smaller_choice_is_part_of_a_larger_one(one, two):
    targets = torch.arange(300) ** 2 % 7
    small = set(stratified(targets, min(one, two), 0, keyed_random.LIMIT).tolist())
    assert small <= set(stratified(targets, max(one, two), 0, keyed_random.LIMIT).tolist())


def test_seeds_and_streams_choose_other_rows():
    targets = torch.zeros(300, dtype=torch.int64)
    keys = [(0, keyed_random.LIMIT), (1, keyed_random.LIMIT), (0, keyed_random.HOLDOUT)]
    chosen = [stratified(targets, 100, seed, stream) for seed, stream in keys]
    assert len(torch.stack(chosen).unique(dim=0)) == 3
    assert torch.equal(stratified(targets, 100, 0, keyed_random.LIMIT), chosen[0])
