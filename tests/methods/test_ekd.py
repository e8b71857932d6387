"""EKD: golden values, and thresholds that follow the pairs of two people."""

import pytest
import torch

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.ekd import EKD
from tests.each import each

N, D = torch.arange(8.0).double()[:, None], torch.arange(6.0).double()
NETWORKS = (0.5 * N + 0.9 * D + 0.1).sin(), (0.3 * N + 0.7 * D + 0.2).cos()
PEOPLE = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])


def step(start="first", labels=PEOPLE, training=True, **fields):
    """The loss of eight samples, and the thresholds after it."""
    method = EKD(ranks=(2, 4, 8), width=0.1, hardest=8, start=start, **fields)
    helpers = method.helpers(Shapes(4, 6, {}), Shapes(4, 6, {})).double().train(training)
    batch = Batch(torch.empty(0), labels, torch.arange(8), view=0, epoch=0)
    outputs = [Outputs(embedding=x) for x in NETWORKS]
    return method.losses(*outputs, batch, helpers)["embedding"].item(), helpers["thresholds"]


@each(
    ("start", "positive", "negative"),
    [("zero", 7.455918584e-08, 1.877864752e-04), ("first", 0.08602463152, 0.06616434156)],
)
def test_soft_ranks_have_the_values_of_the_specification(start, positive, negative):
    one, _ = step(start, positive_weight=1.0, negative_weight=0.0)
    other, _ = step(start, positive_weight=0.0, negative_weight=1.0)
    assert (one, other) == pytest.approx((positive, negative), rel=1e-6)
    assert step(start)[0] == pytest.approx(0.02 * positive + 0.01 * negative, rel=1e-6)


def test_thresholds_move_in_training_alone_and_by_pairs_of_two_people():
    loss, thresholds = step(labels=torch.zeros(8).long())  # pairs of one person alone
    assert loss > 0 and not thresholds.known and not thresholds.values.any()
    assert not step(training=False)[1].known
    loss, thresholds = step(labels=torch.arange(8), negative_weight=0.0)  # none of one person
    assert loss == 0 and thresholds.known
    first = step()[1].values
    assert torch.equal(step("zero")[1].values, 0.01 * first)
    assert bool((first[:, 1:] >= first[:, :-1]).all())  # fewer pairs exceed the later ones


def test_a_network_equal_to_its_teacher_has_no_loss_and_a_batch_of_one_no_pair():
    method = EKD()
    helpers = method.helpers(Shapes(4, 6, {}), Shapes(4, 6, {})).double()
    for rows in (NETWORKS[0], NETWORKS[0][:1]):
        ids = torch.arange(len(rows))
        batch = Batch(torch.empty(0), ids // 2, ids, view=0, epoch=0)
        outputs = Outputs(embedding=rows.clone().requires_grad_()), Outputs(embedding=rows)
        loss = method.losses(*outputs, batch, helpers)["embedding"]
        loss.backward()
        assert loss.item() == 0
