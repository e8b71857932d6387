"""Answers that are remembered between processes."""

import os

from raykd.storage import remembered


def test_an_answer_is_worked_out_once_for_each_key(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKD_REMEMBERED", str(tmp_path / "new"))
    asked = []

    def answer(key):
        return remembered.remembered("name", key, lambda: asked.append(key) or [key])

    assert [answer(key) for key in ("a", "a", "b", "b", "a")] == [["a"], ["a"], ["b"], ["b"], ["a"]]
    assert asked == ["a", "b", "a"]  # the latest one is kept
    (tmp_path / "new" / "name.json").write_text("[[[")
    assert answer("a") == ["a"]
    assert asked == ["a", "b", "a", "a"]


def test_without_a_folder_answers_are_worked_out_each_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAYKD_REMEMBERED", str(tmp_path / "file" / "none"))
    assert remembered.remembered("name", "a", lambda: 1) == 1
    assert remembered.recall("name", "a") is None


def test_a_digest_is_that_of_the_file_as_it_is(tmp_path):
    path = tmp_path / "weights.pt"
    digests = []
    for content in (b"one", b"one", b"two"):
        path.write_bytes(content)
        digests += [remembered.digest_of(path), remembered.digest_of(path)]
    assert digests[0] == digests[3] != digests[4] == digests[5]
    kept = path.stat()
    path.write_bytes(b"new")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns + 1))  # the size stays
    assert remembered.digest_of(path) != digests[5]
