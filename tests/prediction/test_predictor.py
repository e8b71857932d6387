"""A finished network's answers about image files: those of its evaluation."""

import numpy as np
import pytest
import torch
from PIL import Image

from raykd.core.errors import ConfigError, DataError
from raykd.core.types import Batch, Outputs
from raykd.data.dataset import open_images, read
from raykd.data.loading.loader import Views
from raykd.data.recipe import Data, Stream
from raykd.data.sources.encoded_image import decode
from raykd.methods import METHODS
from raykd.methods.feature_distillation import FeatureDistillation
from raykd.prediction import Predictor, load
from raykd.recipes import Optim, StudentRun
from raykd.storage.store import Store
from raykd.tasks import Features
from raykd.tasks.classification import Classification
from raykd.training import evaluation
from raykd.training.load_trained import finished
from raykd.training.runs import local_host
from tests.data.files import encoded, put
from tests.data.photos import photo, photos, streamed
from tests.each import each
from tests.small import prepare, student_run, trained


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("predicted") / "store")


@pytest.fixture(scope="module")
def digits_student(place):
    """A student of the digits whose logits are calibrated by its method."""
    run = student_run(place, "skd")
    prepare(place, run)
    trained(place, run)
    return run


@pytest.fixture(scope="module")
def digit_files(place, digits_student, tmp_path_factory):
    """The test images of the digits as files, in the order of their rows, and their labels."""
    folder = tmp_path_factory.mktemp("digits")
    _, test = open_images(place, digits_student.data)
    for row, pixels in enumerate(test.pixels):
        Image.fromarray(pixels.numpy()).save(folder / f"{row:04d}.png")
    return folder, test.targets


class Counted(Classification):
    """The task of evaluation, which also keeps what it counts: (id, best class, right)."""

    def batch_sums(self, method, student: Outputs, teacher, batch: Batch, helpers):
        best = method.scores(student, teacher, helpers).argmax(1)
        kept.extend(zip(batch.ids.tolist(), best.tolist(), strict=True))
        return super().batch_sums(method, student, teacher, batch, helpers)


kept: list[tuple[int, int]] = []


def evaluated(store, run):
    """The best class that evaluation counted of each test image, in their order, and top-1."""
    kept.clear()
    made = finished(store, run)
    test = Views(made.test, run.data.test())
    metrics = evaluation.evaluate(
        made.network,
        made.method,
        made.helpers,
        test,
        None,
        local_host(store, run),
        task=Counted(),
    )
    return [best for _, best in sorted(kept)], metrics["top1"]


def check_as_evaluated(store, run, paths, batch=64):
    """Compare the labels of test images' files with evaluation's, picture for picture."""
    best, top1 = evaluated(store, run)
    predictor = load(store, run)
    predictions = predictor.predict(paths, batch=batch)
    names = predictor.classes
    assert [p.path for p in predictions] == [str(path) for path in paths]
    assert [p.label for p in predictions] == [names[index] for index in best]
    targets = [names[t] for t in open_images(store, run.data)[1].targets]
    right = sum(p.label == target for p, target in zip(predictions, targets, strict=True))
    assert 100 * right / len(targets) == pytest.approx(top1)
    recorded = finished(store, run).result["last"]["top1"]
    assert 100 * right / len(targets) == pytest.approx(recorded)


@pytest.mark.slow
@each("batch", [7, 64])
def test_labels_of_test_images_are_those_that_evaluation_counted(
    place, digits_student, digit_files, batch
):
    check_as_evaluated(place, digits_student, sorted(digit_files[0].iterdir()), batch)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return photos(tmp_path_factory.mktemp("pictures") / "photos", side=60)


@each("how", ["stream", "resize", "draft"])
def test_photographs_are_made_ready_as_in_evaluation(place, pictures, how):
    if how == "resize":
        data = read(place, Data(name="folder", resize=24), str(pictures))
    else:
        stream = Stream(size=24, resize=27, draft=how == "draft")
        data = streamed(place, pictures, stream=stream)
    run = StudentRun(model="resnet8", data=data, optim=Optim(epochs=2, batch=8), views=1)
    trained(place, run)
    paths = sorted((pictures / "test").rglob("*.jpg"))
    check_as_evaluated(place, run, paths, batch=4)
    expected = Views(open_images(place, data)[1], data.test()).batch(torch.arange(len(paths)), 0)
    preprocess = load(place, run).preprocess
    assert torch.equal(torch.stack([*map(preprocess, paths)]), expected.pixels)


def test_a_predictor_is_the_network_in_evaluation_mode(place, digits_student, digit_files):
    predictor, made = load(place, digits_student), finished(place, digits_student)
    assert not predictor.training
    assert not any(p.requires_grad for p in predictor.parameters())
    pixels = predictor.preprocess(digit_files[0] / "0003.png")
    assert pixels.shape == (3, 8, 8)
    assert torch.equal(predictor(pixels[None]), made.answer(pixels[None]))
    assert predictor.classes == tuple("0123456789")
    names = {name.partition(".")[0] for name in predictor.state_dict()}
    assert names == {"network", "helpers"}


def test_scores_are_probabilities_in_falling_order(place, digits_student, digit_files):
    predictor = load(place, digits_student)
    (prediction,) = predictor.predict(digit_files[0] / "0000.png", top=20)
    logits = predictor(predictor.preprocess(digit_files[0] / "0000.png")[None])
    assert len(prediction.labels) == len(prediction.scores) == 10
    assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
    assert sum(prediction.scores) == pytest.approx(1)
    assert prediction.scores[0] == pytest.approx(float(logits.softmax(1).max()))
    assert len(predictor.predict([digit_files[0] / "0000.png"], top=2)[0].labels) == 2


def test_images_of_pillow_are_answered_about_like_their_files(place, digits_student, digit_files):
    predictor, path = load(place, digits_student), digit_files[0] / "0004.png"
    with Image.open(path) as image:
        given, of_file = predictor.predict([image, path])
    assert given == of_file
    pixels = Image.fromarray(np.zeros((30, 20), dtype=np.uint8))
    assert predictor.predict(pixels)[0].path == "an image"


def test_a_file_of_another_size_is_scaled_and_its_centre_cut_out(place, digits_student, tmp_path):
    path = put(tmp_path / "large.jpg", encoded(photo(3, 90, 50), "JPEG"))
    pixels = load(place, digits_student).preprocess.pixels(path)
    assert pixels.shape == (8, 8, 3)
    assert decode(path.read_bytes(), "large").shape == (90, 50, 3)


def test_teachers_predict_too(place, digits_student, digit_files):
    check_as_evaluated(place, digits_student.teacher, sorted(digit_files[0].iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["simkd", "crd", "sakd"])
def test_students_of_every_kind_of_method_predict(place, digit_files, method):
    chosen = METHODS[method](base=METHODS["skd"]()) if method == "sakd" else method
    run = student_run(place, chosen)
    prepare(place, run)
    trained(place, run)
    check_as_evaluated(place, run, sorted(digit_files[0].iterdir()))


def test_a_backbone_answers_with_its_embedding(place, digit_files):
    run = student_run(place, FeatureDistillation(), task=Features())
    prepare(place, run)
    trained(place, run)
    predictor = load(place, run)
    assert predictor.classes is None
    path = digit_files[0] / "0001.png"
    (prediction,) = predictor.predict(path)
    assert (prediction.labels, prediction.scores, prediction.label) == ((), (), None)
    expected = predictor(predictor.preprocess(path)[None])[0]
    assert prediction.embedding == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    assert len(prediction.embedding) == 64


def test_nothing_of_the_images_is_needed_but_the_names_of_their_classes(
    place, digits_student, digit_files, monkeypatch
):
    monkeypatch.setattr("raykd.training.load_trained.open_images", None)
    assert load(place, digits_student).predict(digit_files[0] / "0001.png")[0].label is not None


def test_folders_and_patterns_stand_for_the_images_in_them(
    place, digits_student, digit_files, tmp_path
):
    for name in ("b/2.png", "b/c/1.jpg", "a.gif", ".hidden/3.png", "notes.txt"):
        kind = {".png": "PNG", ".jpg": "JPEG", ".gif": "GIF"}.get(name[-4:])
        put(tmp_path / name, encoded(photo(1, 9, 9), kind) if kind else "no image")
    predictor = load(place, digits_student)

    def seen(*paths):
        found = predictor.predict([tmp_path / path for path in paths])
        return [prediction.path.removeprefix(f"{tmp_path}/") for prediction in found]

    assert seen("") == ["a.gif", "b/2.png", "b/c/1.jpg"]
    assert seen("b/*") == ["b/2.png", "b/c/1.jpg"]
    assert seen("*") == ["a.gif", "b/2.png", "b/c/1.jpg"]
    assert seen("**/*.png", "a.gif", "a.gif") == ["b/2.png", "a.gif"]
    (tmp_path / "empty").mkdir()
    for path, why in (
        ("empty", "there is no image; their names end in .jpg"),
        ("*.bmp", "nothing matches this pattern"),
        ("*.txt", "there is no image"),
        ("gone.png", "there is no such path"),
    ):
        with pytest.raises(DataError, match=f"{path}: {why}".replace("*", r"\*")):
            seen(path)
    with pytest.raises(DataError, match="images at a URL are not read here"):
        predictor.predict("s3://bucket/a.png")


def test_an_image_that_cannot_be_decoded_is_named_and_left_out_where_that_is_wanted(
    place, digits_student, digit_files, tmp_path
):
    good = put(tmp_path / "2.png", (digit_files[0] / "0002.png").read_bytes())
    broken, empty = put(tmp_path / "1.png", b"no image"), put(tmp_path / "3.png", b"")
    predictor = load(place, digits_student)
    with pytest.raises(DataError, match=r"1\.png: cannot be decoded as an image"):
        predictor.predict(tmp_path)
    first, second, third = predictor.predict([broken, good, empty], batch=2, skip_bad=True)
    assert "1.png: cannot be decoded" in first.fault
    assert (first.labels, second.fault) == ((), None)
    assert "3.png: the file is empty" in third.fault
    alone = predictor.predict(good)[0]
    assert second.label == alone.label
    for wrong in ({"batch": 0}, {"top": 0}):
        with pytest.raises(ConfigError, match="expected 1 or more, got 0"):
            predictor.predict(good, **wrong)


def test_progress_counts_every_image(place, digits_student, digit_files):
    steps: list[tuple[int, int]] = []
    load(place, digits_student).predict(
        sorted(digit_files[0].iterdir())[:5], batch=2, progress=lambda *step: steps.append(step)
    )
    assert steps == [(number, 5) for number in range(1, 6)]
    assert issubclass(Predictor, torch.nn.Module)
