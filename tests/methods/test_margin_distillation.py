"""MarginDistillation: margins by hand, and a classifier that learns."""

import pytest
import torch
import torch.nn.functional as F

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.margin_distillation import MarginDistillation
from tests.small import golden_embeddings, golden_logits

MINE, THEIRS = golden_embeddings()
LABELS = golden_logits()[2]
J, D = torch.arange(10.0).double()[:, None], torch.arange(6.0).double()
WEIGHT = (0.35 * J + 0.8 * D + 0.3).cos()
METHOD = MarginDistillation()


def test_a_face_that_is_typical_to_its_teacher_has_the_larger_margin():
    classifier = torch.nn.Linear(6, 10, bias=False).double()
    classifier.weight.data.copy_(WEIGHT)
    outputs = Outputs(embedding=MINE, classifier=classifier), Outputs(embedding=THEIRS)
    batch = Batch(torch.empty(0), LABELS, torch.arange(4), view=0, epoch=0)
    loss = METHOD.losses(*outputs, batch, torch.nn.ModuleDict())["embedding"]
    # The same with an arccosine.
    near = F.cosine_similarity(THEIRS, WEIGHT[LABELS], dim=1)
    margin = 0.3 * (near / near.max()).clamp_min(-1) + 0.2
    logits = 64 * F.normalize(MINE, dim=1) @ F.normalize(WEIGHT, dim=1).T
    own = logits[range(4), LABELS] / 64
    angle = own.acos() + margin
    beyond = own - margin * margin.sin()
    logits[range(4), LABELS] = 64 * torch.where(angle <= torch.pi, angle.cos(), beyond)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, LABELS).item(), rel=1e-6)
    loss.backward()
    assert classifier.weight.grad.any()


def test_without_a_cosine_above_0_all_margins_are_the_lowest():
    margin = METHOD.margins_of(THEIRS, -THEIRS)
    assert torch.equal(margin, torch.full_like(margin, 0.2))
    assert METHOD.margins_of(THEIRS[:0], THEIRS[:0]).shape == (0,)


def test_other_widths_and_a_low_margin_above_the_high_one_are_refused():
    with pytest.raises(ConfigError, match="as wide as the teacher's, or ada_distill"):
        METHOD.helpers(Shapes(10, 4, {}), Shapes(10, 6, {}))
    with pytest.raises(ValueError, match=r"low: expected 0\.5 at most, which is high, got 0\.6"):
        MarginDistillation(low=0.6)
