"""`nn.Module` objects as students and teachers: their names, and runs with them."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import raykd
from raykd.core.record import fingerprint
from tests.plugin import withdrawing


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    """The networks of a test are gone after it."""
    with withdrawing():
        yield


def network(seed=0, width=4):
    torch.manual_seed(seed)
    body = [nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def student(module, **changes):
    keys = {
        "data": raykd.Data("digits", holdout=0.1, limit=96),
        "teacher": raykd.Teacher(network(7, 8), stages=["0"]),
        "method": "kd",
        "optim": {"epochs": 1, "batch": 32},
    }
    return raykd.Student(module, **(keys | changes))


def finished(store, module):
    return raykd.run(student(module), store, workers=0, quiet=True)[0]


@pytest.mark.slow
def test_an_object_trains_from_its_weights_and_its_name_follows_them(tmp_path):
    first = finished(tmp_path, network())
    assert first.recipe.model.startswith("Sequential_")
    assert first.recipe.teacher.is_given
    assert len(first.recipe.plugins) == 1
    again = raykd.results(student(network()), tmp_path, quiet=True)[0]
    assert again.fingerprint == first.fingerprint
    assert again.state == "finished"
    other = raykd.results(student(network(seed=1)), tmp_path, quiet=True)[0]
    assert other.fingerprint != first.fingerprint
    assert other.recipe.model == first.recipe.model
    assert {*first.load().network.state_dict()} == {*network().state_dict()}


@pytest.mark.slow
def test_an_encoder_is_a_teacher_of_embeddings(tmp_path):
    encoder = network(7, 8)[:-1]
    one = student("resnet8", teacher=raykd.Teacher(encoder), method="mimic_embedding")
    (run,) = raykd.run(one, tmp_path, workers=0, quiet=True)
    assert run.recipe.teacher.own_classes() == 0
    with pytest.raises(raykd.ConfigError, match="logits"):
        raykd.run(student("resnet8", teacher=raykd.Teacher(encoder)), tmp_path, workers=0)


def test_objects_stand_where_a_network_does():
    whole = raykd.Teacher(network())
    made = raykd.Experiment(student("resnet8", teacher=whole), grid={"run.teacher": [whole]})
    assert len(made.parsed.plugins) == 1
    with pytest.raises(raykd.ConfigError, match=r"raykd\.Teacher\(first\)"):
        raykd.Experiment(student("resnet8"), grid={"run.model": [network()]})
    with pytest.raises(raykd.ConfigError, match="has its own"):
        raykd.Teacher(network(), weights="best.pth")
    with pytest.raises(raykd.ConfigError, match="stages: they split"):
        raykd.Student("resnet8", stages=["layer1"])


@pytest.mark.slow  # another process
def test_another_process_finds_what_this_one_made(tmp_path):
    made = finished(tmp_path, network())
    code = f"""
import sys
sys.path.insert(0, {str(__file__).rpartition("/")[0]!r})
import raykd
from test_modules import network, student
(one,) = raykd.run(student(network()), {str(tmp_path)!r}, workers=0, quiet=True)
print(one.fingerprint, one.result["last"]["top1"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [made.fingerprint, str(made.result["last"]["top1"])], done.stderr
    assert fingerprint(made.recipe) == made.fingerprint
