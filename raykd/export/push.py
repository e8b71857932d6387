"""Exported folders in repositories of the Hugging Face Hub, by huggingface_hub (extra `hub`)."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raykd.core.errors import ConfigError, Unreachable, text_of

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.safetensors", "*.pt2", "*.onnx", "*.onnx.data", "model.py", "*.json", "README.md")


def check(name: str) -> None:
    """Raise where nothing can be written to a repository `owner/name`, before anything is computed.

    `ConfigError` for a name or a token that cannot be, `Unreachable` where the Hub does not answer.
    """
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"--push {name}: expected owner/name, as in huggingface.co/owner/name")
    hub = _huggingface_hub()
    if hub.get_token() is None:
        raise ConfigError(
            f"--push {name}: there is no token; log in with `hf auth login`, or set HF_TOKEN"
        )
    with _explained(name):
        hub.HfApi().whoami()


def uploads(folder: Path) -> list[Path]:
    """The files of an exported folder that are uploaded, in the order of their names."""
    return sorted({path for pattern in _FILES for path in folder.glob(pattern)})


def push(folder: Path, name: str, *, public: bool = False) -> str:
    """Upload an exported folder as one commit; returns the address of the repository.

    A repository that is not there is made, and others do not see it unless `public`. Raises as
    `check` does.
    """
    api = _huggingface_hub().HfApi()
    with _explained(name):
        url = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[path.name for path in uploads(folder)],
            commit_message="Upload a network exported by raykd",
        )
    return str(url)


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """A region in which failures of the Hub, of its client and of the network are sentences."""
    import huggingface_hub.errors as errors

    try:
        yield
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        reason = error.server_message or next(iter(str(error).strip().splitlines()), "")
        if status == 401:
            raise ConfigError(
                f"--push {name}: the Hub does not take this token ({reason}); log in again with "
                "`hf auth login`, or set HF_TOKEN"
            ) from error
        if status in (403, 404):
            raise ConfigError(
                f"--push {name}: this token may not write there ({reason}); it needs write access "
                f"to {name.partition('/')[0]}"
            ) from error
        raise Unreachable(f"--push {name}: the Hub answered {status} ({reason})") from error
    except Exception as error:  # its HTTP client's, the system's, and what it says of a bad card
        reason = text_of(error).splitlines()[0]
        raise Unreachable(
            f"--push {name}: cannot be uploaded ({type(error).__name__}: {reason}); what was "
            "written stays, and the same command goes on"
        ) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise ConfigError(
            "--push: huggingface_hub is not installed; `pip install '.[hub]'` in raykd's folder"
        ) from None
    return huggingface_hub
