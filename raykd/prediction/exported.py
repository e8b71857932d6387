"""Networks of exported folders, as `raykd export` writes them.

Nothing of a folder is executed or unpickled: neither `model.py` nor `model.pt2` is read. Weights
are read from `model.safetensors` into raykd's own, timm's or torchvision's network; `model.onnx`
stands in where they are not there, or where the network is a plugin's that is not loaded.

Shapes: B batch, C classes, D embedding width, H, W pixels.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raykd import models
from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.data.recipe import ResolvedData
from raykd.prediction.predictor import Predictor
from raykd.prediction.preprocess import Preprocess

CONFIG, RECIPE, WEIGHTS, GRAPH = "config.json", "recipe.json", "model.safetensors", "model.onnx"


def is_exported(folder: Path) -> bool:
    """True for a folder with the files that say what an exported network is."""
    return (folder / CONFIG).is_file() and (folder / RECIPE).is_file()


def load_exported(folder: Path) -> Predictor:
    """The network of a folder that `raykd export` wrote, on the CPU.

    It answers as the network did before its export. Raises `ConfigError` where the folder is no
    export, or has neither weights that can be read here nor an ONNX graph; `CacheCorrupt` where a
    file is damaged.
    """
    config, recipe = _read(folder, CONFIG), _read(folder, RECIPE)
    try:
        data = ResolvedData.read(recipe["data"])
        names, calibration = tuple(config["label_names"]), config["calibration"]
        model, classes = config["raykd"]["model"], int(config["num_classes"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder}: expected an export of raykd's, got other keys in {CONFIG} or {RECIPE} "
            f"({str(error).splitlines()[0]})"
        ) from error
    known = "/" in model or model in models.NETWORKS
    if (folder / WEIGHTS).is_file() and calibration is not None and known:
        network = _weighted(folder, model, classes)
        answer = _calibrated(network, calibration)
    elif (folder / GRAPH).is_file():
        network = _Graph(folder / GRAPH, Preprocess(data))
        answer = network.__call__
    else:
        reason = "" if known else f"; its network {model} is a plugin's: give --plugin FILE"
        raise ConfigError(
            f"{folder}: neither {WEIGHTS} nor {GRAPH} can be read here{reason}. Export it with "
            "--format onnx, too"
        )
    return Predictor(network, answer, data, names or None, is_backbone=not classes)


class _Graph(nn.Module):
    """An ONNX graph as a network of normalised pixels."""

    def __init__(self, path: Path, preprocess: Preprocess) -> None:
        super().__init__()
        if find_spec("onnxruntime") is None:
            raise ConfigError(
                f"{path}: onnxruntime is not installed; `pip install '.[export]'` in raykd's folder"
            )
        import onnxruntime

        self._preprocess = preprocess
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors: it warns of what it optimises away
        try:
            self._session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # kinds of its own, which have no common parent
            raise CacheCorrupt(f"{path}: is no ONNX graph ({type(error).__name__})") from error
        (self._input,) = self._session.get_inputs()

    def forward(self, normalised: Tensor) -> Tensor:
        """Calibrated logits [B, C], or embeddings [B, D], of pixels [B, 3, H, W]."""
        pixels = self._preprocess.grey_levels(normalised.cpu()).numpy()
        answer: Any = self._session.run(None, {self._input.name: pixels})[0]
        return torch.from_numpy(answer).to(normalised.device)


def _read(folder: Path, name: str) -> dict[str, Any]:
    """A JSON file of a folder."""
    try:
        value = json.loads((folder / name).read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder / name}: cannot be read ({error.strerror}); give a folder that "
            "`raykd export` wrote"
        ) from error
    except ValueError as error:
        raise CacheCorrupt(f"{folder / name}: is not JSON; export the network again") from error
    if not isinstance(value, dict):
        raise CacheCorrupt(f"{folder / name}: expected an object; export the network again")
    return value


def _weighted(folder: Path, model: str, classes: int) -> nn.Module:
    """The plain network with the weights of a folder."""
    network = models.build(model, classes).network
    try:
        network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CacheCorrupt(
            f"{folder / WEIGHTS}: does not hold the weights of {model} with {classes} classes "
            f"({str(error).splitlines()[0][:100]}); export the network again"
        ) from error
    return network


def _calibrated(network: nn.Module, calibration: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    """A function from normalised pixels to a network's calibrated logits, or its embeddings."""
    kind = calibration.get("kind")
    if kind not in (None, "layer_norm", "l2"):
        raise ConfigError(f"calibration {kind!r}: expected layer_norm or l2; use a newer raykd")

    def answer(pixels: Tensor) -> Tensor:
        logits = network(pixels)
        if kind is None:
            return logits
        radius, epsilon = float(calibration["radius"]), float(calibration["epsilon"])
        if kind == "layer_norm":
            return radius * F.layer_norm(logits, logits.shape[1:], eps=epsilon)
        return radius * logits / logits.norm(dim=1, keepdim=True).clamp_min(epsilon)

    return answer
