"""Methods that read stages, with transformers: the maps of their blocks' tokens."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.methods import METHODS
from raykd.methods.sakd import SAKD
from raykd.models import build
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, helpers_of, outputs_of

pytest.importorskip("timm")

SIDE = 160  # pixels per side of the images for both networks
STAGES = {"stage1", "stage2", "stage3", "stage4"}


@pytest.fixture
def networks():
    """A student and a teacher of other widths and depths, both vision transformers."""
    torch.manual_seed(0)
    student, teacher = build("timm/test_vit", 10), build("timm/test_vit3", 10)
    return student.train(), teacher.eval().requires_grad_(False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "spots"),
    [
        ("at", STAGES),
        ("fitnet", {"stage2"}),
        ("vid", STAGES),
        ("sp", {"stage4"}),
        ("irg", {"stage3", "stage4", "embedding", "logits"}),
    ],
)
def test_a_step_trains_student_and_helpers(networks, name, spots):
    (student, teacher), method = networks, METHODS[name]()
    helpers = helpers_of(method, student, teacher, SIDE)
    sample = batch(4, SIDE)
    learner = Learner(student, method, helpers)
    losses, _ = learner(sample, outputs_of(teacher, sample, method.needs()), 1.0)
    assert losses.keys() == spots | {"label"}
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    trained = [(n, p) for n, p in learner.named_parameters() if p.requires_grad]
    assert [n for n, p in trained if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(parameter.grad is None for parameter in teacher.parameters())


@each("method", [METHODS["ab"](), METHODS["simkd"](), SAKD(base=METHODS["at"]())], ids=str)
def test_what_runs_or_trains_stages_as_modules_is_refused(networks, method):
    with pytest.raises(ConfigError, match="are no modules that run one after another"):
        helpers_of(method, *networks, SIDE)


def test_the_policy_of_sakd_chooses_between_embeddings(networks):
    (student, teacher), method = networks, SAKD(base=METHODS["pkt"]())
    helpers = helpers_of(method, student, teacher, SIDE)
    sample = batch(4, SIDE)
    learner = Learner(student, method, helpers)
    losses, _ = learner(sample, outputs_of(teacher, sample, method.needs()), 1.0)
    assert losses.keys() == {"label", "embedding", "logits", "route"}
