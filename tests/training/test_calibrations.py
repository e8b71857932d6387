"""Calibrations that a cache keeps: one student computes them, and the others read what it set."""

import logging
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
import torch

from raykd.core.counters import METER
from raykd.core.errors import CacheCorrupt
from raykd.data.loading.sampler import epoch_order
from raykd.methods.combine import Combine
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.methods.panel_distillation import PanelDistillation
from raykd.methods.skd import SKD
from raykd.outputs.manifest import read_manifest, write_manifest, write_shard
from raykd.recipes import Optim, PanelRun
from raykd.storage import arrow
from raykd.storage.store import Store
from raykd.tasks import Classification, Features
from raykd.teachers.anchor_route import Route
from raykd.training import calibrations, initial_state, inputs
from raykd.training.calibrations import Calibrations, Sample, read
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import LocalHost
from raykd.training.loop import Sources, distil
from tests.each import each
from tests.process_group import run_group
from tests.small import CPU, prepare, student_run, teacher_run
from tests.training import calibration_work

ROWS = 96  # of each view
ANGLE = FeatureDistillation(distance="angle")
PHI_S = DenseDistillation(standardise="phi_s")


@dataclass
class Outcome:
    """The helpers of a student after its training, and what it read of caches."""

    helpers: dict[str, torch.Tensor]
    bytes: int


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(base, tmp_path):
    """A store of one's own, with what the base has."""
    return Store(tmp_path / "store")


def run_of(store, method, **fields):
    """A student of one epoch."""
    task = Classification() if isinstance(method, SKD) else Features()
    values = {"task": task, "views": 1, "optim": Optim(epochs=1, batch=32)} | fields
    return student_run(store, method, **values)


def prepared(base, store, *runs):
    """Make in the base what some students need, and copy it."""
    prepare(base, *runs)
    shutil.copytree(base.root, store.root, dirs_exist_ok=True)


def learned(store, run, folder, *, keeps=True):
    """Train a student, which reads and writes what caches keep, or does neither."""
    folder.mkdir(exist_ok=True)
    host = LocalHost(Checkpoints(folder), CPU)
    train, _ = inputs.views(store, run, host)
    learner = initial_state.learner(store, run, host, train.images.targets)
    before = METER.cache_bytes
    kept = Calibrations(store, host) if keeps else None
    sources = Sources(inputs.teachers(store, run, CPU), train, kept=kept)
    trained = distil(run, learner, sources, host).learner
    return Outcome(trained.state_dict(), METER.cache_bytes - before)


def files(store):
    return sorted(store.root.glob(f"caches/*/{calibrations.BEGINNING}*"))


def equal(one, other):
    """True where two students have the same tensors, bit for bit."""
    mine, theirs = one.helpers, other.helpers
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


@each(
    "method, count",
    [
        (SKD(), 1),
        (PHI_S, 1),
        (FeatureDistillation(distance="tangent"), 1),
        (Combine(combine=(ANGLE, DenseDistillation(standardise="channel", weight=0.5))), 2),
        pytest.param(DenseDistillation(standardise="global", grid=2), 1, marks=pytest.mark.slow),
    ],
    ids=lambda method: method.label,
)
def test_the_second_student_reads_no_rows_to_calibrate_and_learns_the_same(
    base, tmp_path, method, count
):
    store = Store(tmp_path / "store")
    runs = [run_of(base, method), run_of(base, method, seed=1, model="resnet14")]
    prepared(base, store, *runs)
    alone = [learned(store, run, tmp_path / f"{run.seed}", keeps=False) for run in runs]
    assert not files(store)
    first, second = (learned(store, run, tmp_path / f"kept-{run.seed}") for run in runs)
    assert equal(first, alone[0]) and equal(second, alone[1])
    assert len(files(store)) == count
    once = second.bytes  # in the steps; each part of a sum reads the rows to calibrate
    assert [one.bytes for one in (*alone, first)] == [(1 + count) * once] * 3


def test_nothing_is_kept_of_a_live_teacher_nor_of_a_table_of_rows(base, store, tmp_path):
    table = FeatureDistillation(distance="queue", queue="table")
    runs = [run_of(base, table), run_of(base, ANGLE, source="live")]
    prepared(base, store, *runs)
    for number, run in enumerate(runs):
        learned(store, run, tmp_path / f"{number}")
    assert not files(store)


def test_students_share_where_settings_differ_that_calibration_does_not_read(base, store, tmp_path):
    changed = {"weight": 0.5, "temperature": 2.0}
    runs = [run_of(base, SKD()), run_of(base, SKD(**changed)), run_of(base, SKD(variant="l2"))]
    prepared(base, store, *runs)
    counts = []
    for number, run in enumerate(runs):
        learned(store, run, tmp_path / f"{number}")
        counts.append(len(files(store)))
    assert counts == [1, 1, 2]


def test_every_flipped_byte_is_found(base, store, tmp_path):
    run = run_of(base, SKD())
    prepared(base, store, run)
    learned(store, run, tmp_path / "one")
    (path,) = files(store)
    data, kept = path.read_bytes(), read(path)
    assert {name: value.shape for name, value in kept.items()} == {
        "radius.value": (),
        "radius.known": (),
    }
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        with pytest.raises(CacheCorrupt, match="calibration"):
            read(path)
    other = path.with_name(f"{calibrations.BEGINNING}0.safetensors")
    other.write_bytes(data)  # another one's
    with pytest.raises(CacheCorrupt, match="checksum"):
        read(other)


@each("fault", ["flipped", "cut", "empty", "other shapes", "not finite"])
def test_a_damaged_file_is_computed_again_with_a_sentence(base, tmp_path, caplog, fault):
    store, run = Store(tmp_path / "store"), run_of(base, SKD())
    prepared(base, store, run)
    first = learned(store, run, tmp_path / "one")
    (path,) = files(store)
    data, state = path.read_bytes(), read(path)
    wrong = {
        "flipped": data[:-1] + bytes([data[-1] ^ 1]),
        "cut": data[:-1],
        "empty": b"",
        "other shapes": calibrations.packed(path.stem, {"radius.value": torch.zeros(2)}),
        "not finite": calibrations.packed(
            path.stem, state | {"radius.value": torch.tensor(float("nan"))}
        ),
    }
    path.write_bytes(wrong[fault])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = learned(store, run, tmp_path / "two")
    assert [f"{path}: " in record.getMessage() for record in caplog.records] == [True]
    assert "computes it again" in caplog.text
    assert equal(again, first) and again.bytes == first.bytes
    assert path.read_bytes() == data


def test_what_cannot_be_kept_is_computed(base, store, tmp_path, caplog):
    run = run_of(base, SKD())
    prepared(base, store, run)
    alone = learned(store, run, tmp_path / "alone", keeps=False)
    (store.root / "locks").rmdir()
    (store.root / "locks").write_text("a file in the place of the folder")
    with caplog.at_level(logging.WARNING):
        assert equal(learned(store, run, tmp_path / "kept"), alone)
    assert "computed and not kept" in caplog.text and not files(store)


def test_a_damaged_shard_is_an_error_and_nothing_is_kept(base, store, tmp_path):
    run = run_of(base, SKD())
    prepared(base, store, run)
    (shard,) = store.path(run.outputs_at(0)).glob("view-*.arrow")
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CacheCorrupt, match="the shard was truncated or altered"):
        learned(store, run, tmp_path / "one")
    assert not files(store) and not [*(store.root / "locks").glob("*calibration*")]


def test_each_anchor_of_a_route_has_a_calibration_of_its_own(base, store, tmp_path):
    optim, route = Optim(epochs=2, batch=32), Route(anchors=(1, 2), starts=(0, 1))
    runs = [run_of(base, SKD(), route=route, optim=optim, seed=seed) for seed in (0, 1)]
    prepared(base, store, *runs)
    alone = learned(store, runs[1], tmp_path / "alone", keeps=False)
    first, second = (learned(store, run, tmp_path / f"{run.seed}") for run in runs)
    one, two = files(store)
    assert {one.parent, two.parent} == {store.path(runs[0].outputs_at(epoch)) for epoch in (0, 1)}
    assert read(one)["radius.value"] != read(two)["radius.value"]
    assert equal(second, alone) and second.bytes == first.bytes // 2


def test_a_panel_s_calibration_lies_in_the_cache_of_its_first_member(base, store, tmp_path):
    panel = PanelRun(panel=(teacher_run(base), teacher_run(base, model="resnet14")), combine="none")
    method = PanelDistillation(embedding_distance="angle", standardise="phi_s")
    runs = [run_of(base, method, teacher=panel, seed=seed) for seed in (0, 1)]
    back = run_of(base, method, teacher=panel.model_copy(update={"panel": panel.panel[::-1]}))
    prepared(base, store, *runs, back)
    alone = learned(store, runs[1], tmp_path / "alone", keeps=False)
    first, second = (learned(store, run, tmp_path / f"{run.seed}") for run in runs)
    (path,) = files(store)
    assert path.parent == store.path(runs[0].caches_at(0)[0])
    assert len(read(path)) == 2 * (2 + 3)
    assert equal(second, alone) and second.bytes == first.bytes // 2
    learned(store, back, tmp_path / "back")
    assert len(files(store)) == 2


def test_a_cache_with_other_content_has_another_calibration(base, store, tmp_path):
    run = run_of(base, SKD())
    prepared(base, store, run)
    learned(store, run, tmp_path / "before")
    (old,) = files(store)
    # The shard of a teacher whose logits are half as large, in the same folder.
    folder = store.path(run.outputs_at(0))
    manifest = read_manifest(folder)
    assert manifest is not None
    (shard,) = manifest.shards
    columns = arrow.read(folder / shard.name)
    columns = {name: value / 2 for name, value in columns.items()}
    other = write_shard(folder, shard.part, columns)
    write_manifest(folder, replace(manifest, shards=(other,)))
    (folder / shard.name).unlink()
    alone = learned(store, run, tmp_path / "alone", keeps=False)
    assert equal(learned(store, run, tmp_path / "after"), alone)
    (new,) = {*files(store)} - {old}
    assert read(new)["radius.value"] == pytest.approx(read(old)["radius.value"].item() / 2, 1e-3)


def test_of_students_that_begin_at_once_one_calibrates(base, store, tmp_path):
    run = run_of(base, PHI_S)
    prepared(base, store, run)
    host = LocalHost(Checkpoints(tmp_path), CPU)
    train, _ = inputs.views(store, run, host)
    learners = [initial_state.learner(store, run, host, train.images.targets) for _ in range(3)]

    def calibrate(learner):
        teacher = inputs.teachers(store, run, CPU)(0)
        assert teacher is not None
        rows = epoch_order(run.data.seed, 0, ROWS).sort().values
        sample = Sample(teacher, train, rows, 0)
        Calibrations(store, host).set(run.method, learner.helpers, sample)

    before = METER.cache_hits + METER.cache_misses
    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(calibrate, learners)] == [None] * 3
    assert METER.cache_hits + METER.cache_misses == before + 1
    one, *others = ({n: b.clone() for n, b in x.helpers.named_buffers()} for x in learners)
    for other in others:
        assert all(torch.equal(one[name], other[name]) for name in one) and one


@pytest.mark.slow
def test_processes_that_begin_at_once_and_workers_of_one_student_calibrate_once(
    base, store, tmp_path
):
    runs = [run_of(base, PHI_S, seed=seed) for seed in (0, 1)]
    prepared(base, store, *runs)
    alone = learned(store, runs[0], tmp_path / "alone", keeps=False)
    run_group(2, tmp_path, calibration_work.work, str(store.root), str(tmp_path), runs)
    several, together = (
        [torch.load(tmp_path / f"{name}-{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("several", "together")
    )
    once = alone.bytes // 2
    assert sorted(one["bytes"] for one in several) == [0, once]
    assert [one["bytes"] for one in together] == [once, 0]
    for outcome in (*several, *together):
        for name, value in outcome["buffers"].items():
            assert torch.equal(value, alone.helpers[f"helpers.{name}"])
    assert len(files(store)) == 1


def test_a_node_of_a_remote_store_reads_what_another_one_kept(base, tmp_path, monkeypatch):
    run = run_of(base, SKD())
    prepare(base, run)
    shutil.copytree(base.root, tmp_path / "far")
    read_by = []
    for node in ("one", "two"):
        monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / node))
        far = Store(f"file://{tmp_path}/far")
        read_by.append(learned(far, run, tmp_path / f"of-{node}"))
        assert len(files(far)) == len(files(Store(tmp_path / "far"))) == 1
    assert equal(*read_by) and read_by[1].bytes == read_by[0].bytes // 2
