"""Backbones that learn embeddings: what is trained, stored, measured and released."""

import pytest
import safetensors.torch
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.methods import METHODS
from raykd.methods.directions import Dispersion, TangentSphere, squared_angle
from raykd.methods.feature_distillation import FeatureDistillation, Queue, queue_size
from raykd.methods.relational_kd import RelationalKD
from raykd.models import build
from raykd.outputs.codecs import Dense, codec_of
from raykd.outputs.manifest import manifest_of
from raykd.planning.plan import plan
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.report.catalogue import catalogue, verify_caches
from raykd.tasks import Classification, Features, Probe, alignment
from raykd.training import inputs
from raykd.training.checkpointing import read_result
from raykd.training.evaluation import evaluate
from raykd.training.load_trained import finished
from raykd.training.runs import local_host
from tests.each import each
from tests.small import CPU, golden_embeddings
from tests.training.route_runs import carried

FAST = Optim(epochs=2, batch=32)


@pytest.fixture(scope="module")
def teacher(data):
    return TeacherRun(model="resnet8", data=data, optim=Optim(epochs=1, batch=32), save_every=1)


def student(data, teacher, **fields):
    fields = {"method": FeatureDistillation(), "task": Features(), "views": 1} | fields
    return StudentRun(model="resnet8", data=data, teacher=teacher, optim=FAST, **fields)


def trained(store, run):
    carried(store, run)
    return read_result(store.path(run))


def test_the_cache_has_two_bytes_for_each_number_of_an_embedding(store, data, teacher):
    run = student(data, teacher)
    trained(store, run)
    cache = run.outputs_at(0)
    assert cache.signals() == Signal.EMBEDDING
    manifest = manifest_of(store, cache)
    (shard,) = manifest.shards
    assert Dense().bytes_per_row(None, 64) == 2 * 64
    assert 0 <= shard.bytes - 160 * 2 * 64 < 1500  # the file's own head and foot
    rows = [row for row in catalogue("students", store) if row["cka"] is not None]
    assert rows and all(row["top1"] is row["agreement"] is None for row in rows)
    (row,), errors = verify_caches(store, [cache], 64)
    assert (errors, row["rows"], row["kl"], row["agreement"]) == ([], 64, None, None)


@each("codec", [{"codec": "int8"}, {"codec": "topk", "k": 3}])
def test_the_codec_of_logits_is_of_no_account_where_none_are_stored(data, teacher, codec):
    plain, run = (student(data, teacher, codec=codec_of(one)) for one in ({}, codec))
    assert run.caches_at(0) == plain.caches_at(0)
    assert run.test_caches() == plain.test_caches()


def test_a_probe_judges_what_is_released(store, data, teacher):
    whole = data.model_copy(update={"limit": None})
    probe = Probe(data=whole, kind=("knn", "linear"), every=1)
    run = student(data, teacher, task=Features(probe=probe))
    result = trained(store, run)
    assert result["last"].keys() >= {"knn_top1", "linear_top1", "cka", "test_loss"}
    assert result["best"]["knn_top1"] >= result["last"]["knn_top1"]
    network = finished(store, run).network
    weights = safetensors.torch.load_file(store.path(run) / "weights.safetensors")
    assert not [name for name in weights if name.startswith("classifier")]
    pixels = torch.randn(3, 3, 8, 8)
    assert network(pixels).shape == (3, 64)
    plain = build("resnet8", 10)
    lacking = plain.network.load_state_dict(weights, strict=False)
    assert not lacking.unexpected_keys
    assert all(name.startswith("classifier") for name in lacking.missing_keys)


def test_wide_embeddings_are_aligned_by_their_rows(store, data, teacher, monkeypatch):
    run = student(data, teacher)
    trained(store, run)
    network, host = finished(store, run).network, local_host(store, run)
    _, test = inputs.views(store, run, host)
    task, source, helpers = run.task, inputs.test_teacher(store, run, CPU), torch.nn.ModuleDict()

    def aligned():
        return evaluate(network, RelationalKD(), helpers, test, source, host, task=task)

    by_sums = aligned()
    monkeypatch.setattr(alignment, "by_rows", lambda *sizes: True)
    by_rows = aligned()
    assert by_rows.keys() == by_sums.keys() == {"cka", "test_loss"}
    assert by_rows["cka"] == pytest.approx(by_sums["cka"], rel=1e-9)
    assert by_rows["test_loss"] == by_sums["test_loss"]


@pytest.mark.slow
def test_images_without_labels_are_enough(store, teacher):
    bare = read(store, Data(name="digits", holdout=0.3, limit=160, labels="none"), None)
    run = student(bare, teacher)
    assert (bare.classes, run.head, run.test_caches()[0].signals()) == (0, 0, Signal.EMBEDDING)
    assert trained(store, run)["last"].keys() >= {"cka", "test_loss"}


@each(
    ("fields", "words"),
    [
        ({"method": METHODS["kd"]()}, "reads logits"),
        ({"method": METHODS["label_only"]()}, "learns from the labels alone"),
        ({"method": METHODS["crd"]()}, "reads labels"),
        ({"method": METHODS["ft"]()}, "a training of its own"),
        ({"label_weight": 0.5}, "has no label loss"),
    ],
)
def test_what_needs_labels_is_refused(data, teacher, fields, words):
    with pytest.raises(ValueError, match=words):
        student(data, teacher, **fields)


def test_classification_of_unlabelled_images_is_refused(store, teacher):
    bare = read(store, Data(name="digits", labels="none"), None)
    with pytest.raises(ValueError, match="learns from labels"):
        student(bare, teacher, task=Classification())


def test_all_work_is_one_cache_per_split(data, teacher):
    runs = [student(data, teacher, seed=seed) for seed in (0, 1)]
    assert len(plan(runs).caches) == 2


# The method's losses


def outputs(rows):
    return Outputs(embedding=torch.tensor(rows, dtype=torch.float64))


def batch_of(size):
    ids = torch.arange(size)
    return Batch(torch.zeros(size, 3, 1, 1), torch.zeros_like(ids), ids, view=0, epoch=0)


def helpers_of(method, width, images=64):
    shapes = Shapes(0, width, {})
    helpers = method.helpers(shapes, shapes, torch.zeros(images, dtype=torch.int64)).double()
    with torch.no_grad():
        helpers["projection"].weight.copy_(torch.eye(width))
    return helpers


def loss_of(method, helpers, student, teacher):
    batch = batch_of(len(student))
    (loss,) = method.losses(outputs(student), outputs(teacher), batch, helpers).values()
    return loss


def test_distances_by_hand():
    pair = [[3.0, 4.0], [1.0, 0.0]], [[4.0, 3.0], [0.0, 2.0]]
    for distance, expected in (
        ("cosine", (0.04 + 1) / 2),
        ("l2", (1 + 1 + 1 + 4) / 4),
        ("smooth_l1", (0.5 + 0.5 + 0.5 + 1.5) / 4),
    ):
        method = FeatureDistillation(distance=distance)
        assert loss_of(method, helpers_of(method, 2), *pair).item() == pytest.approx(expected)


def test_golden_values():
    n, d = torch.meshgrid(torch.arange(4.0).double(), torch.arange(6.0).double(), indexing="ij")
    student = torch.sin(0.5 * n + 0.9 * d + 0.1).tolist()
    teacher = torch.cos(0.3 * n + 0.7 * d + 0.2).tolist()
    for method, expected in (
        (FeatureDistillation(distance="cosine"), 0.3170808717),
        (FeatureDistillation(distance="smooth_l1"), 0.1670465523),
        (FeatureDistillation(distance="balanced"), (0.3170808717 + 0.1670465523) / 2),
        (FeatureDistillation(distance="angle"), 5.914650467),
        # The reference divides the covariance by n - 1, and here n is 4.
        (FeatureDistillation(distance="tangent"), 4.496752375 * 4 / 3),
        (FeatureDistillation(distance="queue", size=4), 1.682642637),  # the batch fills it
        (FeatureDistillation(distance="queue", size=6), 1.682864092),  # two rows are zeros yet
    ):
        helpers = helpers_of(method, 6)
        if method.needs_calibration(helpers):
            method.calibrate(helpers, [outputs(teacher[:1]), outputs(teacher[1:])])
        loss = loss_of(method, helpers, student, teacher)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_angles_ignore_the_length_of_the_student_s_projection_and_distances_do_not():
    student, teacher = golden_embeddings()
    for distance in ("cosine", "angle", "tangent", "queue", "l2", "smooth_l1", "balanced"):
        method = FeatureDistillation(distance=distance)
        plain, longer = helpers_of(method, 6), helpers_of(method, 6)
        with torch.no_grad():
            longer["projection"].weight.mul_(3)
        found = []
        for helpers in (plain, longer):
            if method.needs_calibration(helpers):
                method.calibrate(helpers, [Outputs(embedding=teacher)])
            found.append(loss_of(method, helpers, student.tolist(), teacher.tolist()).item())
        of_angles = distance in ("cosine", "angle", "tangent", "queue")
        assert (found[1] == pytest.approx(found[0], rel=1e-9)) == of_angles, distance


def test_the_spread_of_a_teacher_s_directions():
    student, teacher = golden_embeddings()
    dispersion = Dispersion().double()
    dispersion.calibrate([teacher])
    assert dispersion.spread.item() == pytest.approx(0.1140253688, rel=1e-6)
    assert squared_angle(student, teacher).mean().item() == pytest.approx(0.6744202006, rel=1e-9)


def test_angles_have_finite_slopes_at_equal_and_at_opposite_vectors():
    for dtype in (torch.float32, torch.float64):
        teacher = torch.tensor([[1.0, 2.0, 3.0]] * 3, dtype=dtype)
        factors = torch.tensor([[2.0], [-1.0], [1.0]], dtype=dtype)
        apart = torch.tensor([[0.0, 0, 0], [0, 0, 0], [1e-3, 0, 0]], dtype=dtype)
        student = (factors * teacher + apart).requires_grad_()
        squares = squared_angle(student, teacher)
        squares.sum().backward()
        assert squares[:2].tolist() == pytest.approx([0, torch.pi**2], abs=2e-2)
        exact = 1e-6 * (1 - 1 / 14) / 14  # across a vector of length sqrt(14)
        rounding = 4 * torch.finfo(dtype).eps
        assert squares[2].item() == pytest.approx(exact, rel=1e-3, abs=rounding)
        assert student.grad is not None and bool(student.grad.isfinite().all())


def test_a_table_of_more_rows_than_images_begins_anew_with_the_first():
    method = FeatureDistillation(distance="queue", queue="table", size=5)
    helpers = method.helpers(Shapes(0, 2, {}), Shapes(0, 3, {}), torch.zeros(3))
    answers = torch.eye(3)
    method.calibrate(helpers, [Outputs(embedding=part) for part in answers.split(2)])
    assert helpers["queue"].rows.tolist() == answers[[0, 1, 2, 0, 1]].tolist()


@pytest.mark.slow
def test_relations_and_directions_are_learnt_without_labels(store, data, teacher):
    for method in (RelationalKD(), FeatureDistillation(distance="angle")):
        run = student(data, teacher, method=method)
        result = trained(store, run)["last"]
        assert result["loss_embedding"] > 0 and 0 <= result["cka"] <= 100


def test_a_queue_of_one_sample_is_refused_and_the_order_of_more_changes_nothing():
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        FeatureDistillation(distance="queue", size=1)
    method = FeatureDistillation(distance="queue", size=8)
    helpers = helpers_of(method, 3).eval()
    rows = torch.nn.functional.normalize(torch.randn(8, 3).double(), dim=1)
    values = []
    for order in (torch.arange(8), torch.randperm(8)):
        helpers["queue"].rows.copy_(rows[order])
        values.append(loss_of(method, helpers, [[1.0, 2, 3]], [[3.0, 2, 1]]).item())
    assert values[0] == pytest.approx(values[1])


def test_a_queue_holds_the_last_rows():
    queue = Queue(5, 1)
    for start in range(0, 9, 3):
        queue.push(torch.arange(start, start + 3).float()[:, None])
    assert sorted(queue.rows.flatten().tolist()) == [4, 5, 6, 7, 8]
    queue.push(torch.arange(20.0)[:, None])
    assert sorted(queue.rows.flatten().tolist()) == [15, 16, 17, 18, 19]


def test_sizes_of_queues():
    assert [queue_size(n) for n in (1, 50, 51, 20_000, 20_001)] == [16, 16, 32, 4096, 8192]


def test_an_encoder_has_no_logits():
    network = build("resnet8", 0).eval()
    out = network.outputs(torch.zeros(2, 3, 8, 8), Signal.LOGITS | Signal.EMBEDDING)
    assert not out.has_logits
    with pytest.raises(LookupError, match=r"add Signal\.LOGITS"):
        _ = out.logits
    with pytest.raises(ConfigError, match="no linear map of an embedding"):
        build("torchvision/squeezenet1_0", 0)


def test_a_batch_of_two_against_a_queue_of_all_has_its_golden_value():
    student, teacher = (rows.tolist() for rows in golden_embeddings())
    method = FeatureDistillation(distance="queue", size=4)
    helpers = helpers_of(method, 6)
    loss_of(method, helpers, student, teacher)  # fills the queue
    loss = loss_of(method, helpers, student[:2], teacher[:2])
    assert loss.item() == pytest.approx(1.186506061, rel=1e-6)


def test_a_teacher_s_tangents_have_the_golden_mean_eigenvalue():
    method = FeatureDistillation(distance="tangent")
    helpers = helpers_of(method, 6)
    method.calibrate(helpers, [Outputs(embedding=golden_embeddings()[1])])
    (sphere,) = (one for one in helpers.modules() if isinstance(one, TangentSphere))
    factor = sphere.standardiser.factor  # a rotation over the root of it; its 4 rows over 3
    mean = 4 / 3 / (factor @ factor.T)[0, 0].item()
    assert mean == pytest.approx(0.02520773197, rel=1e-6)
