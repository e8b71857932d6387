"""Files below a root: written whole, found, loaded, and closed again; here and at a URL."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from raykd.core.errors import DataError, Unreachable
from raykd.data.sources.files import Files, join_path, split_path
from tests.data.files import put


@pytest.fixture(params=["a folder", "a bucket"])
def files(request, tmp_path):
    if request.param == "a bucket":
        return Files.at(request.getfixturevalue("bucket"))
    return Files.at(tmp_path / "files")


def test_what_is_put_is_there_until_it_is_removed(files):
    assert files.walk() == [] and files.find("a/b.bin") is None
    files.put("a/b.bin", b"first")
    files.put("a/c.bin", memoryview(bytes(range(256))))
    files.put("a/b.bin", b"0123456789")
    assert [(e.name, e.size) for e in files.walk()] == [("a/b.bin", 10), ("a/c.bin", 256)]
    assert files.find("a/b.bin") == files.walk()[0]
    other = pickle.loads(pickle.dumps(files))
    assert other.load("a/c.bin").to_pybytes() == bytes(range(256))
    assert other.read("a/b.bin", 3, 4) == b"3456" and other.read("a/b.bin", 8, 9) == b"89"
    files.remove("a/b.bin")
    files.remove("a/b.bin")
    assert not files.has("a/b.bin") and files.has("a/c.bin")
    with pytest.raises(DataError, match=r"a/b\.bin: cannot be read"):
        files.load("a/b.bin")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    put(tmp_path / "file", "text")
    with pytest.raises(Unreachable, match=r"file/inner: cannot be written \("):
        Files.at(tmp_path).put("file/inner", b"")


def test_files_that_were_read_last_stay_open_as_long_as_their_root_is_in_use(tmp_path):
    for number in range(100):
        put(tmp_path / str(number), "text")
    files = Files.at(tmp_path)

    def opened() -> int:
        paths = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
        return sum(path.resolve().parent == tmp_path for path in paths)

    with ThreadPoolExecutor(4) as pool:
        assert {*pool.map(files.read, map(str, range(100)))} == {b"text"}
    assert 0 < opened() < 100
    del files
    assert opened() == 0


def test_places_are_taken_apart_and_joined():
    assert split_path("/a/b/c.tar") == ("/a/b", "c.tar")
    assert split_path("c.tar") == (".", "c.tar")
    assert split_path("/c.tar") == ("/", "c.tar")
    assert split_path("s3://b/x/c.tar?region=q") == ("s3://b/x?region=q", "c.tar")
    assert join_path("/a/b/", "c/d") == "/a/b/c/d"
    assert join_path("s3://b/x?region=q", "c") == "s3://b/x/c?region=q"
