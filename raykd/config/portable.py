"""Resolved experiments as processes on other machines can read them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from raykd.config.class_maps import NAMES, WORDNET, read_table
from raykd.config.experiment import Experiment, Where
from raykd.data.sources.hub_datasets import is_on_hub
from raykd.models.weights_import import is_path, portable_name
from raykd.storage.filesystem import is_url
from raykd.storage.store import Store


def portable(experiment: Experiment, store: Store) -> Experiment:
    """A resolved experiment as another process can read it: weights in the store, paths whole."""

    def within(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: within(inner, str(name)) for name, inner in value.items()}
        if isinstance(value, list):
            return [within(inner, key) for inner in value]
        if key == "classes" and isinstance(value, str) and value not in (NAMES, WORDNET):
            return [list(row) for row in read_table(value)]
        path = key == "weights" and isinstance(value, str) and is_path(value)
        return portable_name(store, value) if path else value

    space = experiment.space
    if space is not None:
        grid = {axis: within(list(v), axis.rpartition(".")[2]) for axis, v in space.grid.items()}
        space = replace(space, base=within(dict(space.base)), grid=grid)
    whole = {
        name: path if path is None or is_url(path) or is_on_hub(path) else _whole(path)
        for name, path in experiment.where.plain().items()
    }
    return replace(experiment, space=space, where=Where(**whole))


def _whole(path: str) -> str:
    """The whole path of a file or folder of this machine."""
    return str(Path(path).expanduser().resolve())
