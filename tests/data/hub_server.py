"""A server on this machine with what the library `datasets` asks of the Hugging Face Hub."""

import hashlib
import json
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.hub import COMMIT, HubAnswer, HubServer


class _Answer(HubAnswer):
    def answer(self, *, body: bool):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.server.asked.append(path)
        words = path.removeprefix("/api").strip("/").split("/")
        folder = self.server.repositories.get("/".join(words[1:3]))
        what = words[3] if len(words) > 3 else ""
        if words[0] != "datasets" or folder is None:
            self.send(404, {"X-Error-Code": "RepoNotFound"})
        elif what == "resolve":
            file = folder.joinpath(*words[5:])
            if file.is_file():
                tag = hashlib.sha1(str(file).encode()).hexdigest()
                headers = {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
                self.send(200, headers, file.read_bytes(), body=body)
            else:
                self.send(404, {"X-Error-Code": "EntryNotFound"})
        elif what == "tree":
            below = folder.joinpath(*words[5:])
            entries = [_entry(file, folder) for file in sorted(below.rglob("*"))]
            missing = {} if entries else {"X-Error-Code": "EntryNotFound"}
            self.send(200 if entries else 404, missing, json.dumps(entries).encode())
        else:
            name = "/".join(words[1:3])
            files = [{"rfilename": str(file.relative_to(folder))} for file in folder.rglob("*.*")]
            about = {"id": name, "sha": COMMIT, "siblings": files, "tags": [], "private": False}
            self.send(200, {}, json.dumps(about).encode())


def _entry(file: Path, folder: Path) -> dict:
    """A file or folder as the Hub lists it."""
    name = str(file.relative_to(folder))
    if file.is_dir():
        return {"type": "directory", "path": name, "oid": "1" * 40, "size": 0}
    tag = hashlib.sha1(name.encode()).hexdigest()
    return {"type": "file", "path": name, "oid": tag, "size": file.stat().st_size}


@contextmanager
def hub(**repositories: Path) -> Iterator[HubServer]:
    """A server with the dataset repositories them/NAME, which are folders of files."""
    folders = {f"them/{name}": folder for name, folder in repositories.items()}
    with HubServer(folders, _Answer).running() as server:
        yield server
