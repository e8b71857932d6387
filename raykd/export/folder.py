"""A network of the store, written to a folder and checked on real images before it is there.

Shapes: B batch, C classes, H, W pixels.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from raykd.core.errors import ConfigError, ExportFailed
from raykd.core.record import fingerprint
from raykd.core.types import Outputs
from raykd.data.loading.loader import Views
from raykd.export import graph
from raykd.export.config import configuration
from raykd.export.graph import CONFIG
from raykd.export.int8 import FILE as INT8
from raykd.export.int8 import quantised
from raykd.export.libraries import WEIGHTS, rebuilt
from raykd.export.measure import grey_levels, latency
from raykd.export.model_card import card
from raykd.export.source import FILE as CODE
from raykd.export.source import source
from raykd.recipes import AnyTeacher, TeacherRun
from raykd.storage.atomic import write_atomic
from raykd.storage.store import Store, write_json
from raykd.training import weights
from raykd.training.load_trained import Finished, finished

FORMATS = {"safetensors": WEIGHTS, "torch": "model.pt2", "onnx": "model.onnx"}
CARD, RECIPE = "README.md", "recipe.json"
IMAGES = 32  # test images, evenly spread, on which every file is compared with the network
TOLERANCE = 1e-3  # share of the largest score, or of 1: other kernels add float32 in another order


class ExportedFile(NamedTuple):
    """One file, and the largest difference between its scores and the network's."""

    name: str
    bytes: int
    difference: float  # the largest difference of any score
    loads: str  # library that reads it


@dataclass(frozen=True)
class ExportResult:
    """The written files of one network."""

    run: AnyTeacher
    folder: Path
    files: tuple[ExportedFile, ...]
    images: int  # number of test images that the differences were measured on
    plain: bool  # True where the plain network alone answers as the student does
    measured: Mapping[str, Any]  # "latency", and "int8" where that was asked for; see `measure`


def export(
    store: Store,
    run: AnyTeacher,
    folder: Path,
    formats: Sequence[str] = (),
    *,
    int8: bool = False,
) -> ExportResult:
    """Write a finished network to `folder` in some formats, or in all that it has.

    With `int8`, also an ONNX graph of 8 bits, whose ranges are those of training images. An earlier
    export of the same network is replaced. Raises `ConfigError` where the folder holds other files,
    or a format cannot be had; `ExportFailed` where a file answers otherwise than the network; then
    nothing is left.
    """
    folder = folder.resolve()
    if isinstance(run, TeacherRun) and (run.classes, run.outputs, run.size) != (None, None, None):
        raise ConfigError(
            f"{run.model}: a teacher with classes, outputs or a size of its own is not exported; "
            f"the network alone is that of its weights ({run.weights or 'trained here'})"
        )
    check_folder(folder, run)
    check_installed(formats)
    model = finished(store, run)
    files = _files(model, formats)
    if int8 and FORMATS["onnx"] not in files:
        raise ConfigError("--int8: it is made from ONNX's graph; add --format onnx")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        draft = Path(temporary)
        normalised, pixels = _real(model)
        files += [INT8] if int8 else []
        measured = _write(model, files, draft, normalised, pixels)
        written = tuple(_checked(model, draft / file, normalised, pixels) for file in files)
        _publish(draft, folder)
    plain = model.rescaling is not None
    return ExportResult(run, folder, written, len(pixels), plain, measured)


def check_folder(folder: Path, run: AnyTeacher) -> None:
    """Raise `ConfigError` where a folder holds anything but an export of this network."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        existing = json.loads((folder / CONFIG).read_text())["raykd"]["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(
            f"--output {folder}: there are other files; name a folder that is new or empty"
        ) from None
    if existing != fingerprint(run):
        raise ConfigError(
            f"--output {folder}: there is an export of {existing}, and this is {fingerprint(run)}; "
            "name another folder"
        )


def check_installed(formats: Sequence[str]) -> None:
    """Raise `ConfigError` where ONNX is asked for, and what writes or checks it is missing."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing and (not formats or "onnx" in formats):
        raise ConfigError(
            f"{', '.join(missing)}: not installed; `pip install '.[export]'` in raykd's folder, or "
            "leave ONNX out: --format safetensors --format torch"
        )


def _files(model: Finished, formats: Sequence[str]) -> list[str]:
    """The files to write, in the order of the table."""
    plain = model.rescaling is not None
    if not plain and "safetensors" in formats:
        last = "embedding" if model.is_backbone else "classifier"
        raise ConfigError(
            f"a student of {model.method.label!r} does not answer with its own {last}, so its "
            "weights alone are no network; use --format torch or --format onnx, whose graphs hold "
            "the rest"
        )
    names = [name for name in FORMATS if name in formats or not formats]
    return [FORMATS[name] for name in names if plain or name != "safetensors"]


def _real(model: Finished) -> tuple[Tensor, Tensor]:
    """Some test images: normalised as in training, and as uint8 pixels [B, 3, H, W]."""
    data, count = model.run.data.resolved().test(), len(model.test)
    rows = torch.linspace(0, count - 1, min(count, IMAGES)).long()
    normalised = Views(model.test, data, skip_bad=True).batch(rows, 0).pixels.contiguous()
    return normalised, grey_levels(model, normalised)


def _write(
    model: Finished, files: list[str], folder: Path, normalised: Tensor, pixels: Tensor
) -> dict[str, Any]:
    """Write every file to a folder, unchecked, with what was measured of them, which is returned.

    The graphs are written twice: their own configuration says what was measured of them, too.
    """
    config = configuration(model, files)
    if WEIGHTS in files:
        weights.save_weights(folder / WEIGHTS, model.network)
        code = source(model.run.model, config["num_classes"])
        if code is not None:
            write_atomic(folder / CODE, code.encode())
    graphs = [name for name in files if name.endswith(".onnx")]
    program = graph.traced(model, pixels) if graphs or FORMATS["torch"] in files else None
    translation = None
    if program is not None and graphs:
        translation = graph.translated(program, model)
        graph.write_onnx(folder / FORMATS["onnx"], translation, "")
    measured: dict[str, Any] = {}
    if INT8 in files:
        measured["int8"] = quantised(model, folder / FORMATS["onnx"], folder / INT8)
    paths = {name: folder / name for name in graphs}
    measured["latency"] = latency(model, normalised[:1], paths)
    text = json.dumps(config | measured, indent=2)
    if program is not None and FORMATS["torch"] in files:
        graph.write_torch(folder / FORMATS["torch"], program, text)
    if translation is not None:
        graph.write_onnx(folder / FORMATS["onnx"], translation, text)
    if INT8 in files:
        graph.label_onnx(folder / INT8, text)
    write_atomic(folder / CONFIG, text.encode())
    readme = card(config | measured, files, code=(folder / CODE).is_file())
    write_atomic(folder / CARD, readme.encode())
    write_json(folder / RECIPE, model.run.plain(), sealed=False)
    return measured


def _checked(model: Finished, path: Path, normalised: Tensor, pixels: Tensor) -> ExportedFile:
    """Check that a file's scores for test images are the network's, and describe the file."""
    with torch.no_grad():
        expected = model.answer(normalised)
    config = json.loads((path.parent / CONFIG).read_text())
    if path.name == WEIGHTS:
        network = rebuilt(path.parent, config)
        with torch.no_grad():
            scores = network(normalised)
            if not model.is_backbone:
                scores = model.method.scores(Outputs(scores), None, model.helpers)
    else:
        answers = graph.answers_of_torch if path.suffix == ".pt2" else graph.answers_of_onnx
        scores = torch.cat(answers(path, [pixels[:1], pixels[1:]]))  # two batch sizes
    difference = float((scores - expected).abs().max())
    if path.name == INT8:  # its accuracy is measured, and nothing is expected of it
        return ExportedFile(path.name, path.stat().st_size, difference, config["loads"][path.name])
    allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
    if not difference <= allowed:  # nor is NaN
        raise ExportFailed(
            f"{model.run.model}: {path.name} answers otherwise than the network; on {len(pixels)} "
            f"test images its scores differ by up to {difference:.2g}, expected {allowed:.2g} at "
            "most. Nothing was written; choose another --format"
        )
    return ExportedFile(path.name, path.stat().st_size, difference, config["loads"][path.name])


def _publish(draft: Path, folder: Path) -> None:
    """Move what was written to its folder, in place of an earlier export; configuration last."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    for name in (*FORMATS.values(), INT8, CODE, CARD, RECIPE):
        (folder / name).unlink(missing_ok=True)
    for file in sorted(draft.iterdir(), key=lambda file: file.name == CONFIG):
        os.replace(file, folder / file.name)
