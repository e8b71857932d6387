"""README's table of methods and its files against the code."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.models import build
from raykd.planning.preflight import preflight
from raykd.recipes import TeacherRun
from raykd.report.catalogue import catalogue, markdown
from raykd.storage.store import Store
from raykd.training.load_trained import finished
from tests.data.photos import photos
from tests.small import prepare, trained

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FINE_TUNE = ROOT / "experiments" / "fine_tune.yaml"


def test_the_table_of_methods_is_the_one_that_show_prints(tmp_path):
    table = markdown(catalogue("methods", Store(tmp_path)))
    assert table in README.read_text(), "`raykd show methods --markdown` prints the table"


def test_the_file_that_fine_tunes_a_teacher_is_the_one_in_experiments():
    text = FINE_TUNE.read_text()
    assert f"```yaml\n{text}```" in README.read_text()
    assert len(text.splitlines()) == 10


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
