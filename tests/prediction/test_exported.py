"""Predictions of exported folders: those of the network before its export."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner

import raykd
from raykd.cli import main
from raykd.export import export
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.skd import SKD
from raykd.prediction import load
from raykd.storage.store import Store
from raykd.tasks import Features
from tests.prediction.pictures import save_pictures
from tests.small import prepare, student_run, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("exported") / "store")


@pytest.fixture(scope="module")
def student(place):
    run = student_run(place, SKD())
    prepare(place, run)
    trained(place, run)
    return run


@pytest.fixture(scope="module")
def folder(place, student, tmp_path_factory):
    folder = tmp_path_factory.mktemp("folder") / "out"
    export(place, student, folder, ["safetensors"])
    return folder


@pytest.fixture(scope="module")
def pictures(place, student, tmp_path_factory):
    return save_pictures(place, student, tmp_path_factory.mktemp("pictures"), 5)


@pytest.mark.slow
def test_a_folder_answers_as_the_store_does(place, student, folder, pictures):
    before, after = load(place, student), raykd.predictor(folder)
    assert after.predict(pictures) == before.predict(pictures)  # calibrated, to the last bit
    assert after.classes == before.classes


def test_the_command_takes_a_folder(place, student, folder, pictures):
    words = ["predict", str(folder), str(pictures), "--json"]
    lines = CliRunner().invoke(main, words).stdout.splitlines()
    scores = [json.loads(line)["scores"] for line in lines]
    assert scores == [[*one.scores] for one in load(place, student).predict(pictures)]


def test_nothing_of_a_folder_is_executed(folder, pictures, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "model.py").write_text("raise SystemExit('executed')")
    assert raykd.predictor(copy).predict(pictures)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(raykd.CacheCorrupt, match="does not hold the weights of resnet8"):
        raykd.predictor(copy)
    weights.unlink()
    with pytest.raises(raykd.ConfigError, match="--format onnx"):
        raykd.predictor(copy)
    (copy / "recipe.json").write_text("{}")
    with pytest.raises(raykd.ConfigError, match="other keys"):
        raykd.predictor(copy)


@pytest.mark.slow
def test_a_graph_answers_where_there_are_no_weights(place, student, pictures, tmp_path):
    pytest.importorskip("onnxscript")
    export(place, student, tmp_path / "out", ["onnx"])
    before, after = load(place, student), raykd.predictor(tmp_path / "out")
    for one, other in zip(before.predict(pictures), after.predict(pictures), strict=True):
        assert one.labels[0] == other.labels[0]
        torch.testing.assert_close(
            torch.tensor(one.scores), torch.tensor(other.scores), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
def test_a_backbone_answers_with_the_same_embeddings(place, pictures, tmp_path):
    run = student_run(place, FeatureDistillation(), task=Features())
    prepare(place, run)
    trained(place, run)
    export(place, run, tmp_path / "out", ["safetensors"])
    assert raykd.predictor(tmp_path / "out").predict(pictures) == load(place, run).predict(pictures)
