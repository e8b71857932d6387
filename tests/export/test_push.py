"""Exports in repositories of the Hub: a real client, and a server on this machine."""

import base64
import http.server
import json
import sys
import threading

import pytest
import yaml
from click.testing import CliRunner

from raykd.cli import main
from raykd.core.record import fingerprint
from raykd.export import push
from raykd.export.model_card import metadata

constants = pytest.importorskip("huggingface_hub.constants")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = ["README.md", "config.json", "model.py", "model.safetensors", "recipe.json"]


class Hub(http.server.ThreadingHTTPServer):
    """A server with what create_repo and upload_folder ask of the Hub."""

    daemon_threads = True

    def __init__(self):
        self.made = []  # bodies of requests for new repositories
        self.files = {}  # name -> bytes of what was committed
        self.refuses = {}  # a part of a path -> status
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def root(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(http.server.BaseHTTPRequestHandler):
    """One answer of the server."""

    server: Hub

    def do_GET(self):
        self.answer(b"")

    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body):
        for part, status in self.server.refuses.items():
            if part in self.path:
                self.send(status, {"error": "not for you"})
                return
        if "whoami" in self.path:
            self.send(200, {"name": "me", "type": "user", "orgs": []})
        elif "repos/create" in self.path:
            self.server.made.append(json.loads(body))
            self.send(200, {"url": f"{self.server.root}/me/small", "name": "me/small", "id": "1"})
        elif "preupload" in self.path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.send(200, {"files": files})
        elif "validate-yaml" in self.path:
            yaml.safe_load(json.loads(body)["content"].split("---")[1])
            self.send(200, {"errors": [], "warnings": []})
        elif "commit" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.root}/me/small/commit/{COMMIT}"
            self.send(200, {"commitUrl": url, "commitOid": COMMIT, "success": True})
        else:
            self.send(200, {"id": "me/small", "sha": COMMIT, "siblings": []})

    def send(self, status, value):
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        """Print nothing."""


@pytest.fixture
def server(monkeypatch):
    """The server, to which huggingface_hub speaks, with a token."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.root)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server
        server.shutdown()


@pytest.fixture
def pushed(place, student, tmp_path):
    """A function that exports a student's weights and pushes them; the command's result."""
    run = student("skd")

    def call(*words, code=0):
        words = (*words, "--store", place.root, "--output", tmp_path / "out")
        command = ["export", fingerprint(run), "--format", "safetensors", *map(str, words)]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == code, result.output
        return result

    return call


@pytest.mark.slow
def test_an_export_is_uploaded_after_it_is_said_what(server, pushed, tmp_path):
    said = pushed("--push", "me/small").stderr
    (made,) = server.made
    assert (made["name"], made["organization"]) == ("small", "me")
    assert made.get("private") or made.get("visibility") == "private"
    assert server.files.keys() == set(FILES)
    for name, content in server.files.items():
        assert content == (tmp_path / "out" / name).read_bytes()
    assert f"to me/small (which is private if it is new): {', '.join(FILES)}" in said
    assert f"{server.root}/me/small: uploaded; its card names no license" in said
    (tmp_path / "out" / "mine.txt").write_text("not a part of the export")
    told = json.loads(pushed("--push", "me/small", "--public", "--json").stdout)
    assert told["pushed"] == f"{server.root}/me/small"
    assert not server.made[1].get("private")
    assert "mine.txt" not in server.files


@pytest.mark.slow
def test_the_card_says_to_the_hub_what_it_is(server, pushed):
    from huggingface_hub import ModelCard

    pushed("--push", "me/small")
    data = ModelCard(server.files["README.md"].decode()).data
    assert (data.library_name, data.pipeline_tag) == ("raykd", "image-classification")
    assert {"knowledge-distillation", "raykd"} <= set(data.tags)
    assert data.datasets == ["digits"]
    assert data.license is None


def test_weights_of_timms_are_named_as_base_models():
    config = {
        "library": "timm",
        "num_classes": 0,
        "raykd": {"dataset": "folder", "files": ["model.onnx"], "base_models": ["timm/x.in1k"]},
    }
    value = metadata(config)
    assert value["base_model"] == ["timm/x.in1k"]
    assert value["pipeline_tag"] == "image-feature-extraction"
    assert "onnx" in value["tags"]
    assert "datasets" not in value  # a folder of one's own is none of the Hub's


@pytest.mark.parametrize(
    ("part", "status", "code", "sentence"),
    [
        ("whoami", 401, 2, "the Hub does not take this token"),
        ("preupload", 403, 2, "this token may not write there"),
        # The client tries again for some seconds.
        pytest.param("commit", 500, 9, "the Hub answered 500", marks=pytest.mark.slow),
    ],
)
def test_refusals_are_sentences(server, pushed, tmp_path, part, status, code, sentence):
    server.refuses[part] = status
    said = pushed("--push", "me/small", code=code).stderr
    assert f"error: --push me/small: {sentence}" in said.replace("\n", " ")
    assert not server.files
    # What can be known before is known before anything is written.
    assert (tmp_path / "out").exists() == (part != "whoami")


def test_what_cannot_be_pushed_is_said_before_anything_is_written(
    server, pushed, tmp_path, monkeypatch
):
    assert "expected owner/name" in pushed("--push", "small", code=2).stderr
    assert "name one" in pushed("--public", code=2).stderr
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be uploaded (" in pushed("--push", "me/small", code=9).stderr
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    said = pushed("--push", "me/small", code=2).stderr
    assert "there is no token; log in with `hf auth login`, or set HF_TOKEN" in said
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install '.[hub]'" in pushed("--push", "me/small", code=2).stderr
    assert not (tmp_path / "out").exists()
    assert push.uploads(tmp_path) == []
