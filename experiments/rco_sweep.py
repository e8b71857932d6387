"""Route constrained optimisation: how many anchors, chosen how, in how many stages.

    python experiments/rco_sweep.py --tiny                   # digits, some minutes on 2 cores
    python experiments/rco_sweep.py --data cifar100          # for GPUs
    ray job submit --working-dir . -- python experiments/rco_sweep.py --store /shared/raykd

Anchors {1, 2, 4, 8} x {equal, greedy} x {one_stage, multi_stage} x networks x seeds, as one sweep
of Ray Tune. One anchor is plain KD, with which all others are compared, seed by seed. Everything
lies in the store, the page with the searches' decisions too, and the same command goes on where it
was.
"""

from typing import Any

import click

import raykd
from raykd.cli.shared import STORE, speaking

# Per data set: the images, teacher and its epochs, students, the schedule of a stage.
DIGITS: dict[str, Any] = {
    "data": raykd.Data("digits", holdout=0.33, validation=0.2, limit=100, augment={"pad": 1}),
    "teacher": raykd.Teacher(
        "resnet8x4",
        data=raykd.Data("digits", holdout=0.33, validation=0.2, augment={"pad": 1}),
        optim={"epochs": 16},
        save_every=2,
    ),
    "optim": {"epochs": 24, "batch": 50},
    "views": 9,
}


def cifar(name: str) -> dict[str, Any]:
    """The CRD benchmark's schedule. That each stage has all of it, 240 epochs, is decided here."""
    schedule = {"lr": 0.05, "weight_decay": 5e-4, "milestones": [150, 180, 210]}
    return {
        "data": raykd.Data(name, validation=0.2, augment={"pad": 4, "flip": True}),
        "teacher": raykd.Teacher("resnet56", optim={"epochs": 240}, save_every=10),
        "optim": {"epochs": 240, "batch": 64, **schedule},
    }


STUDENTS = {"digits": ("resnet8", "resnet14"), "cifar10": ("resnet20",), "cifar100": ("resnet20",)}
TINY = ("run.teacher.optim.epochs=8", "run.teacher.save_every=1")


@click.command()
@click.option("--data", type=click.Choice(list(STUDENTS)), default="digits", show_default=True)
@click.option("--path", help="Where the images are; the data set's own download if not given.")
@click.option("--students", help="Networks, with commas between.")
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--threshold", default=1.6, show_default=True, help="Threshold of the relative hardness."
)
@click.option("--tiny", is_flag=True, help="One network, one seed, a few epochs.")
@click.option("--quick", is_flag=True, help="As --tiny, with two routes, in seconds.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `raykd run`."
)
@STORE
@speaking  # errors as one message and a status, an orderly end at SIGTERM
def main(
    data: str,
    path: str | None,
    students: str | None,
    seeds: int,
    threshold: float,
    tiny: bool,
    quick: bool,
    overrides: tuple[str, ...],
    store: str,
) -> None:
    """Sweep over routes, and write a page."""
    networks = students.split(",") if students else [*STUDENTS[data]]
    if quick:
        routes = ("grid.run.rco.anchors=[2]", "grid.run.rco.stages=[one_stage]")
        tiny, overrides = True, (*routes, *overrides)
    if tiny:
        networks, seeds = networks[:1], 1
        overrides = (*(TINY if data == "digits" else ()), *overrides)
    experiment = planned(data, path, networks, seeds, threshold, overrides)
    print(raykd.sweep(experiment, store).table)


def planned(
    data: str,
    path: str | None,
    networks: list[str],
    seeds: int,
    threshold: float,
    overrides: tuple[str, ...],
) -> raykd.Experiment:
    """The sweep of these choices."""
    recipe = DIGITS if data == "digits" else cifar(data)
    student = raykd.Student(networks[0], method="kd", rco={"threshold": threshold}, **recipe)
    grid = {
        "run.rco.anchors": [1, 2, 4, 8],
        "run.rco.select": ["equal", "greedy"],
        "run.rco.stages": ["one_stage", "multi_stage"],
        "run.model": networks,
        "run.seed": range(seeds),
    }
    return raykd.Experiment(
        student,
        grid=grid,
        data=path,
        scale={"workers": 1},
        name=f"rco_sweep-{data}",
        overrides=overrides,
    )


if __name__ == "__main__":
    main()
