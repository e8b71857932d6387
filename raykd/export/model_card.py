"""`README.md`: the model card of an exported network. Its programs run as they stand."""

from collections.abc import Sequence
from typing import Any

from raykd.export.graph import CONFIG, LOGITS, PIXELS
from raykd.export.libraries import WEIGHTS

_HEAD = """\
---
library_name: {library}
pipeline_tag: image-classification
tags: [image-classification, knowledge-distillation]
---

# {model} on {dataset}

{sentence} Its recipe is in `recipe.json`; raykd {version} knows it as `{fingerprint}`.

{table}

## Use

The programs run in this folder. Each begins with the centre of an image:

```python
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

config = json.loads(Path("{config}").read_text())
image = ImageOps.exif_transpose(Image.open("image.png")).convert("RGB")
{cropped}
pixels = np.array(image).transpose(2, 0, 1)[None]  # uint8 [1, 3, {height}, {width}]
```

and ends with its class:

```python
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(config["label_names"][probabilities.argmax()], probabilities.max())
```
"""
_FITTED = "image = ImageOps.fit(image, ({width}, {height}), Image.Resampling.BILINEAR)"
_CENTRE = """\
sides = [{shorter} * side // min(image.size) for side in image.size]
left, top = (round((side - {width}) / 2) for side in sides)
image = image.resize(sides, Image.Resampling.BILINEAR)
image = image.crop((left, top, left + {width}, top + {height}))"""
_ONNX = """\
### `model.onnx`

Takes any number of images as uint8 pixels; normalisation{inside} in the graph.

```python
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
logits = session.run(["{logits}"], {{"{pixels}": pixels}})[0]
```
"""
_TORCH = """\
### `model.pt2`

The same graph for PyTorch, as `torch.export` wrote it.

```python
import torch

network = torch.export.load("model.pt2").module()
logits = network(torch.from_numpy(pixels)).detach().numpy()
```
"""
_PLAIN = """\
### `model.safetensors`

The weights of the plain network, under the names that it has in {library}. It takes normalised
pixels{then}.

```python
{built}
constants = config["pretrained_cfg"]
mean, std = (torch.tensor(constants[key])[:, None, None] for key in ("mean", "std"))
with torch.no_grad():
    logits = network.eval()((torch.from_numpy(pixels) / 255 - mean) / std)
{calibrated}logits = logits.numpy()
```
"""
_WITHOUT_PLAIN = """\
### `model.safetensors`

There is none: by its method ({method}) this student does not answer with its own classifier. The
graphs hold what it answers with.
"""
_TIMM = """\
import timm
import torch

network = timm.create_model("local-dir:.", pretrained=True)"""
_OTHERS = """\
import torch
from safetensors.torch import load_file

{imported}

network = {network}
network.load_state_dict(load_file("model.safetensors"))"""
_CALIBRATED = {
    "layer_norm": "shape = logits.shape[1:]\n"
    "logits = {radius} * torch.nn.functional.layer_norm(logits, shape, eps={epsilon})\n",
    "l2": "logits = {radius} * logits / logits.norm(dim=1, keepdim=True).clamp_min({epsilon})\n",
}


def card(config: dict[str, Any], files: Sequence[str]) -> str:
    """The text of the README of a folder with these files."""
    facts, (_, height, width) = config["raykd"], config["pretrained_cfg"]["input_size"]
    places = {"height": height, "width": width, "config": CONFIG}
    shorter = config["graphs"]["input"]["shorter_side"]
    cropped = _FITTED if shorter == min(height, width) else _CENTRE
    places["cropped"] = cropped.format(height=height, width=width, shorter=shorter)
    places |= {"library": config["library"], "table": _table(config)}
    parts = [_HEAD.format(sentence=_sentence(facts), **places, **facts)]
    calibration = config["calibration"]
    if "model.onnx" in files:
        inside = " and calibration are" if calibration else " is"
        parts.append(_ONNX.format(inside=inside, logits=LOGITS, pixels=PIXELS))
    if "model.pt2" in files:
        parts.append(_TORCH)
    if calibration is None:
        parts.append(_WITHOUT_PLAIN.format(**facts))
    elif WEIGHTS in files:
        kind = calibration.get("kind")
        parts.append(
            _PLAIN.format(
                library=config["library"],
                then=", and its logits are calibrated before they are probabilities" * bool(kind),
                built=_built(config),
                calibrated=_CALIBRATED[kind].format(**calibration) if kind else "",
            )
        )
    return "\n".join(parts)


def _built(config: dict[str, Any]) -> str:
    """The lines that build the plain network with its weights."""
    name, classes = config["architecture"], config["num_classes"]
    if config["library"] == "timm":
        return _TIMM
    if config["library"] == "torchvision":
        more = "".join(f", {key}={value}" for key, value in config.get("model_args", {}).items())
        network = f'torchvision.models.get_model("{name}", num_classes={classes}{more})'
        return _OTHERS.format(imported="import torchvision", network=network)
    network = f'models.build("{name}", classes={classes}).network'
    return _OTHERS.format(imported="from raykd import models", network=network)


def _sentence(facts: dict[str, Any]) -> str:
    """A sentence on the network's origin."""
    if "weights" in facts:
        return f"A teacher of other networks, with the weights {facts['weights']}."
    if "method" not in facts:
        return "A teacher of other networks."
    if facts["teacher"] is None:
        return f"Trained by {facts['method']}, without a teacher."
    return f"Distilled from {facts['teacher']} by {facts['method']}."


def _table(config: dict[str, Any]) -> str:
    """The main facts, as a table in Markdown."""
    facts, constants = config["raykd"], config["pretrained_cfg"]
    images = "{2} x {1} pixels, red, green, blue".format(*constants["input_size"])
    shorter = config["graphs"]["input"]["shorter_side"]
    rows = {"test accuracy": f"{_percent(facts['top1'])} of {facts['test_images']:,} images"}
    if facts["agreement"] is not None:
        rows["same answer as the teacher"] = _percent(facts["agreement"])
    if epochs := facts["epochs"]:
        best = _percent(facts["top1_of_best_epoch"])
        rows["trained for"] = f"{epochs} epochs, seed {facts['seed']}; the best one had {best}"
    rows |= {
        "classes": f"{config['num_classes']}, `label_names` of `{CONFIG}`",
        "images": f"{images}; the shorter side brought to {shorter} (bilinear), the centre cropped",
        "mean and std": f"{constants['mean']} and {constants['std']}, of pixels in 0 to 1",
        "parameters": f"{facts['parameters']:,}",
    }
    if flops := facts["flops"]:
        rows["operations"] = f"{flops / 1e6:,.1f} million for an image (a multiply-add is two)"
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f} %"
