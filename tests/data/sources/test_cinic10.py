"""CINIC-10 in the layout of its archive, with two images a class."""

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raykd.data.dataset import read
from raykd.data.recipe import Data
from raykd.data.sources import SOURCES, published
from tests.data.files import closed_port, encoded, md5, picture, put, refusal, serving
from tests.tiers import slow_but

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.47889522, 0.47227842, 0.43047404), (0.24205776, 0.23828046, 0.25874835)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("whole") / "CINIC-10"
    for number, part in enumerate(("train", "valid", "test")):
        for name in NAMES:
            put(root / part / name / "cifar10-train-7.png", encoded(picture(number, 32, 32)))
            put(root / part / name / "n02691156_10.png", encoded(picture(9, 32, 32).convert("L")))
    put(root / "README.md", "CINIC-10")
    return root


@pytest.fixture
def cinic(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "CINIC-10"))


def test_it_trains_on_the_train_part_and_tests_on_the_test_part(whole):
    dataset = SOURCES["cinic10"](whole)
    assert dataset.names == NAMES
    for split in ("train", "test"):
        samples = dataset.splits[split]
        assert samples.labels.tolist() == [label for label in range(10) for _ in range(2)]
        origins = [samples.images.origin(row) for row in range(20)]
        assert all(origin.startswith(str(whole / split)) for origin in origins)
    assert dataset.splits["train"].images.origin(2) == str(
        whole / "train/automobile/cifar10-train-7.png"
    )


@pytest.mark.slow
def test_the_enlarged_set_has_the_rows_of_train_and_then_those_of_valid(whole):
    small, large = SOURCES["cinic10"](whole), SOURCES["cinic10_trainvalid"](whole)
    train, more = small.splits["train"], large.splits["train"]
    assert [more.images.origin(row) for row in range(20)] == [
        train.images.origin(row) for row in range(20)
    ]
    assert [more.images.origin(row) for row in range(20, 40)] == [
        train.images.origin(row).replace("/train/", "/valid/") for row in range(20)
    ]
    assert more.labels.tolist() == train.labels.tolist() * 2
    assert large.splits["test"].labels.tolist() == small.splits["test"].labels.tolist()


def test_its_constants_are_those_of_its_authors(store, whole):
    for name in ("cinic10", "cinic10_trainvalid"):
        data = read(store, Data(name=name), whole)
        assert (data.mean, data.std, data.size, data.classes) == (MEAN, STD, (32, 32), 10)


@pytest.mark.slow
def test_its_tables_have_its_constants(store, tmp_path):
    images = pa.array([encoded(picture(0))] * 10, pa.binary())
    content = pa.table({"image": images, "label": list(range(10))})
    for part in ("train", "validation", "test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        pq.write_table(content, tmp_path / f"data/{part}-00000-of-00001.parquet")
    dataset = SOURCES["cinic10"](tmp_path)
    data = read(store, Data(name="cinic10"), tmp_path)
    assert (data.mean, data.std) == (MEAN, STD)
    assert [len(samples.labels) for samples in dataset.splits.values()] == [10, 10]
    assert refusal("cinic10_trainvalid", tmp_path).startswith(
        f"{tmp_path / 'train'}: there is no such folder; expected CINIC-10 as distributed"
    )


@pytest.mark.slow
@pytest.mark.parametrize("around", slow_but([True, False], [True]))
@pytest.mark.parametrize("name", ["cinic10_trainvalid"])
def test_it_is_downloaded_and_unpacked(cinic, tmp_path, monkeypatch, name, around):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path / "downloads"))
    root, base = (tmp_path, cinic.name) if around else (cinic, ".")
    file = Path(shutil.make_archive(str(tmp_path / "server/CINIC-10"), "gztar", root, base))
    with serving(file.parent) as server:
        urls = (f"{server.address}/moved", f"{server.address}/{file.name}")
        monkeypatch.setattr(
            published, "CINIC10", replace(published.CINIC10, md5=md5(file), urls=urls)
        )
        dataset = SOURCES[name](None)
    expected = SOURCES[name](cinic)
    assert dataset.splits["train"].labels.tolist() == expected.splits["train"].labels.tolist()
    assert list(dataset.splits["train"].images) == list(expected.splits["train"].images)


@pytest.mark.slow
def test_a_failed_download_says_where_the_files_belong(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("RAYKD_DATA", str(tmp_path))
    with closed_port() as address:
        urls = (f"{address}/first", f"{address}/second")
        monkeypatch.setattr(published, "CINIC10", replace(published.CINIC10, urls=urls))
        message = refusal("cinic10", None)
    assert message.startswith(f"CINIC-10 is not in {tmp_path} and could not be downloaded (")
    assert all(f"{url}: " in message for url in urls)
    assert "copy CINIC-10.tar.gz there" in message


@pytest.mark.parametrize("name", ["cinic10_trainvalid"])
def test_a_part_or_a_class_that_is_wrong_is_named(cinic, name):
    (cinic / "test/horse").rename(cinic / "test/donkey")
    assert refusal(name, cinic) == (
        f"{cinic / 'test/horse'}: there is no such folder, but CINIC-10 has this class"
    )
    shutil.copytree(cinic / "test/donkey", cinic / "test/horse")
    assert refusal(name, cinic) == f"{cinic / 'test/donkey'}: CINIC-10 has no class of this name"
    shutil.rmtree(cinic / "test/donkey")
    for file in (cinic / "train/ship").iterdir():
        file.rename(file.with_name(f"._{file.name}"))
    message = refusal(name, cinic)
    assert message.startswith(f"{cinic / 'train/ship'}: the class folder holds no image")
    shutil.rmtree(cinic / "test")
    assert refusal(name, cinic) == (
        f"{cinic / 'test'}: there is no such folder; expected CINIC-10 as distributed, with "
        "train, valid and test"
    )
    missing = cinic / "missing"
    assert refusal(name, missing) == f"{missing}: there is no such file or folder (data.path)"


@pytest.mark.slow
def test_only_the_enlarged_set_needs_the_valid_part(cinic):
    shutil.rmtree(cinic / "valid")
    assert len(SOURCES["cinic10"](cinic.parent).splits["train"].labels) == 20
    assert refusal("cinic10_trainvalid", cinic.parent).startswith(f"{cinic / 'valid'}: there is no")
