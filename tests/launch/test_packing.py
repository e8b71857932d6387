"""Packs that Ray workers make: the same as those of one process, also where workers die."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from raykd.core.errors import DataError
from raykd.data.packing import Packing
from raykd.data.sources.files import Files
from raykd.data.sources.folders import read_folder
from raykd.data.sources.pack_format import read_pack
from raykd.launch.pool import make_shards
from tests.data.files import put
from tests.data.packs import packed, packing, same
from tests.data.photos import photos
from tests.launch.ray_marks import RAY

pytestmark = [*RAY, pytest.mark.timeout(900)]


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


def made_on_ray(work: Packing, workers: int = 2) -> list[str]:
    """The names of the shards."""
    made = [*make_shards(work, work.begin(), workers)]
    work.finish(made)
    return sorted(one.shard.name for one in made)


def test_two_workers_make_the_pack_of_one_process(cluster, root, tmp_path):
    alone = sorted(one.shard.name for one in packed(root, tmp_path / "a"))
    assert made_on_ray(packing(root, tmp_path / "b")) == alone
    same(read_pack(str(tmp_path / "a")), read_pack(str(tmp_path / "b")))
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert names == {path.name for path in (tmp_path / "a").iterdir()}


def test_a_bad_image_is_named_and_what_was_made_is_kept(cluster, root, tmp_path):
    put(root / "train/class2/900.jpg", "no image")
    place = tmp_path / "pack"
    with pytest.raises(DataError, match=r"class2/900\.jpg: cannot be decoded as an image"):
        made_on_ray(packing(root, place), 1)
    kept = len([*place.glob("*.arrow")])
    work = packing(root, place, skip_bad=True)
    made = [*make_shards(work, work.begin(), 2)]
    assert sum(one.adopted for one in made) == kept > 3
    assert work.finish(made)["skipped"] == 1


def packers() -> list[int]:
    """The ids of the processes that pack."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = (folder / "cmdline").read_text()
            except OSError:
                continue
            if line.startswith("ray::Worker"):
                found.append(int(folder.name))
    return found


def test_a_worker_that_is_killed_makes_its_shard_anew(cluster, tmp_path):
    root = photos(tmp_path / "photos", each=60)
    found = read_folder(str(root))
    work = Packing(found, str(root), Files.at(tmp_path / "pack"), 0.002, decode=True)
    killed = []

    def kill() -> None:
        while not killed:
            if len([*(tmp_path / "pack").glob("*.arrow")]) > 3:
                killed.extend(packers()[:1])
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.005)

    thread = threading.Thread(target=kill)
    thread.start()
    made_on_ray(work)
    thread.join()
    assert killed
    same(read_pack(str(tmp_path / "pack")), found)
