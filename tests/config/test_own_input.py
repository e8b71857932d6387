"""The images that a given teacher sees: as its weights say, or as the file says."""

import json
import re

import pytest
import safetensors.torch

from raykd import models
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError
from raykd.data.dataset import class_names
from raykd.planning.given_teachers import given_teachers
from raykd.planning.preflight import preflight
from tests.data.photos import photos

STREAMED = """
run:
  model: resnet8
  data: {name: folder, holdout: 0.5, stream: {size: 128}}
  teacher: {model: torchvision/resnet50, weights: IMAGENET1K_V2, classes: [3, 7, [8, 9]]}
  method: kd
  optim: {epochs: 1, batch: 2}
"""
IN_MEMORY = STREAMED.replace("stream: {size: 128}", "resize: 32").replace("folder", "digits")
TEN = "run.teacher.classes=[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]"


@pytest.fixture
def resolved(store, tmp_path):
    """The experiment that some overrides make of one text."""
    photos(tmp_path / "photos")

    def make(*overrides, text=STREAMED):
        path = [f"data.path={tmp_path / 'photos'}"] if "folder" in text else []
        return resolve(parse(text, "x", [*path, *overrides]), store)

    return make


def stream_of(data):
    return data.stream.size, data.stream.resize, data.size


def test_a_streamed_image_is_decoded_as_the_weights_say(resolved):
    run = resolved().runs[0]
    assert stream_of(run.data) == (128, 146, (128, 128))
    assert stream_of(run.teacher.data) == (224, 232, (224, 224))
    assert run.teacher.data.mean == (0.485, 0.456, 0.406)
    assert run.as_teacher_sees(run.data).size == (224, 224)
    again = resolved("run.teacher.size=224").runs[0]
    assert stream_of(again.teacher.data) == (224, 232, (224, 224))


def test_a_size_or_data_of_its_own_come_first(resolved):
    same = resolved("run.teacher.size=128").runs[0]
    assert same.teacher.data.stream == same.data.stream
    other = resolved("run.teacher.size=160").runs[0]
    assert stream_of(other.teacher.data) == (160, 165, (160, 160))
    own = "run.teacher.data={name: folder, holdout: 0.5, stream: {size: 192, resize: 200}}"
    assert stream_of(resolved(own).runs[0].teacher.data) == (192, 200, (192, 192))


def test_too_small_images_are_refused_with_both_ways_out(resolved):
    with pytest.raises(ConfigError) as error:
        resolved(TEN, text=IN_MEMORY)
    assert str(error.value).endswith(
        "experiment.run.teacher: its weights are for images of 224 pixels a side, and it would see "
        "32; set run.teacher.size: 224 to enlarge them, or 32 to use them as they are"
    )
    for size in (224, 32):
        run = resolved(TEN, f"run.teacher.size={size}", text=IN_MEMORY).runs[0]
        assert (run.teacher.size, run.teacher.data.size) == (size, (32, 32))
    own = "run.teacher.data={name: folder, holdout: 0.5, stream: {size: 96}}"
    with pytest.raises(ConfigError, match="and it would see 96; set run"):
        resolved(own)


def test_a_size_far_below_that_of_the_weights_is_warned_of_once(store):
    said: list[str] = []
    grid = "grid={run.seed: [0, 1]}"
    resolve(parse(IN_MEMORY, "x", [TEN, "run.teacher.size=32", grid]), store, said.append)
    warnings = [line for line in said if line.startswith("warning: run.teacher.size: ")]
    assert len(warnings) == 1
    assert "224 pixels a side, and the network sees 32" in warnings[0]
    said.clear()
    resolve(parse(IN_MEMORY, "x", [TEN, "run.teacher.size=224"]), store, said.append)
    assert not [line for line in said if "pixels a side" in line]


def test_a_trained_teacher_has_no_size_of_its_own(resolved):
    with pytest.raises(ConfigError, match=r"teacher\.size: it is of given weights; a teacher that"):
        resolved("run.teacher={model: resnet8, size: 32}", text=IN_MEMORY)


@pytest.mark.parametrize(("outputs", "fits"), [(1000, True), (10, False)])
def test_outputs_that_a_file_names_are_those_of_the_weights(resolved, outputs, fits):
    overrides = (f"run.teacher.outputs={outputs}",)
    if fits:
        assert resolved(*overrides).runs[0].teacher.own_classes() == 1000
        return
    with pytest.raises(
        ConfigError, match="outputs: expected 1000, the classes of the weights, got"
    ):
        resolved(*overrides)


def test_a_method_that_reads_logits_is_refused_without_a_map(resolved, store):
    experiment = resolved(
        "run.teacher.classes=null",
        "run.teacher.model=torchvision/resnet18",
        "run.teacher.weights=IMAGENET1K_V1",
    )
    (run,) = experiment.runs
    assert (run.teacher.outputs, run.teacher.answers_classes) == (1000, False)
    with pytest.raises(ConfigError) as error:
        preflight(experiment, store)
    text = str(error.value)
    assert (
        "run.method: method 'kd' reads the teacher's logits, and torchvision/resnet18 has" in text
    )
    assert "1000 classes, the data 3; say with run.teacher.classes which of them" in text
    suitable = re.findall(r"\((.*)\)", text)[0].split(", ")
    assert {"relational_kd", "pkt", "mimic_embedding", "at", "fitnet"} <= {*suitable}
    assert not {"kd", "dkd", "simkd", "jacobian", "irg", "sakd", "label_only"} & {*suitable}


def test_a_folder_of_the_hub_says_its_classes_names_and_input(resolved, store, tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    state = models.build("resnet8", 5).network.state_dict()
    safetensors.torch.save_file(state, folder / "model.safetensors")
    config = {
        "num_classes": 5,
        "label_names": ["n1", "n2", "n3", "n4", "n5"],
        "label_descriptions": {f"n{n}": f"x{n}, {n}" for n in range(1, 6)},
        "pretrained_cfg": {
            "input_size": [3, 96, 96],
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    own = "{model: resnet8, weights: %s, classes: {%s: X2, %s: n5, %s: 0}}"
    ours = class_names(store, resolved().runs[0].data)
    run = resolved("run.teacher=" + own % (folder, *ours)).runs[0]
    assert run.teacher.groups() == ((1,), (4,), (0,))
    assert stream_of(run.teacher.data) == (96, 106, (96, 96))
    assert run.teacher.data.stream.interpolation == "bicubic"
    assert run.teacher.data.std == (0.5, 0.5, 0.5)
    assert run.teacher.own_classes() == 5


def test_a_plan_shows_what_a_given_teacher_is(resolved, store):
    (given,) = given_teachers(resolved(), store)
    text = given.sentence(shown=2)
    assert text.startswith(
        "torchvision/resnet50 (IMAGENET1K_V2): 1,000 classes, for the data's 3: "
    )
    assert " = tiger shark, " in text and " = cock, ..." in text
    assert "sees 224 x 224 pixels from a shorter side of 232, bilinear (its weights: 224" in text
    assert text.endswith("mean 0.485 0.456 0.406, std 0.229 0.224 0.225")
    assert given.mapped is not None and ["hen", "ostrich"] in given.mapped.values()
