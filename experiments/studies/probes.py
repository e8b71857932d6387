"""k-NN and linear probes of finished networks of a store: teachers, students and backbones alike.

    python -m experiments.studies.probes STORE FINGERPRINT ... --path images --data 'name: table'
    python -m experiments.studies.probes --quick

Embeddings of the images' training split are known, those of its test split are asked; each network
sees them at its own size, in its own normalisation. `raykd show students` and `raykd show teachers`
list fingerprints.
"""

import tempfile
from pathlib import Path

import click
from torch import nn

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.config.shorthand import record
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import RaykdError
from raykd.core.record import fingerprint
from raykd.data.dataset import class_names, open_images, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data
from raykd.launch.executor import execute
from raykd.planning.plan import plan
from raykd.prediction.lookup import by_fingerprint
from raykd.recipes import AnyTeacher
from raykd.storage.store import Store
from raykd.tasks import Features, Probe
from raykd.tracking.console import Terminal
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.probing import ProbeSets, probed
from raykd.training.runs import default_device
from raykd.training.weights import load_teacher


@click.command()
@click.argument("root", required=False)
@click.argument("names", nargs=-1)
@click.option(
    "--path", help="Location of the labelled images; none for a data set with a download."
)
@click.option("--data", default="name: digits", show_default=True, help="`data` of a run, as YAML.")
@click.option("--quick", is_flag=True, help="Judge a teacher of seconds, made here.")
def main(
    root: str | None, names: tuple[str, ...], path: str | None, data: str, quick: bool
) -> None:
    """Print a line of Markdown for each network."""
    with tempfile.TemporaryDirectory() as folder:
        if quick:
            root, names = folder, (_small_teacher(Store(folder)),)
        if not (root and names):
            raise click.UsageError("name a store, and finished networks in it by fingerprint")
        _print(Store(root), names, path, data)


def _print(store: Store, names: tuple[str, ...], path: str | None, data: str) -> None:
    try:
        wanted: Data = record(Data, read_yaml(data, "--data"), "--data")
        images = read(store, wanted, path)
        print("| network | fingerprint | 20-NN % | linear % |\n|---|---|---:|---:|")
        for name in names:
            run = by_fingerprint(store, name)
            knn, linear = judged(store, run, images)
            print(f"| {run.model} | `{fingerprint(run)[:8]}` | {knn:.2f} | {linear:.2f} |")
    except RaykdError as error:
        raise click.ClickException(str(error)) from error


def _small_teacher(store: Store) -> str:
    """The fingerprint of a teacher of two epochs."""
    text = """
    run:
      model: resnet8
      data: {name: digits, limit: 320}
      teacher: {model: resnet8, optim: {epochs: 2}}
      method: kd
    """
    experiment = resolve(parse(text, "probes"), store)
    execute(experiment, store, Terminal(quiet=True), students=False)
    (teacher,) = plan(experiment.students()).teachers
    return fingerprint(teacher)


def judged(store: Store, run: AnyTeacher, images: Data) -> tuple[float, float]:
    """Top-1 accuracies in percent of the two probes of a finished network."""
    device, seen = default_device(), run.data.resolved()
    network = load_teacher(store, run, run.anchors()[-1], device).eval()
    shown = images.test().model_copy(update={"mean": seen.mean, "std": seen.std})
    train, test = (Views(part, shown, device=device) for part in open_images(store, images))
    with tempfile.TemporaryDirectory() as folder:
        host = LocalHost(Checkpoints(Path(folder)), device)
        probe = Probe(data=images)
        sets = ProbeSets(probe, train, test, class_names(store, images.resolved()))
        metrics = probed(Features(probe=probe), network, nn.ModuleDict(), sets, host)
    return metrics["knn_top1"], metrics["linear_top1"]


if __name__ == "__main__":
    main()
