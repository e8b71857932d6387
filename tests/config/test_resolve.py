"""Resolution of data with and without labels that lie in one place."""

from pathlib import Path

import pytest

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError
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


def test_a_probe_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"data\.labels is none; leave it out of the probe"):
        parse(UNLABELLED, "one", ["run.task.probe.data.labels=none"])


def test_a_teacher_that_is_trained_without_labels_is_refused():
    with pytest.raises(ConfigError, match=r"trained here learns from labels"):
        parse(UNLABELLED, "one", ["run.teacher.data.labels=none"])
