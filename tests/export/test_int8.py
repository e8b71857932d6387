"""The graph of 8 bits, and the time that one image takes."""

import json
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from raykd.cli import main
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.export import export, measure
from raykd.export.graph import answers_of_onnx
from raykd.export.measure import grey_levels
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.tasks import Features
from raykd.training.load_trained import finished
from tests.export.conftest import TIMM, TORCHVISION
from tests.export.reading import here, programs, said
from tests.small import prepare, student_run, trained

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def quantised(place, student, tmp_path_factory):
    """A student in ONNX, with 32 bits and with 8."""
    run = student("skd")
    return run, export(place, run, tmp_path_factory.mktemp("int8") / "out", ["onnx"], int8=True)


def test_the_graph_of_8_bits_answers_nearly_as_the_other(place, quantised):
    run, exported = quantised
    assert [file.name for file in exported.files] == ["model.onnx", "model-int8.onnx"]
    exact, rounded = exported.files
    assert rounded.bytes < exact.bytes / 2
    facts = exported.measured["int8"]
    assert (facts["calibration_images"], facts["test_images"]) == (96, 180)
    assert facts["agreement"] > 95
    made = finished(place, run)
    recorded = made.result["last"]["top1"]
    assert facts["top1"]["model.onnx"] == pytest.approx(recorded)
    assert abs(facts["top1"]["model-int8.onnx"] - recorded) < 3
    pixels = made.test.pixels.permute(0, 3, 1, 2).contiguous()
    (answers,) = answers_of_onnx(exported.folder / "model-int8.onnx", [pixels])
    right = 100 * float((answers.argmax(1) == made.test.targets).double().mean())
    assert right == pytest.approx(facts["top1"]["model-int8.onnx"])


def test_its_weights_have_8_bits_and_a_scale_for_each_channel(quantised):
    graph = onnx.load(quantised[1].folder / "model-int8.onnx").graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    behind = {node.output[0]: node for node in graph.node}
    assert convolutions
    for node in convolutions:
        source = behind[node.input[1]]
        assert source.op_type == "DequantizeLinear"
        values, scales = tensors[source.input[0]], tensors[source.input[1]]
        assert values.data_type == onnx.TensorProto.INT8
        assert [*scales.dims] == [values.dims[0]]


def test_card_and_configuration_say_what_was_measured(quantised):
    exported = quantised[1]
    config = json.loads((exported.folder / "config.json").read_text())
    assert config["int8"] == exported.measured["int8"]
    assert config["latency"] == exported.measured["latency"]
    assert "model-int8.onnx" in config["loads"]
    for name in ("model.onnx", "model-int8.onnx"):
        (prop,) = onnx.load(exported.folder / name).metadata_props
        assert json.loads(prop.value) == config
    card = (exported.folder / "README.md").read_text()
    assert f"{config['int8']['top1']['model-int8.onnx']:.2f} %" in card
    assert config["latency"]["hardware"] in card


def test_the_time_of_one_image_has_a_spread_and_names_the_processor(quantised):
    latency = quantised[1].measured["latency"]
    assert latency["threads"] == 1
    assert latency["files"].keys() == {"PyTorch", "model.onnx", "model-int8.onnx"}
    for time in latency["files"].values():
        assert 0 < time["low_ms"] <= time["median_ms"] <= time["high_ms"]
        assert time["calls"] >= measure.LEAST_CALLS


def test_the_program_of_the_readme_runs_with_8_bits(place, quantised):
    run, exported = quantised
    _, pixels = said(place, run, 7)
    Image.fromarray(pixels).save(exported.folder / "image.png")
    begin, end, by_file = programs(exported.folder)
    output = here(begin + by_file["model-int8.onnx"] + end, exported.folder)
    assert output.split()[0] in "0123456789"


def test_images_are_the_same_ones_each_time(place, quantised, tmp_path):
    run, exported = quantised
    again = export(place, run, tmp_path / "out", ["onnx"], int8=True)
    assert again.measured["int8"] == exported.measured["int8"]

    def tensors(folder):
        graph = onnx.load(folder / "model-int8.onnx").graph
        return {tensor.name: tensor.SerializeToString() for tensor in graph.initializer}

    assert tensors(again.folder) == tensors(exported.folder)


def test_a_backbone_is_compared_by_its_embeddings(place, tmp_path):
    run = student_run(place, FeatureDistillation(), task=Features())
    prepare(place, run)
    trained(place, run)
    exported = export(place, run, tmp_path / "out", ["onnx"], int8=True)
    assert 0.9 < exported.measured["int8"]["cosine"] <= 1.0001
    assert "mean cosine" in (exported.folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("model", [TIMM, TORCHVISION])
def test_networks_of_libraries_are_quantised(place, student, model, tmp_path):
    exported = export(place, student("kd", model), tmp_path / "out", ["onnx"], int8=True)
    exact, rounded = exported.files
    assert rounded.bytes < exact.bytes / 2
    assert exported.measured["int8"]["agreement"] > 90
    graph = onnx.load(exported.folder / rounded.name).graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}


def test_grey_levels_are_those_of_the_files(place, quantised):
    made = finished(place, quantised[0])
    mean, std = (torch.tensor(v)[:, None, None] for v in (made.run.data.mean, made.run.data.std))
    pixels = made.test.pixels[:9].permute(0, 3, 1, 2)
    assert torch.equal(grey_levels(made, (pixels / 255 - mean) / std), pixels)


def test_what_8_bits_need_is_named(place, quantised, tmp_path, monkeypatch):
    run = quantised[0]
    with pytest.raises(ConfigError, match="--int8: it is made from ONNX's graph; add"):
        export(place, run, tmp_path / "out", ["safetensors"], int8=True)
    words = ["export", fingerprint(run), "--store", str(place.root), "--output"]
    options = ["--format", "onnx", "--int8"]
    done = CliRunner().invoke(main, [*words, str(tmp_path / "one"), *options])
    assert done.exit_code == 0, done.output
    assert "points to 32 bits" in done.stdout
    assert "ms for an image on one thread" in done.stdout
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as where it is not installed
    refused = CliRunner().invoke(main, [*words, str(tmp_path / "two"), *options])
    assert refused.exit_code == 2
    assert "onnxruntime: not installed; `pip install" in refused.stderr
    assert not (tmp_path / "two").exists()
