"""Faces: a small student learns from a face teacher, and tells people apart whom neither has seen.

    python experiments/faces.py --people faces.parquet    # or a folder for each person
    python experiments/faces.py --people faces.parquet --onnx face.onnx
    python experiments/faces.py --quick                    # patterns in place of faces

`--people` is a folder with one folder of pictures for each person, or a Parquet file with the
columns `image` (bytes) and `identity`. Half of the people train, the others judge: pairs of
pictures of one person and of two, in folds of different people. The teacher is trained here with
ArcFace; its students learn with ArcFace alone, by mimicry of its embeddings, by their direction,
by AdaDistill, by margins that the teacher sets, by ranks of pairs, and by mimicry along a route of
the teacher's checkpoints, all for as many epochs.
With `--onnx` a published face network teaches in its place, at its own 112 pixels and with pixels
of (x - 127.5) / 128; students along the route still have the teacher that is trained here, and a
method that its width does not suit is left out. So few people tell methods apart only where they
differ by much.
"""

import io
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as parquet
import torch
from PIL import Image, ImageOps

import raykd
from raykd.cli.shared import speaking
from raykd.data.recipe import Data
from raykd.tasks import Faces, FaceSet
from raykd.tasks.base import Embedded

METRICS = ("verification", "tar_at_0.01", "rank_1")
MIMIC = {"name": "mimic_embedding", "normalise": True}


PUBLISHED_SIDE = 112  # pixels that a published face network sees
ALONE = "arcface alone"
ROUTE = "mimic, no labels, rco"


def students(epochs: int, batch: int) -> dict[str, dict[str, Any]]:
    """Keys of `run` by the name of a line; the stages of a route have all epochs together."""
    anchors = 4 if epochs >= 8 else 2
    whole = {"optim": {"epochs": epochs, "batch": batch}}
    part = {
        "optim": {"epochs": max(1, epochs // anchors), "batch": batch},
        "rco": {"anchors": anchors},
    }
    return {
        ALONE: whole | {"method": "label_only"},
        "mimic + arcface": whole | {"method": MIMIC},
        "mimic, no labels": whole | {"method": MIMIC, "label_weight": 0.0},
        "angular + arcface": whole | {"method": "angular"},
        "ada_distill": whole | {"method": {"name": "ada_distill", "scale": 30.0}},
        "margin_distillation": whole | {"method": {"name": "margin_distillation", "scale": 30.0}},
        "ekd + arcface": whole | {"method": "ekd"},
        ROUTE: part | {"method": MIMIC, "label_weight": 0.0},
    }


@click.command()
@click.option("--people", type=click.Path(exists=True, path_type=Path), help="Folder or Parquet.")
@click.option("--epochs", default=60, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--side", default=32, show_default=True, help="Pixels of a picture's side.")
@click.option("--model", default="resnet8", show_default=True)
@click.option("--teacher", default="resnet20", show_default=True)
@click.option("--folds", default=10, show_default=True, help="Parts of the people who judge.")
@click.option("--onnx", type=click.Path(exists=True), help="A face network that teaches.")
@click.option("--quick", is_flag=True, help="Patterns, one seed, two epochs.")
@click.option("--store", default="raykd-store", envvar="RAYKD_STORE", show_default=True)
@speaking
def main(
    people: Path | None,
    epochs: int,
    batch: int,
    seeds: int,
    side: int,
    model: str,
    teacher: str,
    folds: int,
    onnx: str | None,
    quick: bool,
    store: str,
) -> None:
    """Train the students, and print what tells people apart, mean and deviation over seeds."""
    if quick:
        epochs, seeds, batch, folds = 2, 1, 16, 3
    elif people is None:
        raise raykd.ConfigError("--people: expected a folder or a Parquet file of faces")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        write_people(patterns() if people is None else pictures(people), root)
        shown = {"resize": side} if onnx is None else {"stream": streamed(side)}
        probe = {"data": {"name": "folder", **shown}, "folds": folds, "pairs": 90}
        task = {"name": "faces", "scale": 30.0, "probe": probe}
        augment = {"flip": True} | ({"pad": 2} if onnx is None else {})
        images = {"name": "folder", "augment": augment, **shown}
        trained = raykd.Teacher(
            teacher,
            task=task,
            optim={"epochs": epochs, "batch": batch},
            save_every=max(1, epochs // 8),
        )
        taught = trained if onnx is None else published(onnx)
        if onnx is not None:
            print_published(onnx, pictures(root / "others"), folds)
        for name, fields in students(epochs, batch).items():
            own = trained if name == ROUTE else taught
            student = raykd.Student(model, data=images, teacher=own, task=task, **fields)
            try:
                experiment = raykd.Experiment(
                    student,
                    grid={"run.seed": range(seeds)},
                    data={"path": str(root / "train"), "probe": str(root / "others")},
                    scale={"workers": 0},
                    name="faces",
                )
                results = raykd.run(experiment, store)
            except raykd.ConfigError as error:
                if name == ALONE:  # what is wrong with it is wrong with all
                    raise
                print(f"{name:24} left out: {error}", flush=True)
                continue
            print_line(name, results)


def streamed(side: int) -> dict[str, int]:
    """The picture's centre, as large as can be, at this many pixels a side."""
    return {"size": side, "resize": side}


def published(path: str) -> raykd.Teacher:
    """The teacher that an ONNX graph of a face network is."""
    from onnx_network import ends, onnx_network

    network = onnx_network(path)
    colours = {"mean": [0.5] * 3, "std": [128 / 255] * 3}
    data = {"name": "folder", "stream": streamed(PUBLISHED_SIDE), **colours}
    return raykd.Teacher(network, stages=ends(network), data=data)


def print_published(path: str, people: dict[str, list[bytes]], folds: int) -> None:
    """Print how a published face network tells people apart; folds may have other pairs of them."""
    from onnx_network import onnx_network

    network, square = onnx_network(path).eval(), (PUBLISHED_SIDE, PUBLISHED_SIDE)
    faces: list[torch.Tensor] = []
    with torch.no_grad():
        for images in people.values():
            fitted = [
                np.asarray(ImageOps.fit(Image.open(io.BytesIO(x)).convert("RGB"), square))
                for x in images
            ]
            pixels = torch.from_numpy(np.stack(fitted)).permute(0, 3, 1, 2)
            pixels = (pixels.float() - 127.5) / 128
            faces.append(network(pixels) + network(pixels.flip(3)))
    labels = torch.arange(len(faces)).repeat_interleave(torch.tensor([len(x) for x in faces]))
    task = Faces(probe=FaceSet(data=Data(name="folder"), folds=folds, pairs=90))
    rows, none = torch.cat(faces), slice(0, 0)
    parts = Embedded(labels, rows), Embedded(labels[none], rows[none])
    try:
        worth = task.judged(*parts, [*people])
    except ValueError as error:
        raise raykd.ConfigError(f"--people, half of whom judge: {error}") from error
    cells = [f"{metric} {worth[metric]:.1f}" for metric in METRICS if metric in worth]
    print(f"{'the published teacher':24} " + "  ".join(cells), flush=True)


def print_line(name: str, results: Any) -> None:
    """Print the metrics of a group of students, mean and sample deviation."""
    values: dict[str, list[float]] = defaultdict(list)
    for result in results:
        for metric in METRICS:
            values[metric].append(result.result["last"][metric])
    cells = [f"{metric} {as_text(numbers)}" for metric, numbers in values.items()]
    print(f"{name:24} " + "  ".join(cells), flush=True)
    print("  fingerprints: " + " ".join(result.fingerprint for result in results), flush=True)


def as_text(numbers: list[float]) -> str:
    """Mean, sample deviation and number of some percentages."""
    deviation = f" +- {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):.1f}{deviation} (n = {len(numbers)})"


def pictures(source: Path, column: str = "identity") -> dict[str, list[bytes]]:
    """Encoded pictures of each person, in order, by a column of a Parquet file."""
    people: dict[str, list[bytes]] = defaultdict(list)
    if source.is_dir():
        for path in sorted(source.glob("*/*")):
            people[path.parent.name].append(path.read_bytes())
    else:
        for row in parquet.read_table(source).to_pylist():
            people[str(row[column])].append(row["image"]["bytes"])
    return people


def patterns(count: int = 12, each: int = 6) -> dict[str, list[bytes]]:
    """Pictures of 32 x 32 pixels in which each person is a pattern with some noise."""
    people: dict[str, list[bytes]] = {}
    for person in range(count):
        source = np.random.default_rng(person)
        pattern = np.kron(source.integers(60, 200, (4, 4, 3)), np.ones((8, 8, 1)))
        people[f"person{person:02d}"] = [
            encoded(pattern + source.normal(0, 12, pattern.shape)) for _ in range(each)
        ]
    return people


def encoded(pixels: np.ndarray) -> bytes:
    """Pixels [H, W, 3] from 0 to 255 as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_people(people: dict[str, list[bytes]], root: Path) -> None:
    """Write half of the people to `train`, the others to `others`, a folder for each."""
    for number, (name, images) in enumerate(sorted(people.items())):
        folder = root / ("others" if number % 2 else "train") / name
        folder.mkdir(parents=True)
        for place, image in enumerate(images):
            (folder / f"{place:04d}.png").write_bytes(image)


if __name__ == "__main__":
    main()
