"""Which networks are meant: fingerprints, experiments, and the command line."""

import json

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.core.record import fingerprint
from raykd.export import FORMATS, by_fingerprint, folder_name, is_fingerprint
from raykd.storage.store import Store
from tests.small import prepare, student_run, trained

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher:
    model: resnet8
    data: {name: digits, holdout: 0.1, limit: 320, augment: {pad: 1}}
    optim: {epochs: 2, batch: 32}
    save_every: 1
  optim: {epochs: 3, batch: 32}
grid:
  run.method: [kd, dkd]
"""


def call(*words, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, words)])
    assert result.exit_code == code, result.output
    return result


def test_the_beginning_of_a_fingerprint_is_told_from_other_words():
    assert all(map(is_fingerprint, ("a", "0", "106d02c3", "f" * 20)))
    assert not any(map(is_fingerprint, ("", "x", "106D", "f" * 21, "face.yaml", "*", "../a")))


def test_students_and_teachers_are_found_by_the_beginning(place, student, teacher):
    for run in (student("kd"), teacher):
        name = fingerprint(run)
        assert by_fingerprint(place, name) == run
        assert by_fingerprint(place, name[:10]) == run


def test_what_is_not_one_finished_network_is_a_sentence(tmp_path, place, student):
    run = student("kd")
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="`raykd show students` and `raykd show teachers` list"):
        by_fingerprint(store, "abc")
    for name in ("abc1", "abc2"):
        (tmp_path / "students" / name).mkdir(parents=True)
    with pytest.raises(ConfigError, match="not finished; the `raykd run` that began it goes on"):
        by_fingerprint(store, "abc")
    for name in ("abc1", "abc2"):
        (tmp_path / "students" / name / "recipe.json").write_text(run.model_dump_json())
    with pytest.raises(ConfigError, match="2 fingerprints begin so: abc1, abc2; give more"):
        by_fingerprint(store, "abc")
    with pytest.raises(CacheCorrupt, match=r"abc1/recipe\.json: is of another artefact"):
        by_fingerprint(store, "abc1")


@pytest.mark.slow
def test_the_command_writes_one_network_and_tells_scripts(place, student, tmp_path):
    run = student("kd")
    options = ("--store", place.root, "--output", tmp_path / "out", "--format", "safetensors")
    told = json.loads(call(fingerprint(run)[:12], *options, "--json").stdout)
    (exported,) = told["exports"]
    assert exported["fingerprint"] == fingerprint(run)
    assert exported["files"][0]["name"] == "model.safetensors"
    assert exported["files"][0]["difference"] < 1e-5
    assert (tmp_path / "out" / "model.safetensors").is_file()
    said = call(fingerprint(run), *options).stdout
    assert "resnet8, kd:" in said
    assert "scores of 32 test images differ by" in said


def test_the_finished_students_of_an_experiment_get_a_folder_each(place, student, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(EXPERIMENT)
    run = student("kd")
    options = ("--store", place.root, "--output", tmp_path / "out", "--format", "safetensors")
    done = call(file, *options)
    assert "1 student of this experiment is not finished" in done.stderr
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name == folder_name(run) == f"resnet8-kd-{fingerprint(run)[:8]}"
    refused = call(file, "run.seed=9", *options, code=2)
    assert "two: none of its 2 students is finished; `raykd run` trains them" in refused.stderr


def test_what_is_wrong_with_the_command_is_a_sentence(tmp_path):
    for words, message in (
        (["abc"], "no finished student or teacher in"),
        (["resnet8"], "neither an experiment file nor a fingerprint"),
        (["none.yaml"], "none.yaml: cannot be read"),
        (["abc", "run.seed=1"], "only an experiment has overrides"),
    ):
        done = call(*words, "--store", tmp_path, "--output", tmp_path / "out", code=2)
        assert message in done.stderr
        assert not (tmp_path / "out").exists()


def test_damaged_weights_are_named_and_nothing_is_written(place, student, tmp_path):
    run = student("at")
    path = place.path(run) / "weights.safetensors"
    data = path.read_bytes()
    try:
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        options = ("--store", place.root, "--output", tmp_path / "out")
        done = call(fingerprint(run), *options, "--format", "safetensors", code=5)
    finally:
        path.write_bytes(data)
    assert "weights.safetensors: the weights were truncated or altered" in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_command_knows_every_format():
    from raykd.cli.export import _FORMATS

    assert tuple(FORMATS) == _FORMATS


@pytest.mark.slow
def test_a_network_that_another_machine_trained_is_fetched(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "one"))
    there = Store(bucket)
    run = student_run(there, "skd")
    prepare(there, run)
    trained(there, run)
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "two"))
    call(fingerprint(run)[:9], "--store", bucket, "--output", tmp_path / "out", "--format", "torch")
    assert (tmp_path / "out" / "model.pt2").is_file()
    missed = call("abcdef", "--store", bucket, "--output", tmp_path / "none", code=2)
    assert f"no finished student or teacher in {bucket.partition('?')[0]} has" in missed.stderr
