"""Embeddings of a labelled set, and what probes say of them."""

import json
from pathlib import Path

import pytest
import torch

from raykd.config.scale import Scale
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.methods.embed_distill import EmbedDistill
from raykd.models import build
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tasks import Features, Probe, Retrieval, RetrievalSet
from raykd.tracking.jsonl import read_metrics
from raykd.training import initial_state, inputs
from raykd.training.checkpointing import Checkpoints
from raykd.training.hosts.base import Host
from raykd.training.hosts.group import GroupHost
from raykd.training.probing import embeddings, probed
from raykd.training.runs import local_host, train
from tests.process_group import run_group
from tests.small import CPU, digits, prepare, student_run, trained
from tests.training.group_work import Stop


def test_embeddings_are_computed_in_the_precision_of_the_student(tmp_path):
    store = Store(tmp_path / "store")
    run = student_run(store)
    torch.manual_seed(0)
    network, host = build("resnet8", 0).eval(), local_host(store, run)
    views = Views(open_images(store, run.data)[1], run.data, device=host.device)
    plain, lower = (embeddings(network, views, host, autocast=low) for low in (False, True))
    assert plain.dtype == lower.dtype == torch.float32
    assert 0 < (plain - lower).norm() < 0.02 * plain.norm()


def metrics_of(store: Store, run: StudentRun, host: Host) -> dict[str, float]:
    """The probe's metrics of an untrained student."""
    learner = initial_state.learner(store, run, host, open_images(store, run.data)[0].targets)
    sets = inputs.probe(store, run, host.device)
    assert sets is not None
    first = probed(run.task, learner.student, learner.helpers, sets, host)
    again = probed(run.task, learner.student, learner.helpers, sets, host)
    assert first == again and len(sets.of_teacher) == bool(sets.teacher)
    return first


def write_metrics(rank: int, folder: str, root: str, runs: list[StudentRun]) -> None:
    """Write down what a worker of a group says of some students."""
    host = GroupHost(Checkpoints(Path(folder)), CPU)
    found = [metrics_of(Store(root), run, host) for run in runs]
    (Path(folder) / f"metrics-{rank}.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_a_probe_s_metrics_from_the_shares_of_workers_are_those_of_one(tmp_path):
    store = Store(tmp_path / "store")
    judged = digits(store, limit=None, augment={})
    tasks = [Features(probe=Probe(data=judged, kind=("knn",)))]
    for gallery in ("test", "train"):
        probe = RetrievalSet(data=judged, gallery=gallery)
        tasks += [Retrieval(gallery="student", probe=probe), Retrieval(probe=probe)]
    runs = [student_run(store, EmbedDistill(), task=task) for task in tasks]
    prepare(store, *runs)
    alone = [metrics_of(store, run, local_host(store, run)) for run in runs]
    run_group(3, tmp_path, write_metrics, str(tmp_path), str(store.root), runs)
    for rank in range(3):
        assert json.loads((tmp_path / f"metrics-{rank}.json").read_text()) == alone


@pytest.mark.slow
def test_a_student_that_stops_between_two_probes_goes_on_to_equal_metrics(tmp_path):
    store = Store(tmp_path / "store")
    probe = RetrievalSet(data=digits(store, augment={}), gallery="train", every=1)
    run = student_run(store, EmbedDistill(), task=Retrieval(probe=probe))
    prepare(store, run)

    def measured() -> list[float]:
        lines = read_metrics(store.path(run))
        names = ("recall_at_1", "map", "teacher_map", "probe_agreement_at_10")
        return [line[name] for line in lines for name in names]

    trained(store, run)
    expected = measured()
    store.discard(run)
    host = local_host(store, run, Scale(checkpoint_seconds=0))
    report = host.report

    def reported(metrics, state, *, last):
        report(metrics, state, last=last)
        raise Stop

    host.report = reported
    with pytest.raises(Stop):
        train(store, run, host)
    trained(store, run)
    assert measured() == expected and len(expected) == 12
