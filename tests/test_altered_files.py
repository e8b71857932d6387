"""Any content of any file of a store ends in a sentence and status 5, or is not believed."""

import json
import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.storage.store import Store
from raykd.training.sweep_sheets import Sheet, sweep_name, write_sheet
from tests.tiers import sampled

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, validation: 0.2, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2, batch: 32}, save_every: 1}
  optim: {epochs: 1, batch: 32}
grid:
  run.method: [label_only, kd, {name: ft, paraphraser_epochs: 1}]
"""
SEARCH = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, validation: 0.2, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2, batch: 32}, save_every: 1}
  optim: {epochs: 1, batch: 32}
  method: kd
  rco: {select: greedy}
"""
NUMBERS = ("score", "best", "validation", "agreement", "kl", "gain", "parameters")
SHOWN = ["teachers", "students", "preludes", "searches", "caches"]
KINDS = [*SHOWN, "images", "sweeps"]


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def resolved(file, store):
    return resolve(load(file, ()), store)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished store, its two experiments and what their reports say."""
    folder = tmp_path_factory.mktemp("made")
    files = [folder / "small.yaml", folder / "sought.yaml"]
    for file, text in zip(files, (EXPERIMENT, SEARCH), strict=True):
        file.write_text(text)
        done = call("run", file, "--store", folder / "store")
        assert done.exit_code == 0, done.output
    store = Store(folder / "store")
    experiment = resolved(files[0], store)
    sheet = Sheet("a_1", {"run.method": "kd"}, "x", "finished", experiment.runs[1], None, 1.0)
    write_sheet(store, sweep_name(experiment), sheet)
    told = [call("report", file, "--store", store.root, "--json").stdout for file in files]
    return store.root, files, [numbers(text) for text in told]


def numbers(text):
    """The numbers of a report's lines that are finished."""
    told = json.loads(text)
    return {
        (group["label"], run["fingerprint"]): {key: group[key] for key in NUMBERS}
        for group in (*told["teachers"], *told["students"])
        for run in group["runs"]
        if run["result"] is not None
    }


def contents(path: Path, other: Path) -> dict[str, bytes | None]:
    """Contents that may replace a file's; None: no file."""
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    found = {"empty": b"", "cut": data[: len(data) // 2], "flipped": bytes(flipped)}
    found |= {"another's": other.read_bytes(), "missing": None}
    if path.suffix not in (".json", ".jsonl"):
        return found
    found |= {"{}": b"{}\n", "[]": b"[]\n", "null": b"null\n", "deep": b"[" * 100_000}
    found |= {"latin": b'{"a": "\xe9"}\n', "number": b"1" * 5000}
    if path.suffix == ".json":
        value = json.loads(data)
        found["wrong types"] = json.dumps(dict.fromkeys(value, "x")).encode()
        found["version"] = json.dumps(value | {"format": 99}).encode()
        plain = {key: inner for key, inner in value.items() if key != "seal"}
        found["unsealed types"] = json.dumps({key: [1] for key in plain}).encode()
    else:
        value = json.loads(data.splitlines()[-1])
        found["wrong types"] = json.dumps(dict.fromkeys(value, "x")).encode() + b"\n"
        found["version"] = json.dumps(value | {"top1": 99.5}).encode() + b"\n"
    return found


def files_of(root: Path, kind: str) -> list[Path]:
    return sorted(path for path in (root / kind).rglob("*") if path.is_file())


def statuses(path, data, label):
    """The statuses by which `verify` may tell of a file with other content."""
    if data is None:
        return (0, 5)
    return (4,) if label.endswith("manifest.json: another's") else (5,)  # made for something else


def check(made, place, path, data, label):
    """Put `data` in the place of a file of a copy of the store, and give the commands."""
    root, experiments, before = made
    shutil.copytree(root, place)
    target = place / path.relative_to(root)
    if data is None:
        target.unlink()
    else:
        target.write_bytes(data)
    kind = path.relative_to(root).parts[0]
    looked = call("verify", "--rows", 0, "--store", place)
    assert looked.exit_code in statuses(path, data, label), (label, looked.output)
    if kind in SHOWN:
        shown = call("show", kind, "--store", place)
        assert shown.exit_code in (0, 5), (label, shown.output, shown.exception)
    which = kind == "searches"
    for command in ("report", "run"):
        done = call(command, experiments[which], "--store", place, "--json")
        known = (0, *statuses(path, data, label))
        assert done.exit_code in known, (label, command, done.output, done.exception)
        if done.exit_code != 0:
            assert "error: " in done.stderr and str(place) in done.stderr, (label, done.stderr)
        elif command == "run":
            counts = json.loads(done.stdout)["work"]["made"]
            trained = [counts[kind] for kind in ("teachers", "preludes", "students")]
            assert trained == [0, 0, 0], (label, command, done.stderr)
        else:
            for key, values in numbers(done.stdout).items():
                assert values == before[which][key], (label, command)


def other_than(path: Path, files: list[Path]) -> Path:
    """Another file of the same name, or of the same kind."""
    alike = [one for one in files if one != path and one.name == path.name]
    return (alike or [one for one in files if one != path and one.suffix == path.suffix] or files)[
        0
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_content_of_a_file_gives_a_traceback_a_wrong_number_or_a_training(made, tmp_path, kind):
    """Every third content in the place of one file of each name, others for each file."""
    files = files_of(made[0], kind)
    chosen = {re.sub("[0-9a-f]{4,}", "", path.name): path for path in files}
    alterations = [
        (path, how, data)
        for first, path in enumerate(chosen.values(), KINDS.index(kind))
        for how, data in sampled([*contents(path, other_than(path, files)).items()], 3, first)
        if data != path.read_bytes()
    ]
    for number, (path, how, data) in enumerate(alterations):
        place = tmp_path / str(number)  # a process looks once at the images of a place
        check(made, place, path, data, f"{path.relative_to(made[0])}: {how}")
        shutil.rmtree(place)
