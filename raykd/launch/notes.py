"""Ray's own notes on a run: in the store, and so where every node can write them."""

from pathlib import Path
from typing import Any

from raykd.store import Store


def place(store: Store, folder: Path) -> dict[str, Any]:
    """A folder of the store as Ray takes one: `path`, and its `storage_filesystem`."""
    if store.mirror is None:
        return {"path": str(folder)}
    files, path = store.mirror.remote.at(store.mirror.name(folder))
    return {"path": path, "storage_filesystem": files}


def storage(store: Store, folder: Path) -> dict[str, Any]:
    """The same as settings of a run, which has a folder of its own in there."""
    found = place(store, folder)
    return {"storage_path": found.pop("path"), **found}
