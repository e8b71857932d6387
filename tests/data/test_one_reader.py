"""One reading of a folder: the same data in memory, streamed and packed, of any tree."""

import os
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import torch
from PIL import Image

from raykd.core.errors import CacheCorrupt, DataError
from raykd.data.dataset import Images, open_images, read
from raykd.data.loading.loader import Views
from raykd.data.packing import Packing
from raykd.data.recipe import Data, Stream
from raykd.data.sources.files import Files
from raykd.data.sources.folders import read_folder
from raykd.data.transforms.augment import Augment
from raykd.storage.store import Store, read_json, write_json
from tests.data.files import encoded, picture, put
from tests.data.packs import put_table, table
from tests.each import each
from tests.tiers import slow_but

SIDE = 8


def image(seed: int, kind: str = "PNG", **options) -> bytes:
    return encoded(picture(seed, SIDE, SIDE), kind, **options)


def fill(root: Path, *folders: str, each: int = 2) -> None:
    """Images in some folders, no two alike."""
    for folder in folders:
        for _ in range(each):
            number = sum(len(files) for _, _, files in os.walk(root))
            put(root / folder / f"{number:03d}.png", image(number))


def link(path: Path, target: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def flat(root: Path) -> None:
    fill(root, "a", "b", each=5)


def split(root: Path) -> None:
    fill(root, "train/a", "train/b", "test/a", "test/b")


def odd_words(root: Path) -> None:
    fill(root, "Training/a", "Training/b", "VALID/b")


def linked_splits(root: Path) -> None:
    fill(root / "../away", "a", "b")
    fill(root, "train/a", "train/b", each=3)
    link(root / "val", root / "../away")


def linked_classes(root: Path) -> None:
    fill(root / "../away", "x", "y", each=5)
    for name in "ab":
        link(root / name, root / "../away" / ("x" if name == "a" else "y"))


def linked_within(root: Path) -> None:
    fill(root, "a", "b", each=5)
    fill(root / "../away", "deep")
    link(root / "a/more", "../../away/deep")
    link(root / "b/up", "..")


def linked_files(root: Path) -> None:
    fill(root, "a", "b", each=5)
    link(root / "b/zz.png", "../a/000.png")
    link(root / "b/gone.png", "nowhere")
    link(root / "notes.txt", "nowhere")


def pipes(root: Path) -> None:
    fill(root, "a", "b", each=5)
    os.mkfifo(root / "a/p.png")
    link(root / "b/zero.png", "/dev/zero")


def numbers(root: Path) -> None:
    fill(root, *map(str, range(12)))


def padded_numbers(root: Path) -> None:
    fill(root, "train/007", "train/10", "train/9", "test/9")


def hidden(root: Path) -> None:
    fill(root, "a", "b", ".c", "__MACOSX", each=5)
    put(root / "a/._x.png", b"what macOS knows")
    put(root / "b/.cache/x.png", b"not read")


def deep(root: Path) -> None:
    fill(root, "a/1/2/3", "a/0", "b/x.png", each=3)


def others(root: Path) -> None:
    fill(root, "a", "b", each=4)
    for suffix, kind in (("JFIF", "JPEG"), ("jpe", "JPEG"), ("gif", "GIF"), ("WebP", "WEBP")):
        put(root / "a" / f"q.{suffix}", image(90, kind))
    for name in ("a/x.heic", "b/readme", "b/x.tar.gz", "list.csv"):
        put(root / name, b"no image")


def loose(root: Path) -> None:
    fill(root, "train/a", "train/b", "val/a", "extra/c")
    put(root / "train/loose.png", image(77))
    put(root / "top.png", image(78))


def no_text(root: Path) -> None:
    fill(root, "caf\udce9", "b\x1b[1m\n", "c", each=3)
    put(root / "c/\udcff.png", image(50))


def classes_called_as_splits(root: Path) -> None:
    fill(root, "train", "bus", "val", each=4)


def odd_images(root: Path) -> None:
    fill(root, "a", "b", each=4)
    exif = Image.Exif()
    exif[0x0112] = 6
    put(root / "a/turned.jpg", image(60, "JPEG", exif=exif))
    put(root / "a/grey.png", encoded(picture(61, SIDE, SIDE).convert("L")))
    put(root / "b/few.png", encoded(picture(62, SIDE, SIDE).quantize(8), transparency=2))
    put(root / "b/alpha.png", encoded(picture(63, SIDE, SIDE).convert("RGBA")))


def bad_images(root: Path) -> None:
    fill(root, "train/a", "train/b", "test/a", each=4)
    put(root / "train/a/aa.png", b"")
    put(root / "train/b/bb.png", b"<html>")
    put(root / "test/a/cc.png", image(70)[:40])


TREES: dict[str, Callable[[Path], None]] = {
    tree.__name__: tree
    for tree in (
        flat, split, odd_words, linked_splits, linked_classes, linked_within, linked_files, pipes,
        numbers, padded_numbers, hidden, deep, others, loose, no_text, classes_called_as_splits,
        odd_images, bad_images,
    )
}  # fmt: skip
# Splits or none; links; names that are no text; images of every kind; images that are none.
QUICK_TREES = ("flat", "linked_within", "no_text", "loose", "odd_images", "bad_images")
STREAM = Stream(size=SIDE, resize=SIDE)


def pack(root: Path, target: Path) -> Path:
    """A pack of a folder, made in this process."""
    dataset = read_folder(str(root))
    packing = Packing(dataset, str(root), Files.at(target), skip_bad=True)
    packing.finish(packing.make_all(packing.begin()))
    return target


def shown(store: Store, data: Data) -> list[tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]]:
    """Normalised pixels, labels and class names of the splits."""
    out = []
    for images in open_images(store, data):
        batch = Views(images, data).batch(torch.arange(len(images)), 0)
        out.append((batch.pixels, batch.targets, images.names))
    return out


@each("name", slow_but(TREES, QUICK_TREES))
def test_a_folder_is_the_same_data_however_it_is_read(tmp_path, name):
    root = tmp_path / ("b\udce4ume" if name == "no_text" else "tree")
    TREES[name](root)
    messages: list[str] = []
    plain = Data(name="folder", augment=Augment())
    ways = {
        "in memory": (plain.model_copy(update={"resize": None}), root),
        "brought to its size": (plain.model_copy(update={"resize": SIDE}), root),
        "streamed": (plain.model_copy(update={"stream": STREAM}), root),
        "by a URL": (plain.model_copy(update={"stream": STREAM}), f"file://{quote(bytes(root))}"),
        "packed": (plain.model_copy(update={"stream": STREAM}), pack(root, tmp_path / "pack")),
        "packed, in memory": (Data(name="table", augment=Augment()), tmp_path / "pack"),
    }
    results = []
    for way, (recipe, location) in ways.items():
        store = Store(tmp_path / way)
        data = read(store, recipe, location, messages.append, skip_bad=True)
        results.append((data, shown(store, data)))
    data, images = results[0]
    for other, result in results[1:]:
        assert (other.digest, other.classes) == (data.digest, data.classes)
        assert (other.mean, other.std, other.size) == (data.mean, data.std, data.size)
        for (pixels, labels, names), (its, theirs, called) in zip(images, result, strict=True):
            assert torch.equal(labels, theirs) and names == called
            assert torch.equal(pixels, its)
    assert len({line for line in messages if " classes: " in line}) <= 2, "a pack has no folders"
    assert not any("\x1b" in line or "\udcff" in line for line in messages)


@pytest.mark.parametrize("name", slow_but(["digits", "folder"], ["folder"]))
def test_what_is_streamed_and_what_is_decoded_lie_beside_each_other(store, tmp_path, name):
    root = None
    if name == "folder":
        root = tmp_path / "tree"
        flat(root)
    memory = Data(name=name)
    stream = Data(name=name, stream=Stream(size=SIDE, resize=SIDE))
    order = [memory, stream, Data(name=name, resize=4), stream, memory]
    results = [read(store, data, root) for data in order]
    assert len({(data.digest, data.mean, data.std) for data in results}) == 1
    for data in results:
        train, _ = open_images(store, data)
        assert len(train) == (1438 if name == "digits" else 8)
    pixels = [shown(store, data)[0][0] for data in (results[0], results[1])]
    assert torch.equal(*pixels)


def test_the_line_says_what_was_read_and_what_was_not(store, tmp_path):
    root = tmp_path / "tree"
    fill(root, "train/a", "train/b", "train/c", "val/a", each=3)
    for name in ("train/a/x.heic", "train/1.txt", "train/2.txt", "train/b/3.txt"):
        put(root / name, b"no image")
    messages: list[str] = []
    read(store, Data(name="folder", stream=STREAM), root, messages.append)
    assert messages == [
        "3 classes: a, b, c; 9 train, 3 test from val/; 4 files not read: .heic 1, .txt 3"
    ]
    messages.clear()
    fill(tmp_path / "flat", *[f"class{number:02d}" for number in range(30)])
    read(store, Data(name="folder", resize=SIDE), tmp_path / "flat", messages.append)
    assert messages[0].startswith("writing 60 decoded images, 0.01 MB, into ")
    assert messages[1] == (
        "30 classes: class00, class01, class02, class03, class04, class05, class06, class07, ..., "
        "class29; 48 train, 12 test, which are 0.2 of all, held out (run.data.holdout)"
    )


BROKEN = {
    "empty.png": b"",
    "text.png": b"<html>not found</html>",
    "half.png": image(1)[:60],
    "half.jpg": encoded(picture(2, 64, 64), "JPEG")[:900],
    "other.jpg": encoded(picture(3, 64, 64), "JPEG")[:-300],
}


def broken(root: Path) -> Path:
    fill(root, "a", "b", each=6)
    for name, data in BROKEN.items():
        put(root / "a" / name, data)
    return root


def test_all_bad_images_are_named_at_once(store, tmp_path):
    root = broken(tmp_path / "tree")
    with pytest.raises(DataError) as error:
        read(store, Data(name="folder", resize=SIDE), root)
    message = str(error.value)
    assert message.startswith("5 images cannot be used:\n")
    assert all(f"{root}/a/{name}: " in message for name in BROKEN)
    assert message.endswith("or leave them out (on_bad_image: skip)")
    with pytest.raises(DataError) as error:
        read(store, Data(name="folder", stream=STREAM), root)
    assert all(f"{root}/a/{name}: " in str(error.value) for name in ("empty.png", "text.png"))
    for number in range(30):
        put(root / "b" / f"x{number}.png", b"x")
    with pytest.raises(DataError, match=r"^35 images cannot be used:(\n  .*){10}\n  and 25 more\n"):
        read(store, Data(name="folder", resize=SIDE), root)
    assert not store.root.exists()


def test_bad_images_in_memory_are_left_out_counted_and_named(store, tmp_path):
    root = broken(tmp_path / "tree")
    recipe = Data(name="folder", resize=SIDE)
    for _ in range(2):  # the second time nothing is decoded
        messages: list[str] = []
        data = read(store, recipe, root, messages.append, skip_bad=True)
        assert "10 train, 2 test" in messages[-2]
        assert messages[-1].startswith("5 images that cannot be used, left out:\n")
        assert all(name in messages[-1] for name in BROKEN)
    train, test = open_images(store, data)
    assert len(train) + len(test) == 12
    for recipe in (data, Data(name="folder", resize=SIDE)):
        with pytest.raises(DataError, match="images cannot be used"):
            read(store, recipe, root)


def test_a_file_that_vanishes_after_it_was_listed_is_a_bad_image(store, tmp_path, monkeypatch):
    root = tmp_path / "tree"
    fill(root, "a", "b", each=5)
    listing = Files.listing

    def then_gone(files: Files, below: str = ""):
        result = listing(files, below)
        for name in ("a/000.png", "b/005.png"):
            (root / name).unlink(missing_ok=True)
        put(root / "a/001.png", b"shorter")
        return result

    monkeypatch.setattr(Files, "listing", then_gone)
    for recipe in (Data(name="folder", stream=STREAM), Data(name="folder")):
        fill(root, "a", "b", each=5)
        flat_again(root)
        with pytest.raises(DataError, match=r"000\.png: cannot be read \(No such file"):
            read(store, recipe, root)
        flat_again(root)
        data = read(store, recipe, root, skip_bad=True)
        train, test = open_images(store, data)
        assert len(train) + len(test) == 7


def flat_again(root: Path) -> None:
    """Ten images as `fill` made them first."""
    for path in root.rglob("*.png"):
        path.unlink()
    for number in range(10):
        put(root / ("a" if number < 5 else "b") / f"{number:03d}.png", image(number))


def test_a_declared_class_without_images_is_kept_and_said(store, tmp_path):
    content = table([image(number) for number in range(8)], [number % 4 for number in range(8)])
    put_table(
        tmp_path / "t/train.parquet", content.replace_schema_metadata({"classes": "w,x,y,z,never"})
    )
    for recipe in (Data(name="table"), Data(name="table", stream=STREAM)):
        messages: list[str] = []
        data = read(store, recipe, tmp_path / "t", messages.append)
        assert data.classes == 5 and messages[-1].endswith("; no training image of never")
        train, _ = open_images(store, data)
        assert train.names[-1] == "never"
        again = read(store, data, tmp_path / "t")
        assert again == data


SHAPES = [
    {}, [], None, 1, "x", {"digest": 1}, {"digest": "0" * 20}, {"splits": []}, {"splits": {}},
    {"splits": {"train": 1}}, {"splits": {"../x": "0"}}, {"names": "ab"}, {"names": ["a"]},
    {"names": [1, 2]}, {"names": ["\ud800", "b"]},
]  # fmt: skip
SIZES = [{"size": size} for size in ([8], [8, -8], [4, 4], "8 x 8")]


@pytest.mark.parametrize("kind", ["decoded", "streamed"])
def test_facts_of_another_shape_are_a_damaged_file(store, tmp_path, kind):
    fill(tmp_path / "tree", "a", "b", each=5)
    stream = STREAM if kind == "streamed" else None
    data = read(store, Data(name="folder", stream=stream), tmp_path / "tree")
    [path] = (store.root / "images").glob(f"{data.digest}*/images.json")
    facts = read_json(path)
    for changes in [*SHAPES, *([{"root": 7}] if stream else SIZES)]:
        write_json(path, facts | changes if isinstance(changes, dict) and changes else changes)
        with pytest.raises(CacheCorrupt, match=r"images\.json"):
            open_images(store, data)
    write_json(path, facts)
    assert len(open_images(store, data)[0]) == 8


def test_digits_keep_their_pixels_and_constants(store):
    data = read(store, Data(name="digits"), None)
    assert (data.mean, data.std) == ((0.3053,) * 3, (0.3759,) * 3)
    images = open_images(store, data.model_copy(update={"holdout": 0.001}))[0]
    levels = torch.arange(256).double() / 255
    parts = open_images(store, data)
    everything = torch.cat([part.pixels for part in parts if isinstance(part, Images)])
    counts = torch.bincount(everything[..., 0].flatten().long(), minlength=256).double()
    mean = float((counts * levels).sum() / counts.sum())
    assert round(mean, 4) == 0.3053 and len(images) == 1795
    assert np.unique(everything.numpy()).size == 17
