"""Archives: where they are looked for, that they are fetched once and unpacked whole."""

import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from raykd.core.errors import DataError
from raykd.data.sources.archives import Archive, archive_folder, downloads, has_archive
from tests.data.files import closed_port, md5, put, serving
from tests.tiers import slow_but


@pytest.fixture(autouse=True)
def _without_proxy(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path / "downloads"))


def packed(folder: Path, kind: str = "zip", top: str = "toy") -> Archive:
    """An archive in `place` of one file, with or without a folder around it."""
    put(folder / "content" / top / "list.txt", "one\ntwo\n")
    file = Path(shutil.make_archive(str(folder / "toy"), kind, folder / "content"))
    shutil.rmtree(folder / "content")
    return Archive("Toy", file.name, md5(file), (), "toy", "list.txt")


def refusal(archive: Archive, path: Path | None) -> str:
    with pytest.raises(DataError) as error:
        archive_folder(archive, path)
    return str(error.value)


@pytest.mark.parametrize("kind", slow_but(["zip", "gztar"], ["zip"]))
@pytest.mark.parametrize("top", slow_but(["toy", "."], ["toy"]))
def test_an_archive_is_downloaded_once_and_unpacked(tmp_path, kind, top):
    archive = packed(tmp_path / "server", kind, top)
    with serving(tmp_path / "server") as server:
        archive = replace(archive, urls=(f"{server.address}/{archive.file}",))
        folder = archive_folder(archive, None)
        assert folder == tmp_path / "downloads/toy"
        assert (folder / "list.txt").read_text() == "one\ntwo\n"
        requests = len(server.requests)
        assert archive_folder(archive, None) == folder
        shutil.rmtree(folder)  # the archive is still there
        assert archive_folder(archive, None) == folder
        assert requests == len(server.requests) > 0
    assert sorted(p.name for p in (tmp_path / "downloads").iterdir()) == sorted(
        ["toy", archive.file]
    )


def test_another_address_is_tried_where_one_answers_with_something_else(tmp_path):
    archive = packed(tmp_path / "server")
    put(tmp_path / "server/page", "<html>please click here</html>")
    with serving(tmp_path / "server") as server:
        urls = [f"{server.address}/{name}" for name in ("missing", "page", archive.file)]
        folder = archive_folder(replace(archive, urls=tuple(urls)), None)
        assert (folder / "list.txt").is_file()
        shutil.rmtree(tmp_path / "downloads")
        message = refusal(replace(archive, urls=tuple(urls[:2])), None)
    assert message.startswith(
        f"Toy is not in {tmp_path / 'downloads'} and could not be downloaded ({urls[0]}: HTTP Err"
    )
    assert f"; {urls[1]}: File not found or corrupted.); copy toy.zip there" in message
    assert not (tmp_path / "downloads/toy").exists()


def test_a_failed_download_says_where_the_archive_belongs(tmp_path):
    archive = packed(tmp_path / "server")
    with closed_port() as address:
        message = refusal(replace(archive, urls=(f"{address}/toy.zip",)), None)
    assert "refused" in message
    assert message.endswith(
        "; copy toy.zip there, or give data.path=FOLDER with it or with its Parquet files"
    )


def test_a_download_that_was_cut_short_is_fetched_again(tmp_path):
    archive = packed(tmp_path / "server")
    put(tmp_path / "downloads/toy.zip", (tmp_path / "server/toy.zip").read_bytes()[:50])
    with serving(tmp_path / "server") as server:
        folder = archive_folder(replace(archive, urls=(f"{server.address}/toy.zip",)), None)
    assert (folder / "list.txt").is_file()


def test_an_archive_is_found_in_its_folder_or_beside_it(tmp_path):
    archive = packed(tmp_path)
    assert archive_folder(archive, tmp_path / "toy.zip") == tmp_path / "toy"
    shutil.rmtree(tmp_path / "toy")
    for _ in range(2):  # from the archive, and then the folder itself
        assert archive_folder(archive, tmp_path) == tmp_path / "toy"
    assert archive_folder(archive, tmp_path / "toy") == tmp_path / "toy"
    (tmp_path / "toy").rename(tmp_path / "renamed")
    assert archive_folder(archive, tmp_path / "renamed") == tmp_path / "renamed"
    assert not (tmp_path / "downloads").exists()
    for name, expected in (("", True), ("renamed", True), ("toy.zip", True), ("other", False)):
        assert has_archive(archive, tmp_path / name) == expected


def test_an_altered_archive_is_refused_and_kept(tmp_path):
    archive = replace(packed(tmp_path), md5="0" * 32)
    before = (tmp_path / "toy.zip").read_bytes()
    message = refusal(archive, tmp_path)
    assert message.startswith(f"{tmp_path / 'toy.zip'}: expected an archive with the MD5 0000")
    assert (tmp_path / "toy.zip").read_bytes() == before
    assert not (tmp_path / "toy").exists()


def test_an_archive_that_cannot_be_unpacked_leaves_nothing(tmp_path):
    with zipfile.ZipFile(tmp_path / "toy.zip", "w") as file:
        file.writestr("toy/x", "a file")
        file.writestr("toy/" + "x" * 300, "a name that no file system takes")
    archive = Archive("Toy", "toy.zip", md5(tmp_path / "toy.zip"), (), "toy", "x")
    message = refusal(archive, tmp_path)
    assert message.startswith(f"{tmp_path / 'toy.zip'}: cannot be unpacked (")
    assert [path.name for path in tmp_path.iterdir()] == ["toy.zip"]


def test_downloads_go_where_the_environment_says(tmp_path, monkeypatch):
    assert downloads() == tmp_path / "downloads"
    monkeypatch.delenv("RAYKD_DATA")
    assert downloads() == Path.home() / ".cache/raykd"
