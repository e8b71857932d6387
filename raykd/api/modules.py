"""`nn.Module` objects in experiments: files for as long as this process lives.

The file of the network is a plugin, and that of its weights is copied into the store when an
experiment is read, as any other of its kind.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import save
from torch import nn

from raykd import models
from raykd.core import plugins
from raykd.core.errors import ConfigError
from raykd.models.module_source import check_same, source_of


class Written(NamedTuple):
    """An object as an experiment file would name it."""

    name: str  # the model
    weights: str  # path of the file of safetensors
    plugin: str  # path of the file that registers the model


def written(module: nn.Module, stages: Sequence[str] | None = None) -> Written:
    """The files of an object, after a comparison of what they compute with the object.

    The same network with the same weights is the same in every process; see
    `raykd.models.module_source.source_of`. Raises `ConfigError` where it cannot be written.
    """
    source = source_of(module, stages)
    weights = save({**source.state})
    plugin = _folder() / f"{source.name}.py"
    file = _folder() / f"{source.name}-{hashlib.sha256(weights).hexdigest()[:16]}.safetensors"
    plugin.write_text(source.text)
    file.write_bytes(weights)
    plugins.load(str(plugin))
    try:
        network = models.build(source.name, source.classes).network
    except ConfigError as error:
        raise ConfigError(
            f"{type(module).__name__}: it has no linear classifier that raykd can see ({error}); "
            "wrap it in a module that ends in one, or give it as a plugin"
        ) from error
    network.load_state_dict(source.state)
    check_same(module, network, source.side)
    return Written(source.name, str(file), str(plugin))


@cache
def _directory() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="raykd-modules-")  # removed when Python ends


def _folder() -> Path:
    return Path(_directory().name)
