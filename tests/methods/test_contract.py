"""Laws that every method in the table keeps."""

import pickle
from pathlib import Path

import pytest
import torch
import yaml

import raykd.methods
from raykd.engine.learner import Learner
from raykd.methods import METHODS
from raykd.record import fingerprint
from raykd.types import Outputs, Signal
from tests.small import ALL, batch, helpers_of, pair

NAMES = list(METHODS)


@pytest.fixture(params=NAMES)
def method(request):
    return METHODS[request.param]()


def test_every_file_of_the_folder_is_in_the_table():
    folder = Path(raykd.methods.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert {method.__module__.rpartition(".")[2] for method in METHODS.values()} == files


def test_the_name_in_the_table_is_the_name_in_the_recipe(method):
    assert METHODS[method.name] is type(method)
    assert method.title


def test_defaults_survive_yaml_and_pickle(method):
    text = yaml.safe_dump(method.plain())
    assert type(method).read(yaml.safe_load(text)) == method
    assert pickle.loads(pickle.dumps(method)) == method


def test_changing_any_field_changes_the_fingerprint(method):
    def other(value):
        if isinstance(value, bool):
            return not value
        if isinstance(value, int | float):
            return value + 1
        return 1.5 if value is None else None

    for field, value in method:
        if field != "name":
            changed = method.model_copy(update={field: other(value)})
            assert fingerprint(changed) != fingerprint(method), field


def test_losses_are_finite_scalars_keyed_by_known_spots(method):
    student, teacher = pair()
    sample = batch()
    mine, theirs = student.outputs(sample.pixels, ALL), teacher.outputs(sample.pixels, ALL)
    losses = method.losses(mine, theirs, sample, helpers_of(method, student, teacher))
    spots = {"logits", "embedding", *mine.features}
    for spot, loss in losses.items():
        assert spot in spots
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert bool(loss.isfinite())


def test_it_works_with_exactly_the_signals_that_it_declares(method):
    student, teacher = pair()
    sample, needs = batch(), method.needs()
    helpers = helpers_of(method, student, teacher)
    mine = student.outputs(sample.pixels, needs)
    theirs = teacher.outputs(sample.pixels, needs)
    method.losses(mine, theirs, sample, helpers)
    method.scores(mine, theirs, helpers)
    assert bool(mine.features) == (Signal.FEATURES in needs)


def test_gradients_reach_every_student_and_helper_parameter_and_no_teacher(method):
    student, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    learner = Learner(student, method, helpers)
    answer = teacher.outputs(sample.pixels, method.needs()) if method.needs() else None
    losses, logits = learner(sample, answer, 1.0)
    torch.stack([*losses.values()]).sum().backward()
    assert logits.shape == (8, 10)
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_that_equals_its_teacher_has_no_loss(method):
    _, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, teacher, teacher)
    if list(helpers.parameters()):
        pytest.skip("a projection stands between the two")
    outputs = teacher.outputs(sample.pixels, ALL)
    for loss in method.losses(outputs, outputs, sample, helpers).values():
        assert loss.abs() < 1e-5


def test_the_scores_keep_the_students_answer(method):
    student, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    mine, theirs = student.outputs(sample.pixels, ALL), teacher.outputs(sample.pixels, ALL)
    scores = method.scores(mine, theirs, helpers)
    assert torch.equal(scores.argmax(1), mine.logits.argmax(1))


def test_losses_stay_float32_under_autocast(method):
    student, teacher = pair()
    sample = batch()
    learner = Learner(student, method, helpers_of(method, student, teacher), autocast=True)
    answer = teacher.outputs(sample.pixels, method.needs()) if method.needs() else None
    losses, logits = learner(sample, answer, 1.0)
    assert logits.dtype == torch.bfloat16
    assert all(loss.dtype == torch.float32 for loss in losses.values())


def test_teacher_outputs_are_not_changed_in_place(method):
    student, teacher = pair()
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    theirs = teacher.outputs(sample.pixels, ALL)
    before = Outputs(theirs.logits.clone(), embedding=theirs.embedding.clone())
    method.losses(student.outputs(sample.pixels, ALL), theirs, sample, helpers)
    assert torch.equal(before.logits, theirs.logits)
    assert torch.equal(before.embedding, theirs.embedding)
