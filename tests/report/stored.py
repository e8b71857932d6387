"""Invented artefacts of trainings in a store."""

import itertools
import json

from raykd.core.record import fingerprint
from raykd.planning.plan import plan
from raykd.storage.store import write_json
from raykd.tracking.jsonl import METRICS
from raykd.training.checkpointing import RESULT
from raykd.training.route_results import Decision, is_complete, route_found, write_decisions

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
ROUTES = f"""
run:
  model: resnet8
  data: {{name: digits, digest: 0123456789abcdef0123, classes: 10, size: [8, 8], validation: 0.2}}
  teacher: {{model: resnet8x4, optim: {{epochs: 8}}, save_every: 2}}
  optim: {{epochs: {EPOCHS}, batch: 50}}
  method: kd
  rco: {{select: greedy, anchors: null, threshold: 1.6}}
grid:
  run.rco.select: [greedy, equal]
  run.rco.stages: [multi_stage, one_stage]
  run.seed: [0, 1]
"""  # the teacher's checkpoints are 2, 4, 6 and 8


def put(store, run, top1, *, epochs=EPOCHS, finish=True, without=(), **more):
    """Write what training a run leaves in the store; its best epoch is the last but one.

    Each line has what is in `more`, a function being called with the epoch, and nothing `without`.
    """
    folder = store.path(run)
    folder.mkdir(parents=True)
    lines = [
        {"epoch": epoch, "top1": min(10.0 + epoch, 99.0), "loss": 2.0 - epoch / 4, "seconds": 2.0}
        for epoch in range(epochs)
    ]
    lines[-1]["top1"] = top1
    if epochs > 1:
        lines[-2]["top1"] = min(top1 + 0.5, 100.0)
    for line in lines:
        line |= {key: it(line["epoch"]) if callable(it) else it for key, it in more.items()}
    best = max(lines, key=lambda line: line["top1"])
    for line, key in itertools.product(lines, without):
        del line[key]
    (folder / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    if finish:
        result = {
            "model": run.model,
            "parameters": 78_042 if run.model == "resnet8" else 1_209_642,
            "flops": 1_600_000 if run.model == "resnet8" else 22_000_000,
            "latency_ms": 0.25 + run.seed / 8 if run.model == "resnet8" else 0.75,
            "epochs": epochs,
            "last": lines[-1],
            "best": best,
            "images_per_second": 1000.0 + run.seed,
            "seconds": 8.0 + run.seed,
            "workers": 1,
            "hardware": "a <fast> processor (2 cores)",
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


def decide(store, search, *anchors, ratio=1.25):
    """Write that a search went along some anchors, `ratio` apart; finish it at the last one."""
    decisions = []
    for number, (anchor, following) in enumerate(itertools.pairwise(anchors), 1):
        later = [other for other in search.candidates() if other > anchor]
        ratios = {anchor: 1.0} | {other: ratio * (other / following) ** 4 for other in later}
        student = fingerprint(search.stage(anchors[:number]))
        distances = {other: min(r, 8.0) / 8 for other, r in ratios.items()}
        decisions.append(Decision(anchor, student, distances, ratios, following))
    write_decisions(store, search, decisions)
    if is_complete(search, decisions):
        store.finish(search)


def routed(store, experiment):
    """Finish an experiment of `ROUTES`, whose searches go by 2, 6, 8 with seed 0, else by 2, 8."""
    for search in experiment.searches():
        anchors = (2, 6, 8) if search.student.seed == 0 else (2, 8)
        decide(store, search, *anchors)
        for number in range(1, len(anchors)):
            put_once(store, search.stage(anchors[:number]), 80.0)
    work = plan(route_found(store, run) for run in experiment.runs)
    for run in (*work.teachers, *work.students):
        put_once(store, run, 90.0 + run.seed, validation_top1=70.0)


def put_once(store, run, *values, **more):
    """Write the artefact of a run, unless it exists."""
    if not store.has(run):
        put(store, run, *values, **more)
