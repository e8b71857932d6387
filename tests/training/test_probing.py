"""Embeddings of a labelled set."""

import torch

from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.models import build
from raykd.storage.store import Store
from raykd.training.probing import embeddings
from raykd.training.runs import local_host
from tests.small import student_run


def test_embeddings_are_computed_in_the_precision_of_the_student(tmp_path):
    store = Store(tmp_path / "store")
    run = student_run(store)
    torch.manual_seed(0)
    network, host = build("resnet8", 0).eval(), local_host(store, run)
    views = Views(open_images(store, run.data)[1], run.data, device=host.device)
    plain, lower = (embeddings(network, views, host, autocast=low) for low in (False, True))
    assert plain.dtype == lower.dtype == torch.float32
    assert 0 < (plain - lower).norm() < 0.02 * plain.norm()
