"""The experiment files that come with the package can be read, and say what their sources say."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from raykd.config.experiment import load, parse
from raykd.core.types import Signal
from raykd.data.transforms.mixing import Mix
from raykd.methods.kd import KD
from raykd.outputs.codecs import Int8
from raykd.training.learner import Learner
from tests.each import each
from tests.small import batch, outputs_of, pair

FILES = sorted((Path(__file__).parents[2] / "experiments").rglob("*.yaml"))
CRD = {"epochs": 240, "batch": 64, "lr": 0.05, "weight_decay": 5e-4, "milestones": (150, 180, 210)}
AUTHORS = {"epochs": 300, "batch": 64, "lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"}

# Recipes of one method, or of two beside each other.
ALONE = ("function_matching", "reinforced", "fine_tune", "label_free", "published_teacher")


def file_of(name: str) -> Path:
    return next(file for file in FILES if file.stem == name)


@each("file", FILES, ids=lambda file: file.stem)
def test_an_experiment_file_can_be_read(file):
    experiment = load(file)
    methods = {run.method for run in experiment.runs}
    seeds = {run.seed for run in experiment.runs}
    networks = {run.model for run in experiment.runs}
    assert len(experiment.runs) == len(methods) * len(seeds) * len(networks)


@each("file", [file for file in FILES if file.stem not in ALONE], ids=lambda file: file.stem)
def test_the_students_of_a_file_have_one_teacher_and_one_baseline(file):
    experiment = load(file)
    assert len({run.teacher for run in experiment.runs}) == 1
    assert "label_only" in {run.method.name for run in experiment.runs}
    assert {run.views for run in experiment.runs} == {"all"}


@each(
    ("name", "recipe", "views"),
    [
        ("cifar100_crd", CRD, 162),
        ("cifar100_sakd", CRD, 162),
        ("tiny_imagenet", CRD, 2),
        ("cinic10", AUTHORS, 162),
    ],
)
def test_the_recipes_of_the_field_are_written_as_published(name, recipe, views):
    for run in load(file_of(name)).runs:
        assert run.teacher is not None
        assert run.teacher.data == run.data
        assert run.data.augment.views() == views
        for optim in (run.optim, run.teacher.optim):
            assert {key: getattr(optim, key) for key in recipe} == recipe
            assert (optim.name, optim.momentum, optim.nesterov) == ("sgd", 0.9, False)
            assert (optim.warmup_epochs, optim.clip, optim.ema) == (0, None, None)


@each(
    ("name", "views", "row", "gigabytes"),
    [("function_matching", 300, 169, 65.0), ("reinforced", 50, 39, 2.5)],
)
def test_recipes_without_labels_learn_from_the_teacher_alone(name, views, row, gigabytes):
    for run in load(file_of(name)).students():
        assert (run.method, run.label_weight) == (KD(temperature=1.0, weight=1.0), 0.0)
        assert run.codec.serves(run.method)
        assert run.cached()
        assert run.views == run.view_count() == views
        assert run.codec.bytes_per_row(1000) == row
        assert row * views * 1_281_167 == pytest.approx(1e9 * gigabytes, rel=0.01)
        (member,) = run.members()
        # The teacher is asked about the pixels that the student sees, mixed ones included.
        assert run.outputs_at(0).data == run.shown()
        assert member.data.augment.mix is None


def test_function_matching_is_that_of_its_code():
    (run,) = load(file_of("function_matching")).students()
    optim = run.optim
    assert (optim.name, optim.batch, optim.clip) == ("adamw", 4096, 1.0)
    assert optim.lr * optim.weight_decay == pytest.approx(3e-4)  # the code's decay of a step
    assert optim.warmup_epochs == round(5000 / (1_281_167 // optim.batch))
    assert run.data.augment.mix == Mix(kind="mixup", alpha=1.0)


def test_a_panel_of_the_reinforcing_teachers_is_written_as_the_recipe_says():
    text = file_of("reinforced").read_text()
    lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#   ")]
    written = yaml.safe_load("\n".join(lines[lines.index("   teacher:") :]))
    file = yaml.safe_load(text)
    file["run"] |= written
    runs = parse(yaml.safe_dump(file), "reinforced").students()
    assert all(len(run.members()) == 3 and run.codec == Int8() for run in runs)
    assert runs[0].codec.bytes_per_row(1000) * 50 * 1_281_167 == pytest.approx(65e9, rel=0.01)


def test_labels_change_no_gradient_where_they_have_no_weight():
    sample, (student, teacher) = batch(), pair()
    answer = outputs_of(teacher, sample, Signal.LOGITS)
    gradients = []
    for targets in (sample.targets, sample.targets.flip(0), torch.eye(10)[sample.targets]):
        learner = Learner(student, KD(temperature=1.0, weight=1.0), torch.nn.ModuleDict())
        learner.zero_grad()
        losses, _ = learner(replace(sample, targets=targets), answer, 0.0)
        torch.stack([*losses.values()]).sum().backward()
        gradients.append([parameter.grad.clone() for parameter in learner.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(a, b) for a, b in zip(gradients[0], other, strict=True))


def test_sakd_normalises_tiny_imagenet_with_the_constants_of_cifar10():
    run = load(file_of("tiny_imagenet")).runs[0]
    assert run.data.mean == (0.4914, 0.4822, 0.4465)
    assert run.data.std == (0.2023, 0.1994, 0.2010)


def script(name: str) -> ModuleType:
    """A script of the experiments, as a module."""
    path = Path(__file__).parents[2] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_imagenet_is_distilled_as_the_official_script_does():
    [run] = script("imagenet_skd").planned("/data/imagenet").students()
    assert (run.model, run.teacher.model) == ("torchvision/resnet18", "torchvision/resnet34")
    assert run.teacher.weights == "IMAGENET1K_V1" and run.teacher.data == run.data
    assert (run.optim.epochs, run.optim.batch, run.optim.lr) == (100, 256, 0.1)
    assert run.optim.milestones == (30, 60, 80, 90) and run.optim.weight_decay == 1e-4
    assert run.method.weight == ((0, 0.9), (60, 0.5), (80, 0.1))
    assert run.label_weight == ((0, 0.1), (60, 0.5), (80, 0.9))
    assert (run.method.temperature, run.method.radius) == (4.0, 2.0)
    augment, stream = run.data.augment, run.data.stream
    assert augment.crop.scale == (0.1, 1.0) and augment.crop.ratio == (0.8, 1.25) and augment.flip
    assert (stream.size, stream.resize) == (224, 256)


def test_imagenet_s_choices_reach_the_recipe():
    planned = script("imagenet_skd").planned
    experiment = planned("s3://bucket/i", codec="int8", method="kd", views="10", seeds=2, workers=8)
    first, second = experiment.students()
    assert (first.codec.name, first.views, second.seed) == ("int8", 10, 1)
    assert first.label_weight == 0.5 and experiment.parsed.scale.workers == 8
    [alone] = planned(
        "/d", method="label_only", overrides=("run.teacher.optim={epochs: 1}",)
    ).students()
    assert alone.teacher is None
