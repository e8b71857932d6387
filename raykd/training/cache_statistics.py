"""The statistics by which a cache's codecs store vectors and maps: computed once, or read."""

import torch

from raykd.core import keyed_random
from raykd.data.loading.loader import Views
from raykd.methods.columns import shapes_of_columns
from raykd.methods.feature_maps import map_shape
from raykd.models.staged import measure
from raykd.outputs.manifest import GRAIN
from raykd.outputs.statistics import (
    STATISTICS,
    Vectors,
    fitted,
    fitted_codecs,
    images_for,
    packed,
    read_vectors,
    seal_of,
)
from raykd.recipes import OutputsRun
from raykd.storage import arrow, locks
from raykd.storage.store import Store
from raykd.teachers.source import LiveTeacher


def vectors_of_cache(
    store: Store, run: OutputsRun, views: Views, teacher: LiveTeacher
) -> Vectors | None:
    """The codecs of a cache's vectors, fitted to its teacher; None where it needs no statistics.

    They are fitted to the first view of some training images, which the data's key chooses.
    Raises `ConfigError` where a codec loses more than it may.
    """
    codecs = fitted_codecs(run.plain())
    if not codecs:
        return None
    path = store.path(run) / STATISTICS
    store.pull(seal_of(path))
    if store.pull(path).is_file():
        return read_vectors(path, codecs, run.grid)
    with locks.held(store, run, "statistics"):
        if not store.pull(path).is_file():  # else another process has made it meanwhile
            data = packed(_fitted(run, codecs, views, teacher))
            store.write_json(seal_of(path), {"checksum": arrow.checksum(data)})  # before it counts
            store.write(path, data)
    return read_vectors(path, codecs, run.grid)


def _fitted(run: OutputsRun, codecs: dict, views: Views, teacher: LiveTeacher) -> Vectors:
    """The codecs, fitted."""
    data = run.data.resolved()
    shapes, count = measure(teacher.network, data.size), len(views.images)
    channels, places = shapes.embedding, 1
    if run.maps:
        width, height, breadth = map_shape(shapes, "map", run.blocks)
        channels = max(width, channels if run.embedding else 0)
        places = min(run.grid or height, height) * min(run.grid or breadth, breadth)
    derived = shapes_of_columns(run.derived, shapes, data.classes).values()
    chosen = keyed_random.draw(
        run.data.seed, torch.arange(count), 0, keyed_random.STATISTICS
    ).argsort()[: images_for(codecs, places, channels, derived)]
    rows = chosen.sort().values
    shown = views.runs(rows, views.at_once(GRAIN, teacher.network.side), 0)
    return fitted((teacher(batch) for batch in shown), codecs, run.grid, len(rows))
