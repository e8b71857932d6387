"""The experiment files that come with the package can be read, and say what their sources say."""

from pathlib import Path

import pytest

from raykd.experiment import load

FILES = sorted((Path(__file__).parents[1] / "experiments").glob("*.yaml"))
CRD = {"epochs": 240, "batch": 64, "lr": 0.05, "weight_decay": 5e-4, "milestones": (150, 180, 210)}
AUTHORS = {"epochs": 300, "batch": 64, "lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"}


def file_of(name: str) -> Path:
    return next(file for file in FILES if file.stem == name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_experiment_file_can_be_read(file):
    experiment = load(file)
    methods = {run.method for run in experiment.runs}
    seeds = {run.seed for run in experiment.runs}
    networks = {run.model for run in experiment.runs}
    assert len(experiment.runs) == len(methods) * len(seeds) * len(networks)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_students_of_a_file_have_one_teacher_and_one_baseline(file):
    experiment = load(file)
    assert len({run.teacher for run in experiment.runs}) == 1
    assert "label_only" in {run.method.name for run in experiment.runs}
    assert {run.views for run in experiment.runs} == {"all"}


@pytest.mark.parametrize(
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


def test_sakd_normalises_tiny_imagenet_with_the_constants_of_cifar10():
    run = load(file_of("tiny_imagenet")).runs[0]
    assert run.data.mean == (0.4914, 0.4822, 0.4465)
    assert run.data.std == (0.2023, 0.1994, 0.2010)
