"""Methods that weigh several teachers: golden values, and what their weights must keep."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.aekd import AEKD, shortest
from raykd.methods.base import soft_cross_entropy
from raykd.methods.ca_mkd import CAMKD
from raykd.methods.ebkd import EBKD
from raykd.methods.panel_kd import divergences
from tests.each import each
from tests.small import golden_embeddings, golden_logits

STUDENT, TEACHER, LABELS = golden_logits()
_N, _C = torch.meshgrid(torch.arange(4).double(), torch.arange(10).double(), indexing="ij")
OTHER = 3.5 * torch.cos(0.5 * _N + 0.8 * _C + 0.7)  # zu of the specification
BATCH = Batch(torch.zeros(4, 3, 1, 1), LABELS, torch.arange(4), view=0, epoch=0)
NO_SHAPES = Shapes(10, 0, {})
ALL = [EBKD(), CAMKD(), AEKD()]


def loss_of(method, *teachers, student=STUDENT):
    outputs = [Outputs(one) for one in teachers]
    answer = outputs[0].replace(panel=tuple(outputs) if len(outputs) > 1 else ())
    helpers = method.helpers(NO_SHAPES, NO_SHAPES)
    (loss,) = method.losses(Outputs(student), answer, BATCH, helpers).values()
    return loss


def weights_of(method, *teachers):
    helpers = method.helpers(NO_SHAPES, NO_SHAPES)
    return method.teacher_weights(STUDENT, torch.stack(teachers), BATCH, helpers)


@each(
    "method, expected",
    [
        (EBKD(normalise=False), 2.540104983),
        (EBKD(), 5.080209966),
        (CAMKD(normalise=False), 2.499132892),
        (CAMKD(), 4.998265784),
        (AEKD(cap=1.0), 5.341298238),
        (AEKD(), 5.252990583),
    ],
)
def test_golden_losses(method, expected):
    assert loss_of(method, TEACHER, OTHER).item() == pytest.approx(expected, rel=1e-6)


@each(
    "method, expected",
    [
        (EBKD(), [0.5460596139, 0.5227200975, 0.4734961675, 0.4614357677]),
        (CAMKD(), [0.9082354479, 0.03817452, 0.8094067348, 0.07348315518]),
        (AEKD(cap=1.0), [0.6505368697]),
        (AEKD(), [0.6]),
    ],
)
def test_golden_weights(method, expected):
    assert weights_of(method, TEACHER, OTHER)[0].tolist() == pytest.approx(expected, rel=1e-6)


@each("method", ALL, ids=lambda method: method.name)
def test_one_teacher_and_equal_ones_are_kd(method):
    expected = soft_cross_entropy(STUDENT, TEACHER, 4.0).item()
    for count in (1, 3):
        assert loss_of(method, *[TEACHER] * count).item() == pytest.approx(expected, rel=1e-9)


def test_teachers_without_any_doubt_have_equal_shares():
    sure = 1000 * torch.nn.functional.one_hot(LABELS, 10).double()
    torch.testing.assert_close(
        weights_of(EBKD(), sure, -sure + sure.roll(1, 1)), torch.full((2, 4), 0.5).double()
    )


@each("method", ALL, ids=lambda method: method.name)
def test_the_order_of_teachers_changes_nothing_and_weights_are_shares(method):
    third = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).double()
    there, back = (TEACHER, OTHER, third), (third, TEACHER, OTHER)
    # Pairs are solved in turn: to what rounds leave.
    assert loss_of(method, *there).item() == pytest.approx(loss_of(method, *back).item(), rel=1e-6)
    weights = weights_of(method, *there)
    torch.testing.assert_close(weights.sum(0), torch.ones_like(weights[0]))
    assert bool(((weights >= -1e-12) & (weights <= 1)).all())
    if method.name != "aekd":  # the codes' own, of three teachers
        of_code = weights_of(method.model_copy(update={"normalise": False}), *there)
        total = {"ebkd": 2 / 3, "ca_mkd": 1 / 3}[method.name]
        torch.testing.assert_close(of_code.sum(0), torch.full((4,), total).double())


def test_the_unsure_and_the_wrong_count_least():
    uniform = torch.zeros(4, 10).double()
    assert bool((weights_of(EBKD(), TEACHER, OTHER, uniform).argmin(0) == 2).all())
    wrong = OTHER.scatter(1, LABELS[:, None], -1e3)
    assert weights_of(CAMKD(), TEACHER, wrong)[1].abs().max() < 1e-9


def test_mixed_labels_weigh_teachers_too():
    mixed = torch.nn.functional.one_hot(LABELS, 10).double()
    batch = Batch(BATCH.pixels, mixed, BATCH.ids, view=0, epoch=0)
    teachers, nothing = torch.stack([TEACHER, OTHER]), torch.nn.ModuleDict()
    plain, other = (CAMKD().teacher_weights(STUDENT, teachers, b, nothing) for b in (BATCH, batch))
    torch.testing.assert_close(plain, other)


def test_the_shortest_gradient_is_no_longer_than_any_and_is_the_loss_s():
    third = torch.randn(4, 10, generator=torch.Generator().manual_seed(0)).double()
    teachers = torch.stack([TEACHER, OTHER, third])
    student = STUDENT.clone().requires_grad_()
    loss = loss_of(AEKD(cap=1.0), *teachers, student=student)
    (gradient,) = torch.autograd.grad(loss, student)
    single = [
        torch.autograd.grad(divergences(student, one[None], 4.0).mean(), student)[0].sum(0)
        for one in teachers
    ]
    assert gradient.sum(0).norm() <= min(one.norm() for one in single) + 1e-9
    products = torch.stack(single) @ torch.stack(single).T
    weights = shortest(products, 1.0)
    torch.testing.assert_close(gradient.sum(0), weights @ torch.stack(single))
    slopes = products @ weights  # equal where a weight is inside, no smaller where it is 0
    inside = weights > 1e-9
    assert slopes[inside].max() - slopes.min() < 1e-6 * products.diagonal().mean()


def maps_of(*, teachers=2):
    """Outputs with maps [4, 6, 2, 1], classifiers of teachers, and helpers that change nothing."""
    one, other = golden_embeddings()
    classifiers = [torch.nn.Linear(6, 10, bias=False).double() for _ in range(teachers)]
    j, d = torch.meshgrid(torch.arange(10).double(), torch.arange(6).double(), indexing="ij")
    mine, theirs = (torch.stack([x, x.flip(0)], 2)[..., None] for x in (one, other))
    answers = []
    for number, classifier in enumerate(classifiers):
        with torch.no_grad():  # W of the specification, and its negative
            classifier.weight.copy_(torch.cos(0.35 * j + 0.8 * d + 0.3) * (-1) ** number)
        features = {"stage2.map": theirs * (1 + number)}
        answers.append(Outputs((TEACHER, OTHER)[number], features, classifier=classifier))
    student = Outputs(STUDENT, {"stage2.map": mine})
    return student, answers[0].replace(panel=tuple(answers) if teachers > 1 else ())


def test_features_of_teachers_are_weighed_by_what_their_classifiers_say_of_the_student_s():
    student, teacher = maps_of()
    method = CAMKD(feature_weight=((0, 0.0), (1, 50.0)), weight=0.0)
    identities = torch.nn.ModuleDict({n: torch.nn.Identity() for n in "01"})
    batch = [Batch(BATCH.pixels, LABELS, BATCH.ids, view=0, epoch=epoch) for epoch in (0, 1)]
    first, second = (method.losses(student, teacher, one, identities)["stage2"] for one in batch)
    assert first.item() == 0
    mine = student.map.mean((2, 3))
    wrong = [
        torch.nn.functional.cross_entropy(one.classifier(mine), LABELS, reduction="none")
        for one in teacher.panel
    ]
    shares = torch.sigmoid(wrong[1] - wrong[0])  # of two teachers
    apart = [(student.map - one.map).square().mean((1, 2, 3)) for one in teacher.panel]
    expected = 50 * (shares * apart[0] + (1 - shares) * apart[1]).mean()
    assert second.item() == pytest.approx(expected.item(), rel=1e-9)
    assert second.item() == pytest.approx(33.76336270, rel=1e-6)  # the code's formula, in numpy
    halved = method.model_copy(update={"normalise": False})
    loss = halved.losses(student, teacher, batch[1], identities)["stage2"]
    assert loss.item() == pytest.approx(expected.item() / 2, rel=1e-9)
    alone, one = maps_of(teachers=1)
    loss = method.losses(alone, one, batch[1], torch.nn.ModuleDict({"0": torch.nn.Identity()}))
    assert loss["stage2"].item() == pytest.approx(50 * apart[0].mean().item(), rel=1e-9)


def test_a_classifier_that_does_not_read_the_last_map_s_channels_is_refused():
    method = CAMKD(feature_weight=50.0)
    shapes = [Shapes(10, width, {"stage1": (6, 4, 4)}) for width in (6, 1280)]
    assert list(method.helpers(shapes[0], shapes[0])) == ["0"]
    with pytest.raises(ConfigError, match="reads 1280 numbers, and its last map has 6 channels"):
        method.helpers(*shapes)
