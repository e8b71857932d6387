"""Checkpoint files of other programs: their tensors, and nothing else that they hold.

A file of safetensors, or one that `torch.save` wrote, of any name; or a folder as the Hugging Face
Hub has them (config.json beside model.safetensors or pytorch_model.bin), or as a store of raykd's
has a student or a teacher (the weights of its last epoch).

Nothing is unpickled. torch's reader of weights (`weights_only=True`) knows tensors and plain
values; all else that a training program put beside them (arguments, schedules, numpy's numbers) is
read as an empty stand-in: neither its class nor its code is imported.
"""

import contextlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from raykd.core.errors import ConfigError

SAFETENSORS, PICKLED = ".safetensors", ".pt"
# Entries that hold the network. Averaged weights come first, as in timm's `load_checkpoint`: they
# are what is evaluated and published. torchvision: model, model_ema; RepDistiller and mdistiller:
# model; timm: state_dict, state_dict_ema; Lightning: state_dict.
_ENTRIES = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model", "model_state_dict", "net", "network", "weights", "params"),
)
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_STORE_FILES = ("weights.safetensors", "weights-[0-9][0-9][0-9][0-9]*.safetensors")
_UNKNOWN_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
# An item was added to a stand-in for a mapping or a list.
_ADDED_ITEM = re.compile(r"Can only (SETITEMS?|append|extend) .*_Ignored_(\d+)")
_MAX_CLASSES = 100  # unknown classes that one checkpoint may name


@dataclass(frozen=True)
class Entry:
    """Tensors by their names, and the keys under which a checkpoint holds them."""

    path: str  # such as "state_dict", or "" for the whole file
    tensors: Mapping[str, Tensor]


class _Ignored(dict[Any, Any]):
    """A stand-in for objects of an unknown class: accepts every argument and keeps nothing."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Forget the state."""


class _IgnoredMapping:
    """A stand-in for an unknown class of mappings: torch adds items to its known kinds alone."""

    def __new__(cls, *args: object, **options: object) -> Any:
        return OrderedDict()


class _IgnoredList:
    """A stand-in for an unknown class of lists: torch adds items to plain lists alone."""

    def __new__(cls, *args: object, **options: object) -> Any:
        return []


def file_of(path: Path) -> Path:
    """The weights file at a path: itself, or the one in a folder as the Hub or a store has them.

    Raises `ConfigError` where there is none.
    """
    if not path.is_dir():
        return path
    for name in _HUB_FILES:
        if (path / name).is_file():
            return path / name
    for pattern in _STORE_FILES:
        if files := sorted(path.glob(pattern)):
            return files[-1]
    if (path / "model.safetensors.index.json").is_file():
        raise ConfigError(
            f"{path}: the weights lie in several files (model.safetensors.index.json); join them "
            "into one model.safetensors"
        )
    raise ConfigError(f"{path}: expected a folder with {' or '.join(_HUB_FILES)}, found neither")


def configuration(path: Path) -> Mapping[str, Any]:
    """The fields of a Hub folder's config.json, those of its `pretrained_cfg` among them.

    `path` may be that file itself. Empty for another file, or where nothing can be read.
    """
    file = path if path.suffix == ".json" else path / "config.json"
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    inner = value.get("pretrained_cfg")
    inner = inner if isinstance(inner, dict) else {}
    return value | {key: item for key, item in inner.items() if item is not None}


def kind_of(path: Path) -> str:
    """The suffix that says how a weights file is read: `SAFETENSORS` or `PICKLED`, by its content.

    A safetensors file begins with the length of a JSON header (8 bytes) and its brace.
    """
    with path.open("rb") as file:
        start = file.read(9)
    return SAFETENSORS if start[8:] == b"{" else PICKLED


def entries(path: Path) -> list[Entry]:
    """The entries of a checkpoint that hold tensors by their names, the likeliest first.

    Raises `ConfigError` where the file cannot be read, or holds no tensors by their names.
    """
    try:
        if kind_of(path) == SAFETENSORS:
            return [Entry("", safetensors.torch.load_file(path))]
        value = _load(path)
    except ConfigError:
        raise
    except Exception as error:  # torch and safetensors raise half a dozen kinds
        raise ConfigError(
            f"{path}: the weights cannot be read ({_reason(error)}); expected a .safetensors file, "
            "or one that torch.save wrote of a state_dict"
        ) from error
    states = sorted(_states(value), key=_likeliness)
    if not states:
        keys = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else ""
        content = f"the keys {keys}" if keys else f"a value of type {type(value).__name__}"
        if isinstance(value, _Ignored):
            content = "a whole network or another object, which is not unpickled"
        raise ConfigError(
            f"{path}: expected tensors by their names, as a state_dict has them; found {content}. "
            "Save network.state_dict() with torch.save or safetensors"
        )
    return states


def _load(path: Path) -> Any:
    """The value of a file that torch.save wrote, with stand-ins for all but tensors."""
    ignored: dict[str, type] = {}
    for _ in range(_MAX_CLASSES):
        # One class for each name, since torch tells them apart by identity, and errors by name.
        stand_ins = [
            (type(f"{kind.__name__}_{number}", (kind,), {}), name)
            for number, (name, kind) in enumerate(ignored.items())
        ]
        try:
            with torch.serialization.safe_globals(stand_ins):  # pyright: ignore[reportArgumentType]
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            text = str(error)
            if unknown := _UNKNOWN_CLASS.search(text):
                name = unknown[1] if "." in unknown[1] else f"builtins.{unknown[1]}"
                if name in ignored:
                    raise
                ignored[name] = _Ignored
            elif added := _ADDED_ITEM.search(text):
                name = [*ignored][int(added[2])]
                ignored[name] = _IgnoredMapping if added[1].startswith("SETITEM") else _IgnoredList
            else:
                raise
    raise ConfigError(f"{path}: it holds values of more than {_MAX_CLASSES} classes")


def _reason(error: Exception) -> str:
    """One line of an error, without torch's advice on how to unpickle after all."""
    text = str(error).strip()
    if isinstance(error, LookupError | EOFError) or not text:  # the unpickler lost its way
        return "it is not a file of torch.save"
    if "Weights only load failed" in text:
        _, mark, text = text.partition("WeightsUnpickler error:")
        text = text.strip() if mark and text.strip() else "it is not a file of torch.save"
    text = text.splitlines()[0][:200]
    return "it is not a file of torch.save" if text.startswith("Unsupported operand") else text


def _states(value: Any, path: str = "") -> Iterator[Entry]:
    """Every mapping from names to tensors within a value."""
    if not isinstance(value, Mapping):
        return
    tensors = {name: item for name, item in value.items() if isinstance(item, Tensor)}
    if tensors and all(isinstance(name, str) for name in tensors):
        yield Entry(path, tensors)
    for name, item in value.items():
        if isinstance(name, str) and isinstance(item, Mapping):
            with contextlib.suppress(RecursionError):
                yield from _states(item, f"{path}.{name}" if path else name)


def _likeliness(entry: Entry) -> tuple[int, int]:
    """Sort key of entries: the order in which they are tried."""
    ranks = [_ENTRIES.index(key) for key in entry.path.split(".") if key in _ENTRIES]
    return (min(ranks, default=len(_ENTRIES)), -len(entry.tensors))
