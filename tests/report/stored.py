"""What training leaves in a store, made up."""

import json

from raykd.engine.journal import METRICS, RESULT
from raykd.plan import plan
from raykd.store import write_json

EPOCHS = 4
DATA = "{name: digits, digest: 0123456789abcdef0123, classes: 10, size: [8, 8]}"
TEXT = f"""
run:
  model: resnet8
  data: {DATA}
  teacher: {{model: resnet8x4}}
  optim: {{epochs: {EPOCHS}, batch: 50}}
grid:
  run.method: [label_only, kd, {{name: skd, temperature: 2.0}}, {{name: skd, temperature: 4.0}}]
  run.seed: [0, 1, 2]
"""
TOP1 = {  # after the last epoch, by method and seed
    "label_only": (90.0, 91.0, 92.5),
    "kd": (92.0, 92.5, 95.0),
    "spherical_kd": (91.0, 90.0, 93.0),
}


def put(store, run, top1, *, epochs=EPOCHS, finish=True, **more):
    """Write what training a run leaves in the store; its best epoch is the last but one.

    Each line has what is in `more`, a function being called with the epoch.
    """
    folder = store.path(run)
    folder.mkdir(parents=True)
    lines = [
        {"epoch": epoch, "top1": 10.0 + epoch, "loss": 2.0 - epoch / 4, "seconds": 2.0}
        for epoch in range(epochs)
    ]
    lines[-1]["top1"] = top1
    if epochs > 1:
        lines[-2]["top1"] = top1 + 0.5
    for line in lines:
        line |= {key: it(line["epoch"]) if callable(it) else it for key, it in more.items()}
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finish:
        result = {
            "model": run.model,
            "parameters": 78_042 if run.model == "resnet8" else 1_209_642,
            "epochs": epochs,
            "last": lines[-1],
            "best": max(lines, key=lambda line: line["top1"]),
            "images_per_second": 1000.0 + run.seed,
            "seconds": 8.0 + run.seed,
            "workers": 1,
            "hardware": "a <fast> processor",
        }
        write_json(folder / RESULT, result)
        store.finish(run)


def finished(store, experiment):
    """Finish every run of an experiment, with the accuracies of `TOP1`."""
    work = plan(experiment.runs)
    for teacher in work.teachers:
        put(store, teacher, 97.0)
    for run in work.students:
        put(store, run, TOP1[run.method.name][run.seed], agreement=80.0 + run.seed, kl=0.25)
