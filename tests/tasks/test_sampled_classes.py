"""Losses of some classes a step: which ones, and the loss of all classes where none is left out."""

import pytest
import torch

from raykd.core.types import Batch, Outputs
from raykd.methods import margins
from raykd.models.cosine_classifier import CosineClassifier
from raykd.tasks import Faces
from raykd.tasks.sampled_classes import sampled_classes
from tests.each import each

LABELS, IDS = torch.tensor([7, 2, 7, 19]), torch.tensor([40, 3, 11, 5])


def test_a_sample_has_the_batch_s_classes_and_follows_from_its_ids():
    chosen, places = sampled_classes(LABELS, IDS, 3, 100, 10)
    assert chosen.tolist() == sorted({*chosen.tolist()}) and len(chosen) == 10
    assert torch.equal(chosen[places], LABELS)
    order = torch.tensor([2, 0, 3, 1])
    again, _ = sampled_classes(LABELS[order], IDS[order], 3, 100, 10)
    assert torch.equal(chosen, again)
    for ids, epoch in ((IDS, 4), (IDS + 1, 3)):
        assert not torch.equal(chosen, sampled_classes(LABELS, ids, epoch, 100, 10)[0])
    assert torch.equal(sampled_classes(LABELS, IDS, 3, 100, 100)[0], torch.arange(100))


def test_other_classes_are_drawn_equally_often():
    counts = torch.zeros(20)
    for number in range(2000):
        chosen, _ = sampled_classes(torch.tensor([0]), torch.tensor([number]), 0, 20, 6)
        counts[chosen] += 1
    assert counts[0] == 2000
    expected = 2000 * 5 / 19
    # Chi squared of 18 degrees of freedom: 42.3 at the 99.9 % quantile.
    assert float((counts[1:] - expected).square().sum() / expected) < 42.3


def loss_of(task: Faces, head: CosineClassifier, embedding: torch.Tensor) -> torch.Tensor:
    sample = Batch(torch.empty(0), LABELS, IDS, view=0, epoch=0)
    outputs = Outputs(head(embedding), embedding=embedding, classifier=head)
    return task.student_loss(outputs, outputs.any_tensor, sample, 0.1)


@each("head", [*margins.MARGINS, "normface", "combined", "magface"])
def test_a_sample_of_all_classes_has_the_loss_and_the_gradients_of_the_whole(head):
    torch.manual_seed(0)
    whole, embedding = CosineClassifier(6, 20, 64.0).double(), torch.randn(4, 6).double()
    partial = CosineClassifier(6, 20, 64.0, sampled=True).double()
    partial.load_state_dict(whole.state_dict())
    found = []
    for made, share in ((whole, 1.0), (partial, 0.99)):
        x = embedding.clone().requires_grad_()
        loss = loss_of(Faces(head=head, partial=share), made, x)
        found.append((loss, *torch.autograd.grad(loss, [x, made.weight])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)
    assert partial(embedding) is None and partial.eval()(embedding).shape == (4, 20)


def test_few_classes_give_no_gradient_to_the_others():
    torch.manual_seed(0)
    head = CosineClassifier(6, 20, 64.0, sampled=True)
    loss_of(Faces(partial=0.3), head, torch.randn(4, 6)).backward()
    chosen, _ = sampled_classes(LABELS, IDS, 0, 20, 6)
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum(1).nonzero().squeeze(1).tolist() == chosen.tolist()


def test_a_share_of_people_is_above_0_and_at_most_1():
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="partial"):
            Faces(partial=share)
