"""Laws that every method in the table keeps."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import raykd.methods
from raykd.core.record import fingerprint
from raykd.core.types import CACHEABLE, Signal
from raykd.methods import METHODS, PRELUDES, Method
from raykd.methods.columns import FromColumns
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.methods.skd import SKD
from raykd.register import contract as laws
from tests.each import each
from tests.small import ALL, batch, helpers_of, outputs_of, pair, pair_for

NAMES = [*METHODS, *PRELUDES]
# Logits; a memory that workers share; pre-activations, helpers and calibration; a wrapper.
QUICK = ("kd", "crd", "ofd", "sakd")
# Cross entropies, contrasts, hinges with a margin, and losses that read labels too, are not 0.
NEVER_ZERO = {
    "hard_kd",
    "teacher_free",
    "nkd",
    "sample_contrastive_kd",
    "ada_distill",
    "margin_distillation",
    "mlkd",
    "ab_init",
    "combine",
}


def every_method():
    return [kind() for kind in (*METHODS.values(), *PRELUDES.values())]


def called(method):
    return method.name


EACH = each(
    "method",
    [
        pytest.param(kind(), marks=() if name in QUICK else pytest.mark.slow)
        for name, kind in [*METHODS.items(), *PRELUDES.items()]
    ],
    ids=called,
)


def test_every_file_of_the_folder_is_in_the_table():
    folder = Path(raykd.methods.__file__).parent
    shared = {"__init__", "base", "wrapper"}
    shared |= {
        "columns",
        "derived",
        "stage_heads",
        "row_subsets",
        "helper_kinds",
        "feature_maps",
        "embedding_map",
        "margins",
        "sakd_policy",
        "standardiser",
        "directions",
        "panel_kd",
        "presets",
    }
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
    for alias in ("skd", "rkd", "ls", "cswt", "ckd", "tf_kd", "mhkd", "spot_adaptive_kd"):
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
        if field == "shares":
            return (1.5,)
        return (3 if field in ("size", "grid") else 1.5) if value is None else None

    for method in every_method():
        for field, value in method:
            if field != "name":
                changed = method.model_copy(update={field: other(field, value)})
                assert fingerprint(changed) != fingerprint(method), (method.name, field)


@EACH
def test_losses_are_finite_scalars_keyed_by_known_spots(method):
    laws.losses_are_finite(method)


@EACH
def test_it_works_with_exactly_the_signals_that_it_declares(method):
    laws.needs_are_what_it_reads(method)


@EACH
def test_what_it_does_not_read_changes_nothing(method):
    laws.what_it_does_not_read_changes_nothing(method)


@EACH
def test_labels_that_it_does_not_read_change_nothing(method):
    laws.labels_that_it_does_not_read_change_nothing(method)


@EACH
def test_gradients_reach_every_student_and_helper_parameter_and_no_teacher(method):
    laws.gradients_reach_what_is_trained(method)


@EACH
def test_a_student_that_equals_its_teacher_has_no_loss(method):
    _, teacher = pair_for(method)
    sample = batch()
    helpers = helpers_of(method, teacher, teacher)
    if method.name in NEVER_ZERO or (list(helpers.parameters()) and method.name != "ctkd"):
        pytest.skip("the least of this loss is not 0, or a projection stands between the two")
    outputs = outputs_of(teacher, sample, ALL)
    # An untrained network says almost the same of all samples, where an epsilon would show.
    spread = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    outputs.logits = outputs.logits + 3 * spread
    for loss in method.losses(outputs, outputs, sample, helpers).values():
        assert loss.abs() < 1e-4  # epsilons of 1e-8 beside small norms


@EACH
def test_the_scores_keep_the_students_answer(method):
    laws.scores_keep_the_answer(method)


@EACH
def test_losses_stay_float32_under_autocast(method):
    laws.losses_stay_float32(method)


@EACH
def test_teacher_outputs_are_not_changed_in_place(method):
    laws.teacher_outputs_are_left_alone(method)


@EACH
def test_the_order_of_a_batch_does_not_matter(method):
    laws.order_does_not_matter(method)


@each(
    "method",
    [
        pytest.param(
            kind(name=name, source="cache"), marks=() if name == "at" else pytest.mark.slow
        )
        for name, kind in METHODS.items()
        if issubclass(kind, FromColumns)
    ],
    ids=called,
)
def test_the_laws_hold_where_the_teachers_maps_come_from_a_cache(method):
    assert method.needs() & ~CACHEABLE == Signal(0)
    for law in laws.LAWS:
        law(method)


def test_losses_of_columns_are_those_of_the_live_maps_to_the_last_bit():
    student, teacher = pair()
    sample = batch()
    outputs = outputs_of(student, sample, ALL)
    for name, kind in METHODS.items():
        if issubclass(kind, FromColumns):
            found = []
            for method in (kind(name=name), kind(name=name, source="cache")):
                torch.manual_seed(0)
                helpers = helpers_of(method, student, teacher)
                wanted = ALL if method.source == "live" else method.needs()
                answers = outputs_of(teacher, sample, wanted, method.derived())
                found.append(method.losses(outputs, answers, sample, helpers))
            assert found[0].keys() == found[1].keys()
            for spot, loss in found[0].items():
                assert torch.equal(loss, found[1][spot]), (name, spot)


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
    student, teacher = pair_for(method)
    helpers = helpers_of(method, student, teacher)
    mine = outputs_of(student, batch(), ALL)
    scores = method.scores(mine, None, helpers).detach().numpy()
    logits, rescaling = mine.logits.detach().numpy(), method.rescaling(helpers)
    if rescaling is not None:
        np.testing.assert_allclose(rescaled(logits, **rescaling), scores, rtol=1e-4, atol=1e-5)
    assert (rescaling == {}) == np.allclose(scores, logits)


@EACH
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
