"""Weights in repositories of the Hub: from a server on this machine, and from the local cache."""

import json
import shutil
import urllib.parse

import pytest
import safetensors.torch
import torch

from raykd.core.errors import ConfigError
from raykd.models import build, hub
from raykd.models.weights_import import WeightsImporter, configuration
from raykd.storage.store import Store
from tests.each import each
from tests.servers.hub import COMMIT, HubAnswer, HubServer

constants = pytest.importorskip("huggingface_hub.constants")
CONFIG = {"architecture": "resnet8", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.2] * 3}}


def state(model="resnet8"):
    torch.manual_seed(7)
    return build(model, 10).network.state_dict()


def files(model="resnet8", *, pickled=False):
    """The files of a repository, in bytes."""
    name = "pytorch_model.bin" if pickled else "model.safetensors"
    content = safetensors.torch.save(state(model))
    return {
        "config.json": json.dumps(CONFIG).encode(),
        name: content,
        "README.md": b"never downloaded",
    }


class Answer(HubAnswer):
    """One answer to what snapshot_download asks of the Hub."""

    def answer(self, *, body):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        words = path.strip("/").split("/")
        self.server.asked.append(path)
        name = "/".join(words[2:4] if words[0] == "api" else words[:2])
        content = self.server.repositories.get(name)
        if content is None:
            self.send(404, {"X-Error-Code": "RepoNotFound"})
        elif "resolve" in words:
            file = "/".join(words[4:])
            if content == "gated":
                self.send(403, {"X-Error-Code": "GatedRepo"})
                return
            headers = {"ETag": f'"{len(file)}{name.replace("/", "")}"', "X-Repo-Commit": COMMIT}
            self.send(200, headers, content[file], body=body)
        elif "revision" in words and words[-1] not in ("main", COMMIT):
            self.send(404, {"X-Error-Code": "RevisionNotFound"})
        elif "tree" in words:
            content = files() if content == "gated" else content
            entries = [
                {"type": "file", "path": file, "size": len(data), "oid": "0" * 40}
                for file, data in content.items()
            ]
            self.send(200, {}, json.dumps(entries).encode())
        else:
            self.send(200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server, to which huggingface_hub speaks, with an empty cache."""
    repositories = {
        "them/resnet8": files(),
        "them/pickled": files(pickled=True),
        "them/other": files("resnet14"),
        "them/gated": "gated",
    }
    with HubServer(repositories, Answer).running() as server:
        root = server.address
        template = f"{root}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", root)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        hub.fetched.cache_clear()
        yield server
        hub.fetched.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["them/resnet8", "them/pickled", f"them/resnet8@{COMMIT}"])
def test_a_repository_is_downloaded_and_named_by_its_weights(server, tmp_path, name):
    store = Store(tmp_path / "store")
    weights = WeightsImporter(store).name(f"hub:{name}", "resnet8", 10)
    local = tmp_path / "same.safetensors"
    local.write_bytes(safetensors.torch.save(state()))
    assert WeightsImporter(store).name(str(local), "resnet8", 10) == weights
    assert configuration(f"hub:{name}", "resnet8").mean == (0.5, 0.5, 0.5)
    assert not [path for path in server.asked if "README" in path]


def test_what_was_downloaded_is_used_without_a_network(server, tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    weights = WeightsImporter(store).name("hub:them/resnet8", "resnet8", 10)
    hub.fetched.cache_clear()
    shutil.copytree(tmp_path / "hub", tmp_path / "moved", symlinks=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "moved"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(server.asked)
    assert WeightsImporter(store).name("hub:them/resnet8", "resnet8", 10) == weights
    with pytest.raises(ConfigError, match=r"is not in the cache .*set HF_HOME"):
        hub.fetched("hub:them/pickled")
    assert len(server.asked) == asked


@each(
    ("name", "sentence"),
    [
        ("them/nothing", "hub:them/nothing: there is no such repository, or it is private"),
        ("them/gated", "hub:them/gated: https://huggingface.co/them/gated is gated"),
        ("them/resnet8@v9", "hub:them/resnet8@v9: the repository has no revision 'v9'"),
        ("resnet8", "hub:resnet8: expected hub:owner/name or hub:owner/name@revision"),
    ],
)
def test_what_cannot_be_downloaded_is_said(server, name, sentence):
    with pytest.raises(ConfigError) as error:
        hub.fetched(f"hub:{name}")
    assert str(error.value).startswith(sentence)


def test_weights_of_another_architecture_are_refused_with_its_name(server, tmp_path):
    store = Store(tmp_path / "store")
    with pytest.raises(ConfigError, match="another network's") as error:
        WeightsImporter(store).name("hub:them/resnet8", "resnet20", 10)
    text = "its config.json says that they are of timm/resnet8, so give that as the model"
    assert text in str(error.value)
    with pytest.raises(ConfigError, match="another network's") as error:
        WeightsImporter(store).name("hub:them/other", "resnet8", 10)
    assert "config.json" not in str(error.value)
    assert not (store.root / "weights").exists()
