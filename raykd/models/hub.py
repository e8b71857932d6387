"""Weights in a repository of the Hugging Face Hub: `hub:owner/name` or `hub:owner/name@revision`.

They are downloaded by huggingface_hub (the extra `hub`, which timm brings as well) into its cache,
and from there on are a folder like any other.
"""

import functools
import re
from pathlib import Path
from typing import Any

from raykd.core.errors import ConfigError, text_of

PREFIX = "hub:"
_NAME = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>[\w./-]+))?")
_CONFIG = ("config.json", "model.safetensors.index.json")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there


@functools.cache
def fetched(weights: str) -> Path:
    """The local folder of a repository, with its config.json and its weights.

    What the cache has of a revision is not downloaded again, and is used without a network. Raises
    `ConfigError`.
    """
    match = _NAME.fullmatch(weights)
    if match is None:
        raise ConfigError(f"{weights}: expected hub:owner/name or hub:owner/name@revision")
    for file in _WEIGHTS:
        folder = _download(weights, match["name"], match["revision"], [*_CONFIG, file])
        if (folder / file).is_file() or (folder / _CONFIG[1]).is_file():
            break
    return folder


def _download(weights: str, name: str, revision: str | None, files: list[str]) -> Path:
    """The folder in huggingface_hub's cache, with those of some files that the repository has."""
    hub = _huggingface_hub()
    errors = hub.errors
    try:
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=files))
    except errors.GatedRepoError as error:
        text = (
            f"https://huggingface.co/{name} is gated: accept its terms there, and log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
        raise ConfigError(f"{weights}: {text}") from error
    except errors.RepositoryNotFoundError as error:
        text = (
            "there is no such repository, or it is private; correct the name, or log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
        raise ConfigError(f"{weights}: {text}") from error
    except errors.RevisionNotFoundError as error:
        raise ConfigError(f"{weights}: the repository has no revision {revision!r}") from error
    except Exception as error:  # huggingface_hub's own, its HTTP client's and the system's
        reason = text_of(error).splitlines()[0]
        text = (
            f"the repository cannot be downloaded, and is not in the cache ({reason}). Where there "
            "is no internet, set HF_HOME to the cache of a machine that has downloaded it, or give "
            "its folder"
        )
        raise ConfigError(f"{weights}: {text}") from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise ConfigError(
            "hub: huggingface_hub is not installed; `pip install '.[hub]'` in raykd's folder"
        ) from None
    return huggingface_hub
