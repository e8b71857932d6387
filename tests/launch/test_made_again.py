"""Parts of finished artefacts that were lost and are made again, without a training."""

import json

import pytest
from click.testing import CliRunner

from raykd.cli import main

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, VALIDATION augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 2, batch: 32}, save_every: 1}
  optim: {epochs: 1, batch: 32}
  method: kd
"""
GREEDY = EXPERIMENT.replace("VALIDATION", "validation: 0.2,") + "  rco: {select: greedy}\n"
PREPARED = EXPERIMENT.replace("VALIDATION", "").replace(
    "method: kd", "method: {name: ft, paraphraser_epochs: 1}"
)


def call(*words, code=0):
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def carried_out(tmp_path, text):
    """An experiment's file and its store, where it was carried out."""
    file, store = tmp_path / "small.yaml", tmp_path / "store"
    file.write_text(text)
    call("run", file, "--store", store)
    return file, store


def run_again(file, store):
    """Output of the command, after a check that it trained nothing."""
    done = call("run", file, "--store", store, "--json")
    made = json.loads(done.stdout)["work"]["made"]
    assert [made[kind] for kind in ("teachers", "preludes", "students")] == [0, 0, 0], done.stderr
    return done.stderr


def reported(file, store):
    """Everything that a report says of an experiment."""
    return json.loads(call("report", file, "--store", store, "--json").stdout)


@pytest.mark.slow
def test_lost_decisions_of_a_finished_search_are_measured_anew(tmp_path):
    file, store = carried_out(tmp_path, GREEDY)
    (path,) = store.glob("searches/*/decisions.json")
    data, before = path.read_bytes(), reported(file, store)
    path.unlink()
    for words in ((), (file,)):
        done = call("verify", *words, "--rows", 0, "--store", store, code=5)
        assert f"{path}: decisions of a finished search are missing" in done.stderr
    written = {p: p.read_bytes() for p in store.glob("students/*/*")}
    said = run_again(file, store)
    assert f"{path} of a finished search is missing; it measures anew" in " ".join(said.split())
    assert path.read_bytes() == data
    assert reported(file, store) == before
    assert {p: p.read_bytes() for p in store.glob("students/*/*")} == written
    call("verify", "--rows", 0, "--store", store)
    assert "measures anew" not in run_again(file, store)


@pytest.mark.slow
def test_lost_markers_are_written_again_whatever_else_is_finished(tmp_path):
    file, store = carried_out(tmp_path, PREPARED)
    before = reported(file, store)
    markers = [*store.glob("*s/*/recipe.json")]
    trained = {path: path.read_bytes() for path in markers if path.parts[-3] != "caches"}
    assert {path.parts[-3] for path in trained} == {"teachers", "preludes", "students"}
    teachers = [path for path in trained if path.parts[-3] == "teachers"]
    for paths in (teachers, [*trained]):
        for path in paths:
            path.unlink()
        said = " ".join(run_again(file, store).split())
        for path in paths:
            assert f"{path.parent} is whole but for its marker, which is written again" in said
        assert "to train: nothing;" in said
        assert {path: path.read_bytes() for path in trained} == trained
        assert reported(file, store) == before


@pytest.mark.slow
def test_a_cache_whose_teacher_has_lost_its_marker_says_so(tmp_path):
    file, store = carried_out(tmp_path, EXPERIMENT.replace("VALIDATION", ""))
    (path,) = store.glob("teachers/*/recipe.json")
    path.unlink()
    for words in ((), (file,)):
        done = call("verify", *words, "--rows", 0, "--store", store, code=5)
        assert f"its teacher {path.parent} is missing or not finished" in done.stderr
    run_again(file, store)
    call("verify", "--rows", 0, "--store", store)


@pytest.mark.slow
def test_what_has_neither_a_marker_nor_whole_weights_is_trained_again(tmp_path):
    file, store = carried_out(tmp_path, EXPERIMENT.replace("VALIDATION", ""))
    (path,) = store.glob("students/*/recipe.json")
    weights = path.parent / "weights.safetensors"
    data, before = weights.read_bytes(), path.read_bytes()
    path.unlink()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = call("run", file, "--store", store, "--json")
    assert json.loads(done.stdout)["work"]["made"]["students"] == 1
    assert "whole but for its marker" not in done.stderr
    assert (path.read_bytes(), weights.read_bytes()) == (before, data)
