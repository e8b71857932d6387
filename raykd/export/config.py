"""`config.json`: contents of an exported folder, preprocessing of images, meaning of outputs.

In the layout of the Hugging Face Hub as timm writes it, for networks of every library.
"""

import math
from collections.abc import Sequence
from typing import Any

from raykd.core.record import fingerprint
from raykd.core.version import __version__
from raykd.export.graph import PIXELS, output_name
from raykd.export.libraries import loaders, particulars, split
from raykd.models import build, measure
from raykd.models.staged import classifier_name, unallocated
from raykd.recipes import AnyTeacher, StudentRun, training_of
from raykd.tasks.base import HEADINGS
from raykd.training.load_trained import Finished


def configuration(finished: Finished, files: Sequence[str]) -> dict[str, Any]:
    """The configuration of a network that is written to `files`, as plain JSON.

    `pretrained_cfg` is how images become normalised pixels, which `model.safetensors` expects.
    `calibration` is what its logits go through before they are probabilities (nothing: {}; null:
    the network alone has no answer). The graphs do both themselves. `loads` says for each file
    what reads it.
    """
    library, name = split(finished.run.model)
    arguments, more = particulars(finished)
    names, loads = [] if finished.is_backbone else [*finished.names], loaders(finished)
    classes = len(names)
    value: dict[str, Any] = {
        "architecture": name,
        "library": library,
        "num_classes": classes,
        "label_names": names,
        "pretrained_cfg": {**more, **preprocessing(finished), "num_classes": classes},
        "calibration": finished.rescaling,
        "graphs": graphs(finished),
        "loads": {file: loads[file] for file in files},
        "raykd": provenance(finished) | {"files": [*files]},
    }
    if finished.is_backbone:
        whole = unallocated(lambda: build(finished.run.model, 2))
        value |= {"num_features": _width(finished), "removed": classifier_name(whole)}
    return value | ({"model_args": arguments} if arguments else {})


def _width(finished: Finished) -> int:
    """Numbers of an embedding."""
    width = measure(finished.network, finished.run.data.resolved().size).embedding
    weight = next(finished.network.parameters())
    return finished.from_embedding(weight.new_zeros(1, width)).shape[1]


def preprocessing(finished: Finished) -> dict[str, Any]:
    """The steps from an image file to normalised pixels, under timm's keys.

    The shorter side is brought to size / crop_pct pixels and the centre is cropped; then come mean
    and std.
    """
    data = finished.run.data.resolved()
    shorter, crop_pct = shorter_side(finished), 1.0
    if shorter != min(data.size):
        crop_pct = min(data.size) / shorter
        while math.floor(min(data.size) / crop_pct) < shorter:  # timm rounds it down
            crop_pct = math.nextafter(crop_pct, 0)
    return {
        "input_size": [3, *data.size],
        "interpolation": "bilinear" if data.stream is None else data.stream.interpolation,
        "crop_pct": crop_pct,
        "crop_mode": "center",
        "mean": [*data.mean],
        "std": [*data.std],
    }


def shorter_side(finished: Finished) -> int:
    """Length of an image's shorter side, in pixels, before its centre is cropped."""
    data = finished.run.data.resolved()
    return min(data.size) if data.stream is None else data.stream.resize


def graphs(finished: Finished) -> dict[str, Any]:
    """Input and output of `model.pt2` and `model.onnx`."""
    size = finished.run.data.resolved().size
    output: dict[str, Any] = {
        "shape": ["batch", len(finished.names)],
        "probabilities": "softmax over the last axis; the calibration is inside",
    }
    if finished.is_backbone:
        output = {"shape": ["batch", _width(finished)]}
    return {
        "input": {
            "name": PIXELS,
            "dtype": "uint8",
            "shape": ["batch", 3, *size],
            "channels": "red, green, blue; 0 to 255, not normalised",
            "shorter_side": shorter_side(finished),
        },
        "output": {"name": output_name(finished), "dtype": "float32", **output},
    }


def provenance(finished: Finished) -> dict[str, Any]:
    """Origin and accuracy of the network; percentages are of the test images."""
    run, result = finished.run, finished.result
    facts: dict[str, Any] = {
        "version": __version__,
        "kind": run.kind,
        "fingerprint": fingerprint(run),
        "model": run.model,
        "dataset": run.data.name,
        "digest": run.data.digest,
    }
    epochs = run.anchors()[-1]  # 0 of given weights
    if isinstance(run, StudentRun):
        epochs = run.all_epochs()
        facts |= {"method": run.method.label, "teacher": run.teacher.model if run.teacher else None}
    elif run.is_given:
        facts["weights"] = run.weights
    start = training_of(run).stages()[0].weights
    if start is not None:
        facts["start"] = start
    facts["base_models"] = base_models(run)
    metrics = {"top1": result["last"].get("top1"), "top1_of_best_epoch": result["best"].get("top1")}
    metrics |= {name: result["last"][name] for name in HEADINGS if name in result["last"]}
    metrics |= {"agreement": result["last"].get("agreement"), "test_images": len(finished.test)}
    sizes = {key: result.get(key) for key in ("parameters", "flops")}
    return facts | {"seed": run.seed, "epochs": epochs} | sizes | metrics


def base_models(run: AnyTeacher) -> list[str]:
    """The repositories of the Hub with the weights that a network, or its teacher, began with.

    Those are timm's: the origin of other weights is unknown.
    """
    runs = (run.stages()[0], *run.members()) if isinstance(run, StudentRun) else (run,)
    names: list[str] = []
    for one in runs:
        (library, name), weights = split(one.model), one.weights
        if library != "timm" or weights is None or weights.startswith("sha256:"):
            continue
        import timm

        published: Any = timm.get_pretrained_cfg(name)
        tag = published.tag if weights == "DEFAULT" and published is not None else weights
        names.append(f"timm/{name}.{tag}" if tag else f"timm/{name}")
    return [*dict.fromkeys(names)]
