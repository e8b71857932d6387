"""Matching of a checkpoint's tensors to a network, under the names of many wrappers and programs.

    DataParallel, DDP: module.   torch.compile: _orig_mod.   Lightning and others: model., backbone.

in any nesting; torch.compile's and FSDP's also around a part of the network.
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.models.benchmark_names import RENAMINGS
from raykd.models.foreign_checkpoints import Entry
from raykd.models.staged import Staged

# Wrappers that can stand anywhere in a name, and prefixes that stand for a whole network.
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PREFIXES = ("module", "model", "backbone", "net", "network", "encoder")
# Counters of profilers and of averaged weights, and auxiliary classifiers.
_UNUSED = re.compile(r"(?:.*\.)?(?:total_ops|total_params|n_averaged)|(?:AuxLogits|aux1|aux2)\..*")
# A counter of batch norms that changes nothing; torch before 0.4.1 has none.
_COUNTER = "num_batches_tracked"
_SHOWN = 3  # names listed for each kind of difference


class OtherHead(ConfigError):
    """Weights that are the network's but for the classifier, which has other `classes`, or is not.

    0 classes stand for weights without a classifier.
    """

    def __init__(self, text: str, classes: int) -> None:
        super().__init__(text)
        self.classes = classes


@dataclass(frozen=True)
class Match:
    """The state of a network in a checkpoint."""

    state: Mapping[str, Tensor]
    note: str  # a sentence on how the checkpoint was interpreted; "" where nothing had to be


@dataclass(frozen=True)
class _Reading:
    """The tensors of an entry under the names that one interpretation gives them."""

    tensors: Mapping[str, Tensor]
    outside: tuple[str, ...]  # names without the prefix
    prefix: str
    family: str  # the key of the `RENAMINGS` that were applied; "" for none


def matched(
    candidates: Sequence[Entry],
    network: Staged,
    *,
    new_head: bool = False,
    spare: Collection[str] = (),
) -> Match:
    """The first entry that holds the network's state.

    With `new_head`, the network's own classifier stands in for one of another number of classes,
    and for one that is not there; the note says so. `spare` are names that may be left out, as
    a `CosineClassifier` is for a network without one.
    Raises `ConfigError`, with what is missing, unexpected and of other shapes in the entry that is
    nearest to it, three names of each; `OtherHead` where only the classifier differs.
    """
    expected = network.network.state_dict()
    closest: tuple[int, ConfigError] | None = None
    for entry in candidates:
        tensors = {_WRAPPERS.sub("", name): value for name, value in entry.tensors.items()}
        reading = max(_readings(tensors), key=lambda one: _agreement(one, expected))
        spared = {*spare, *_head_of_angles(reading.tensors, expected)} & reading.tensors.keys()
        kept = {name: v for name, v in reading.tensors.items() if name not in spared}
        reading = replace(reading, tensors=kept)
        own = _replaced(reading, expected, network) if new_head else {}
        differences = _differences(
            reading, {n: v for n, v in expected.items() if n not in own}, network
        )
        if not differences:
            note = _note(entry, candidates, reading, tensors)
            note = "; ".join(filter(None, (note, _head_note(reading, own, spared))))
            return Match(_state(reading, expected) | own, note)
        agreement = _agreement(reading, expected)
        if closest is None or agreement > closest[0]:
            where = f" in {entry.path!r}" if entry.path else ""
            text = f"{differences}{where}{_first_words(entry.tensors, agreement)}"
            classes = _classes_of_head(reading, expected, network)
            error = ConfigError(text) if classes is None else OtherHead(text, classes)
            closest = agreement, error
    assert closest is not None, "a checkpoint has an entry"
    raise closest[1]


def _readings(tensors: Mapping[str, Tensor]) -> Iterator[_Reading]:
    """Every interpretation of the names, the plainest first, which wins where several agree."""
    prefixes = sorted({prefix for name in tensors for prefix in _prefixes(name)}, key=len)
    for family, rename in (("", str), *RENAMINGS.items()):
        for prefix in prefixes:
            inside = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
            others = (name for name in tensors if not name.startswith(prefix))
            outside = tuple(name for name in others if not _UNUSED.fullmatch(name))
            yield _Reading({rename(n): v for n, v in inside.items()}, outside, prefix, family)


def _prefixes(name: str) -> Iterator[str]:
    """The prefixes of a name that consist of wrappers' words alone, the empty one first."""
    prefix = ""
    yield prefix
    for part in name.split(".")[:-1]:
        if part not in _PREFIXES:
            return
        prefix += f"{part}."
        yield prefix


def _agreement(reading: _Reading, expected: Mapping[str, Tensor]) -> int:
    """Score of a reading: 1000 for each tensor with its shape, 1 for each with its name."""
    names = reading.tensors.keys() & expected.keys()
    fitting = sum(reading.tensors[name].shape == expected[name].shape for name in names)
    return 1000 * fitting + len(names)


def _differences(reading: _Reading, expected: Mapping[str, Tensor], network: Staged) -> str:
    """A sentence on the missing, the unexpected and the misshapen tensors; "" where all fit."""
    tensors = reading.tensors
    missing = [n for n in expected if n not in tensors and not n.endswith(_COUNTER)]
    everything = network.network.state_dict()
    unexpected = [n for n in tensors if n not in everything and not _UNUSED.fullmatch(n)]
    misshapen = [n for n in expected if n in tensors and tensors[n].shape != expected[n].shape]
    available = _classes_of_head(reading, expected, network)
    if available and misshapen:
        return (
            f"they have {available} classes, and the data have {expected[misshapen[0]].shape[0]}; "
            "give weights that were trained on those classes, leave weights out to train the "
            "network on the images, or write optim beside them to train it from there"
        )
    parts = [
        f"{len(names)} {kind} ({_shown(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if misshapen:
        shapes = [
            f"{n}: expected {[*expected[n].shape]}, found {[*tensors[n].shape]}" for n in misshapen
        ]
        parts.append(f"{len(misshapen)} of another shape ({_shown(shapes, '; ')})")
    if not parts:
        return ""
    return f"they are another network's; of {len(expected)} tensors, " + ", ".join(parts)


def head_names(network: Staged) -> set[str]:
    """The names of the classifier's parameters in the network's state."""
    head = {id(parameter) for parameter in network.classifier.parameters()}
    return {name for name, value in network.network.named_parameters() if id(value) in head}


def _head_of_angles(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> set[str]:
    """The names of a `CosineClassifier` in some tensors, if the network has no such one."""
    beginnings = {
        name.removesuffix("moments")
        for name in tensors
        if name.endswith(".moments") and name not in expected
    }
    kinds = ("weight", "moments", "steps")
    return {f"{beginning}{kind}" for beginning in beginnings for kind in kinds}


def _classes_of_head(
    reading: _Reading, expected: Mapping[str, Tensor], network: Staged
) -> int | None:
    """Number of classes in a reading that differs in the classifier alone; None in another one.

    0 where the reading has no classifier.
    """
    tensors = reading.tensors
    names = head_names(network)
    body = [n for n in expected if n not in names and not n.endswith(_COUNTER)]
    fits = all(n in tensors and tensors[n].shape == expected[n].shape for n in body)
    if not fits or any(n not in expected and not _UNUSED.fullmatch(n) for n in tensors):
        return None
    if not names & tensors.keys():
        return 0 if names else None
    shapes = {tensors[n].shape[:1] for n in names if n in tensors}
    alike = names <= tensors.keys() and len(shapes) == 1
    alike = alike and all(tensors[n].shape[1:] == expected[n].shape[1:] for n in names)
    return next(iter(shapes))[0] if alike else None


def _replaced(
    reading: _Reading, expected: Mapping[str, Tensor], network: Staged
) -> dict[str, Tensor]:
    """The network's own classifier, where that of a reading is missing or has other classes."""
    own = {name: expected[name] for name in expected if name in head_names(network)}
    available = _classes_of_head(reading, expected, network)
    return {} if available in (None, *map(len, own.values())) else own


def _head_note(reading: _Reading, own: Mapping[str, Tensor], spared: Collection[str]) -> str:
    """A sentence on the classifier that stands in for the reading's, or is left out; or ""."""
    if not own:
        return "their classifier is left out" if spared else ""
    name, value = next(iter(own.items()))
    if name not in reading.tensors:
        return f"they have no classifier: a new one of {len(value)} classes is trained"
    theirs = len(reading.tensors[name])
    return f"their classifier of {theirs} classes is replaced by a new one of {len(value)}"


def _shown(names: Sequence[str], between: str = ", ") -> str:
    """Some names, shortened."""
    more = between + "..." if len(names) > _SHOWN else ""
    return between.join(name[:100] for name in names[:_SHOWN]) + more


def _first_words(tensors: Mapping[str, Tensor], agreement: int) -> str:
    """The first words of an entry's names, where none of them was recognised."""
    words = dict.fromkeys(name.partition(".")[0] for name in tensors)
    return "" if agreement else f"; names there begin with {_shown([*words])}"


def _state(reading: _Reading, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors, in its order; counters that are not there begin at 0."""
    return {
        name: reading.tensors.get(name, value.new_zeros(())) for name, value in expected.items()
    }


def _note(
    entry: Entry, candidates: Sequence[Entry], reading: _Reading, tensors: Mapping[str, Tensor]
) -> str:
    """A sentence on which tensors were taken, and how their names were interpreted."""
    parts = []
    others = [other.path for other in candidates if other.path and other is not entry]
    if entry.path:
        beside = f" (not {', '.join(others)})" if others else ""
        parts.append(f"the weights under {entry.path!r}{beside}")
    if tensors.keys() != entry.tensors.keys() or reading.prefix:
        parts.append(f"names without {reading.prefix or 'wrappers'!r}")
    if reading.family:
        parts.append(f"names read as the CIFAR benchmark's {reading.family}")
    if reading.outside:
        parts.append(f"{len(reading.outside)} tensors left out ({_shown(reading.outside)})")
    return "took " + ", ".join(parts) if parts else ""


def load_matched(
    candidates: Sequence[Entry],
    network: Staged,
    *,
    new_head: bool = False,
    spare: Collection[str] = (),
) -> str:
    """Load a checkpoint's state into a network; returns a sentence on what was taken, or "".

    See `matched`. Tensors of other floating-point types are converted to the network's. Raises
    `ConfigError` where no entry fits.
    """
    match = matched(candidates, network, new_head=new_head, spare=spare)
    nn.Module.load_state_dict(network.network, dict(match.state))
    return match.note
