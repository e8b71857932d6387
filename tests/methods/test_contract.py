"""Laws that every method in the table keeps."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import raykd.methods
from raykd.core.record import fingerprint
from raykd.core.types import Signal
from raykd.methods import METHODS, PRELUDES, Method
from raykd.methods.base import value_at
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.methods.skd import SKD
from raykd.training.learner import Learner
from tests.small import ALL, asked, batch, helpers_of, pair
from tests.tiers import slow_but

NAMES = [*METHODS, *PRELUDES]
# Logits; a memory that workers share; pre-activations, helpers and calibration; a wrapper.
QUICK = ("kd", "crd", "ofd", "sakd")
# Cross entropies, contrasts, hinges with a margin, and losses that read labels too, are not 0.
NEVER_ZERO = {
    "hard_kd",
    "teacher_free",
    "nkd",
    "sample_contrastive_kd",
    "mlkd",
    "ab_init",
    "combine",
}


def every_method():
    return [kind() for kind in (*METHODS.values(), *PRELUDES.values())]


@pytest.fixture(params=slow_but(NAMES, QUICK))
def method(request):
    name = request.param
    return METHODS[name]() if name in METHODS else PRELUDES[name]()


def networks(method):
    """A student and a teacher that the method can compare."""
    same_widths = method.name in ("fsp", "fsp_init")
    return pair(teacher="resnet14" if same_widths else "resnet8x4")


def test_every_file_of_the_folder_is_in_the_table():
    folder = Path(raykd.methods.__file__).parent
    shared = {"__init__", "base", "wrapper"}
    shared |= {"row_subsets", "helper_kinds", "feature_maps", "sakd_policy"}
    files = {path.stem for path in folder.glob("*.py")} - shared
    every = [*METHODS.values(), *PRELUDES.values()]
    assert {method.__module__.rpartition(".")[2] for method in every} == files


def test_the_name_in_the_table_is_the_name_in_the_recipe():
    for method in every_method():
        table = METHODS if method.name in METHODS else PRELUDES
        assert table[method.name] is type(method)
        assert method.title
        assert method.cost


def test_an_alias_is_read_as_the_name_that_it_stands_for():
    for alias in ("skd", "rkd", "ls", "cswt", "ckd", "tf_kd", "spot_adaptive_kd"):
        method = METHODS[alias]
        assert method(name=alias) == method()
        assert fingerprint(method.read({"name": alias})) == fingerprint(method())


def test_defaults_survive_yaml_and_pickle():
    for method in every_method():
        text = yaml.safe_dump(method.plain())
        assert type(method).read(yaml.safe_load(text)) == method
        assert pickle.loads(pickle.dumps(method)) == method


def test_changing_any_field_changes_the_fingerprint():
    def other(field, value):
        if field == "homogeneous" or isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        if isinstance(value, Method):
            return METHODS["kd"]()
        return (3 if field == "size" else 1.5) if value is None else None

    for method in every_method():
        for field, value in method:
            if field != "name":
                changed = method.model_copy(update={field: other(field, value)})
                assert fingerprint(changed) != fingerprint(method), (method.name, field)


def test_losses_are_finite_scalars_keyed_by_known_spots(method):
    student, teacher = networks(method)
    sample = batch()
    mine, theirs = asked(student, sample, ALL), asked(teacher, sample, ALL)
    losses = method.losses(mine, theirs, sample, helpers_of(method, student, teacher))
    if method.name in METHODS and method.needs():
        assert losses.keys() - {"route"} == method.spots(mine.features, theirs.features).keys()
    for loss in losses.values():
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite())


def test_it_works_with_exactly_the_signals_that_it_declares(method):
    student, teacher = networks(method)
    sample, needs = batch(), method.needs()
    helpers = helpers_of(method, student, teacher)
    mine, theirs = asked(student, sample, needs | Signal.LIVE), asked(teacher, sample, needs)
    looks = method.looks()
    mine = mine.with_looks({look: mine.look(look) for look in looks.student})
    theirs = theirs.with_looks({look: theirs.look(look) for look in looks.teacher})
    method.losses(mine, theirs, sample, helpers)
    method.scores(mine, theirs, helpers)
    assert bool(mine.features) == bool((Signal.FEATURES | Signal.PREACTIVATIONS) & needs)


def test_gradients_reach_every_student_and_helper_parameter_and_no_teacher(method):
    student, teacher = networks(method)
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    learner = Learner(student, method, helpers)
    answer = asked(teacher, sample, method.needs()) if method.needs() else None
    losses, logits = learner(sample, answer, value_at(method.label_weight, 0))
    torch.stack([*losses.values()]).sum().backward()
    assert logits.shape == (8, 10)
    trained = {name: p for name, p in learner.named_parameters() if p.requires_grad}
    assert trained
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_equals_its_teacher_has_no_loss(method):
    _, teacher = networks(method)
    sample = batch()
    helpers = helpers_of(method, teacher, teacher)
    if method.name in NEVER_ZERO or (list(helpers.parameters()) and method.name != "ctkd"):
        pytest.skip("the least of this loss is not 0, or a projection stands between the two")
    outputs = asked(teacher, sample, ALL)
    # An untrained network says almost the same of all samples, where an epsilon would show.
    spread = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    outputs.logits = outputs.logits + 3 * spread
    for loss in method.losses(outputs, outputs, sample, helpers).values():
        assert loss.abs() < 1e-4  # epsilons of 1e-8 beside small norms


def test_the_scores_keep_the_students_answer(method):
    if method.name == "simkd":
        pytest.skip("the teacher's classifier gives the answer")
    student, teacher = networks(method)
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    mine, theirs = asked(student, sample, ALL), asked(teacher, sample, ALL)
    scores = method.scores(mine, theirs, helpers)
    assert torch.equal(scores.argmax(1), mine.logits.argmax(1))


def test_losses_stay_float32_under_autocast(method):
    student, teacher = networks(method)
    sample = batch()
    learner = Learner(student, method, helpers_of(method, student, teacher), autocast=True)
    answer = asked(teacher, sample, method.needs()) if method.needs() else None
    losses, logits = learner(sample, answer, 1.0)
    assert logits.dtype == torch.bfloat16 or method.trains == "helpers"
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_teacher_outputs_are_not_changed_in_place(method):
    student, teacher = networks(method)
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    theirs = asked(teacher, sample, ALL)
    kept = {"logits": theirs.logits, "embedding": theirs.embedding, **theirs.features}
    before = {name: value.clone() for name, value in kept.items()}
    method.losses(asked(student, sample, ALL), theirs, sample, helpers)
    assert all(torch.equal(before[name], value) for name, value in kept.items())


def rescaled(logits, kind=None, radius=1.0, epsilon=0.0):
    """`scores` from logits, with numpy alone."""
    if kind == "layer_norm":
        spread = np.sqrt(logits.var(1, keepdims=True) + epsilon)
        return radius * (logits - logits.mean(1, keepdims=True)) / spread
    if kind == "l2":
        return radius * logits / np.maximum(np.linalg.norm(logits, axis=1, keepdims=True), epsilon)
    assert kind is None
    return logits


def check_rescaling(method):
    student, teacher = networks(method)
    helpers = helpers_of(method, student, teacher)
    mine = asked(student, batch(), ALL)
    scores = method.scores(mine, None, helpers).detach().numpy()
    logits, rescaling = mine.logits.detach().numpy(), method.rescaling(helpers)
    if rescaling is not None:
        np.testing.assert_allclose(rescaled(logits, **rescaling), scores, rtol=1e-4, atol=1e-5)
    assert (rescaling == {}) == np.allclose(scores, logits)


def test_scores_follow_from_logits_by_the_declared_rescaling(method):
    check_rescaling(method)


def test_variants_and_wrappers_declare_how_their_scores_are_rescaled():
    for method in (
        SKD(variant="teacher_std"),
        SKD(variant="l2"),
        SKD(radius=2.5),
        SAKD(base=SKD()),
        Combine(combine=(KD(), SKD(variant="l2"))),
    ):
        check_rescaling(method)
