"""Ray's own notes on a run: in the store, and so where every node can write them."""

from pathlib import Path
from typing import Any

from raykd.launch.sweep import signed
from raykd.storage.store import Store


def marked(store: Store, folder: Path) -> dict[str, Any]:
    """A folder of the store for Tune, as `place`, where what it would unpickle bears a mark."""
    found = place(store, folder)
    return found | {"storage_filesystem": signed.sealed(found.get("storage_filesystem"))}


def place(store: Store, folder: Path) -> dict[str, Any]:
    """A folder of the store as Ray takes one: `path`, and its `storage_filesystem`."""
    if store.mirror is None:
        return {"path": str(folder)}
    files, path = store.mirror.remote.at(store.mirror.name(folder))
    return {"path": path, "storage_filesystem": files}


def storage(found: dict[str, Any]) -> dict[str, Any]:
    """Such a folder as settings of a run, which has one of its own in there."""
    found = {**found}
    return {"storage_path": found.pop("path"), **found}
