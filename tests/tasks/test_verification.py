"""Protocols for faces: golden values, streams against the whole, and lists of pairs."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from raykd.tasks import verification
from raykd.tasks.verification import (
    draw_pairs,
    fold_accuracy,
    genuine_scores,
    impostor_count,
    impostor_scores,
    listed_pairs,
    rank_1,
    tar_at_far,
)

NUMBER = torch.arange(40).double()
SAME = NUMBER % 2 == 0
SCORES = 0.3 * (0.37 * NUMBER).sin() + torch.where(SAME, 0.45, 0.05)


def faces() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings [12, 6] of 3 people, their labels, and 30 distractors, of the specification."""
    k = torch.arange(6.0).double()
    number, label = torch.arange(12.0).double()[:, None], torch.arange(12) // 4
    probes = (0.5 * number + 0.1 * k + 1.1 * label.double()[:, None]).cos()
    return probes, label, (0.8 * torch.arange(30.0).double()[:, None] + 0.6 * k).sin()


def test_accuracy_over_folds_has_the_values_of_the_specification():
    result = fold_accuracy(SCORES, SAME, torch.arange(40) // 4)
    assert (result.mean, result.deviation) == (pytest.approx(0.775), pytest.approx(0.175))
    assert len(result.accuracies) == 10


def test_a_list_is_cut_into_folds_in_its_order():
    first = torch.arange(40)
    pairs = listed_pairs(first, torch.where(SAME, first, first + 1), 10)
    assert torch.equal(pairs.same, SAME) and torch.equal(pairs.fold, torch.arange(40) // 4)
    assert torch.equal(pairs.second, first + 40)
    assert fold_accuracy(SCORES, pairs.same, pairs.fold).mean == pytest.approx(0.775)
    with pytest.raises(ValueError, match="expected 50 pairs or more"):
        listed_pairs(first, first, 50)
    with pytest.raises(ValueError, match="got 40 of one kind"):
        listed_pairs(first, first, 10)


def test_a_threshold_never_parts_equal_scores():
    scores, same = torch.tensor([0.5, 0.5, 0.5, 0.9]), torch.tensor([True, False, False, True])
    result = fold_accuracy(scores.repeat(2), same.repeat(2), torch.arange(8) // 4)
    assert result.accuracies == (0.75, 0.75)
    # With all of one person, the lowest threshold accepts all.
    assert fold_accuracy(scores, same | True, torch.arange(4) // 2).mean == 1


def test_scores_that_tell_all_pairs_apart_are_perfect_and_equal_ones_have_the_base_rate():
    fold = torch.arange(40) // 4
    perfect = fold_accuracy(torch.where(SAME, 0.1, -0.1), SAME, fold)
    assert (perfect.mean, perfect.deviation) == (1, 0)
    for kind in (SAME, ~SAME, NUMBER % 4 == 0, NUMBER % 4 != 0):
        constant = fold_accuracy(torch.zeros(40), kind, fold)
        base = kind.double().mean().item()
        assert constant.mean == pytest.approx(max(base, 1 - base))


def test_accepted_shares_have_the_values_of_the_specification():
    impostors = SCORES[~SAME].split(7)
    result = tar_at_far(SCORES[SAME], impostors, 20, (0.1, 0.05, 0.01))
    assert result == {0.1: pytest.approx(0.7), 0.05: pytest.approx(0.7), 0.01: None}
    assert tar_at_far(SCORES[SAME], impostors, 20, ()) == {}
    with pytest.raises(ValueError, match="expected 21 impostor scores, got 20"):
        tar_at_far(SCORES[SAME], impostors, 21, (0.1,))


def test_people_among_distractors_have_the_value_of_the_specification():
    probes, labels, distractors = faces()
    result = rank_1(probes, labels, [distractors], (30,))
    assert result == {30: 18 / 36}
    for some, others, counts, words in (
        (labels[1:], distractors, (30,), r"probes: 12 rows, but labels \[11\]"),
        (labels, distractors[:, 1:], (30,), "distractors: expected rows of 6 numbers"),
        (labels, distractors / 0, (30,), "distractors: some embeddings are not finite"),
        (labels, distractors, (0, 30), "expected counts of 1 distractor or more, got 0"),
    ):
        with pytest.raises(ValueError, match=words):
            rank_1(probes, some, [others], counts)
    shuffled = distractors[torch.randperm(30, generator=torch.Generator().manual_seed(0))]
    assert rank_1(probes, labels, [shuffled], (30,)) == result
    unit, far = F.normalize(probes, dim=1), F.normalize(distractors, dim=1)
    alone = {
        n: sum(
            float(unit[a] @ unit[b]) > float((far[:n] @ unit[a]).max())
            for a, b in itertools.permutations(range(12), 2)
            if labels[a] == labels[b]
        ) / 36
        for n in (1, 10, 30)
    }  # fmt: skip
    for size in (1, 4, 7, 30, 100):
        assert rank_1(probes, labels, distractors.split(size), (1, 10, 30)) == alone
    assert alone[1] >= alone[10] >= alone[30]
    with pytest.raises(ValueError, match="expected 31 distractors, got 30"):
        rank_1(probes, labels, [distractors], (31,))
    with pytest.raises(ValueError, match="two or more images of one person"):
        rank_1(probes[::4], labels[::4], [distractors], (30,))


def test_all_pairs_come_once_in_blocks_or_whole(monkeypatch):
    probes, labels, _ = faces()
    unit = F.normalize(probes.float(), dim=1)
    first, second = torch.triu_indices(12, 12, 1)
    cosine, same = (unit @ unit.T)[first, second], labels[first] == labels[second]
    monkeypatch.setattr(verification, "_CELLS", 30)  # 2 rows at a time
    impostors = torch.cat([*impostor_scores(probes, labels)])
    assert len(impostors) == impostor_count(labels) == int((~same).sum())
    torch.testing.assert_close(impostors.sort().values, cosine[~same].sort().values)
    genuine = genuine_scores(probes, labels)
    torch.testing.assert_close(genuine.sort().values, cosine[same].sort().values)


def test_drawn_pairs_are_of_different_people_in_each_fold():
    labels = torch.arange(60) % 12
    pairs = draw_pairs(labels, 4, 8)
    assert len(pairs.fold) == 4 * 2 * 8
    assert torch.equal(labels[pairs.first] == labels[pairs.second], pairs.same)
    people = [
        {*labels[pairs.first[pairs.fold == n]].tolist()}
        | {*labels[pairs.second[pairs.fold == n]].tolist()}
        for n in range(4)
    ]
    assert sum(map(len, people)) == len(set.union(*people)) == 12
    assert all(map(torch.equal, pairs, draw_pairs(labels, 4, 8)))
    with pytest.raises(ValueError, match=r"among 1 of 12 people, with 5 images; use fewer folds"):
        draw_pairs(labels, 12, 8)
    with pytest.raises(ValueError, match=r"one image of each of 12 people; give two or more"):
        draw_pairs(labels[:12], 4, 8)
