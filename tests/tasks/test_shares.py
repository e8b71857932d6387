"""Every task's metrics from the shares of several workers are those of the whole."""

import threading

import pytest
import torch

from raykd.core.types import Outputs
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.data.transforms.augment import Augment
from raykd.methods.kd import KD
from raykd.methods.mimic import MimicEmbedding
from raykd.models import build
from raykd.storage.store import Store
from raykd.tasks import (
    TASKS,
    Faces,
    FaceSet,
    Features,
    Probe,
    Retrieval,
    RetrievalSet,
    probe_of,
)  # fmt: skip
from raykd.training.evaluation import evaluate
from raykd.training.hosts.base import LocalHost
from raykd.training.probing import ProbeSets, probed
from raykd.training.runs import local_host
from tests.each import each
from tests.small import student_run

IMAGES = 12
WORKERS = (2, 5, 13)  # the last of thirteen has no test image
EXACT = ("top1", "top5", "agreement", "recall_at_1")  # counts of images


class Meeting:
    """A place at which the threads of some workers exchange tensors, in the workers' order."""

    def __init__(self, world: int) -> None:
        self.barrier, self.parts = threading.Barrier(world), [torch.empty(0)] * world

    def all_of(self, rank: int, part: torch.Tensor) -> list[torch.Tensor]:
        self.parts[rank] = part
        self.barrier.wait()
        parts = [*self.parts]
        self.barrier.wait()
        return parts


class Worker(LocalHost):
    """One of several workers in this process, each in a thread."""

    def __init__(self, host: LocalHost, meeting: Meeting, rank: int, world: int) -> None:
        super().__init__(host.checkpoints, host.device, host.log, host.scale)
        self.rank, self.world, self.meeting = rank, world, meeting

    def total(self, values):
        return torch.stack(self.meeting.all_of(self.rank, values)).sum(0)

    def gather(self, rows):
        return torch.cat(self.meeting.all_of(self.rank, rows))


def by_workers(host: LocalHost, world: int, work) -> list[dict[str, float]]:
    """The results of `work`, which each worker calls with its host."""
    meeting, results, errors = Meeting(world), [{}] * world, []

    def one(rank: int) -> None:
        try:
            results[rank] = work(Worker(host, meeting, rank, world))
        except Exception as error:
            errors.append(error)
            meeting.barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def check_equal(found: dict[str, float], whole: dict[str, float], world: int) -> None:
    assert found.keys() == whole.keys()
    for name, value in whole.items():
        if name in EXACT:
            assert found[name] == value, (world, name)
        else:  # float32 losses of other batches, and sums in another order
            assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (world, name)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    return store, student_run(store)


@each("name", TASKS)
def test_metrics_of_test_images_from_shares_are_those_of_the_whole(run, name):
    store, recipe = run
    host, task = local_host(store, recipe), TASKS[name](name=name)
    torch.manual_seed(0)
    network = task.adapted(build("resnet8", 10 if task.labelled else 0))
    method = KD() if task.labelled else MimicEmbedding()
    images = open_images(store, recipe.data)[1].take(torch.arange(IMAGES))
    views = Views(images, recipe.data)
    logits, embedding = torch.randn(IMAGES, 10), torch.randn(IMAGES, 64)

    def teacher(batch):
        return Outputs(logits[batch.ids], embedding=embedding[batch.ids])

    def judged(worker) -> dict[str, float]:
        return evaluate(network, method, torch.nn.ModuleDict(), views, teacher, worker, task=task)

    whole = judged(host)
    assert len(whole) > 1
    for world in WORKERS:
        for found in by_workers(host, world, judged):
            check_equal(found, whole, world)


@each("kind", [Features, Retrieval, Faces])
def test_what_a_probe_says_from_shares_is_that_of_the_whole(run, kind):
    store, recipe = run
    data = recipe.data.model_copy(update={"limit": None, "augment": Augment()})
    task = {
        Features: lambda: Features(probe=Probe(data=data, kind=("knn",))),
        Retrieval: lambda: Retrieval(gallery="student", probe=RetrievalSet(data=data)),
        Faces: lambda: Faces(probe=FaceSet(data=data, folds=2, pairs=20)),
    }[kind]()
    host, probe = local_host(store, recipe), probe_of(task)
    torch.manual_seed(0)
    network = build("resnet8", 0)
    parts = (part.take(torch.arange(60)) for part in open_images(store, data))
    names = tuple(map(str, range(10)))
    sets = ProbeSets(probe, *(Views(part, data) for part in parts), names)

    def judged(worker) -> dict[str, float]:
        return probed(task, network, torch.nn.ModuleDict(), sets, worker)

    whole = judged(host)
    for world in WORKERS:
        for found in by_workers(host, world, judged):
            check_equal(found, whole, world)


def test_every_task_with_a_probe_is_among_the_cases():
    assert {kind for kind in TASKS.values() if "probe" in kind.model_fields} == {
        Features, Retrieval, Faces,
    }  # fmt: skip
