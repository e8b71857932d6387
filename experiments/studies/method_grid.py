"""Methods x architectures x seeds, as the field's tables have them.

    python -m experiments.studies.method_grid                            # digits, on CPUs
    python -m experiments.studies.method_grid --data cifar100 --seeds 5  # CRD's recipe
    ray job submit --working-dir . -- \
        python -m experiments.studies.method_grid --store /shared/raykd

A column is a pair of teacher and student, a line a method: top-1 after the last epoch, mean and
sample standard deviation over the seeds. Each pair is a sweep of Ray Tune over one teacher, whose
methods have the values of `recipes/reference_values.py` for the pair; on digits, their defaults.
"""

from typing import Any

import click

import raykd
from experiments.recipes import reference_values as reference
from raykd.api.work import swept_results
from raykd.cli.shared import STORE, speaking
from raykd.config.scale import Scale
from raykd.launch.cluster import connected
from raykd.launch.sweep.driver import raise_failures
from raykd.report import Report
from raykd.report.types import Group
from raykd.storage.store import Store
from raykd.tracking.console import Terminal

DIGITS = {
    "data": {"name": "digits", "holdout": 0.33, "limit": 100, "augment": {"pad": 1}},
    "optim": {"epochs": 100, "batch": 50},
    "views": 9,
}
DIGITS_TEACHER = {
    "data": {"name": "digits", "holdout": 0.33, "augment": {"pad": 1}},
    "optim": {"epochs": 16},
}
# Tian et al. 2020, arXiv 1910.09699, section 4: the recipe that the benchmark's tables share.
CIFAR = {
    "data": {"augment": {"pad": 4, "flip": True}},
    "optim": {"epochs": 240, "batch": 64, "milestones": [150, 180, 210]},
}
PAIRS = {
    "digits": ("resnet8x4:resnet8", "resnet8x4:resnet14", "wrn_16_1:resnet8"),
    "cifar10": ("resnet56:resnet20", "wrn_40_2:wrn_16_2"),
    "cifar100": (
        "wrn_40_2:wrn_16_2",
        "resnet56:resnet20",
        "resnet110:resnet32",
        "resnet32x4:resnet8x4",
        "vgg13:vgg8",
    ),
}
METHODS = ("label_only", "kd", "spherical_kd", "dkd", "dist", "relational_kd", "at", "crd")
WITH_KD = ("crd",)  # methods that the benchmark also combines with KD


@click.command()
@click.option("--data", type=click.Choice(list(PAIRS)), default="digits", show_default=True)
@click.option("--path", help="Where the images are; the data set's own download if not given.")
@click.option("--pairs", help="teacher:student, with commas between.")
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override, as in `raykd run`."
)
@click.option("--quick", is_flag=True, help="One pair of networks, two methods, few epochs.")
@STORE
@speaking
def main(
    data: str,
    path: str | None,
    pairs: str | None,
    methods: str,
    seeds: int,
    overrides: tuple[str, ...],
    quick: bool,
    store: str,
) -> None:
    """Sweep over methods for each pair, and print the field's table."""
    if quick:
        pairs, methods, seeds = pairs or PAIRS[data][0], "label_only,kd", 1
        overrides = ("run.optim.epochs=2", "run.teacher.optim.epochs=2", *overrides)
    terminal, artefacts = Terminal(), Store(store)
    chosen = pairs.split(",") if pairs else PAIRS[data]
    columns: dict[str, Report] = {}
    swept = []
    with connected(Scale(), terminal.say):
        for pair in chosen:
            experiment = planned(data, path, pair, methods.split(","), seeds, overrides)
            done, outcome = swept_results(experiment, artefacts)
            swept.append(outcome)
            columns[pair] = done.report
    text = table(columns)
    artefacts.write(artefacts.root / "reports" / f"method_grid-{data}.md", f"{text}\n".encode())
    click.echo(text)
    for one in swept:
        raise_failures(one)


def planned(
    data: str,
    path: str | None,
    pair: str,
    methods: list[str],
    seeds: int,
    overrides: tuple[str, ...],
) -> raykd.Experiment:
    """The sweep of one pair."""
    teacher, _, student = pair.partition(":")
    basis, teacher_basis = (DIGITS, DIGITS_TEACHER) if data == "digits" else (CIFAR, {})
    run = {**basis, "model": student, "teacher": {**teacher_basis, "model": teacher}}
    run["data"] = {"name": data, **basis["data"]}
    if data != "digits":
        run["teacher"]["optim"] = basis["optim"]
    values = {name: _values(data, name, (teacher, student)) for name in {*methods, "kd"}}
    kd = {**values["kd"], "weight": 1.0}  # the benchmark's "X + KD"
    with_kd = [{"combine": [values[name], kd]} for name in WITH_KD if name in methods]
    listed = [*(values[name] for name in methods), *with_kd]
    return raykd.Experiment(
        run,
        grid={"run.method": listed, "run.seed": range(seeds)},
        scale={"workers": 1},
        data={"path": path},
        name=f"method_grid-{teacher}-{student}",
        overrides=overrides,
    )


def _values(data: str, name: str, pair: tuple[str, str]) -> dict[str, Any]:
    """Fields of a method: the sources' values; on the digits, the defaults."""
    return {"name": name} if data == "digits" else reference.method(data, name, pair)


def table(columns: dict[str, Report]) -> str:
    """The table in Markdown: teachers, then methods, each with its accuracy for every pair."""
    names = dict.fromkeys(group.label for one in columns.values() for group in one.students)
    lines = [["method", *columns], ["---", *("---:" for _ in columns)]]
    lines.append(["teacher", *(accuracy(one.teachers[0]) for one in columns.values())])
    for name in names:
        groups_of = ([g for g in one.students if g.label == name] for one in columns.values())
        lines.append([name, *(accuracy(groups[0]) if groups else "" for groups in groups_of)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def accuracy(group: Group) -> str:
    """Mean, standard deviation and number of seeds of a group's top-1."""
    if group.score is None:
        return "-"
    std = "" if group.score.std is None else f" +- {group.score.std:.2f}"
    return f"{group.score.mean:.2f}{std} (n = {group.score.n})"


if __name__ == "__main__":
    main()
