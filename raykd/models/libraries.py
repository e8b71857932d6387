"""Classifiers of torchvision and timm, with their published weights."""

from functools import partial
from http.client import HTTPException
from typing import Any

import torchvision
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.registry import nearest
from raykd.models.library_stages import SPLITS, staged
from raykd.models.staged import NoClassifier, Staged, without_classifier
from raykd.models.weights_config import WeightsConfig, lemmas, names_in, shorter_side


def check_name(library: str, name: str) -> None:
    """Raise `ConfigError`, with the nearest name, where `library` has no classifier `name`."""
    if library not in SPLITS:
        hint = nearest(library, SPLITS) or f"; there are: {', '.join(SPLITS)}"
        raise ConfigError(f"no library of networks is called {library!r}{hint}")
    if library == "timm":
        names = _timm().list_models()
    else:
        names = torchvision.models.list_models(module=torchvision.models)  # classifiers only
    if name not in names:
        raise ConfigError(f"{library} has no classifier called {name!r}{nearest(name, names)}")


def build(library: str, name: str, classes: int, weights: str | None = None) -> Staged:
    """A library's network with `classes` outputs (0: a backbone) and no auxiliary ones.

    `weights` is a name of torchvision's ("IMAGENET1K_V2"), a tag of timm's ("a1_in1k") or
    "DEFAULT"; None draws parameters from torch's global generator. Raises `ConfigError` for weights
    that do not exist, have another number of classes, or cannot be downloaded.
    """
    check_name(library, name)
    if library == "timm":  # which makes backbones itself
        network = _network(library, name, classes, weights)
        if classes and not hasattr(network, "get_classifier"):
            raise ConfigError(f"timm/{name} is an encoder without a classifier")
        made = staged(library, network)
        if not classes:
            vars(made)["classifier"] = NoClassifier()
        return made
    made = staged(library, _network(library, name, classes or 1, weights))
    if classes:
        return made
    try:
        return without_classifier(made)
    except ConfigError as error:
        raise ConfigError(f"{library}/{name}: {error}; choose another network") from error


def configuration(library: str, name: str, weights: str) -> WeightsConfig:
    """The classes and the input of published `weights`, without a download."""
    check_name(library, name)
    published = _published(library, name, weights)
    if library == "timm":
        config = _timm().get_pretrained_cfg(published)
        side = min(config.input_size[1:])
        return WeightsConfig(
            names_in(config.to_dict()) or lemmas(config.num_classes),
            side,
            shorter_side(side, config.crop_pct),
            config.interpolation,
            tuple(config.mean),
            tuple(config.std),
        )
    recipe = published.transforms()
    return WeightsConfig(
        tuple((name,) for name in published.meta["categories"]),
        min(recipe.crop_size),
        min(recipe.resize_size),
        recipe.interpolation.value,
        tuple(recipe.mean),
        tuple(recipe.std),
    )


def published_classes(library: str, name: str, weights: str) -> int:
    """Number of classes of published weights, from the library's metadata, without a download."""
    check_name(library, name)
    published = _published(library, name, weights)
    if library == "timm":
        return _timm().get_pretrained_cfg(published).num_classes
    return len(published.meta["categories"])


def _network(library: str, name: str, classes: int, weights: str | None) -> nn.Module:
    """The library's own network; see `build`."""
    if weights is None:
        if library == "timm":
            return _of_timm(name, num_classes=classes)
        # These two warn until they are told how to start.
        auxiliary = name in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": True} if auxiliary else {}
        return torchvision.models.get_model(name, num_classes=classes, **options)
    published = _published(library, name, weights)
    available = published_classes(library, name, weights)
    if library == "timm":
        make = partial(_of_timm, published, pretrained=True)
    else:
        make = partial(_downloaded, name, published)
    if available != classes:
        raise ConfigError(
            f"the weights {weights!r} of {library}/{name} have {available} classes, and {classes} "
            "are needed. Leave the weights out to start from random numbers."
        )
    try:
        network: Any = make(num_classes=classes)
    except (OSError, HTTPException, RuntimeError) as error:
        # torch.hub has no type of its own for a file that came through damaged.
        if isinstance(error, RuntimeError) and "invalid hash" not in str(error):
            raise
        raise ConfigError(
            f"could not download the weights {weights!r} of {library}/{name} ({error}). Where "
            "there is no internet, set TORCH_HOME (timm: HF_HOME) to the cache of a machine "
            "that has built this network."
        ) from error
    if getattr(network, "aux_logits", False):
        # torchvision refuses aux_logits=False together with inception_v3's weights (0.29).
        network.aux_logits, network.AuxLogits = False, None
    return network


def _of_timm(name: str, **options: Any) -> nn.Module:
    """A network of timm's; a plain transformer takes images of other sizes, too.

    Its positions are then interpolated, as DINOv2's authors do; at its own size nothing changes.
    """
    try:
        return _timm().create_model(name, dynamic_img_size=True, **options)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return _timm().create_model(name, **options)


def _downloaded(name: str, published: Any, num_classes: int) -> nn.Module:
    """A network of torchvision's with its weights."""
    # torchvision would unpickle whatever lies in torch's cache by that name (0.29).
    try:
        published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, HTTPException, RuntimeError):
        raise
    except Exception as error:  # the unpickler raises many kinds
        raise ConfigError(
            f"the file of {name}'s weights in torch's cache holds more than tensors "
            f"({type(error).__name__}); remove it, so that it is downloaded again"
        ) from error
    return torchvision.models.get_model(
        name, weights=published, progress=False, num_classes=num_classes
    )


def _published(library: str, name: str, weights: str) -> Any:
    """The library's name for `weights`: a torchvision enum, or timm's "resnet18.a1_in1k"."""
    tags: dict[str, Any]
    if library == "timm":
        names = _timm().list_pretrained(f"{name}.*")
        tags = {"DEFAULT": name} if names else {}
        tags |= {full.partition(".")[2]: full for full in names}
    else:
        tags = dict(torchvision.models.get_model_weights(name).__members__)
    if weights not in tags:
        choice = ", ".join(tags) or "none"
        raise ConfigError(
            f"{library}/{name} has no weights called {weights!r}; there are: {choice}"
        )
    return tags[weights]


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise ConfigError(
            "timm is not installed; `pip install '.[timm]'` in raykd's folder"
        ) from None
    return timm
