"""Weights as other programs save them: found, matched, or refused with a short sentence."""

import argparse
import collections
import json
import pathlib
import types

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from raykd.core.errors import CacheCorrupt, ConfigError, RaykdError
from raykd.models import build
from raykd.models.weights_config import WeightsConfig, of_folder
from raykd.models.weights_import import WeightsImporter
from raykd.storage.store import Store
from raykd.training.weights import load_weights
from tests.each import each
from tests.models.benchmark import FORWARD, Parameters
from tests.tiers import NETWORK_KINDS, slow_but


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {k: torch.randn(v.shape).to(v.dtype) for k, v in fresh().state_dict().items()}


def fresh() -> nn.Module:
    return build("resnet8", 10).network


def loaded(path: pathlib.Path) -> tuple[nn.Module, str]:
    network = build("resnet8", 10)
    note = load_weights(path, network)
    return network.network, note


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in state().items()}


def within(name: str) -> str:
    """The name that torch.compile gives a part of a network when that alone is compiled."""
    first, _, rest = name.partition(".")
    return f"{first}._orig_mod.{rest}"


class Attributes(dict):
    """A mapping of a training program, with attributes."""


class Steps(list):
    """A list of a training program."""


class Config:
    """A class of a training program, which no reader has."""

    def __init__(self) -> None:
        self.depth = 8


SAVED = {
    "plain": state,
    "module": lambda: prefixed("module."),
    "orig_mod": lambda: prefixed("_orig_mod."),
    "model": lambda: prefixed("model."),
    "backbone": lambda: prefixed("backbone."),
    "ddp of a compiled one": lambda: prefixed("module._orig_mod."),
    "compiled ddp": lambda: prefixed("_orig_mod.module."),
    "lightning of a compiled ddp": lambda: {
        "state_dict": prefixed("model._orig_mod.module.") | {"criterion.weight": torch.ones(10)},
        "pytorch-lightning_version": "2.4",
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0)}},
    },
    "mmpretrain's backbone": lambda: {"state_dict": prefixed("backbone."), "meta": {"epoch": 3}},
    "a part was compiled": lambda: {within(name): value for name, value in state().items()},
    "timm": lambda: {"epoch": 3, "arch": "resnet8", "state_dict": state(), "version": 2},
    "torchvision": lambda: {
        "model": state(),
        "optimizer": {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": []},
        "args": argparse.Namespace(lr=1, output=pathlib.Path("x")),
    },
    "repdistiller": lambda: {"epoch": 1, "model": state(), "best_acc": torch.tensor(70.0)},
    "mdistiller": lambda: {"epoch": 1, "model": state(), "best_acc": np.float64(70)},
    "numpy's arrays beside": lambda: {"net": state(), "history": np.arange(4.0)},
    "a class of its own beside": lambda: {"net": state(), "config": Config()},
    "other values beside": lambda: {
        "model": collections.OrderedDict(state()),
        "more": types.SimpleNamespace(a=1),
        "lists": collections.defaultdict(list, a=[1]),
        "device": torch.device("cpu"),
        "function": len,
        "attributes": Attributes(a=1, inner=Attributes(b=2)),
        "steps": Steps([1, 2, 3]),
    },
    "nested twice": lambda: {"checkpoint": {"model": {"state_dict": state()}}},
    "counted by a profiler": lambda: state() | {"total_ops": torch.zeros(1)},
    "half": lambda: {k: v.half() if v.is_floating_point() else v for k, v in state().items()},
    "double": lambda: {k: v.double() if v.is_floating_point() else v for k, v in state().items()},
    "parameters": lambda: {
        k: nn.Parameter(v) if v.is_floating_point() else v for k, v in state().items()
    },
}


# The second form is that of torch before 1.6, which is no archive.
@each(
    ("form", "suffix"),
    slow_but(
        [*((form, ".pt") for form in SAVED), ("plain", ".tar"), ("other values beside", ".tar")],
        [*((form, ".pt") for form in [*SAVED][::6]), ("plain", ".tar")],
    ),
)
def test_a_checkpoint_is_read_in_the_form_that_a_program_saved_it(tmp_path, form, suffix):
    path = tmp_path / f"x{suffix}"
    torch.save(SAVED[form](), path, _use_new_zipfile_serialization=suffix == ".pt")
    network, _ = loaded(path)
    for name, value in network.state_dict().items():
        expected = state()[name]
        expected = expected.half().float() if form == "half" else expected
        assert torch.equal(value, expected.to(value.dtype)), name


def test_averaged_weights_are_taken_and_the_choice_is_said(tmp_path):
    average = {name: torch.full_like(value, 2) for name, value in state().items()}
    pairs = {"state_dict_ema": "state_dict", "model_ema": "model"}
    for number, (ema, plain) in enumerate(pairs.items()):
        path = tmp_path / f"{number}.pth"
        wrapped = {f"module.{name}": value for name, value in average.items()}
        torch.save({plain: state(), ema: wrapped | {"n_averaged": torch.tensor(5)}}, path)
        network, note = loaded(path)
        assert note == (f"took the weights under {ema!r} (not {plain}), names without 'module.'")
        assert torch.equal(network.state_dict()["classifier.bias"], torch.full((10,), 2.0))


def test_tensors_outside_of_the_prefix_are_left_out_and_named(tmp_path):
    torch.save(prefixed("backbone.") | {"head.weight": torch.ones(2)}, tmp_path / "x.pt")
    assert loaded(tmp_path / "x.pt")[1] == (
        "took names without 'backbone.', 1 tensors left out (head.weight)"
    )


@each("suffix", ["", ".pt"])
def test_safetensors_are_known_by_their_content(tmp_path, suffix):
    safetensors.torch.save_file(prefixed("module."), tmp_path / f"weights{suffix}")
    network, _ = loaded(tmp_path / f"weights{suffix}")
    assert torch.equal(network.state_dict()["stem.0.weight"], state()["stem.0.weight"])


def test_a_folder_of_the_hub_is_read(tmp_path):
    config = {"architecture": "x", "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [1, 1, 2]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(state(), tmp_path / "model.safetensors")
    assert torch.equal(loaded(tmp_path)[0].state_dict()["stem.1.bias"], state()["stem.1.bias"])
    said = of_folder(tmp_path)
    assert (said.mean, said.std) == ((0.5, 0.4, 0.3), (1.0, 1.0, 2.0))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(RaykdError, match=r"expected a folder with model\.safetensors or"):
        loaded(tmp_path)
    torch.save(state(), tmp_path / "pytorch_model.bin")
    loaded(tmp_path)


@each("outputs", [7, 12])
def test_the_classes_of_a_file_are_those_of_its_head(tmp_path, outputs):
    importer, path = WeightsImporter(Store(tmp_path)), tmp_path / "x.safetensors"
    safetensors.torch.save_file(build("resnet8", outputs).network.state_dict(), path)
    assert importer.outputs(str(path), "resnet8", 10) == outputs
    assert importer.outputs(str(path), "resnet8", outputs) == outputs
    assert importer.outputs(str(path), "resnet8", 0) == outputs  # data without labels
    name = importer.name(str(path), "resnet8", outputs)
    assert importer.outputs(name, "resnet8", 10) == outputs  # the store's copy, too
    assert importer.outputs(str(path), "resnet14", 10) == 10  # which `name` refuses
    headless = {k: v for k, v in safetensors.torch.load_file(path).items() if "classifier" not in k}
    safetensors.torch.save_file(headless, path)
    importer = WeightsImporter(Store(tmp_path))  # the one before has read the file
    assert importer.outputs(str(path), "resnet8", 10) == 0
    importer.name(str(path), "resnet8", 0)


def test_a_config_of_another_form_says_nothing_about_pixels(tmp_path):
    for std in [None, [1, 1, 0], [1, 1], "1", [None] * 3, [1, 1, 1e400]]:
        for text in ["", "{", "null", "[]", '{"pretrained_cfg": null}', "[" * 10**5]:
            content = text or json.dumps({"mean": [0.5] * 3, "std": std})
            (tmp_path / "config.json").write_text(content)
            assert of_folder(tmp_path) == WeightsConfig()


def test_classes_are_named_in_the_words_of_timm_and_of_transformers(tmp_path):
    def names(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return of_folder(tmp_path).names

    assert names(id2label={"0": "tench, Tinca tinca", "1": "cock"}) == (
        ("tench", "Tinca tinca"),
        ("cock",),
    )
    assert names(label_names=["a", "b"]) == (("a",), ("b",))
    inner = {"label_names": ["n1"], "label_descriptions": {"n1": "a, b"}}
    assert names(pretrained_cfg=inner) == (("n1", "a", "b"),)
    for other in ({"id2label": {"1": "a"}}, {"label_names": [1]}, {"label_names": "ab"}, {}):
        assert names(**other) == ()


@each("model", slow_but(FORWARD, NETWORK_KINDS))
def test_the_benchmark_s_names_give_the_benchmark_s_answers(tmp_path, model):
    torch.manual_seed(0)
    pixels, parameters = torch.randn(2, 3, 32, 32), Parameters()
    expected = FORWARD[model](pixels, parameters)
    torch.save({"model": dict(parameters), "epoch": 240}, tmp_path / "x.pth")
    network = build(model, 10).eval()
    assert load_weights(tmp_path / "x.pth", network)
    with torch.no_grad():
        answers = network(pixels)
    # Sums of the same products in another order.
    torch.testing.assert_close(answers, expected, rtol=1e-3, atol=1e-3 * float(expected.std()))


# What does not fit


def other(**changes: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """The state with some tensors replaced, or without them (None)."""
    merged = {**state(), **changes}
    return {name: value for name, value in merged.items() if value is not None}


REFUSED = {
    "another network": (
        build("resnet14", 10).network.state_dict,
        "another network's; of 56 tensors, 36 unexpected",
    ),
    "other names": (
        lambda: {f"student.{name}": value for name, value in state().items()},
        "names there begin with student",
    ),
    "another head": (
        build("resnet8", 100).network.state_dict,
        "they have 100 classes, and the data have 10",
    ),
    "a tensor is missing": (
        lambda: other(**{"stage1.0.conv1.weight": None}),
        r"1 missing \(stage1\.0\.conv1\.weight\)",
    ),
    "another shape": (
        lambda: other(**{"stem.0.weight": torch.ones(3, 3)}),
        r"1 of another shape \(stem\.0\.weight: expected \[16, 3, 3, 3\], found \[3, 3\]\)",
    ),
    "one tensor": (lambda: torch.zeros(2), "found a value of type Tensor"),
    "a list": (lambda: [torch.zeros(2)], "found a value of type list"),
    "numbers": (lambda: {"epoch": 3, "acc": 0.7}, "found the keys epoch, acc"),
    "a whole network": (lambda: build("resnet8", 10).network, "found a whole network"),
}


def name_in(store: Store, path: object) -> str:
    """The name of a file's copy in a store, for the weights of a resnet8 with ten classes."""
    return WeightsImporter(store, print).name(str(path), "resnet8", 10)


@each("case", REFUSED)
def test_what_does_not_fit_is_refused_shortly_and_leaves_no_copy(tmp_path, case):
    make, pattern = REFUSED[case]
    path, store = tmp_path / "mine.pth", Store(tmp_path / "store")
    torch.save(make(), path)
    with pytest.raises(ConfigError, match=pattern) as error:
        name_in(store, path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 600
    assert not (store.root / "weights").exists()


@each(
    ("content", "suffix"),
    [
        (b"", ".pt"),
        (b"", ".safetensors"),
        (b"PK\3\4", ".pt"),
        (b"PK\3\4", ".safetensors"),
        (b"{", ".ckpt"),
        (b"\0" * 8 + b"{", ".pt"),
        (b"\x80\x02.", ".pt"),
        (b"x" * 99, ".safetensors"),
        (b"hello", ".pt"),
        (b"run: 1\n", ".pth"),
        (b"\xff\xd8\xff\xe0", ".bin"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, suffix):
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"the weights cannot be read|expected tensors") as error:
        name_in(Store(tmp_path / "store"), path)
    assert "weights_only" not in str(error.value) and "Unsupported" not in str(error.value)
    with pytest.raises(CacheCorrupt):
        load_weights(path, build("resnet8", 10))


@each("name", ["x.pth.tar", "x.ckpt", "pytorch_model.bin", "no-suffix", "hub"])
def test_a_path_that_exists_is_a_path(tmp_path, monkeypatch, name, capsys):
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "store")
    if name == "hub":
        pathlib.Path(name).mkdir()
        safetensors.torch.save_file(state(), "hub/model.safetensors")
    else:
        torch.save({"model": state()}, name)
    copy = name_in(store, name)
    assert copy.startswith("sha256:")
    kept = store.root / "weights" / copy.removeprefix("sha256:")
    network = build("resnet8", 10)
    load_weights(kept, network)
    assert torch.equal(network.network.state_dict()["stem.1.bias"], state()["stem.1.bias"])
    if name != "hub":
        assert f"{name}: took the weights under 'model'" in capsys.readouterr().out


@each("name", ["none.ckpt", "none.pth.tar", "folder/none", "~/none", "./none"])
def test_a_path_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ConfigError, match=r"none.*: cannot be read \(No such file"):
        name_in(Store(tmp_path / "store"), name)


def test_a_copy_that_the_store_does_not_have_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not there; name the file that it is a copy of"):
        name_in(Store(tmp_path / "store"), f"sha256:{'0' * 64}.pt")
