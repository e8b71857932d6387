"""The examples of README.md and docs/ against the code."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml

from raykd.config.experiment import load
from raykd.config.overrides import override
from raykd.config.resolve import resolve
from raykd.core.text_table import markdown
from raykd.methods import METHODS
from raykd.models import build
from raykd.planning.preflight import preflight
from raykd.recipes import TeacherRun
from raykd.report.catalogue import catalogue
from raykd.storage.store import Store
from raykd.training.load_trained import finished
from tests.data.photos import photos
from tests.each import each
from tests.small import prepare, trained

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FINE_TUNE = ROOT / "experiments" / "fine_tune.yaml"


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def example(name: str) -> str:
    """The file of README.md that begins with a comment with its name."""
    return next(block for block in blocks(README.read_text(), "yaml") if f"# {name}" in block)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the images, the weights and the files that README.md speaks of, small ones."""
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    (tmp_path / "pictures").symlink_to(tmp_path / "photos")
    state = build("torchvision/resnet18", 3).network.state_dict()
    torch.save(state, tmp_path / "best.pth")
    text = example("mine.yaml")
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "many.yaml").write_text(text + example("many.yaml"))
    (tmp_path / "backbone.yaml").write_text(example("backbone.yaml"))
    return tmp_path


# What makes the examples small, and does without a download.
SMALL = (
    "run.data.stream={size: 32}",
    "run.optim.epochs=1",
    "run.optim.batch=8",
    "run.views=1",
    "scale.workers=0",
)
OFFLINE = ("run.teacher.weights=null", "run.teacher.optim={epochs: 1, batch: 8}")


def test_the_table_of_methods_is_the_one_that_show_prints(tmp_path):
    table = markdown(catalogue("methods", Store(tmp_path)))
    text = (ROOT / "docs" / "methods.md").read_text()
    assert table in text, "`raykd show methods --markdown` prints the table"
    assert f"{len(METHODS)} methods" in README.read_text()
    presets = markdown(catalogue("presets", Store(tmp_path)))
    assert presets in (ROOT / "docs" / "no_labels.md").read_text()


@each(("page", "name"), [("teachers", "fine_tune"), ("sweeps", "grid")])
def test_a_file_that_a_page_shows_is_the_one_in_experiments(page, name):
    text = (ROOT / "experiments" / f"{name}.yaml").read_text()
    assert f"```yaml\n{text}```" in (ROOT / "docs" / f"{page}.md").read_text()


def test_the_file_that_fine_tunes_a_teacher_has_ten_lines():
    assert len(FINE_TUNE.read_text().splitlines()) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mine.yaml", "many.yaml"])
def test_examples_with_labels_pass_the_checks(place, name):
    overrides = (*SMALL, "run.teacher.model=torchvision/resnet18")
    experiment = resolve(load(place / name, overrides), Store(place / "store"))
    preflight(experiment, Store(place / "store"))
    assert len(experiment.runs) == (24 if name == "many.yaml" else 1)


def test_the_example_without_labels_passes_the_checks(place):
    pytest.importorskip("timm")
    overrides = [*SMALL, "run.teacher.size=56", "run.teacher.model=timm/resnet10t"]
    experiment = resolve(load(place / "backbone.yaml", overrides), Store(place / "store"))
    preflight(experiment, Store(place / "store"))


@pytest.mark.slow
def test_the_example_in_python_runs_as_it_stands(place):
    (code,) = blocks(README.read_text(), "python")
    (place / "new").mkdir()
    shutil.copy(next((place / "photos").rglob("*.jpg")), place / "new" / "1.jpg")
    tree = yaml.safe_load(example("mine.yaml"))
    networks = ("run.weights=null", "run.model=resnet8", "run.teacher.model=resnet8")
    for setting in (*SMALL, *OFFLINE, *networks):
        override(tree, setting)
    (place / "mine.yaml").write_text(yaml.safe_dump(tree))
    (place / "example.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "example.py"], capture_output=True, text=True, check=True
    )
    assert "class" in done.stdout


@pytest.mark.slow
def test_the_commands_of_the_readme_do_what_it_says(place):
    quick = [*SMALL, *OFFLINE, "run.weights=null", "run.model=resnet8", "run.teacher.model=resnet8"]
    raykd_command("plan", "mine.yaml", *quick)
    raykd_command("run", "mine.yaml", *quick)
    shown = json.loads(raykd_command("show", "students", "--json"))
    student = shown[0]["fingerprint"][:8]
    answers = raykd_command("predict", student, "photos", "--csv").splitlines()
    assert len(answers) == 1 + len([*(place / "photos").rglob("*.jpg")])
    raykd_command("export", student, "--output", "student", "--format", "safetensors")
    assert (place / "student" / "README.md").is_file()
    text = raykd_command("explain", "run.optim")
    assert "run.optim.lr" in text
    unlabelled = [*SMALL, "run.teacher.size=null", "run.teacher.model=timm/resnet10t"]
    unlabelled += ["run.teacher.weights=resnet10t.pth", "run.model=resnet8"]
    torch.save(build("timm/resnet10t", 5).network.state_dict(), place / "resnet10t.pth")
    raykd_command("run", "backbone.yaml", *unlabelled)


def raykd_command(*words: str) -> str:
    """The output of a command line, which succeeds."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("raykd")), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_file_that_fine_tunes_a_teacher_is_true_of_published_weights(tmp_path):
    pytest.importorskip("timm")
    store, said = Store(tmp_path / "store"), []
    overrides = [f"data.path={photos(tmp_path / 'photos')}"]
    overrides += ["run.optim.batch=8", "run.teacher.optim.batch=8"]
    experiment = resolve(load(FINE_TUNE, overrides), store, said.append)
    preflight(experiment, store)
    (run,) = experiment.students()
    assert isinstance(run.teacher, TeacherRun) and run.teacher.fine_tune
    text = "\n".join(said)
    for name in ("torchvision/mobilenet_v3_small DEFAULT", "timm/convnext_tiny in12k_ft_in1k"):
        assert f"{name}: their classifier of 1000 classes is replaced by a new one of 3" in text
    assert run.data.mean == (0.485, 0.456, 0.406)


@pytest.mark.slow
def test_the_file_that_fine_tunes_a_teacher_does_that_with_small_networks(tmp_path):
    store, overrides = Store(tmp_path / "store"), ["run.data={name: digits, limit: 96}"]
    for key, model in (("run", "resnet8"), ("run.teacher", "resnet8x4")):
        path = tmp_path / f"{model}.safetensors"
        safetensors.torch.save_file(build(model, 100).network.state_dict(), path)
        overrides += [f"{key}.model={model}", f"{key}.weights={path}"]
        overrides += [f"{key}.optim.epochs=1", f"{key}.optim.batch=32"]
    experiment = resolve(load(FINE_TUNE, overrides), store)
    preflight(experiment, store)
    (run,) = experiment.students()
    prepare(store, run)
    trained(store, run)
    teacher = finished(store, run.teacher)
    begun = safetensors.torch.load_file(tmp_path / "resnet8x4.safetensors")
    state = teacher.network.network.state_dict()
    kept = {n.partition(".")[0] for n, v in begun.items() if torch.equal(v, state[n])}
    assert kept == {"stem"}
    assert finished(store, run).result["last"]["agreement"] > 0
