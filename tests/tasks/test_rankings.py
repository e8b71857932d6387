"""Rankings: golden values, blocks against the whole, and what must hold of any embeddings."""

import pytest
import torch

from raykd.tasks import rankings
from raykd.tasks.rankings import Lists, agreement, listed_retrieval, nearest, retrieval
from tests.each import each


def rows(count: int, width: int = 8, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_similarities_have_the_values_of_the_specification():
    query, item = torch.arange(4.0).double()[:, None], torch.arange(12.0).double()
    similarity = (0.9 * query + 0.7 * item + 0.2).cos()
    labels = torch.arange(4), torch.arange(12) % 4
    # Cosines to unit vectors, each query's over its own length, rank as the similarities do.
    result = retrieval(similarity, torch.eye(12).double(), *labels, ranks=(1, 5))
    assert result.recall == {1: 0.5, 5: 1.0}
    assert result.mean_average_precision == pytest.approx(0.4565476190, abs=1e-9)
    assert (result.r_precision, result.map_at_r) == (0.25, pytest.approx(0.2222222222, abs=1e-9))


def test_average_precision_by_trapezoids_counts_the_precision_before_a_hit():
    similarity = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    ranked = similarity, torch.eye(4), torch.ones(1), torch.tensor([0, 1, 0, 1])
    plain = retrieval(*ranked).mean_average_precision
    smooth = retrieval(*ranked, trapezoid=True).mean_average_precision
    assert plain == (1 / 2 + 2 / 4) / 2
    assert smooth == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)


def test_blocks_of_queries_give_what_a_full_sort_gives(monkeypatch):
    x, labels = rows(60), torch.arange(60) % 7
    whole = retrieval(x, x, labels, labels, alike=True)
    monkeypatch.setattr(rankings, "_CELLS", 250)  # 4 queries at a time
    parts = retrieval(x, x, labels, labels, alike=True)
    assert parts.mean_average_precision == pytest.approx(whole.mean_average_precision, abs=1e-12)
    assert (parts.recall, parts.map_at_r) == (whole.recall, pytest.approx(whole.map_at_r))
    assert [*whole.recall.values()] == sorted(whole.recall.values())
    mine, theirs = (nearest(rows(60, 5, seed), rows(60, 5, seed)) for seed in (0, 1))
    assert agreement(mine, mine) == 1
    assert 0 < agreement(mine, theirs) < 0.5


def test_embeddings_that_tell_classes_apart_are_perfect_and_random_ones_are_near_the_base_rate():
    labels = torch.arange(400) % 4
    perfect = retrieval(torch.eye(4)[labels] + 0.01 * rows(400, 4), torch.eye(4)[labels],
                        labels, labels)  # fmt: skip
    assert perfect.recall[1] == perfect.mean_average_precision == perfect.map_at_r == 1
    assert perfect.r_precision == 1
    x = rows(400, 32)
    assert abs(retrieval(x, x, labels, labels, alike=True).recall[1] - 0.25) < 0.08


def test_equal_cosines_are_ranked_by_place_and_queries_without_a_match_are_left_out():
    gallery = torch.ones(3, 2)
    result = retrieval(torch.ones(2, 2), gallery, torch.tensor([1, 5]), torch.tensor([0, 1, 1]))
    assert (result.recall[1], result.queries, result.left_out) == (0, 1, 1)
    assert result.mean_average_precision == pytest.approx((1 / 2 + 2 / 3) / 2)


def as_lists(relevant: torch.Tensor, junk: torch.Tensor) -> Lists:
    """Lists of two tables, bool [M, N]."""
    return Lists(relevant.nonzero(), junk.nonzero())


def test_lists_of_classes_and_of_the_query_itself_as_junk_are_worth_what_labels_are():
    x, labels = rows(40), torch.arange(40) % 6
    itself = torch.eye(40, dtype=torch.bool)
    lists = as_lists((labels[:, None] == labels) & ~itself, itself)
    for trapezoid in (False, True):
        by_labels = retrieval(x, x, labels, labels, alike=True, trapezoid=trapezoid)
        assert listed_retrieval(x, x, lists, trapezoid=trapezoid) == by_labels
    apart = as_lists(labels[:9, None] == labels[9:], torch.zeros(9, 31, dtype=torch.bool))
    assert listed_retrieval(x[:9], x[9:], apart) == retrieval(x[:9], x[9:], labels[:9], labels[9:])


def test_junk_is_worth_what_a_gallery_without_it_is(monkeypatch):
    queries, gallery = rows(12), rows(50, seed=1)
    chance = torch.rand(12, 50, generator=torch.Generator().manual_seed(2))
    relevant, junk = chance < 0.2, (chance > 0.4) & (chance < 0.7)
    relevant[3] = False  # it has nothing to find, and its junk is none
    whole = listed_retrieval(queries, gallery, as_lists(relevant, junk), ranks=(1, 5, 40))
    kept = [row for row in range(12) if row != 3]
    alone = [
        retrieval(queries[row : row + 1], gallery[~junk[row]], torch.ones(1),
                  relevant[row, ~junk[row]].int(), ranks=(1, 5, 40))
        for row in kept
    ]  # fmt: skip
    assert (whole.queries, whole.left_out) == (11, 1)
    for name in ("mean_average_precision", "map_at_r", "r_precision"):
        mean = sum(getattr(one, name) for one in alone) / 11
        assert getattr(whole, name) == pytest.approx(mean, abs=1e-12)
    for k in (1, 5, 40):
        assert whole.recall[k] == pytest.approx(sum(one.recall[k] for one in alone) / 11)
    junked = listed_retrieval(queries, gallery, as_lists(relevant, junk & False), ranks=(1, 5, 40))
    assert junked.mean_average_precision < whole.mean_average_precision
    monkeypatch.setattr(rankings, "_CELLS", 100)  # 2 queries at a time
    parts = listed_retrieval(queries, gallery, as_lists(relevant, junk), ranks=(1, 5, 40))
    assert parts.mean_average_precision == pytest.approx(whole.mean_average_precision, abs=1e-12)
    assert (parts.recall, parts.queries) == (whole.recall, whole.queries)


def test_the_nearest_of_a_gallery_apart_may_be_at_the_query_s_place():
    x = rows(20)
    assert nearest(x[:5], x, 3, alike=False)[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert nearest(x[:5], x[:2], 3, alike=False).shape == (5, 2)


@each(
    ("queries", "labels", "words"),
    [
        (rows(2, 3), torch.zeros(2).long(), "expected rows of 8 numbers"),
        (rows(2), torch.zeros(3).long(), "2 rows, but labels"),
        (rows(2) * torch.inf, torch.zeros(2).long(), "not finite"),
        (rows(2), torch.full((2,), 9), "no query has a relevant row"),
    ],
)
def test_what_does_not_fit_is_refused(queries, labels, words):
    with pytest.raises(ValueError, match=words):
        retrieval(queries, rows(5), labels, torch.zeros(5).long())
