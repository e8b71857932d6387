"""Resolution of data with and without labels that lie in one place."""

from pathlib import Path

import pytest
import torch

from raykd import models
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError, DataError
from raykd.storage.store import Store
from tests.data.files import put
from tests.data.packs import IMAGES

UNLABELLED = """
run:
  model: resnet8
  data: {name: folder, labels: none}
  method: {name: feature_distillation}
  task:
    name: features
    probe: {data: {name: folder}}
  teacher: {model: resnet8, data: {name: folder}}
"""


def tree(root: Path, rows, split="train") -> Path:
    for row in rows:
        put(root / split / "ab"[row % 2] / f"{row:03d}.png", IMAGES[row])
    return root


def resolved(store: Store, text: str, *overrides: str):
    heard: list[str] = []
    (run,) = resolve(parse(text, "one", overrides), store, heard.append).runs
    return run, heard


def test_one_place_is_read_with_labels_and_without(store, tmp_path):
    tree(tree(tmp_path / "images", range(10)), range(10, 14), "test")
    run, heard = resolved(store, UNLABELLED, f"data.path={tmp_path / 'images'}")
    classes = (run.data.classes, run.task.probe.data.classes, run.teacher.data.classes)
    assert classes == (0, 2, 2)
    assert run.task.probe.data.digest == run.teacher.data.digest != run.data.digest
    assert not [line for line in heard if "warning" in line]


def test_a_probe_of_images_that_are_trained_on_is_warned_of(store, tmp_path):
    tree(tmp_path / "images", range(10))
    tree(tree(tmp_path / "probe", range(12, 18)), range(8, 12), "test")
    places = (f"data.path={tmp_path / 'images'}", f"data.probe={tmp_path / 'probe'}")
    _, heard = resolved(store, UNLABELLED, *places, "run.data.holdout=0.1")
    (warning,) = [line for line in heard if line.startswith("warning")]
    assert "of the 4 test images of the probe are in the training set" in warning


@pytest.mark.parametrize(
    ("folder", "error", "words"),
    [
        ("none", DataError, r"^experiment\.run\.task\.probe\.data: .*no such.*\(data\.probe\)"),
        ("flat", DataError, r"a probe needs labels: data\.probe is where labelled images are"),
        (
            "s3://bucket/x",
            ConfigError,
            r"data\.probe: .* a URL.*add run\.task\.probe\.data\.stream",
        ),
    ],
)
def test_a_message_about_the_images_of_a_probe_names_its_keys(
    store, tmp_path, folder, error, words
):
    tree(tmp_path / "images", range(10))
    put(tmp_path / "flat" / "one.png", IMAGES[0])
    place = folder if ":" in folder else tmp_path / folder
    with pytest.raises(error, match=words) as caught:
        resolved(store, UNLABELLED, f"data.path={tmp_path / 'images'}", f"data.probe={place}")
    assert "labels: none" not in str(caught.value) and "data.path" not in str(caught.value)


def test_the_place_of_a_probe_that_no_student_has_is_refused():
    with pytest.raises(ConfigError, match=r"experiment\.data\.probe: no student has a probe"):
        parse(UNLABELLED, "one", ["run.task=features", "data.probe=images"])
    searched = [
        "run.task=features",
        "data.probe=images",
        "search={run.task.probe.k: {choice: [1]}}",
    ]
    with pytest.raises(ConfigError, match=r"experiment\.search"):  # a probe may be drawn
        parse(UNLABELLED, "one", searched)


def test_a_probe_without_kinds_is_refused():
    with pytest.raises(ConfigError, match=r"probe\.kind: expected 1 or more, got \[\]"):
        parse(UNLABELLED, "one", ["run.task.probe.kind=[]"])
    with pytest.raises(ConfigError) as error:
        parse(UNLABELLED, "one", ["run.task.probe.kind=[kNN]"])
    assert (
        str(error.value)
        == "experiment.run.task.probe.kind.0: input should be 'knn' or 'linear', got 'kNN'"
    )
    with pytest.raises(ConfigError, match=r"run\.weights: .*at least 1 character, got ''"):
        parse(UNLABELLED, "one", ["run.weights=''"])


def test_a_probe_that_would_ignore_a_key_is_refused():
    for setting in ("data.limit=10", "data.augment={flip: true}"):
        with pytest.raises(ConfigError, match=r"leave data\.limit and data\.augment out"):
            parse(UNLABELLED, "one", [f"run.task.probe.{setting}"])
    with pytest.raises(ConfigError, match="each probe once, got knn, knn"):
        parse(UNLABELLED, "one", ["run.task.probe.kind=[knn, knn]"])


def test_a_probe_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"data\.labels is none; leave it out of the probe"):
        parse(UNLABELLED, "one", ["run.task.probe.data.labels=none"])


def test_classes_of_images_without_labels_are_refused(store, tmp_path):
    images = tree(tree(tmp_path / "images", range(10)), range(10, 14), "test")
    weights = tmp_path / "teacher.pth"
    torch.save(models.build("resnet8", 5).network.state_dict(), weights)
    settings = [f"data.path={images}", f"run.teacher.weights={weights}", "run.teacher.classes=[0]"]
    with pytest.raises(ConfigError, match=r"teacher\.classes: the data have no classes to map"):
        resolved(store, UNLABELLED, *settings, "run.teacher.data.labels=none")


def test_a_teacher_that_is_trained_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"trained here learns from labels"):
        parse(UNLABELLED, "one", ["run.teacher.data.labels=none"])
    settings = ["run.teacher.data.labels=none", "run.teacher.weights=x.pth", "run.teacher.optim={}"]
    with pytest.raises(ConfigError, match=r"data\.labels is none; leave its optim out, or give it"):
        parse(UNLABELLED, "one", settings)
