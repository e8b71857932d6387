"""A checkpoint's tensors, matched to a network whatever wrappers and programs called them.

    DataParallel, DDP: module.   torch.compile: _orig_mod.   Lightning and others: model., backbone.

in any nesting; torch.compile's and FSDP's also around a part of the network.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from raykd.core.errors import ConfigError
from raykd.models.benchmark_names import RENAMINGS
from raykd.models.checkpoint_files import Entry
from raykd.models.staged import Staged

# Wrappers that can stand anywhere in a name, and words that networks as a whole are called by.
_WITHIN = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PREFIXES = ("module", "model", "backbone", "net", "network", "encoder")
# Counters of profilers and of averaged weights, and networks' auxiliary classifiers.
_OF_NO_USE = re.compile(
    r"(?:.*\.)?(?:total_ops|total_params|n_averaged)|(?:AuxLogits|aux1|aux2)\..*"
)
# A counter of batch norms that changes nothing; torch before 0.4.1 has none.
_COUNTER = "num_batches_tracked"
_SHOWN = 3  # names listed for each kind of difference


@dataclass(frozen=True)
class Match:
    """A network's own state, and a sentence on what was done for it; empty where nothing was."""

    state: Mapping[str, Tensor]
    note: str


@dataclass(frozen=True)
class _Reading:
    """The tensors of an entry under the names that one way of reading them gives."""

    tensors: Mapping[str, Tensor]
    apart: tuple[str, ...]  # names outside of the prefix
    prefix: str
    names: str  # the family of names that was translated; empty for the network's own


def matched(candidates: Sequence[Entry], network: Staged) -> Match:
    """The first entry that holds the network's state.

    Raises `ConfigError`, with what is missing, unexpected and of other shapes in the entry that is
    nearest to it, three names of each.
    """
    expected = network.network.state_dict()
    nearest: tuple[int, str] | None = None
    for entry in candidates:
        tensors = {_WITHIN.sub("", name): value for name, value in entry.tensors.items()}
        reading = max(_readings(tensors), key=lambda one: _agreement(one, expected))
        differences = _differences(reading, expected, network)
        if not differences:
            return Match(_state(reading, expected), _note(entry, candidates, reading, tensors))
        agreement = _agreement(reading, expected)
        if nearest is None or agreement > nearest[0]:
            where = f" in {entry.path!r}" if entry.path else ""
            nearest = agreement, f"{differences}{where}{_beginnings(entry.tensors, agreement)}"
    assert nearest is not None, "a checkpoint has an entry"
    raise ConfigError(nearest[1])


def _readings(tensors: Mapping[str, Tensor]) -> Iterator[_Reading]:
    """Every way of reading names: the plainest first, which is taken where several are as good."""
    prefixes = sorted({prefix for name in tensors for prefix in _prefixes(name)}, key=len)
    for names, renamed in (("", str), *RENAMINGS.items()):
        for prefix in prefixes:
            own = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
            others = (name for name in tensors if not name.startswith(prefix))
            apart = tuple(name for name in others if not _OF_NO_USE.fullmatch(name))
            yield _Reading({renamed(n): v for n, v in own.items()}, apart, prefix, names)


def _prefixes(name: str) -> Iterator[str]:
    """The beginnings of a name that are made of wrappers' words alone, the empty one first."""
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
    """A sentence on what a reading lacks, has more, or has in other shapes; empty where it fits."""
    found = reading.tensors
    missing = [n for n in expected if n not in found and not n.endswith(_COUNTER)]
    unexpected = [n for n in found if n not in expected and not _OF_NO_USE.fullmatch(n)]
    shaped = [n for n in expected if n in found and found[n].shape != expected[n].shape]
    last = {id(parameter) for parameter in network.classifier.parameters()}
    heads = [name for name, value in network.network.named_parameters() if id(value) in last]
    if shaped and not missing and not unexpected and {*shaped} <= {*heads}:
        known, classes = found[shaped[0]].shape[0], expected[shaped[0]].shape[0]
        return (
            f"they know {known} classes, and the data have {classes}; give weights that were "
            "trained on those classes, or leave weights out to train the network on the images"
        )
    parts = [
        f"{len(names)} {kind} ({_shown(names)})"
        for kind, names in (("missing", missing), ("unexpected", unexpected))
        if names
    ]
    if shaped:
        shapes = [
            f"{n}: expected {[*expected[n].shape]}, found {[*found[n].shape]}" for n in shaped
        ]
        parts.append(f"{len(shaped)} of another shape ({_shown(shapes, '; ')})")
    if not parts:
        return ""
    return f"they are another network's; of {len(expected)} tensors, " + ", ".join(parts)


def _shown(names: Sequence[str], between: str = ", ") -> str:
    """Some names, shortened."""
    more = between + "..." if len(names) > _SHOWN else ""
    return between.join(name[:100] for name in names[:_SHOWN]) + more


def _beginnings(tensors: Mapping[str, Tensor], agreement: int) -> str:
    """The first words of an entry's names, where none of them was recognised."""
    first = dict.fromkeys(name.partition(".")[0] for name in tensors)
    return "" if agreement else f"; names there begin with {_shown([*first])}"


def _state(reading: _Reading, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors, in its order; counters that are not there begin at 0."""
    return {
        name: reading.tensors.get(name, value.new_zeros(())) for name, value in expected.items()
    }


def _note(
    entry: Entry, candidates: Sequence[Entry], reading: _Reading, tensors: Mapping[str, Tensor]
) -> str:
    """A sentence on which tensors were taken, and how they were read."""
    parts = []
    others = [other.path for other in candidates if other.path and other is not entry]
    if entry.path:
        beside = f" (not {', '.join(others)})" if others else ""
        parts.append(f"the weights under {entry.path!r}{beside}")
    if tensors.keys() != entry.tensors.keys() or reading.prefix:
        parts.append(f"names without {reading.prefix or 'wrappers'!r}")
    if reading.names:
        parts.append(f"names read as the CIFAR benchmark's {reading.names}")
    if reading.apart:
        parts.append(f"{len(reading.apart)} tensors left out ({_shown(reading.apart)})")
    return "took " + ", ".join(parts) if parts else ""


def load_matched(candidates: Sequence[Entry], network: Staged) -> str:
    """Set a network to what a checkpoint holds of it; a sentence on what was taken, or ''.

    Tensors of other floating-point types become the network's own. Raises `ConfigError` where no
    entry fits.
    """
    match = matched(candidates, network)
    nn.Module.load_state_dict(network.network, dict(match.state))
    return match.note
