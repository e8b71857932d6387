"""Announcement of a teacher's accuracy before students learn from it."""

import io
import re

import pytest
import torch
from rich.console import Console

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.data.dataset import open_split
from raykd.launch.executor import execute
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json, write_json
from raykd.tracking.console import Terminal
from raykd.training.result import near_chance, teacher_said
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import digits, student_run, teacher_run
from tests.training.test_finite import given


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.slow
def test_a_given_teacher_that_knows_nothing_is_said_to_before_students_are_trained(store):
    teacher = given(store, lambda network: torch.nn.init.zeros_(network.classifier.weight))
    run = student_run(store, teacher=teacher, optim=Optim(epochs=1, batch=32))
    said = io.StringIO()
    execute(Experiment("small", (run,), Scale(workers=0)), store, Terminal(Console(file=said)))
    text = " ".join(said.getvalue().split())
    count = len(open_split(store, teacher.data, "test"))
    line = rf"the given teacher resnet8 is right on \d+\.\d % of {count} test images; chance is 1"
    assert re.search(line, text)
    assert "near chance" in text
    for word in ("order", "size", "normalisation"):
        assert word in text
    assert text.index("near chance") < text.index("kd resnet8 seed 0")


@each(("top1", "warned"), [(13.9, True), (20.0, False)])
def test_a_trained_teacher_is_said_in_a_line_and_warned_of_near_chance(store, top1, warned):
    teacher = teacher_run(store, data=digits(store, limit=96), optim=Optim(epochs=1, batch=32))
    if not store.has(teacher):
        train(store, teacher, local_host(store, teacher))
    path = store.path(teacher) / "result.json"
    result = read_json(path)
    result["last"]["top1"] = top1
    write_json(path, result)
    sentence, warning = teacher_said(store, teacher)
    assert sentence.startswith(f"the trained teacher resnet8 is right on {top1:.1f} % of 180 test")
    assert (warning is not None) == warned


@each(
    ("chance", "count", "near"),
    [(0.1, 900, 0.145), (0.1, 9, 0.4), (0.5, 4, None), (0.2857, 2, None), (1.0, 500, None)],
)
def test_so_few_images_that_all_of_them_are_near_chance_tell_nothing(chance, count, near):
    assert near_chance(chance, count) == (near and pytest.approx(near))
