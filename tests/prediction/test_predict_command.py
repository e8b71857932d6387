"""`raykd predict`, as a script or a person calls it."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config import experiment
from raykd.config.resolve import resolve
from raykd.core.record import fingerprint
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.prediction import load
from raykd.storage.store import Store
from raykd.tasks import Features
from tests.data.files import put
from tests.prediction.pictures import save_pictures
from tests.small import prepare, student_run, trained

RAYKD = Path(sys.executable).with_name("raykd")
EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 2, batch: 32}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("predict") / "store")


@pytest.fixture(scope="module")
def student(place):
    run = student_run(place, "kd")
    prepare(place, run)
    trained(place, run)
    return run


@pytest.fixture(scope="module")
def folder(place, student, tmp_path_factory):
    """Six test images of the digits."""
    return save_pictures(place, student, tmp_path_factory.mktemp("pictures"), 6)


def call(place, *words, code=0):
    words = ("predict", *words, "--store", place.root)
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


@pytest.mark.slow
def test_the_installed_command_prints_a_table_and_its_progress(place, student, folder):
    command = [RAYKD, "predict", fingerprint(student)[:10], folder, "--store", place.root]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["path", "class", "score", "others"]
    expected = load(place, student).predict(folder)
    for row, prediction in zip(rows, expected, strict=True):
        path, label, share, sign, *_ = row.split()
        assert (path, label, sign) == (prediction.path, prediction.label, "%")
        assert float(share) == pytest.approx(100 * prediction.scores[0], abs=0.06)
    assert "predict: image 6/6" in done.stderr


@pytest.mark.slow
def test_json_is_a_line_for_each_image(place, student, folder):
    told = call(place, fingerprint(student), folder, "--json", "--top", 3, "--batch", 2).stdout
    lines = [json.loads(line) for line in told.splitlines()]
    expected = load(place, student).predict(folder, top=3)
    assert [line["path"] for line in lines] == [prediction.path for prediction in expected]
    assert [tuple(line["labels"]) for line in lines] == [p.labels for p in expected]
    for line, prediction in zip(lines, expected, strict=True):
        assert line.keys() == {"path", "labels", "scores"}
        assert line["scores"] == pytest.approx(prediction.scores, rel=1e-4)


def test_csv_has_columns_for_each_class(place, student, folder):
    told = call(place, fingerprint(student), folder / "*.png", "--csv", "--top", 2).stdout
    rows = list(csv.DictReader(io.StringIO(told)))
    assert [*rows[0]] == ["path", "label_1", "score_1", "label_2", "score_2", "fault"]
    expected = load(place, student).predict(folder, top=2)
    assert [(row["label_1"], row["label_2"]) for row in rows] == [p.labels for p in expected]
    assert "--json --csv" in call(place, "abc", folder, "--json", "--csv", code=2).stderr


def test_images_that_cannot_be_decoded_stop_it_unless_they_are_to_be_skipped(
    place, student, folder, tmp_path
):
    broken = put(tmp_path / "broken.png", b"no image")
    name = fingerprint(student)
    stopped = call(place, name, broken, folder, code=3)
    assert f"error: {broken}: cannot be decoded as an image" in stopped.stderr
    skipping = (name, broken, folder / "1.png", "--skip-bad")
    done = call(place, *skipping, "--json")
    bad, good = (json.loads(line) for line in done.stdout.splitlines())
    assert bad.keys() == {"path", "fault"}
    assert good["path"] == f"{folder}/1.png"
    assert "1 of 2 images cannot be decoded" in done.stderr
    assert "cannot be decoded" in call(place, *skipping, "--csv").stdout
    assert f"{broken}  " in call(place, *skipping).stdout


def test_what_is_no_image_or_no_student_is_a_sentence(place, student, folder, tmp_path):
    name = fingerprint(student)
    assert "there is no such path" in call(place, name, tmp_path / "gone", code=3).stderr
    assert "there is no image" in call(place, name, tmp_path, code=3).stderr
    assert "neither an experiment file nor" in call(place, "mine", folder, code=2).stderr
    assert "no finished student or teacher" in call(place, "0" * 20, folder, code=2).stderr


def test_an_experiment_with_one_finished_student_names_it(place, folder, tmp_path):
    file = put(tmp_path / "one.yaml", EXPERIMENT)
    assert "`raykd run` trains them" in call(place, file, folder, code=2).stderr
    (run,) = resolve(experiment.load(file), place).runs
    prepare(place, run)
    trained(place, run)
    told = call(place, file, folder / "2.png", "--json").stdout
    assert json.loads(told)["path"] == f"{folder}/2.png"
    file.write_text(EXPERIMENT + "grid:\n  run.seed: [0, 1]\n")
    assert json.loads(call(place, file, folder / "2.png", "--json").stdout)["path"]
    other = run.model_copy(update={"seed": 1})
    trained(place, other)
    refused = call(place, file, folder, code=2).stderr
    assert "2 of its students are finished; name one by its fingerprint" in refused
    assert f"{fingerprint(other)[:8]} (resnet8-label_only-" in refused


def test_a_backbone_prints_embeddings(place, folder):
    run = student_run(place, FeatureDistillation(), task=Features())
    prepare(place, run)
    trained(place, run)
    name = fingerprint(run)
    line = json.loads(call(place, name, folder / "1.png", "--json").stdout)
    assert len(line["embedding"]) == 64
    (row,) = csv.DictReader(io.StringIO(call(place, name, folder / "1.png", "--csv").stdout))
    assert [float(value) for value in row["embedding"].split()] == line["embedding"]
    assert "64" in call(place, name, folder / "1.png").stdout
