"""Retrieval: does a student find images of a class among its own embeddings, or the teacher's?

    python experiments/retrieval.py                                 # digits, minutes on 2 cores
    python experiments/retrieval.py --path imagenette --side 64     # a folder of images per class
    python experiments/retrieval.py --path faces.parquet --column identity --onnx face.onnx
    python experiments/retrieval.py --path val.parquet --column label --each 60 \\
        --teacher timm/tf_efficientnet_lite0 --weights lite0.safetensors --teacher-side 224
    python experiments/retrieval.py --quick

The teacher is trained here with labels, or given; its students read none. Asymmetric ones put their
queries into the teacher's space, where it has embedded the gallery; symmetric ones find each other.
Each test image is a query, and the other test images are its gallery.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
from faces import pictures, published, streamed

import raykd
from raykd.cli.shared import speaking

METRICS = ("recall_at_1", "map", "map_at_r", "agreement_at_10")
ADAMW = {"name": "adamw", "lr": 0.002, "weight_decay": 0.05, "schedule": "cosine"}
SCORES = {"name": "embed_distill", "score_weight": 1.0}
STUDENTS: dict[str, tuple[str, Any]] = {  # gallery and method by the name of a line
    "embed_distill": ("teacher", "embed_distill"),
    "embed_distill, scores": ("teacher", SCORES),
    "mimic_embedding": ("teacher", "mimic_embedding"),
    "cosine": ("teacher", "feature_distillation"),
    "embed_distill, symmetric": ("student", "embed_distill"),
    "relational_kd, symmetric": ("student", "relational_kd"),
}


@click.command()
@click.option("--path", help="A folder of images per class, or Parquet; digits if not given.")
@click.option("--column", default="label", show_default=True, help="Parquet column of classes.")
@click.option("--each", default=1000, show_default=True, help="Pictures of a class, at most.")
@click.option("--side", default=64, show_default=True, help="Pixels of a side, of a folder's.")
@click.option("--model", default="resnet8", show_default=True)
@click.option("--teacher", default="resnet8x4", show_default=True)
@click.option("--onnx", help="A face network that teaches, see faces.py.")
@click.option("--weights", help="A file of the teacher's; pixels have mean and deviation 0.5.")
@click.option("--teacher-side", default=224, show_default=True, help="Pixels it then sees.")
@click.option("--line", "lines", multiple=True, type=click.Choice([*STUDENTS]), help="Some alone.")
@click.option("--batch", default=64, show_default=True)
@click.option("--epochs", default=30, show_default=True)
@click.option("--adamw", is_flag=True, help="AdamW and a cosine instead of SGD and steps.")
@click.option("--seeds", default=3, show_default=True)
@click.option("--quick", is_flag=True, help="Digits, one seed, one epoch.")
@click.option("--store", default="raykd-store", envvar="RAYKD_STORE", show_default=True)
@speaking
def main(
    path: str | None,
    column: str,
    each: int,
    side: int,
    model: str,
    teacher: str,
    onnx: str | None,
    weights: str | None,
    teacher_side: int,
    lines: tuple[str, ...],
    batch: int,
    epochs: int,
    adamw: bool,
    seeds: int,
    quick: bool,
    store: str,
) -> None:
    """Train the students, and print how well images are found, mean and deviation over seeds."""
    path, epochs, seeds = (None, 1, 1) if quick else (path, epochs, seeds)
    images: dict[str, Any] = {"name": "digits", "holdout": 0.33, "augment": {"pad": 1}}
    if path is not None:
        images = {"name": "folder", "holdout": 0.33, "augment": {"flip": True}}
        images["stream"] = streamed(side)
    optim = {"epochs": epochs, "batch": batch} | (ADAMW if adamw else {})
    if onnx is not None:
        taught = published(onnx)
    elif weights is not None:
        seen = {"stream": streamed(teacher_side), "mean": [0.5] * 3, "std": [0.5] * 3}
        taught = raykd.Teacher(teacher, weights=weights, data={"name": "folder", **seen})
    else:
        taught = raykd.Teacher(teacher, optim=optim)
    with tempfile.TemporaryDirectory() as temporary:
        if path is not None and path.endswith(".parquet"):
            write_classes(pictures(Path(path), column), each, Path(temporary))
            path = temporary
        for number, name in enumerate(lines or STUDENTS):
            gallery, method = STUDENTS[name]
            student = raykd.Student(
                model,
                data=images,
                teacher=taught,
                task={"name": "retrieval", "gallery": gallery},
                method=method,
                optim=optim | {"evaluate_every": epochs},
                views="all" if path is not None else 4,
            )
            experiment = raykd.Experiment(
                student,
                grid={"run.seed": range(seeds)},
                data=path,
                scale={"workers": 0},
                name="retrieval",
            )
            finished = raykd.run(experiment, store)
            results = [result.result["last"] for result in finished]
            if not number:
                print_line("the teacher alone", [_of_teacher(results[0])])
            print_line(name, results)
            print("  fingerprints: " + " ".join(one.fingerprint for one in finished), flush=True)


def write_classes(classes: dict[str, list[bytes]], each: int, root: Path) -> None:
    """Write the first pictures of each class, spread over all of them, a folder for each."""
    for name, images in classes.items():
        (root / name).mkdir()
        for place, image in enumerate(images[:: max(1, len(images) // each)][:each]):
            (root / name / f"{place:04d}.png").write_bytes(image)


def _of_teacher(metrics: dict[str, Any]) -> dict[str, Any]:
    """The teacher's part of the metrics of a student."""
    return {name: metrics.get(f"teacher_{name}", 100.0) for name in METRICS}


def print_line(name: str, results: list[dict[str, Any]]) -> None:
    """Print the metrics of a group, mean and sample deviation."""
    cells: list[str] = []
    for metric in METRICS:
        numbers = [result[metric] for result in results]
        deviation = f" +- {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
        cells.append(f"{metric} {statistics.mean(numbers):.1f}{deviation}")
    print(f"{name:26} " + "  ".join(cells) + f"  (n = {len(results)})", flush=True)


if __name__ == "__main__":
    main()
