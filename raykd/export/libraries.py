"""The library that a plain network belongs to: what its configuration says, how it is built again.

Shapes: C classes.
"""

from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from torch import nn

from raykd import models
from raykd.export import source
from raykd.training.load_trained import Finished

WEIGHTS = "model.safetensors"
# What timm's configurations say of a network beside how its images are made ready.
_TIMM = ("classifier", "first_conv", "fixed_input_size")
_WITHOUT_AUXILIARY = {"aux_logits": False, "init_weights": False}


def split(model: str) -> tuple[str, str]:
    """The library ("timm", "torchvision" or "raykd") and the name that it knows a network by."""
    library, slash, name = model.partition("/")
    return (library, name) if slash else ("raykd", model)


def particulars(finished: Finished) -> tuple[dict[str, Any], dict[str, Any]]:
    """Facts that a library needs: the arguments of its builder, and more of `pretrained_cfg`."""
    library, name = split(finished.run.model)
    if library == "timm":
        own: Any = finished.network.network.pretrained_cfg
        size = list(finished.run.data.resolved().size)
        resized = [*own["input_size"][1:]] != size and getattr(
            finished.network.network, "dynamic_img_size", False
        )
        arguments = {"dynamic_img_size": True} if resized else {}
        return arguments, {key: own[key] for key in _TIMM if own.get(key) is not None}
    auxiliary = library == "torchvision" and name in ("googlenet", "inception_v3")
    return (dict(_WITHOUT_AUXILIARY) if auxiliary else {}), {}


def loaders(finished: Finished) -> dict[str, str]:
    """Programs that load a network from each file that may be written."""
    library, name = split(finished.run.model)
    classes = 0 if finished.is_backbone else len(finished.names)
    weights = "raykd, with the plugin that defines the network"
    if library == "timm":
        weights = 'timm: timm.create_model("local-dir:FOLDER", pretrained=True)'
    elif library == "torchvision":
        weights = f'torchvision: torchvision.models.get_model("{name}"), then load_state_dict'
    elif source.source(name, classes) is not None:
        weights = f"PyTorch alone: load() of {source.FILE}, which lies beside it"
    runtimes = "ONNX Runtime, and whatever else reads ONNX"
    return {
        WEIGHTS: weights,
        "model.pt2": f"PyTorch {torch.__version__.partition('+')[0]} or later: torch.export.load",
        "model.onnx": runtimes,
        "model-int8.onnx": runtimes,
    }


def rebuilt(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The plain network that a folder's configuration and weights describe, in evaluation mode."""
    name, classes = config["architecture"], config["num_classes"]
    if config["library"] == "timm":
        import timm

        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    if (folder / source.FILE).is_file():  # which this process has just written
        return source.module_at(folder / source.FILE).load()
    if not classes:
        library = "" if config["library"] == "raykd" else f"{config['library']}/"
        network = models.build(f"{library}{name}", 0).network
    elif config["library"] == "torchvision":
        arguments = config.get("model_args", {})
        network = torchvision.models.get_model(name, num_classes=classes, **arguments)
    else:
        network = models.build(name, classes).network
    network.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
    return network.eval()
