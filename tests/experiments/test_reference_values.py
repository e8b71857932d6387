"""Every hyperparameter of every shipped recipe is that of the table, which has its source."""

import json
from pathlib import Path

import pytest

from experiments import imagenet_skd, rco_sweep
from experiments.recipes import reference_values as reference
from experiments.studies import cifar10_methods, cifar10_sakd, method_grid
from raykd.config.experiment import load
from raykd.methods import METHODS
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.recipes import StudentRun
from tests.each import each

FOLDER = Path(reference.__file__).parent
RECIPES = {
    "cifar100_crd": "cifar100",
    "cifar100_sakd": "cifar100",
    "tiny_imagenet": "tiny_imagenet",
    "cinic10": "cinic10",
}
# Which methods, and where the maps come from: no hyperparameters.
STRUCTURE = {"name", "base", "mode", "combine", "source"}


def pair_of(run: StudentRun) -> tuple[str, str] | None:
    """Teacher and student, as the table names them."""
    return (run.teacher.model.split("/")[-1], run.model.split("/")[-1]) if run.teacher else None


def fields_of(method) -> dict:
    """A method's hyperparameters as plain values."""
    return {key: value for key, value in method.plain().items() if key not in STRUCTURE}


def expected(data, name, pair) -> dict:
    """The table's values without the labels' weight."""
    values = reference.values(data, name, pair)
    return {key: value for key, value in values.items() if key not in {"label_weight", *STRUCTURE}}


def compare(run: StudentRun, data: str) -> None:
    """Assert that a run has the table's values, of a method, its parts and its base."""
    method, pair = run.method, pair_of(run)
    for part in method.combine if isinstance(method, Combine) else (method,):
        wanted = expected(data, part.name, pair)
        if isinstance(method, Combine) and isinstance(part, KD):
            wanted |= {"weight": 1.0}
        assert fields_of(part) == wanted, part.name
        if isinstance(part, SAKD):
            base = expected(data, part.base.name, pair) | reference.as_base(part.base.name)
            assert fields_of(part.base) == base, part.base.name
    if not isinstance(method, Combine):
        weight = reference.values(data, method.name, pair)["label_weight"]
        starts = [start for start, _ in weight] if isinstance(weight, list) else [0]
        found = [run.label_weight_at(epoch) for epoch in starts]
        assert found == ([w for _, w in weight] if isinstance(weight, list) else [weight])
    assert run.label_smoothing == 0.0


@each(("name", "data"), RECIPES.items())
def test_a_recipe_has_the_table_s_values(name, data):
    runs = load(FOLDER / f"{name}.yaml").runs
    for run in runs:
        compare(run, data)
    assert len({run.method for run in runs}) > 5


def student(method, pair):
    """The one student of a method in the benchmark's recipe for a pair."""
    (run,) = cifar10_methods.experiment("one", [method], pair, [0], None, {}).students()
    return run


@pytest.mark.slow
@each("pair", cifar10_methods.PAIRS)
def test_every_method_has_its_values_for_every_pair_of_the_benchmark(pair):
    for name in METHODS:
        if name not in ("combine", "sakd"):
            compare(student(cifar10_methods.filled(name, pair), pair), "cifar100")
    compare(student(cifar10_methods.filled("crd + kd", pair), pair), "cifar100")


@pytest.mark.slow
@each("pair", cifar10_methods.PAIRS)
def test_spot_adaptive_students_and_their_bases_have_theirs(pair):
    for base in cifar10_sakd.PAPER:
        for method in cifar10_sakd._arms(base, pair).values():
            run = student(method, pair)
            homogeneous = getattr(run.method, "homogeneous", None)
            if homogeneous is not None:  # the arm whose policy begins undecided
                run = run.model_copy(
                    update={"method": run.method.model_copy(update={"homogeneous": None})}
                )
            compare(run, "cifar100")


@each("data", ["cifar10", "cifar100"])
def test_the_grid_of_methods_has_each_pair_s_values(data):
    for pair in method_grid.PAIRS[data]:
        planned = method_grid.planned(data, None, pair, [*method_grid.METHODS, "nkd"], 1, ())
        for run in planned.students():
            compare(run, data)


def test_routes_distil_as_the_table_says():
    for run in rco_sweep.planned("cifar100", None, ["resnet20"], 1, 1.6, ()).parsed.runs:
        student = run if isinstance(run, StudentRun) else run.search.student
        compare(student, "cifar100")


OTHERS = ("combine", "sakd", "spherical_kd")
REFUSED = ("ab", "ofd", "reviewkd")  # torchvision's networks do not say their pre-activations


def test_imagenet_has_its_own_values_where_there_is_a_source():
    for name in [n for n in METHODS if n not in (*OTHERS, *REFUSED)]:
        (run,) = imagenet_skd.planned("/data/imagenet", method=name).students()
        compare(run, "imagenet" if reference.has_source("imagenet", name) else "cifar100")
        recipe = reference.IMAGENET_RECIPE
        optim = recipe["optim"]
        found = json.loads(run.optim.model_dump_json(include=set(optim)))
        assert found == optim
        crop = run.data.augment.crop
        assert [list(crop.scale), list(crop.ratio)] == [*recipe["crop"].values()]
        assert run.optim.milestones == (30, 60, 90) and crop.scale == (0.08, 1.0)


@each("name", ["skd", "spherical_kd"])
def test_spherical_kd_keeps_its_official_setting(name):
    (run,) = imagenet_skd.planned("/data/imagenet", method=name).students()
    compare(run, "imagenet")
    assert run.optim.milestones == (30, 60, 80, 90)
    assert run.data.augment.crop.scale == (0.1, 1.0)
    assert run.data.augment.crop.ratio == (0.8, 1.25)


@each(
    ("name", "fields", "labels"),
    [
        ("kd", {"temperature": 1.0, "weight": 0.5}, 0.5),
        ("dkd", {"temperature": 1.0, "alpha": 1.0, "beta": 0.5, "warmup_epochs": 1}, 1.0),
        ("dist", {"temperature": 1.0, "beta": 1.0, "gamma": 1.0, "weight": 2.0}, 1.0),
        ("nkd", {"temperature": 1.0, "gamma": 1.5}, 1.0),
        ("ctkd", {"weight": 1.0, "curriculum_epochs": 5}, 1.0),
        ("ls", {"temperature": 1.0, "weight": 0.5}, 0.5),
    ],
)
def test_imagenet_s_values_are_those_that_were_looked_up(name, fields, labels):
    (run,) = imagenet_skd.planned("/data/imagenet", method=name).students()
    assert {key: getattr(run.method, key) for key in fields} == fields
    assert run.label_weight_at(0) == run.label_weight_at(99) == labels


def test_resnet50_to_mobilenet_has_another_beta():
    networks = {"teacher": "torchvision/resnet50", "student": "torchvision/mobilenet_v2"}
    (run,) = imagenet_skd.planned("/data/imagenet", method="dkd", **networks).students()
    assert run.method.beta == 2.0


@each(
    ("teacher", "student", "beta", "review"),
    [
        ("resnet56", "resnet20", 2.0, 0.6),
        ("resnet110", "resnet32", 2.0, 1.0),
        ("resnet32x4", "resnet8x4", 8.0, 5.0),
        ("wrn_40_2", "wrn_16_2", 6.0, 5.0),
        ("wrn_40_2", "wrn_40_1", 6.0, 5.0),
        ("vgg13", "vgg8", 6.0, 1.0),
    ],
)
def test_pairs_of_cifar_100_are_those_that_were_looked_up(teacher, student, beta, review):
    pair = (teacher, student)
    assert reference.values("cifar100", "dkd", pair)["beta"] == beta
    assert reference.values("cifar100", "reviewkd", pair)["weight"] == review
    assert reference.values("cifar100", "nkd", pair) == {
        "temperature": 3.0, "gamma": 3.5, "weight": 1.0, "label_weight": 1.0,
    }  # fmt: skip


def test_every_entry_has_all_fields_of_its_method_and_a_source():
    for data, table in reference.VALUES.items():
        for name, fields in table.items():
            own = {key for key in METHODS[name].model_fields if key not in {"name", "base"}}
            assert set(fields) == own | {"label_weight", "source"}, (data, name)
            assert METHODS.canonical(name) == name and fields["source"]
        for name, pairs in reference.PAIRS[data].items():
            for pair, fields in pairs.items():
                assert set(fields) - {"source"} <= set(table[name]), (data, name, pair)
                assert fields["source"]
    assert set(METHODS) == {*reference.CIFAR100, "combine"}
