"""Spherical knowledge distillation on ImageNet, and other methods, resnet34 to resnet18.

    python experiments/imagenet_skd.py --tiny          # synthetic pictures; 2 minutes on 2 cores
    python experiments/imagenet_skd.py --data /data/imagenet --dry-run
    python experiments/imagenet_skd.py --data s3://bucket/imagenet --workers 8 --decoders 11
    ray job submit --working-dir . -- python experiments/imagenet_skd.py --data /nfs/imagenet \\
        --store /nfs/raykd --workers 8

Guo et al. 2020, arXiv 2010.07485, as the official script has it: 100 epochs, SGD with weight decay
1e-4, rates that fall at epochs 30, 60, 80 and 90, the weight alpha of the distillation 0.9, from
epoch 60 on 0.5, from 80 on 0.1. Areas of 0.1 to 1 and aspect ratios of 0.8 to 1.25, resized to 224.
Temperature 4 and the radius 2 are the README's; its rate is 0.1 in the script and 0.01 in the
README, of which the first is taken here. The teacher's weights are torchvision's.

Another --method has the field's values for ImageNet, which `recipes/reference_values.py` lists with
their sources: kd at temperature 1 with weights of a half, dkd with beta 0.5, dist and nkd at
temperature 1, and so on; rates that fall at epochs 30, 60 and 90, areas of 0.08 to 1 and ratios of
3/4 to 4/3.
A method without a source for ImageNet has the values of CIFAR-100, and the script says so.

--data is a folder of class folders (`train` and `val` in it), a pack (`raykd pack`), or a folder of
tar shards (--kind webdataset); a path or a URL. Everything that is made lies in the store, and the
same command goes on where it was.
"""

from pathlib import Path
from typing import Any, Literal

import click
import numpy as np
from PIL import Image
from recipes import reference_values as reference

import raykd
from raykd.cli.shared import STORE, speaking

EPOCHS = reference.IMAGENET_RECIPE["optim"]["epochs"]
# Where no published weights can be had: a teacher that is trained with the labels, small pictures.
TINY = (
    "run.data.stream={size: 48, resize: 56}",
    "run.teacher.weights=null",
    "run.teacher.optim={epochs: 2, batch: 16, lr: 0.01}",
    "run.teacher.save_every=2",
    "run.teacher.refresh_statistics=true",
    "run.optim.lr=0.02",
)


@click.command()
@click.option("--data", help="Folder or URL of the images.")
@click.option(
    "--kind", type=click.Choice(["folder", "table", "webdataset"]), default="folder",
    show_default=True, help="Format of --data.",
)  # fmt: skip
@click.option("--student", default="torchvision/resnet18", show_default=True)
@click.option("--teacher", default="torchvision/resnet34", show_default=True)
@click.option("--weights", default="IMAGENET1K_V1", show_default=True, help="Name or file.")
@click.option("--method", default="skd", show_default=True, help="Or label_only, kd, ...")
@click.option("--epochs", default=EPOCHS, show_default=True)
@click.option("--batch", default=256, show_default=True, help="Global batch size.")
@click.option(
    "--views", default="all", show_default=True, help="Cached views; epochs cycle through them."
)
@click.option(
    "--codec", default="dense", show_default=True, help="dense, int8 or topk; topk:50 keeps 50."
)
@click.option("--seeds", default=1, show_default=True)
@click.option("--workers", default=1, show_default=True, help="For one student; 0: without Ray.")
@click.option("--decoders", type=int, help="Processes that decode for each worker.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="bfloat16")
@click.option("--tiny", is_flag=True, help="A few small synthetic pictures, with all of the code.")
@click.option("--dry-run", is_flag=True, help="Print the plan, with bytes and time, and stop.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `raykd run`."
)
@STORE
@speaking  # errors as one message and a status, an orderly end at SIGTERM
def main(
    data: str | None,
    tiny: bool,
    dry_run: bool,
    store: str,
    overrides: tuple[str, ...],
    **choices: Any,
) -> None:
    """Precompute the teacher's answers, distil the student, and write a page."""
    if tiny:
        data = str(made_pictures(Path("." if "://" in store else store) / "tiny-pictures"))
        choices |= {"kind": "folder", "precision": "float32", "epochs": 4, "batch": 16}
        choices["views"] = "2" if choices["views"] == "all" else choices["views"]
        overrides = (*TINY, *overrides)
    if data is None:
        raise click.UsageError("--data: say where the images are, or try --tiny")
    method = choices["method"]
    if reference.is_known(method) and not reference.has_source("imagenet", method):
        click.echo(
            f"{method}: no source has values for ImageNet; it has those of CIFAR-100", err=True
        )
    experiment = planned(data, overrides=overrides, **choices)
    if dry_run:
        print(raykd.plan(experiment, store))
    else:
        print(raykd.run(experiment, store).table)


def planned(
    data: str,
    *,
    kind: str = "folder",
    student: str = "torchvision/resnet18",
    teacher: str = "torchvision/resnet34",
    weights: str = "IMAGENET1K_V1",
    method: str = "skd",
    epochs: int = EPOCHS,
    batch: int = 256,
    views: str = "all",
    codec: str = "dense",
    seeds: int = 1,
    workers: int = 1,
    decoders: int | None = None,
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    overrides: tuple[str, ...] = (),
) -> raykd.Experiment:
    """The experiment of these choices; also for use from Python."""
    chosen: Any = method
    labels, recipe = None, reference.IMAGENET_RECIPE
    if reference.is_known(method):
        pair = teacher.partition("/")[2], student.partition("/")[2]
        source = "imagenet" if reference.has_source("imagenet", method) else "cifar100"
        fields = reference.method(source, method, pair)
        chosen = {key: _shortened(value, epochs) for key, value in fields.items()}
        labels = _shortened(reference.label_weight(source, method, pair), epochs)
        changes = reference.changes("imagenet", method)
        optim = recipe["optim"] | changes.get("optim", {})
        recipe = recipe | changes | {"optim": optim}
    optim = recipe["optim"]
    milestones = {round(epoch * epochs / EPOCHS) for epoch in optim["milestones"]}
    name, _, kept = codec.partition(":")
    taught: dict[str, Any] = {}
    count: Any = int(views) if views.isdecimal() else views  # another word is refused by Student
    if method != "label_only":
        taught["teacher"] = raykd.Teacher(teacher, weights=weights)
        taught["codec"] = {"name": name, **({"k": int(kept)} if kept else {})}
    distilled = raykd.Student(
        student,
        data=raykd.Data(
            kind,
            stream={"size": 224, "resize": 256},
            augment={"crop": recipe["crop"], "flip": True},
        ),
        method=chosen,
        label_weight=labels,
        optim={
            "epochs": epochs,
            "batch": batch,
            "lr": optim["lr"],
            "weight_decay": optim["weight_decay"],
            "milestones": sorted(milestones - {0, epochs}),
        },
        views=count,
        precision=precision,
        teacher_precision=precision,
        **taught,
    )
    return raykd.Experiment(
        distilled,
        grid={"run.seed": range(seeds)},
        data=data,
        scale={"workers": workers, "decoders": decoders},
        name="imagenet_skd",
        overrides=[o for o in overrides if taught or not o.startswith("run.teacher")],
    )


def _shortened(value: Any, epochs: int) -> Any:
    """A schedule of the recipe, scaled to `epochs`; other values unchanged."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return [[round(start * epochs / EPOCHS), number] for start, number in value]
    return value


def made_pictures(folder: Path, classes: int = 8, each: int = 32) -> Path:
    """A few hundred JPEG files in class folders; stripes and colours differ by class."""
    for split, count in (("train", each), ("val", each // 4)):
        for label in range(classes):
            for number in range(count):
                path = folder / split / f"class{label}" / f"{number:04d}.jpg"
                if not path.is_file():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _picture(label, number + (each if split == "val" else 0)).save(path)
    return folder


def _picture(label: int, number: int) -> Image.Image:
    """One picture; its class is the direction and the width of its stripes, and its colour."""
    source = np.random.default_rng((label, number))
    height, width = source.integers(70, 130, 2)
    y, x = np.mgrid[0:height, 0:width]
    angle = np.pi * (label % 4) / 4 + source.normal(0, 0.1)
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) / (3 + 3 * (label // 4)))
    colour = np.eye(3)[label % 3] * 60 + source.normal(0, 20, 3)
    pixels = 120 + 60 * wave[..., None] + colour + source.normal(0, 25, (height, width, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


if __name__ == "__main__":
    main()
