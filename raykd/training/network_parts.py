"""Parts of a network, by the words of `Optim.parts` and `Optim.freeze`."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from raykd.core.errors import ConfigError
from raykd.models.staged import Staged

HELPERS = "helpers"


def parts_of(network: Staged) -> dict[str, list[nn.Module]]:
    """The modules of each part of a network, each with what it holds itself; "pool" is the rest.

    Without stages of its own, the rest is "stages". A part may hold no parameter.
    """
    named = {**network.stages, "classifier": network.classifier}
    inner = {name: {*part.modules()} for name, part in named.items()}
    parts = {name: [m for m in network.network.modules() if m in inner[name]] for name in inner}
    rest = [m for m in network.network.modules() if not any(m in part for part in inner.values())]
    return parts | {"pool" if network.stages else "stages": rest}


def check_named(words: Iterable[str], model: str, network: Staged) -> None:
    """Raise `ConfigError` where a network has no parameters of a part that is named."""
    parts = parts_of(network)
    sizes = {name: len([*_parameters(modules)]) for name, modules in parts.items()}
    there = dict.fromkeys(("stages", *sorted(name for name in sizes if sizes[name])))
    for word in words:
        if word != HELPERS and not any(sizes[name] for name in _meant(word, parts)):
            raise ConfigError(
                f"{model} has no parameters in a part {word!r}; there are: {', '.join(there)}"
            )


def check_frozen(words: Iterable[str], model: str, network: Staged, *, backbone: bool) -> None:
    """Raise `ConfigError` where nothing of a network is left to be trained.

    `backbone`: its stages alone are trained.
    """
    parts = parts_of(network)
    trained = {*(_meant("stages", parts) if backbone else parts)}
    trained.difference_update(name for word in words for name in _meant(word, parts))
    if not any(True for name in trained for _ in _parameters(parts[name])):
        when = " before the method's own training" if backbone else ""
        raise ConfigError(f"nothing of {model} is left to be trained{when}; name fewer parts")


def frozen_modules(
    words: Iterable[str], network: Staged, helpers: nn.Module | None = None
) -> list[nn.Module]:
    """The modules of a network, and of its helpers, that are named."""
    words, parts = [*words], parts_of(network)
    modules = [*helpers.modules()] if helpers is not None and HELPERS in words else []
    return modules + [m for word in words for name in _meant(word, parts) for m in parts[name]]


def norms_of(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """The batch norms among some modules."""
    return [module for module in modules if isinstance(module, _BatchNorm)]


def factors(
    rates: Mapping[str, float], network: Staged, helpers: nn.Module
) -> dict[nn.Parameter, float]:
    """The factor of each parameter's rate that has one; empty without `rates`."""
    parts = parts_of(network)
    values: dict[nn.Parameter, float] = {}
    for word in sorted(rates, key=lambda word: word != "stages"):  # a single stage's stands
        modules = [m for name in _meant(word, parts) for m in parts[name]]
        modules += [*helpers.modules()] if word == HELPERS else []
        values |= dict.fromkeys(_parameters(modules), rates[word])
    return values


@contextlib.contextmanager
def unmoved(norms: Iterable[nn.Module]) -> Iterator[None]:
    """A region after which some batch norms have the statistics that they had before it.

    The mean over workers of equal numbers may differ from them in the last bit.
    """
    buffers = [value for norm in norms for value in norm.buffers(recurse=False)]
    before: list[Tensor] = [value.clone() for value in buffers]
    yield
    with torch.no_grad():
        for value, kept in zip(buffers, before, strict=True):
            value.copy_(kept)


def _meant(word: str, parts: Mapping[str, object]) -> list[str]:
    """The parts that a word names."""
    if word != "stages" or word in parts:
        return [word] if word in parts else []
    return [name for name in parts if name not in ("pool", "classifier")]


def _parameters(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    return (value for module in modules for value in module.parameters(recurse=False))
