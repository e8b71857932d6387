"""Running an experiment from Python, and its results."""

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import raykd
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.recipes import StudentRun

DATA = raykd.Data("digits", holdout=0.1, limit=96, augment={"pad": 1})
SHORT = {"epochs": 2, "batch": 32}
TEACHER = raykd.Teacher("resnet14", optim=SHORT)
STUDENT = raykd.Student("resnet8", data=DATA, teacher=TEACHER, optim=SHORT)
GRID = {"run.method": ["label_only", "kd"], "run.optim.lr": [0.05, 0.01]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The results of four students, trained here."""
    store = tmp_path_factory.mktemp("api") / "store"
    experiment = raykd.Experiment(STUDENT, grid=GRID, name="four")
    return raykd.run(experiment, store, workers=0, quiet=True)


def test_results_are_the_students_of_the_table(finished):
    assert len(finished) == 4
    assert finished.made == {"teachers": 1, "caches": 2, "preludes": 0, "students": 4}
    assert finished.page == finished.store.root / "reports" / "four.html"
    assert finished.page.is_file()
    for name in ("teacher", "label_only", "kd"):
        assert name in finished.table
    assert repr(finished) == finished.table
    assert [student.label for student in finished] == [
        group.label for group in finished.report.ranked()
    ]
    assert finished.grid is None


def test_students_are_found_by_line_by_method_and_by_place(finished):
    taught = finished["kd"]
    assert {student.recipe.optim.lr for student in taught} == {0.05, 0.01}
    assert {student.recipe.method.name for student in taught} == {"kd"}
    label = finished[0].label
    assert finished[0] in finished[label]
    with pytest.raises(KeyError, match="no student is called 'dkd'"):
        finished["dkd"]


def test_the_best_student_is_that_of_the_last_epoch(finished):
    best = finished.best()
    top1 = [student.result["last"]["top1"] for student in finished]
    assert best.result["last"]["top1"] == max(top1)
    least = finished.best("loss")
    assert least.result["last"]["loss"] == min(s.result["last"]["loss"] for s in finished)
    with pytest.raises(raykd.ConfigError, match=r"'top3'.*did you mean"):
        finished.best("top3")


def test_a_student_has_its_recipe_its_numbers_and_its_folder(finished):
    student = finished["kd"][0]
    assert isinstance(student.recipe, StudentRun)
    assert finished.store.path(student.recipe) == student.folder
    assert (student.folder / "weights.safetensors").is_file()
    assert [epoch["epoch"] for epoch in student.metrics] == [0, 1]
    assert student.metrics[-1]["top1"] == student.result["last"]["top1"]
    assert student.state == "finished"
    assert student.fingerprint[:8] in repr(student)


def test_a_data_frame_has_a_row_per_run_and_what_varies(finished):
    table = finished.to_pandas()
    assert table["label"].iloc[0] == "teacher"
    assert len(table) == 5
    students = table[table["label"] != "teacher"]
    assert set(students["run.optim.lr"]) == {0.05, 0.01}
    assert set(students["run.method.name"]) == {"kd", "label_only"}
    assert "run.seed" not in table
    assert set(students["top1"]) == {s.result["last"]["top1"] for s in finished}


@pytest.mark.slow
def test_the_same_call_reuses_everything_and_quiet_says_nothing(finished, capfd):
    experiment = raykd.Experiment(STUDENT, grid=GRID, name="four")
    again = raykd.run(experiment, finished.store, workers=0, quiet=True)
    assert set(again.made.values()) == {0}
    assert again.reused["students"] == 4
    assert capfd.readouterr() == ("", "")
    raykd.run(experiment, str(finished.store.root), workers=0)
    assert "reused from" in capfd.readouterr().err


def test_what_is_not_trained_yet_says_so(tmp_path, finished):
    part = raykd.results(STUDENT, tmp_path / "store", quiet=True)
    (student,) = part
    assert student.state == "not started"
    for what in (lambda: student.result, student.load, lambda: student.export(tmp_path / "x")):
        with pytest.raises(raykd.ConfigError, match=r"it is not finished \(not started\)"):
            what()
    with pytest.raises(raykd.ConfigError, match="none yet"):
        part.best()


def test_one_student_or_a_file_is_an_experiment(finished, tmp_path):
    one = raykd.run(STUDENT, finished.store, workers=0, quiet=True)
    assert [student.recipe.method.name for student in one] == ["label_only"]
    path = tmp_path / "one.yaml"
    path.write_text("run: {model: resnet8, data: {name: digits}}")
    with pytest.raises(raykd.ConfigError, match=r"scale.workers: .*, got -1"):
        raykd.run(path, finished.store, workers=-1)


def test_a_search_is_for_a_sweep(finished):
    drawn = raykd.Experiment(STUDENT, search={"run.optim.lr": {"uniform": [0.01, 0.1]}})
    with pytest.raises(raykd.ConfigError, match="what is drawn is for a sweep"):
        raykd.run(drawn, finished.store, quiet=True)


@pytest.mark.slow
def test_it_runs_in_a_thread_that_is_not_the_main_one(finished):
    experiment = raykd.Experiment(STUDENT, grid=GRID, name="four")
    with ThreadPoolExecutor(1) as pool:
        again = pool.submit(raykd.run, experiment, finished.store, workers=0, quiet=True).result()
    assert len(again) == 4
    assert threading.current_thread() is threading.main_thread()


def test_a_student_is_loaded_as_the_network_that_was_tested(finished):
    student = finished.best()
    network = student.load()
    assert isinstance(network, torch.nn.Module)
    assert not network.training
    assert network.classes == tuple("0123456789")
    _, test = open_images(finished.store, student.recipe.data)
    views = Views(test, student.recipe.data.test())
    (batch,) = views.runs(torch.arange(len(test)), len(test), 0)
    right = (network(batch.pixels).argmax(1) == batch.targets).float().mean()
    assert 100 * float(right) == pytest.approx(student.result["last"]["top1"], abs=1e-4)


def test_a_student_is_exported(finished, tmp_path):
    written = finished["kd"][0].export(tmp_path / "out", ["safetensors"])
    assert [file.name for file in written.files] == ["model.safetensors"]
    assert (tmp_path / "out" / "README.md").is_file()


SCRIPT = """
import sys
import raykd

def main():
    student = raykd.Student(
        "resnet8", data=raykd.Data("digits", limit=96), optim={"epochs": 1, "batch": 32}
    )
    print(raykd.run(student, sys.argv[1], workers=0).table)

if __name__ == "__main__":
    main()
"""


@pytest.mark.slow
def test_a_script_prints_its_table_and_its_progress_apart(tmp_path):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT)
    command = [sys.executable, script, tmp_path / "store"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert re.search(r"1\s+label_only\s+resnet8", done.stdout)
    assert "epoch 1/1" in done.stderr
