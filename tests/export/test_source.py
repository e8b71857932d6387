"""`model.py`: raykd's own networks as files that need torch alone."""

import ast
import json
import re
import sys

import pytest
import torch

from raykd.export import export
from raykd.export.source import module_at, source
from raykd.models import NETWORKS, build
from raykd.training.weights import save_weights
from tests.each import each
from tests.export.conftest import TIMM
from tests.export.reading import fresh, said
from tests.tiers import NETWORK_KINDS, slow_but

# Deeper ones have the same code, and half a gigabyte of weights.
DEEP = ("iresnet34", "iresnet50", "iresnet100", "iresnet200")
TESTED = [name for name in NETWORKS if name not in DEEP]


@each(
    ("model", "classes"),
    slow_but(
        [*((model, 10) for model in TESTED), *((model, 0) for model in NETWORK_KINDS)],
        [("resnet8", 10), ("shufflenet_v2", 0)],
    ),
)
def test_the_file_is_the_network(model, classes, tmp_path):
    torch.manual_seed(1)
    network = build(model, classes).eval()
    save_weights(tmp_path / "model.safetensors", network)
    (tmp_path / "model.py").write_text(source(model, classes))
    named = re.search(r"_(\d+)x(\d+)$", model)  # the size of its images
    faces = model.startswith(("mobilefacenet", "iresnet"))
    size = map(int, named.groups()) if named else [112 if faces else 16] * 2
    pixels = torch.randn(2, 3, *size)
    loaded = module_at(tmp_path / "model.py").load()
    assert not loaded.training
    assert loaded.state_dict().keys() == network.network.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(loaded(pixels), network(pixels))
        torch.manual_seed(1)
        begun = module_at(tmp_path / "model.py").build().eval()
        assert torch.equal(begun(pixels), network(pixels))  # it starts from the same numbers, too


@pytest.mark.slow
@each("model", NETWORKS)
def test_the_file_imports_torch_and_pythons_own_modules_alone(model):
    tree = ast.parse(source(model, 10))
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    tops = {name.partition(".")[0] for name in names}
    assert "torch" in tops
    assert tops - {"torch"} <= set(sys.stdlib_module_names)


def test_networks_of_libraries_have_no_file_of_ours():
    assert source(TIMM, 10) is None
    assert source("torchvision/resnet18", 10) is None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet8", "shufflenet_v2"])
def test_an_exported_folder_answers_where_there_is_no_raykd(place, student, tmp_path, model):
    run = student("label_only", model)
    exported = export(place, run, tmp_path / "out", ["safetensors"])
    files = {path.name for path in exported.folder.iterdir()}
    assert files == {"model.safetensors", "model.py", "config.json", "recipe.json", "README.md"}
    assert "load() of model.py" in exported.files[0].loads
    expected, pixels = said(place, run, 7)
    program = f"""
import json, sys, torch
import model
network = model.load()
constants = json.load(open("config.json"))["pretrained_cfg"]
mean, std = (torch.tensor(constants[key])[:, None, None] for key in ("mean", "std"))
pixels = torch.tensor({pixels.tolist()}).permute(2, 0, 1)[None]
with torch.no_grad():
    print(json.dumps(network((pixels / 255 - mean) / std).tolist()))
assert not [name for name in ("safetensors", "torchvision") if name in sys.modules]
"""
    found = json.loads(fresh(program, exported.folder))
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-4, atol=1e-4)
