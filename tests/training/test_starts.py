"""Networks that start from weights: a student from a file in any form, a teacher to fine-tune."""

import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import torchvision

from raykd.config.experiment import parse
from raykd.config.portable import portable
from raykd.config.resolve import resolve
from raykd.config.shorthand import read_student
from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.methods.kd import KD
from raykd.models import build
from raykd.planning.preflight import preflight
from raykd.recipes import Optim, StudentRun, TeacherRun, training_of
from raykd.storage.store import Store
from raykd.training import initial_state, load_trained, weights
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.integrity import audit
from tests.each import each
from tests.small import CPU, prepare, student_run, teacher_run, trained

STUDENT = """
run:
  model: {model}
  data: {{name: digits, limit: 96, holdout: 0.1}}
  optim: {{epochs: 1, batch: 32}}
  {more}
"""


def text(more, model="resnet8"):
    return STUDENT.format(model=model, more=more)


def state(model="resnet8", classes=10, seed=7):
    """Weights of a network that some other program trained."""
    torch.manual_seed(seed)
    return build(model, classes).network.state_dict()


def save(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file(tensors, path)
    return path


def resolved(store, more, *overrides, model="resnet8"):
    """The one student of a file, and what was said while it was read."""
    said = []
    experiment = resolve(parse(text(more, model), "x", overrides), store, said.append)
    preflight(experiment, store)
    return experiment.students()[0], " ".join(said)


def refusal(store, more, model="resnet8"):
    with pytest.raises(ConfigError) as caught:
        resolved(store, more, model=model)
    return str(caught.value)


def before(store, run):
    """The weights of a student before its first step."""
    host = LocalHost(Checkpoints(store.root / "none"), CPU)
    targets = torch.arange(40) % 10
    return initial_state.learner(store, run, host, targets).student.network.state_dict()


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def wrapped(tensors):
    return {"epoch": 3, "state_dict": {f"module.{name}": v for name, v in tensors.items()}}


FORMS = ["safetensors", "torch", "hub"]


@pytest.mark.slow
@each("form", FORMS)
def test_a_student_starts_from_a_file_in_any_form(tmp_path, form):
    store, tensors = Store(tmp_path / "store"), state()
    path = tmp_path / "given"
    if form == "safetensors":
        path = save(tmp_path / "given.safetensors", tensors)
    elif form == "torch":
        torch.save(wrapped(tensors), path)
    else:
        save(path / "model.safetensors", tensors)
        config = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
        (path / "config.json").write_text(json.dumps(config))
    run, said = resolved(store, f"weights: {path}")
    assert run.weights is not None and run.weights.startswith("sha256:")
    assert "classifier" not in said
    assert_equal(before(store, run), tensors)
    if form == "hub":
        assert run.data.mean == (0.5, 0.5, 0.5)
    elsewhere = path.rename(tmp_path / ("moved" + path.suffix))
    assert fingerprint(resolved(store, f"weights: {elsewhere}")[0]) == fingerprint(run)


@pytest.mark.slow
@each("theirs", [100, 0])
def test_a_head_of_other_classes_or_none_is_replaced_by_the_seed_s_own(tmp_path, theirs):
    store, tensors = Store(tmp_path / "store"), state(classes=theirs or 100)
    if not theirs:
        tensors = {name: v for name, v in tensors.items() if not name.startswith("classifier.")}
    path = save(tmp_path / "given.safetensors", tensors)
    run, said = resolved(store, f"weights: {path}", "run.seed=3")
    expected = "their classifier of 100 classes is replaced by a new one of 10"
    if not theirs:
        expected = "they have no classifier: a new one of 10 classes is trained"
    assert said.count(expected) == 1
    torch.manual_seed(keyed_random.seed(3))
    drawn = build("resnet8", 10).network.state_dict()
    start = before(store, run)
    for name, value in start.items():
        head = name.startswith("classifier.")
        assert torch.equal(value, drawn[name] if head else tensors[name])


@pytest.mark.slow
def test_a_backbone_takes_all_but_the_classifier(tmp_path):
    store, tensors = Store(tmp_path / "store"), state(classes=100)
    path = save(tmp_path / "given.safetensors", tensors)
    more = (
        f"weights: {path}\n  task: {{name: features}}\n  method: feature_distillation\n"
        "  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}"
    )
    run, said = resolved(store, more)
    assert said.count("their classifier is left out") == 1
    body = {name: v for name, v in tensors.items() if not name.startswith("classifier.")}
    prepare(store, run)
    assert_equal(before(store, run), body)


def test_weights_that_do_not_fit_are_refused_with_their_key(tmp_path):
    store = Store(tmp_path / "store")
    other = save(tmp_path / "other.safetensors", state("resnet14"))
    wider = state(classes=100)
    wider["classifier.weight"] = torch.zeros(100, 65)
    wider = save(tmp_path / "wider.safetensors", wider)
    for path in (other, wider):
        sentence = refusal(store, f"weights: {path}")
        assert sentence.startswith("experiment.run.weights: ")
        assert "another network's" in sentence
        sentence = refusal(store, f"teacher: {{model: resnet8, weights: {path}, optim: {{}}}}")
        assert sentence.startswith("experiment.run.teacher.weights: ")
    sentence = refusal(store, "weights: V1")
    assert "experiment.run.weights: resnet8 has no published weights 'V1'" in sentence
    assert "gone.pt: cannot be read" in refusal(store, "weights: gone.pt")
    assert not (store.root / "weights").exists()


@pytest.mark.slow
def test_a_student_starts_from_published_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder, name = tmp_path / "torch" / "hub" / "checkpoints", "shufflenet_v2_x0_5"
    folder.mkdir(parents=True)
    torch.manual_seed(7)
    published = torchvision.models.get_model(name).state_dict()
    url = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"].url
    torch.save(published, folder / url.rpartition("/")[2])
    store = Store(tmp_path / "store")
    more = "weights: IMAGENET1K_V1"
    run, said = resolved(store, more, "run.data.resize=32", model=f"torchvision/{name}")
    text = f"torchvision/{name} IMAGENET1K_V1: their classifier of 1000 classes is replaced by a"
    assert said.count(text) == 1
    assert run.weights == "IMAGENET1K_V1"
    assert run.data.mean == (0.485, 0.456, 0.406)
    start = before(store, run)
    assert {n for n, v in start.items() if not torch.equal(v, published[n])} == {
        "fc.weight",
        "fc.bias",
    }


def test_published_weights_that_cannot_start_a_network_are_refused(tmp_path):
    sentence = refusal(Store(tmp_path), "weights: V9", model="torchvision/resnet18")
    assert "experiment.run.weights: torchvision/resnet18 has no weights called 'V9'" in sentence
    # Its classifier is a convolution before the pooling.
    sentence = refusal(Store(tmp_path), "weights: DEFAULT", model="torchvision/squeezenet1_1")
    assert "weights: 'DEFAULT' cannot start torchvision/squeezenet1_1: they are ano" in sentence


def test_what_raykd_released_is_a_start(tmp_path):
    store = Store(tmp_path / "store")
    prepare(store, student := student_run(store, optim=Optim(epochs=1, batch=32)))
    tensors = safetensors.torch.load(trained(store, student))
    for folder in (store.path(student), store.path(student) / "weights.safetensors"):
        assert_equal(before(store, resolved(store, f"weights: {folder}")[0]), tensors)
    teacher = store.path(student.teacher)
    last = safetensors.torch.load_file(teacher / "weights-0002.safetensors")
    assert_equal(before(store, resolved(store, f"weights: {teacher}")[0]), last)


@pytest.mark.slow
def test_a_prelude_begins_from_the_student_s_weights(tmp_path):
    store, tensors = Store(tmp_path / "store"), state()
    path = save(tmp_path / "given.safetensors", tensors)
    more = (
        f"weights: {path}\n"
        "  method: {name: fsp, init_epochs: 1}\n"
        "  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}"
    )
    run, _ = resolved(store, more)
    prelude = run.prelude()
    assert prelude is not None and prelude.weights == run.weights
    prepare(store, run.model_copy(update={"method": KD()}))
    assert_equal(before(store, prelude.training()), tensors)


@pytest.mark.slow
def test_only_the_first_stage_of_a_chain_starts_from_weights(tmp_path):
    store = Store(tmp_path / "store")
    path = save(tmp_path / "given" / "model.safetensors", state())
    config = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (path.parent / "config.json").write_text(json.dumps(config))
    teacher = "teacher: {model: resnet8, save_every: 1, optim: {epochs: 2, batch: 32}}"
    more = f"weights: {path.parent}\n  method: kd\n  rco: {{anchors: 2}}\n  {teacher}"
    run, _ = resolved(store, more)
    first, last = run.stages()
    assert first.weights is not None and last.weights is None
    assert first.data.mean == last.data.mean == (0.5, 0.5, 0.5)
    after = student_run(store)
    with pytest.raises(ValueError, match=r"leave run\.weights or run\.after out"):
        StudentRun(**{**dict(after), "after": after, "weights": "sha256:x"})


FINE = """
run:
  model: resnet8
  data: {{name: digits, limit: 320, holdout: 0.1}}
  method: kd
  optim: {{epochs: 1, batch: 32}}
  teacher:
    model: resnet8x4
    weights: {weights}
    optim: {{epochs: 2, batch: 32, lr: 0.02, parts: {{classifier: 10.0}}, freeze: [stem]}}
    save_every: 1
scale: {{workers: 0}}
"""


@pytest.mark.slow
def test_a_published_teacher_is_fine_tuned_and_distilled(tmp_path):
    store, tensors, said = Store(tmp_path / "store"), state("resnet8x4", 100), []
    path = save(tmp_path / "given.safetensors", tensors)
    experiment = resolve(parse(FINE.format(weights=path), "x"), store, said.append)
    assert "their classifier of 100 classes is replaced by a new one of 10" in " ".join(said)
    (run,) = experiment.students()
    teacher = run.teacher
    assert isinstance(teacher, TeacherRun) and teacher.fine_tune and not teacher.is_given
    assert teacher.anchors() == (1, 2)
    assert experiment.teacher_workers(teacher) == 0
    assert training_of(teacher).weights == teacher.weights
    preflight(experiment, store)
    prepare(store, run)
    trained(store, run)
    for epoch in (1, 2):
        saved = safetensors.torch.load_file(weights.anchor_path(store, teacher, epoch))
        same = {name.partition(".")[0] for name in saved if torch.equal(saved[name], tensors[name])
                if saved[name].shape == tensors[name].shape}  # fmt: skip
        assert same == {"stem"}
    assert load_trained.finished(store, teacher).result["epochs"] == 2


@pytest.mark.slow
def test_other_processes_read_the_same_recipes_from_a_portable_experiment(tmp_path):
    store = Store(tmp_path / "store")
    folder = tmp_path / "given"
    save(folder / "model.safetensors", state())
    config = {"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}}
    (folder / "config.json").write_text(json.dumps(config))
    more = f"weights: {folder}\n  method: kd\n  teacher: {{model: resnet8, weights: {folder}}}"
    experiment = resolve(parse(text(more), "x"), store)
    space = portable(experiment, store).space
    assert space is not None
    shutil.rmtree(folder)
    again = replace(experiment, runs=(read_student(dict(space.base)),))
    assert resolve(again, store).runs == experiment.runs
    assert not audit(store).faults


@pytest.mark.slow
def test_weights_alone_are_a_teacher_that_is_given(tmp_path):
    store = Store(tmp_path / "store")
    path = save(tmp_path / "given.safetensors", state())
    more = f"method: kd\n  teacher: {{model: resnet8, weights: {path}}}"
    run, _ = resolved(store, more)
    assert isinstance(run.teacher, TeacherRun) and run.teacher.is_given
    assert run.teacher.anchors() == (0,)
    other, _ = resolved(store, more, "run.teacher.optim.epochs=3")
    assert isinstance(other.teacher, TeacherRun) and other.teacher.fine_tune
    given, _ = resolved(store, more, "run.teacher.optim.epochs=3", "run.teacher.fine_tune=false")
    assert isinstance(given.teacher, TeacherRun) and given.teacher.is_given


def test_a_teacher_to_fine_tune_without_weights_is_refused(tmp_path):
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="fine_tune: there are no weights to start from"):
        teacher_run(store, fine_tune=True)
    with pytest.raises(ValueError, match="refresh_statistics would replace"):
        teacher_run(store, refresh_statistics=True, optim=Optim(freeze=("stem",)))
