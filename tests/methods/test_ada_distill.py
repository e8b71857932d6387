"""AdaDistill and angular distillation: golden values, and centres that move in one order."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.ada_distill import AdaDistill, Centres
from raykd.methods.angular import Angular
from raykd.methods.mimic import MimicEmbedding
from tests.small import golden_embeddings, golden_logits

MINE, THEIRS = golden_embeddings()
LABELS = golden_logits()[2]
J, D = torch.arange(10.0).double()[:, None], torch.arange(6.0).double()
WEIGHT = (0.35 * J + 0.8 * D + 0.3).cos()


def batch(labels=LABELS):
    return Batch(torch.empty(0), labels, torch.arange(len(labels)), view=0, epoch=0)


def losses_of(method, helpers=None):
    outputs = Outputs(embedding=MINE), Outputs(embedding=THEIRS)
    return method.losses(*outputs, batch(), helpers or torch.nn.ModuleDict())["embedding"]


def test_a_step_has_the_values_of_the_specification():
    helpers = AdaDistill().helpers(Shapes(10, 6, {}), Shapes(10, 6, {})).double()
    centres = helpers["centres"]
    assert "projection" not in helpers and centres.rows.shape == (10, 6)
    centres.rows.copy_(WEIGHT)
    shares = centres.shares(MINE, THEIRS, LABELS, weighted=True)
    assert shares.mean().item() == pytest.approx(0.2593145613, rel=1e-6)
    near = F.cosine_similarity(WEIGHT[LABELS], THEIRS, dim=1).clamp(1e-6, 1)
    assert near.mean().item() == pytest.approx(0.3961497338, rel=1e-6)
    assert losses_of(AdaDistill(), helpers).item() == pytest.approx(25.76966132, rel=1e-6)
    assert not torch.equal(centres.rows, WEIGHT)
    before = centres.rows.clone()
    losses_of(AdaDistill(), helpers.eval())
    assert torch.equal(centres.rows, before)


def test_a_student_at_its_teacher_keeps_the_centre_and_one_that_is_far_has_the_teacher_s():
    unit, across = F.normalize(THEIRS, dim=1), F.normalize(THEIRS.roll(1, 1), dim=1)
    across = across - (across * unit).sum(1, keepdim=True) * unit
    for student, start, expected in ((THEIRS, unit, unit), (across, WEIGHT[LABELS], unit)):
        helpers = AdaDistill().helpers(Shapes(10, 6, {}), Shapes(10, 6, {})).double()
        rows = helpers["centres"].rows
        rows[LABELS] = start
        others = rows.clone()
        outputs = Outputs(embedding=student), Outputs(embedding=THEIRS)
        AdaDistill().losses(*outputs, batch(), helpers)
        torch.testing.assert_close(rows[LABELS], expected, rtol=0, atol=2e-6)  # a millionth stays
        others[LABELS] = rows[LABELS]
        assert torch.equal(rows, others)  # other classes stay


@pytest.mark.slow
def test_samples_of_one_class_move_its_centre_in_the_order_of_their_ids():
    one, other = Centres(3, 6).double(), Centres(3, 6).double()
    other.load_state_dict(one.state_dict())
    labels, shares = torch.tensor([1, 1, 2, 1]), torch.tensor([0.1, 0.5, 0.3, 0.9]).double()
    unit, expected = F.normalize(THEIRS, dim=1), one.rows.clone()
    for row in range(4):
        kept = shares[row] * expected[labels[row]]
        expected[labels[row]] = kept + (1 - shares[row]) * unit[row]
    ids, order = torch.arange(4), torch.tensor([3, 0, 2, 1])
    one.move(shares, unit, labels, ids)
    other.move(shares[order], unit[order], labels[order], ids[order])
    torch.testing.assert_close(one.rows, expected)
    assert torch.equal(one.rows, other.rows)
    none = torch.empty(0)
    one.move(none, torch.empty(0, 6), none.long(), none.long())


def test_directions_have_the_values_of_the_specification():
    assert losses_of(Angular()).item() == pytest.approx(0.3170808717, rel=1e-8)
    assert losses_of(Angular(power=2)).item() == pytest.approx(0.1085112112, rel=1e-8)
    mimic = losses_of(MimicEmbedding(normalise=True))
    assert mimic.item() == pytest.approx(2 * losses_of(Angular()).item(), rel=1e-12)
    assert mimic.item() == pytest.approx(0.6341617435, rel=1e-8)
    assert losses_of(MimicEmbedding()).item() == pytest.approx(2.004559027, rel=1e-8)


def test_directions_agree_where_the_embeddings_are_parallel_alone():
    for method in (MimicEmbedding(normalise=True), Angular(), Angular(power=2)):
        for factor in (0.1, 1.0, 40.0):
            outputs = Outputs(embedding=factor * THEIRS), Outputs(embedding=THEIRS)
            (loss,) = method.losses(*outputs, batch(), torch.nn.ModuleDict()).values()
            assert loss.item() == pytest.approx(0, abs=1e-12)
        outputs = Outputs(embedding=-THEIRS), Outputs(embedding=THEIRS)
        (loss,) = method.losses(*outputs, batch(), torch.nn.ModuleDict()).values()
        assert loss.item() == pytest.approx(2 if method == Angular() else 4)
