"""The command that answers about images: predict."""

import csv
import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from raykd.cli.output import echo
from raykd.cli.shared import PLUGIN, STORE, print_rows, speaking
from raykd.core.errors import ConfigError
from raykd.core.safe_names import text

if TYPE_CHECKING:  # torch takes seconds to import, and `raykd --help` none
    from raykd.prediction import Prediction, Predictor


@click.command()
@click.argument("student", metavar="STUDENT|FOLDER|EXPERIMENT")
@click.argument("paths", nargs=-1, required=True)
@STORE
@PLUGIN
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Classes shown.")
@click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."
)
@click.option("--skip-bad", is_flag=True, help="Go on after images that cannot be decoded.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image.")
@click.option("--csv", "as_csv", is_flag=True, help="Print a table with commas.")
@speaking
def predict(
    student: str,
    paths: tuple[str, ...],
    store: str,
    top: int,
    batch: int,
    skip_bad: bool,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Classify images with a finished student or teacher.

    STUDENT is a fingerprint, or the beginning of one, as `raykd show students` and `raykd show
    teachers` list them. A FOLDER is one that `raykd export` wrote; an EXPERIMENT stands for its
    student where exactly one is finished. PATHS are images, folders, whose images are taken with
    those of their folders, and patterns such as 'photos/*.jpg'.

    Images are made ready as test images are. Scores are probabilities, 0 to 1; a student without
    a classifier answers with its embedding.

    \b
    --json  {"path": ..., "labels": [...], "scores": [...]}, the most probable class first,
            {"path": ..., "embedding": [...]}, or {"path": ..., "fault": why there is no answer}
    --csv   path, label_1, score_1, label_2, ..., fault; or path, embedding (its numbers with
            blanks between them), fault
    """
    if as_json and as_csv:
        raise ConfigError("--json --csv: choose one of them")
    from raykd.api import networks
    from raykd.prediction.image_paths import image_paths
    from raykd.tracking.console import Terminal
    from raykd.training.runs import default_device

    pictures = image_paths(paths)
    predictor = networks.predictor(student, store).to(default_device())
    terminal, faults = Terminal(), 0

    def answers() -> "Iterable[Prediction]":
        nonlocal faults
        task = terminal.task("predict", len(pictures), "image")
        stream = predictor.stream(pictures, batch, top, skip_bad=skip_bad)
        for number, prediction in enumerate(stream, start=1):
            if prediction.fault is not None:
                faults += 1
                terminal.say(prediction.fault)
            task.update(number)
            yield prediction

    with terminal.showing():
        if as_json:
            for prediction in answers():
                click.echo(json.dumps(_plain(prediction)))
        elif as_csv:
            _write_csv(predictor, answers(), top)
        else:
            rows = [_row(prediction) for prediction in answers()]
    if not (as_json or as_csv):
        print_rows(rows)
    if faults:
        echo(f"{faults} of {len(pictures)} images cannot be decoded", err=True)


def _plain(prediction: "Prediction") -> dict[str, Any]:
    """The keys of a prediction that say something, for JSON."""
    if prediction.fault is not None:
        return {"path": prediction.path, "fault": prediction.fault}
    if prediction.embedding is not None:
        return {"path": prediction.path, "embedding": prediction.embedding}
    return {"path": prediction.path, "labels": prediction.labels, "scores": prediction.scores}


def _row(prediction: "Prediction") -> dict[str, Any]:
    """The row of a prediction in a table."""
    row: dict[str, Any] = {"path": prediction.path}
    if prediction.embedding is not None:
        length = sum(value * value for value in prediction.embedding) ** 0.5
        return row | {"numbers": len(prediction.embedding), "length": f"{length:.4g}"}
    shares = [f"{100 * score:.1f} %" for score in prediction.scores]
    others = zip(prediction.labels[1:], shares[1:], strict=True)
    if not shares:
        return row | {"class": "-", "score": "", "others": ""}
    return row | {
        "class": prediction.label,
        "score": shares[0],
        "others": ", ".join(f"{label} {share}" for label, share in others),
    }


def _write_csv(predictor: "Predictor", answers: "Iterable[Prediction]", top: int) -> None:
    """Print predictions as a table with commas, as they come."""
    classes = min(top, len(predictor.classes or range(top)))
    columns = [f"{kind}_{place + 1}" for place in range(classes) for kind in ("label", "score")]
    if predictor.is_backbone:
        columns = ["embedding"]
    lines = csv.writer(sys.stdout, lineterminator="\n")
    lines.writerow(["path", *columns, "fault"])
    for prediction in answers:
        cells: list[Any] = [""] * len(columns)
        if prediction.embedding is not None:
            cells = [" ".join(map(str, prediction.embedding))]
        for place, pair in enumerate(zip(prediction.labels, prediction.scores, strict=True)):
            cells[2 * place : 2 * place + 2] = pair
        lines.writerow([text(prediction.path), *cells, prediction.fault or ""])
