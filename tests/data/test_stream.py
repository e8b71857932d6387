"""Images that are decoded while a run goes on: the same samples however they are loaded."""

import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from raykd.core import keyed_random
from raykd.core.errors import ConfigError, DataError
from raykd.data.dataset import open_images, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data, Stream
from raykd.data.sources.byte_ranges import Names
from raykd.data.sources.encoded_image import decode, open_image
from raykd.data.sources.files import Files
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.colour import Colour
from raykd.data.transforms.crop import Crop
from raykd.data.transforms.erase import Erase
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.storage.store import Store
from tests.data.files import encoded, picture, put
from tests.data.photos import photo, photos, streamed
from tests.each import each
from tests.tiers import slow_but

IDS = torch.tensor([5, 0, 17, 23, 8, 8])
EVERYTHING = Augment(
    crop=Crop(),
    flip=True,
    colour=Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    strong=Strong(operations=2, hole=0.2),
    erase=Erase(probability=0.7),
    mix=Mix(kind="cutmix"),
)


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


def shown(store: Store, data: Data, **options) -> Views:
    return Views(open_images(store, data)[0], data, **options)


def test_what_is_read_is_known_before_anything_is_decoded(store, root):
    data = streamed(store, root)
    assert (data.classes, data.size, len(data.digest)) == (3, (24, 24), 20)
    train, test = open_images(store, data)
    assert (len(train), len(test), train.names) == (24, 6, ("class0", "class1", "class2"))
    assert train.targets.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert not list(store.root.rglob("train.arrow"))


@pytest.mark.slow
def test_a_view_is_the_same_in_every_batch_and_process(store, root):
    data = streamed(store, root, augment=EVERYTHING)
    here = shown(store, data)
    whole = here.batch(IDS, 3)
    for index, number in enumerate(IDS.tolist()):
        alone = here.batch(torch.tensor([number]), 3)
        assert torch.equal(alone.pixels[0], whole.pixels[index])
        assert torch.equal(alone.targets[0], whole.targets[index])
    assert not torch.equal(here.batch(IDS, 4).pixels, whole.pixels)
    views = shown(store, data, decoders=2)
    rows = torch.stack([IDS, IDS.flip(0), IDS.roll(1)])
    for epoch in (0, 1):  # the processes stay
        for ids, batch in zip(rows, views.batches(rows, 3, epoch), strict=True):
            assert torch.equal(batch.ids, ids) and batch.epoch == epoch
            assert torch.equal(batch.pixels, here.batch(ids, 3).pixels)
    assert [len(batch.ids) for batch in views.runs(torch.arange(7), 3)] == [3, 3, 1]


def test_a_teacher_of_another_resolution_sees_the_same_part(store, tmp_path):
    # A ramp in both directions tells by its colours which part of it is shown.
    y, x = np.mgrid[0:200, 0:300]
    ramp = np.stack([y * 255 / 199, x * 255 / 299, np.zeros_like(x)], axis=-1).astype(np.uint8)
    for name in ("a/1.png", "b/1.png", "c/1.png", "d/1.png"):
        put(tmp_path / "ramps" / name, encoded(Image.fromarray(ramp)))
    plain = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "holdout": 0.25}
    augment = Augment(crop=Crop(), flip=True)
    data = streamed(store, tmp_path / "ramps", 32, augment=augment, **plain)
    larger = data.model_copy(update={"stream": Stream(size=64, resize=64), "size": (64, 64)})
    batch = shown(store, data, looks={"teacher": larger}).batch(torch.arange(3), 7)
    small, large = batch.pixels, batch.looks["teacher"].pixels
    assert small.shape[-1] == 32 and large.shape[-1] == 64
    halved = torch.nn.functional.avg_pool2d(large, 2)
    assert (halved - small)[..., 2:-2, 2:-2].abs().max() < 0.02
    assert small.std() > 0.1


def test_the_crop_is_distributed_as_torchvisions(store):
    ids = torch.arange(4000)
    sizes = torch.full_like(ids, 300), torch.full_like(ids, 400)
    ours = Crop().boxes(0, ids, 0, *sizes).double()
    torch.manual_seed(0)
    image = torch.empty(3, 300, 400, dtype=torch.uint8)
    theirs = v2.RandomResizedCrop(224)
    drawn = [theirs.make_params([image]) for _ in range(4000)]
    other = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn]).double()
    for column in range(4):
        error = 4 * math.sqrt(float(ours[:, column].var() + other[:, column].var()) / 4000)
        assert abs(float(ours[:, column].mean() - other[:, column].mean())) < error
    assert bool((ours[:, 0] + ours[:, 2] <= 300).all() and (ours[:, 1] + ours[:, 3] <= 400).all())


def test_a_crop_that_never_fits_is_the_largest_central_one():
    ids = torch.arange(3)
    heights, widths = torch.tensor([10, 1000, 90]), torch.tensor([1000, 10, 100])
    crop = Crop(scale=(1.0, 1.0), ratio=(0.75, 4 / 3))
    boxes = crop.boxes(0, ids, 0, heights, widths)
    assert boxes[0].tolist() == [0, 493, 10, 13]
    assert boxes[1].tolist() == [493, 0, 13, 10]
    assert boxes[2].tolist() == [0, 0, 90, 100]


@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
def test_a_tested_image_is_torchvisions_resize_and_centre_crop(store, root, kind):
    data = streamed(store, root, stream=Stream(size=32, resize=36, interpolation=kind))
    test = open_images(store, data)[1]
    batch = Views(test, data.test()).batch(torch.arange(len(test)), 0)
    resized = v2.Resize(36, v2.InterpolationMode(kind), antialias=True)
    change = v2.Compose([resized, v2.CenterCrop(32)])
    for row in range(len(test)):
        image = torch.from_numpy(decode(test.ranges.read(row), "it").copy()).permute(2, 0, 1)
        expected = change(image.contiguous()).float().div(255)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
        apart = (batch.pixels[row] * std + mean - expected).abs().max() * 255
        assert apart < 1.5, apart  # a level, by the order in which a resize adds


def test_jpeg_pixels_are_those_of_pillow():
    for seed, image in enumerate(
        [photo(1, 50, 70), photo(2, 33, 17), photo(3, 64, 64).convert("L")]
    ):
        data = encoded(image, "JPEG", quality=80 + seed)
        picture = open_image(data, "it")
        assert (picture.height, picture.width) == (image.height, image.width)
        assert np.array_equal(picture.pixels(), decode(data, "it"))
    progressive = encoded(photo(4, 50, 70), "JPEG", progressive=True)
    assert np.array_equal(open_image(progressive, "it").pixels(), decode(progressive, "it"))


@each("kind", slow_but(["CMYK", "turned", "PNG", "WEBP"], ["CMYK", "turned"]))
def test_every_other_image_is_decoded_by_pillow(kind):
    image = photo(5, 30, 50)
    if kind == "CMYK":
        data = encoded(image.convert("CMYK"), "JPEG")
    elif kind == "turned":
        exif = Image.Exif()
        exif[274] = 6
        data = encoded(image, "JPEG", exif=exif)
    else:
        data = encoded(image, kind)
    picture = open_image(data, "it")
    assert (picture.height, picture.width) == ((50, 30) if kind == "turned" else (30, 50))
    assert np.array_equal(picture.pixels(), decode(data, "it"))


def test_a_test_shows_the_usual_part_of_an_image_at_any_size():
    for size, resize in ((224, 256), (64, 73), (32, 37), (299, 342), (1, 1)):
        short = Stream.model_validate_json(f'{{"size": {size}}}')
        assert short == Stream(size=size) == Stream(size=size, resize=resize)
        assert (short.size, short.resize, short.draft) == (size, resize, False)
        assert pickle.loads(pickle.dumps(short)) == short
    assert Stream() == Stream(size=224, resize=256)
    assert Stream(size=64, resize=64).resize == 64
    with pytest.raises(ValueError, match=r"^1 validation error"):
        Stream(size=0)
    assert set(Stream.model_json_schema()["properties"]) == set(Stream.model_fields)


def test_draft_mode_is_near_and_never_smaller_than_a_frame(store, tmp_path):
    root = tmp_path / "large"
    for name in ("train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg"):
        put(root / name, encoded(photo(len(name), 700, 900), "JPEG", quality=95))
    exact = streamed(store, root, 64)
    assert exact.stream is not None
    drafted = exact.model_copy(
        update={"stream": exact.stream.model_copy(update={"draft": True}), "augment": exact.augment}
    )
    for view in range(4):
        one = shown(store, exact).batch(torch.arange(2), view).pixels
        two = shown(store, drafted).batch(torch.arange(2), view).pixels
        assert not torch.equal(one, two)
        assert (one - two).abs().mean() < 0.1  # of a standard deviation


def test_every_change_is_keyed_and_leaves_the_rest_alone(store, root):
    base = Augment(crop=Crop(scale=(0.5, 1.0)))
    data = streamed(store, root, augment=base)
    plain = shown(store, data).batch(torch.arange(24), 2).pixels
    for change in (
        {"colour": Colour(brightness=0.5)},
        {"strong": Strong(operations=1, hole=0.0)},
        {"erase": Erase(probability=0.5)},
    ):
        augment = base.model_copy(update=change)
        assert augment.views() == 1 << 31
        changed = data.model_copy(update={"augment": augment})
        pixels = shown(store, changed).batch(torch.arange(24), 2).pixels
        same = [torch.equal(*pair) for pair in zip(plain, pixels, strict=True)]
        assert not all(same)
        if "erase" in change:
            assert 4 < sum(same) < 20


def test_colour_factors_are_uniform_and_their_order_too():
    image = torch.full((2000, 1, 1, 3), 100, dtype=torch.uint8)
    levels = Colour(brightness=0.5).apply(image, torch.arange(2000), 0, 0)[:, 0, 0, 0].double()
    assert 49 <= levels.min() < 52 and 148 < levels.max() <= 150
    assert abs(float(levels.mean()) - 99.5) < 2.5


def test_erased_boxes_have_the_areas_that_were_asked_for():
    image = torch.zeros(2000, 32, 32, 3, dtype=torch.uint8)
    erased = Erase(probability=1.0, scale=(0.1, 0.2)).apply(image, torch.arange(2000), 0, 0)
    share = (erased[..., 0] > 0).double().mean(dim=(1, 2))
    assert share.min() > 0.06 and share.max() < 0.25
    assert abs(float(share.mean()) - 0.15) < 0.01


def bad(root, name: str = "train/class1/003.jpg") -> str:
    path = root / name
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10])
    return str(path)


def test_an_image_that_cannot_be_decoded_is_named(store, root):
    path = bad(root)
    data = streamed(store, root)
    for decoders in (0, 1):
        views = shown(store, data, decoders=decoders)
        with pytest.raises(DataError) as error:
            list(views.runs(torch.arange(24), 8))
        assert str(error.value).startswith(f"{path}: cannot be decoded as an image")


@pytest.mark.parametrize("decoders", slow_but([0, 1], [1]))
def test_a_bad_image_that_is_skipped_is_counted_and_the_next_shown(store, root, decoders):
    bad(root)
    data = streamed(store, root, augment=Augment(crop=Crop(), mix=Mix()))
    views = shown(store, data, skip_bad=True, decoders=decoders)
    [batch] = views.runs(torch.arange(24), 24, view=1)
    assert views.bad == 1
    assert batch.ids.tolist() == list(range(24))
    assert batch.targets.shape == (24, 3)
    put(root / "train/class1/003.jpg", (root / "train/class1/004.jpg").read_bytes())
    mended = shown(
        Store(store.root.parent / "other"),
        streamed(Store(store.root.parent / "other"), root, augment=data.augment),
    )
    [expected] = mended.runs(torch.arange(24), 24, view=1)
    assert torch.equal(batch.pixels, expected.pixels)


def test_what_cannot_be_an_image_is_found_when_it_is_read_first(store, root):
    path = root / "train/class2/000.jpg"
    path.write_text("<html>not found</html>")
    with pytest.raises(DataError, match=r"000\.jpg: cannot be decoded as an image"):
        streamed(store, root)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"000\.jpg: the file is empty"):
        streamed(store, root)
    messages: list[str] = []
    data = Data(name="folder", stream=Stream(size=24, resize=24))
    data = read(store, data, str(root), messages.append, skip_bad=True)
    assert len(open_images(store, data)[0]) == 23
    assert messages[0] == "3 classes: class0, class1, class2; 23 train, 6 test from test/"
    assert messages[1:] == [f"1 image that cannot be used, left out:\n  {path}: the file is empty"]


def test_files_that_did_not_change_are_not_read_again(store, root, monkeypatch):
    first = streamed(store, root)
    kept = {path: path.stat().st_mtime_ns for path in store.root.rglob("*") if path.is_file()}
    reads: list[str] = []
    before = Files.read
    monkeypatch.setattr(
        Files, "read", lambda self, name, *rest: reads.append(name) or before(self, name, *rest)
    )
    assert streamed(store, root) == first and not reads
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # a store may be read alone
    put(root / "train/class0/000.jpg", encoded(photo(77, 40, 40), "JPEG"))
    assert streamed(store, root).digest != first.digest and len(reads) == 30


def test_the_same_images_elsewhere_are_the_same_data(store, root):
    first = streamed(store, root)
    elsewhere = root.rename(root.with_name("moved"))
    assert streamed(store, elsewhere).digest == first.digest
    assert shown(store, first).batch(IDS, 0).pixels.shape == (6, 3, 24, 24)


def test_a_file_that_changed_behind_the_back_is_named(store, root):
    data = streamed(store, root)
    path = root / "train/class0/000.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"000\.jpg: expected \d+ bytes, found \d+; the file has"):
        shown(store, data).batch(torch.arange(1), 0)


def test_folders_without_a_test_split_are_divided(store, tmp_path):
    for number in range(20):
        put(
            tmp_path / "flat" / f"class{number % 2}" / f"{number}.jpg",
            encoded(photo(number, 30, 30)),
        )
    data = streamed(store, tmp_path / "flat", holdout=0.2, validation=0.25, limit=8)
    train, test = open_images(store, data)
    assert (len(train), len(test)) == (8, 4)
    assert train.targets.bincount().tolist() == [4, 4]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"classes": 4}, "run.data.classes: expected 4, but the images have 3"),
        ({"digest": "0" * 20}, "they are not the images that this recipe was made with"),
    ],
)
def test_what_does_not_suit_is_said(store, root, changes, says):
    with pytest.raises((ConfigError, DataError), match=says):
        streamed(store, root, **changes)


@each(
    ("values", "says"),
    [
        ({"stream": Stream(size=8, resize=8), "resize": 8}, "resize is of images in memory"),
        ({"augment": {"pad": 4, "crop": {}}}, "pad and crop both say"),
        ({"stream": {"size": 300, "resize": 256}}, "resize 256 leaves no centre of 300 pixels"),
        ({"augment": {"colour": {}}}, "it changes nothing"),
        ({"augment": {"crop": {"scale": [0.5, 0.1]}}}, "two rising shares"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(values, says):
    plain = {k: v.plain() if hasattr(v, "plain") else v for k, v in values.items()}
    with pytest.raises(ValueError, match=says):
        Data.read({"name": "folder"} | plain)


def test_a_url_needs_a_stream(store):
    with pytest.raises(ConfigError, match="is a URL, whose images are decoded while a run goes on"):
        read(store, Data(name="folder"), "s3://bucket/images")


def test_many_names_are_two_arrays():
    names = ["a/1.jpg", "", "ü/2.jpg", "b" * 300]
    packed = Names.of(names)
    assert [packed[number] for number in range(4)] == names and len(packed) == 4


def test_files_open_again_in_another_process(root):
    files = pickle.loads(pickle.dumps(Files.at(root)))
    assert files.read("train/class0/000.jpg", 0, 2) == b"\xff\xd8"
    with pytest.raises(DataError, match=r"nowhere\.jpg: cannot be read"):
        files.read("nowhere.jpg")


def test_in_memory_images_can_be_cropped_too(digits):
    ids = torch.arange(40)
    pixels = torch.from_numpy(np.stack([np.asarray(picture(n, 8, 8)) for n in range(40)]))
    crop = Augment(crop=Crop(scale=(0.3, 0.9)))
    cropped = crop.apply(pixels, ids, 1, 0)
    assert cropped.shape == pixels.shape and not torch.equal(cropped, pixels)
    assert torch.equal(cropped[7:9], crop.apply(pixels[7:9], ids[7:9], 1, 0))
    assert keyed_random.CROP_AREA > keyed_random.VALIDATION


def test_looks_that_show_different_rows_are_as_each_alone(store, tmp_path):
    root = photos(tmp_path / "tall", side=90)
    data = streamed(store, root, augment=Augment(crop=Crop(scale=(0.05, 0.2)), flip=True))
    whole = data.model_copy(update={"augment": Augment()})
    ids = torch.arange(24)
    both = shown(store, data, looks={"clean": whole}).batch(ids, 1)
    assert torch.equal(both.pixels, shown(store, data).batch(ids, 1).pixels)
    assert torch.equal(both.looks["clean"].pixels, shown(store, whole).batch(ids, 1).pixels)


WORK = """
import sys
import torch
from raykd.data.dataset import open_images
from raykd.data.loading.loader import Views
from raykd.storage.store import Store
from tests.data.photos import streamed

if __name__ == "__main__":
    store = Store(sys.argv[1])
    data = streamed(store, sys.argv[2])
    views = Views(open_images(store, data)[0], data, decoders=1)
    batches = views.batches(torch.arange(24).view(-1, 4), 0, 0)
    next(batches)
    print("ready", flush=True)
    sys.stdin.read()
"""


def started_by(process: int) -> list[int]:
    """The processes that one started, and those that they did."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return [pid for child in children for pid in (int(child), *started_by(int(child)))]


@pytest.mark.slow
def test_processes_that_decode_end_with_the_one_that_is_killed(tmp_path, root):
    script = put(tmp_path / "work.py", WORK)
    words = [sys.executable, str(script), str(tmp_path / "store"), str(root)]
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(words, env=here, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        assert run.stdout is not None and run.stdout.readline() == b"ready\n"
        others = started_by(run.pid)
        assert len(others) >= 2  # one that decodes, and the server that forks it
        run.kill()
    until = time.monotonic() + 600
    while any(Path(f"/proc/{pid}").exists() for pid in others) and time.monotonic() < until:
        time.sleep(0.2)
    assert not [pid for pid in others if Path(f"/proc/{pid}").exists()]
