"""Files by URL: on a real server that speaks S3, and in a mounted folder."""

import hashlib
import os
import pickle
import time

import pytest

from raykd.core.errors import ConfigError, Damaged, Unreachable
from raykd.storage.filesystem import Entry, Remote, is_url


@pytest.fixture(params=["s3", "file"])
def remote(request, tmp_path):
    """An empty folder that is reached by URL."""
    if request.param == "s3":
        return Remote(request.getfixturevalue("bucket"))
    return Remote(f"file://{tmp_path}/mounted/folder")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(os.urandom(100_000))
    return path


def test_what_is_pushed_is_listed_read_and_fetched(remote, file, tmp_path):
    before = time.time() - 2
    assert remote.entries() == []
    assert remote.entry("a/b/file.bin") is None
    remote.push(file, "a/b/file.bin")
    remote.push(file, "a/c")
    assert [(e.name, e.bytes) for e in remote.entries()] == [
        ("a/b/file.bin", 100_000),
        ("a/c", 100_000),
    ]
    assert [e.name for e in remote.entries("a/b")] == ["a/b/file.bin"]
    assert remote.entries("nowhere") == []
    (entry,) = remote.entries("a/b")
    assert isinstance(entry, Entry)
    assert remote.entry("a/b/file.bin") == entry
    assert before < entry.mtime < time.time() + 2
    assert remote.read("a/c") == file.read_bytes()
    target = tmp_path / "new" / "folder" / "file"
    remote.fetch("a/c", target, hashlib.sha256(file.read_bytes()).hexdigest()[:24])
    assert target.read_bytes() == file.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    remote.delete("a/c")
    remote.delete("a/c")
    assert [e.name for e in remote.entries()] == ["a/b/file.bin"]


def test_a_file_is_replaced(remote, file):
    remote.push(file, "file")
    file.write_bytes(b"shorter")
    remote.push(file, "file")
    assert remote.read("file") == b"shorter"
    file.write_bytes(b"")
    remote.push(file, "file")
    assert remote.read("file") == b""


def test_any_bytes_of_a_file_are_read_alone(remote, file):
    remote.push(file, "file")
    data = file.read_bytes()
    for offset, length in ((0, 10), (99_000, 500), (12_345, 0), (99_990, 100)):
        assert remote.read_at("file", offset, length) == data[offset : offset + length]
    with pytest.raises(FileNotFoundError, match="none: there is no such file"):
        remote.read_at("none", 0, 1)


def test_more_files_are_read_than_stay_open(remote, file, monkeypatch):
    monkeypatch.setattr("raykd.storage.filesystem._OPEN", 2)
    for name in "abcd":
        file.write_bytes(name.encode() * 10)
        remote.push(file, name)
    for name in "abcdabcd":
        assert remote.read_at(name, 3, 2) == name.encode() * 2


def test_other_bytes_than_those_of_the_checksum_are_not_taken(remote, file, tmp_path):
    remote.push(file, "file")
    with pytest.raises(Damaged, match="file: its checksum is not 0123"):
        remote.fetch("file", tmp_path / "fetched", "0123")
    assert not (tmp_path / "fetched").exists()
    assert not list(tmp_path.glob(".*"))


def test_a_file_that_is_not_there_is_not_asked_for_again(remote, tmp_path, monkeypatch):
    monkeypatch.setattr("raykd.storage.filesystem._PAUSE", 1e5)  # before it would be
    for call in (lambda: remote.read("none"), lambda: remote.fetch("none", tmp_path / "a")):
        with pytest.raises(FileNotFoundError, match="none"):
            call()


def test_it_goes_to_another_process(remote, file):
    remote.push(file, "file")
    twin = pickle.loads(pickle.dumps(remote))
    assert twin.entries() == remote.entries()


def test_what_fails_once_is_tried_again(remote, file, monkeypatch):
    monkeypatch.setattr("raykd.storage.filesystem._PAUSE", 0.01)
    remote.push(file, "file")
    calls = []

    def shaky():
        calls.append(1)
        if len(calls) < 3:
            raise OSError("AWS Error SLOW_DOWN")
        return "answer"

    assert remote._request("file", shaky) == "answer"
    with pytest.raises(Unreachable, match=r"file: it cannot be reached \(always\)"):
        remote._request("file", lambda: (_ for _ in ()).throw(OSError("always")))


def test_a_bucket_that_is_not_there_is_said(bucket):
    remote = Remote(bucket.replace("s3://b", "s3://no-such-"))
    for call in (remote.entries, lambda: remote.read("a"), lambda: remote.entry("a")):
        with pytest.raises(Unreachable, match=r"s3://no-such-\w+/some/where: there is no bucket"):
            call()


def test_credentials_that_are_refused_are_said(bucket, monkeypatch):
    import moto.settings
    from moto.core.responses import ActionAuthenticatorMixin

    monkeypatch.setattr(moto.settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)
    monkeypatch.setattr(ActionAuthenticatorMixin, "request_count", 0)
    with pytest.raises(Unreachable, match="the credentials were refused; set AWS_ACCESS_KEY_ID"):
        Remote(bucket).entries()


@pytest.mark.slow
def test_a_server_that_does_not_answer_is_said(credentials):
    remote = Remote("s3://bucket/a?endpoint_override=http://127.0.0.1:1&region=us-east-1")
    with pytest.raises(Unreachable, match="nobody answers; check the network and"):
        remote.entries()


def test_a_url_that_means_nothing_is_a_mistake_of_the_user():
    for url in ["s3:///nothing", "s3://bucket/x?wrong=1", "abc://host/path", "file://host/path"]:
        with pytest.raises(ConfigError, match="not a place that can be used"):
            Remote(url).entries()


def test_messages_show_no_credentials():
    remote = Remote("s3://key:secret@bucket/a/b/?region=us-east-1")
    assert remote.shown == "s3://bucket/a/b"
    assert "secret" in remote.url


def test_paths_are_not_urls():
    assert is_url("s3://bucket/x")
    assert is_url("file:///x")
    assert not is_url("/a/b")
    assert not is_url("C:/a")
