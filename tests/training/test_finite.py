"""Nothing is finished whose losses, weights, statistics or answers are not finite."""

import csv
import hashlib
import itertools
import json
import math

import pytest
import safetensors.torch
import torch
from torch import nn

from raykd.core.errors import CacheMismatch, WorkFailed
from raykd.core.types import Batch, Outputs
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods.dkd import DKD
from raykd.methods.label_only import LabelOnly
from raykd.methods.mimic import MimicEmbedding
from raykd.models import build
from raykd.recipes import Optim
from raykd.storage.store import Store, read_json, write_json
from raykd.tasks import (
    Faces,
    FaceSet,
    Features,
    Probe,
    Retrieval,
    RetrievalSet,
    probe_of,
)  # fmt: skip
from raykd.tracking.jsonl import read_metrics
from raykd.training import runs, weights
from raykd.training.checkpointing import Checkpoints
from raykd.training.evaluation import evaluate
from raykd.training.finite import not_finite
from raykd.training.hosts.base import LocalHost
from raykd.training.probing import ProbeSets, probed
from raykd.training.result import result_of
from raykd.training.runs import local_host, refreshed, train
from raykd.training.sweep_sheets import Sheet, write_results, write_sheet
from tests.each import each
from tests.small import CPU, digits, golden_logits, prepare, student_run, teacher_run

DIVERGES = Optim(epochs=1, batch=96, lr=1e30)  # in its only step, after its only loss


class Poisoned(LocalHost):
    """This process, in which a number becomes another one at the end of an epoch."""

    def __init__(self, checkpoints, name, value, epoch=0):
        super().__init__(checkpoints, CPU)
        self.name, self.value, self.left = name, value, epoch

    def agree(self, module):
        if not self.left:
            named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            [chosen] = [value for name, value in named.items() if self.name in name][:1]
            chosen.detach()[(0,) * chosen.dim()] = self.value
        self.left -= 1


@pytest.fixture(scope="module")
def teacher_store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store), student_run(store, "ft"), student_run(store, "ofd"))
    return store


def twin(teacher_store, path, *kinds):
    """Another store with the same images and, where they are named, other artefacts."""
    for kind in ("images", *kinds):
        (path / kind).symlink_to(teacher_store.root / kind)
    return Store(path)


def given(store, change, **changes):
    """A teacher with given weights, in which something was changed."""
    torch.manual_seed(0)
    network = build("resnet8", 10)
    change(network)
    state = {name: value.contiguous() for name, value in network.network.state_dict().items()}
    data = safetensors.torch.save(state)
    name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
    (store.root / "weights").mkdir(exist_ok=True)
    (store.root / "weights" / name).write_bytes(data)
    return teacher_run(store, weights=f"sha256:{name}", **changes)


@pytest.mark.slow
@each(("kind", "ema"), [("teacher", None), ("student", 0.5)])
def test_a_training_that_diverges_in_its_last_update_is_not_finished(tmp_path, kind, ema):
    store = Store(tmp_path)
    optim = DIVERGES.model_copy(update={"ema": ema})
    data = digits(store, limit=96)
    if kind == "teacher":
        run = teacher_run(store, data=data, optim=optim)
    else:
        run = student_run(store, "label_only", data=data, teacher=None, optim=optim)
    for _ in range(2):  # the same command says the same
        with pytest.raises(WorkFailed, match=r"of epoch 0 is not finite \(nan\); lower run\.optim"):
            train(store, run, local_host(store, run))
        assert not store.has(run)
        assert not [*store.path(run).glob("weights*")]
        assert read_metrics(store.path(run)) == []


@pytest.mark.slow
@each(
    ("name", "value", "epoch"),
    [
        ("running_var", math.inf, 1),  # which leaves every loss finite
        ("classifier.bias", -math.inf, 0),
    ],
)
def test_weights_and_statistics_that_are_not_finite_end_a_training(
    teacher_store, tmp_path, name, value, epoch
):
    store = twin(teacher_store, tmp_path)
    teacher = teacher_run(store)
    host = Poisoned(Checkpoints(store.path(teacher)), name, value, epoch)
    with pytest.raises(WorkFailed, match=rf"after epoch {epoch} .*{name}.* not finite; lower"):
        train(store, teacher, host)
    assert not store.has(teacher)
    assert len([*store.path(teacher).glob("weights*")]) == epoch, "those of the epoch before"
    assert len(read_metrics(store.path(teacher))) == epoch


@pytest.mark.slow
def test_helpers_of_a_student_are_looked_at_too(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path, "teachers", "caches")
    run = student_run(store, "ofd")
    with pytest.raises(WorkFailed, match=r"helpers.*margin.* not finite"):
        train(store, run, Poisoned(Checkpoints(store.path(run)), "margin", math.nan))
    assert not store.has(run)


def test_so_is_a_prelude(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path, "teachers", "caches")
    prelude = student_run(store, "ft").prelude()
    assert prelude is not None
    with pytest.raises(WorkFailed, match=r"helpers.* not finite"):
        train(store, prelude, Poisoned(Checkpoints(store.path(prelude)), "helpers", math.nan))
    assert not store.has(prelude)


@pytest.mark.slow
@each("kept", ["weights", "metrics"])
def test_a_run_that_was_stopped_before_its_end_is_looked_at_when_it_goes_on(
    teacher_store, tmp_path, kept
):
    # What an earlier version left: the last epoch's checkpoint, with NaN in it.
    store = twin(teacher_store, tmp_path)
    teacher = teacher_run(store)
    reference = local_host(store, teacher)
    report = reference.report

    def stopping(metrics, state, *, last):
        report(metrics, state, last=last)
        if last:
            raise KeyboardInterrupt

    reference.report = stopping
    with pytest.raises(KeyboardInterrupt):
        train(store, teacher, reference)
    checkpoints = Checkpoints(store.path(teacher))
    state = checkpoints.restore()
    assert state is not None
    if kept == "weights":
        next(iter(state["learner"].values())).fill_(math.nan)
    else:
        state["history"][-1]["test_loss"] = math.nan
    checkpoints.keep(state)
    with pytest.raises(WorkFailed, match=r"epoch 1 .*not finite"):
        train(store, teacher, local_host(store, teacher))
    assert not store.has(teacher)


def _fill(name, value):
    def change(network):
        chosen = network.network.state_dict()[name]
        chosen[(0,) * chosen.dim()] = value

    return change


def test_a_given_teacher_without_numbers_is_refused(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    bias = [*build("resnet8", 10).network.state_dict()][-1]
    teacher = given(store, _fill(bias, math.inf))
    message = r"given teacher resnet8 \(sha256.*bias is not finite; give other"
    with pytest.raises(WorkFailed, match=message):
        train(store, teacher, local_host(store, teacher))
    assert not store.has(teacher)


def test_a_given_teacher_whose_answers_are_no_numbers_is_refused(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    variance = next(k for k in build("resnet8", 10).network.state_dict() if "running_var" in k)
    teacher = given(store, _fill(variance, -1.0))
    with pytest.raises(WorkFailed, match="answers to the test images are not finite"):
        train(store, teacher, local_host(store, teacher))
    assert not store.has(teacher)


@pytest.mark.slow
def test_a_given_teacher_may_leave_a_class_out(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    bias = [key for key in build("resnet8", 10).network.state_dict() if key.endswith("bias")][-1]
    teacher = given(store, _fill(bias, -math.inf))
    train(store, teacher, local_host(store, teacher))
    json.loads((store.path(teacher) / "result.json").read_text(), parse_constant=pytest.fail)
    run = student_run(store, DKD(warmup_epochs=0), teacher=teacher, source="live")
    prepare(store, run)
    train(store, run, local_host(store, run))
    assert store.has(run)


def test_a_teacher_whose_answers_are_no_numbers_fills_no_cache(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path)
    teacher = teacher_run(store)
    train(store, teacher, local_host(store, teacher))
    folder = store.path(teacher)
    network = weights.load_teacher(store, teacher, 2, CPU)
    with torch.no_grad():
        next(network.parameters()).fill_(1e38)  # finite weights
    weights.save_weights(weights.anchor_path(store, teacher, 2), network)
    result = read_json(folder / "result.json")
    write_json(folder / "result.json", result | {"weights": weights.checksums(folder)})
    run = student_run(store, teacher=teacher)
    with pytest.raises(CacheMismatch, match="not finite; this teacher cannot be distilled"):
        prepare(store, run)
    assert not store.has(run.outputs_at(0))


@each("kind", [Features, Retrieval, Faces])
def test_embeddings_that_are_not_finite_are_no_number_of_a_probe_or_of_test_images(
    teacher_store, kind
):
    data = digits(teacher_store, limit=None, augment={})
    task = {
        Features: lambda: Features(probe=Probe(data=data)),
        Retrieval: lambda: Retrieval(gallery="student", probe=RetrievalSet(data=data)),
        Faces: lambda: Faces(probe=FaceSet(data=data, folds=2)),
    }[kind]()
    host = local_host(teacher_store, student_run(teacher_store))
    network = build("resnet8", 0)
    with torch.no_grad():
        next(network.parameters()).fill_(1e38)  # finite weights
    parts = [part.take(torch.arange(60)) for part in open_images(teacher_store, data)]
    views = [Views(part, data) for part in parts]
    sets = ProbeSets(probe_of(task), *views, tuple(map(str, range(10))))
    helpers = nn.ModuleDict()
    assert [*map(math.isnan, probed(task, network, helpers, sets, host).values())] == [True]
    if kind is Retrieval:  # ranks its own test images, too
        judge = Retrieval(gallery="student")
        more = evaluate(
            network,
            MimicEmbedding(),
            helpers,
            views[1],
            lambda batch: Outputs(embedding=torch.ones(len(batch.ids), 64)),
            host,
            task=judge,
        )
        assert math.isnan(more[judge.headline])


def test_a_teacher_that_leaves_the_label_out_makes_neither_loss_nor_evaluation_nan(teacher_store):
    student, teacher, labels = golden_logits()
    teacher[torch.arange(4), labels] = -math.inf
    batch = Batch(torch.zeros(4, 3, 8, 8), labels, torch.arange(4), 0, 30)
    found = DKD().losses(Outputs(student), Outputs(teacher), batch, nn.ModuleDict())["logits"]
    assert torch.isfinite(found)
    data = digits(teacher_store, limit=96)
    test = Views(open_images(teacher_store, data)[1], data.test())

    def masking(batch):
        logits = torch.zeros(len(batch.ids), 10)
        return Outputs(logits.scatter(1, batch.labels[:, None], -math.inf))

    host = local_host(teacher_store, student_run(teacher_store))
    metrics = evaluate(build("resnet8", 10), LabelOnly(), nn.ModuleDict(), test, masking, host)
    assert math.isfinite(metrics["kl"])
    assert 0 < metrics["kl"] < 10


@pytest.mark.slow
@each(("side", "equal"), [(4, False), (8, True)])
def test_statistics_are_refreshed_where_a_chunk_has_one_image_too_many(
    teacher_store, monkeypatch, side, equal
):
    # Maps of 1 x 1 have no variance in a batch of one; larger ones have, and stay as they were.
    monkeypatch.setattr(runs, "BATCH", 48)
    data = digits(teacher_store, limit=97, resize=side)
    train_views = Views(open_images(teacher_store, data)[0], data)
    torch.manual_seed(0)
    network = build("resnet8", 10)
    found = refreshed(network, train_views, 0)
    ends = (0, 48, 96, 97) if equal else (0, 47, 94, 97)
    expected = build("resnet8", 10)
    expected.load_state_dict(network.state_dict())
    rows = [torch.arange(a, b) for a, b in itertools.pairwise(ends)]
    pixels = [train_views.batch(ids, 0).pixels for ids in rows]
    torch.optim.swa_utils.update_bn(pixels, expected)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value)


def test_an_epoch_without_numbers_is_never_the_best(teacher_store):
    run = student_run(teacher_store)
    lines = [{"top1": 40.0, "test_loss": 1.0}, {"top1": 75.0, "test_loss": math.nan}]
    history = [line | {"epoch": i, "loss": 1.0, "seconds": 1.0} for i, line in enumerate(lines)]
    result = result_of(run, [nn.Linear(2, 2)], history, local_host(teacher_store, run))
    assert result["best"]["top1"] == 40.0


def test_what_an_earlier_version_finished_without_numbers_has_no_score(teacher_store, tmp_path):
    store = twin(teacher_store, tmp_path, "teachers", "caches")
    run = student_run(store)
    train(store, run, local_host(store, run))
    path = store.path(run) / "result.json"
    result = read_json(path)
    result["last"]["test_loss"] = math.nan
    path.write_text(json.dumps(result))
    write_sheet(store, "sweep", Sheet("00", {}, "one", "finished", run, last={"top1": 75.0}))
    [line] = csv.DictReader(write_results(store, "sweep").read_text().splitlines())
    assert line["top1"] == "" and line["fingerprint"]


def test_names_of_what_is_not_finite_come_in_order_and_integers_are_passed_over():
    linear, norm = nn.Linear(2, 2), nn.BatchNorm1d(2)
    nn.init.constant_(linear.bias, -math.inf)
    assert norm.running_var is not None
    norm.running_var[0] = math.nan
    assert not_finite([nn.Sequential(linear, norm)]) == ["0.bias", "1.running_var"]
    assert not_finite([linear, norm], masks=linear) == ["running_var"]
    assert not_finite([nn.ReLU()]) == []
