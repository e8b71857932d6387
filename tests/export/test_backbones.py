"""Exported backbones: an embedding, no head, no projection, and the libraries' own names."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from raykd.export import export
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.tasks import Features
from tests.export.conftest import TIMM, TORCHVISION
from tests.export.reading import here, programs, said
from tests.small import prepare, student_run, trained

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
timm = pytest.importorskip("timm")


@pytest.fixture
def backbone(place):
    """A function from a network's name to a finished backbone of `place`."""

    def make(model):
        run = student_run(place, FeatureDistillation(), model=model, task=Features())
        prepare(place, run)
        trained(place, run)
        return run

    return make


def check_program(place, run, folder, file):
    """Run the README's program of one file on a real image, and compare the embedding."""
    expected, pixels = said(place, run, 7)
    Image.fromarray(pixels).save(folder / "image.png")
    begin, end, by_file = programs(folder)
    shown = "import json\nprint(json.dumps(embedding.tolist()))\n"
    lines = here("".join((begin, by_file[file], end, shown)), folder).splitlines()
    np.testing.assert_allclose(json.loads(lines[1]), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_graph_answers_with_the_embedding(place, backbone, tmp_path):
    run = backbone("resnet8")
    exported = export(place, run, tmp_path / "out")
    assert [f.name for f in exported.files] == ["model.safetensors", "model.pt2", "model.onnx"]
    config = json.loads((exported.folder / "config.json").read_text())
    assert (config["num_classes"], config["label_names"], config["num_features"]) == (0, [], 64)
    assert config["graphs"]["output"] == {
        "name": "embedding", "dtype": "float32", "shape": ["batch", 64]
    }  # fmt: skip
    assert config["raykd"]["cka"] > 0
    card = (exported.folder / "README.md").read_text()
    assert "image-feature-extraction" in card
    assert "an embedding of 64 numbers; there is no classifier" in card
    for file in ("model.safetensors", "model.pt2", "model.onnx"):
        check_program(place, run, exported.folder, file)


@pytest.mark.slow
@pytest.mark.parametrize("model", [TIMM, TORCHVISION])
def test_libraries_load_their_backbone(place, backbone, model, tmp_path):
    run = backbone(model)
    exported = export(place, run, tmp_path / "out", ["safetensors"])
    check_program(place, run, exported.folder, "model.safetensors")
    state = load_file(exported.folder / "model.safetensors")
    assert not [name for name in state if "projection" in name or name.startswith(("fc.", "head"))]
    if model == TIMM:
        network = timm.create_model(model.removeprefix("timm/"), num_classes=0).eval()
        network.load_state_dict(state)
        assert network(torch.zeros(1, 3, 32, 32)).dim() == 2
