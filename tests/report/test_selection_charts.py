import base64
import io
import re
from dataclasses import replace
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest
from markupsafe import escape
from PIL import Image

from raykd.config.experiment import parse
from raykd.report import gather, to_json
from raykd.report.page import page
from raykd.report.selection_charts import selections
from raykd.storage.store import Store
from tests.report.stored import EPOCHS, TEXT, put
from tests.tiers import slow_but

SPOTS = ("stage1", "embedding", "logits")
SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"


def shares(classes=10, spots=SPOTS, seed=0):
    """Metrics of a method that chooses: random shares, other ones in every epoch."""

    def drawn(epoch):
        return np.random.default_rng((seed, epoch)).uniform(0, 100, (len(spots), classes)).round(2)

    more = {
        f"selected_{spot}": lambda epoch, number=number: float(drawn(epoch)[number].mean())
        for number, spot in enumerate(spots)
    }
    by_class = {
        "selected_by_class": lambda epoch: dict(zip(spots, drawn(epoch).tolist(), strict=True))
    }
    return more | by_class


def chosen(store, experiment, **options):
    """The report where the runs of kd have chosen, and the others have not."""
    for run in experiment.runs:
        more = shares(seed=run.seed, **options) if run.method.name == "kd" else {}
        put(store, run, 90.0 + run.seed, epochs=run.optim.epochs, **more)
    return gather(store, experiment)


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """The report where the runs of kd have chosen, with three spots and ten classes."""
    return chosen(Store(tmp_path_factory.mktemp("selected")), parse(TEXT, "digits"))


@pytest.fixture(scope="module")
def chart(selected):
    """The picture of kd in that report."""
    (chart,) = selections(selected)
    return chart


def constant(store, experiment, *runs):
    """The pictures of kd, whose seeds have the given metrics in every epoch."""
    chosen = [run for run in experiment.runs if run.method.name == "kd"]
    for run, more in zip(chosen, runs, strict=False):
        put(store, run, 90.0, **more)
    return [*selections(gather(store, experiment))]


def panels(chart):
    """The text and the images of a picture, the colour bar last; fails where it is no XML."""
    tree = ET.fromstring(chart.picture.svg)
    starts = "data:image/png;base64,"
    links = ["".join(image.get(LINK).split()) for image in tree.iter(f"{SVG}image")]
    assert all(link.startswith(starts) for link in links)
    data = [base64.b64decode(link.removeprefix(starts), validate=True) for link in links]
    images = [np.asarray(Image.open(io.BytesIO(one)).convert("RGBA")) for one in data]
    return [text.text for text in tree.iter(f"{SVG}text")], images


@pytest.mark.slow
def test_groups_that_chose_have_a_picture_on_a_page_that_stands_alone(selected, chart):
    assert chart.title == "Where kd is taught"
    # A name from a file is escaped.
    evil = "\"><script>alert('&')</script>"
    students = tuple(replace(group, label=evil) for group in selected.students)
    text = page(replace(selected, students=students))
    assert text.count("is taught</figcaption>") == 1
    assert text.count('<figure class="wide">') == 1
    assert "<script" not in text
    assert f"Where {escape(evil)} is taught" in text
    inside = re.sub(r'"data:image/svg.xml;base64,[A-Za-z0-9+/=]*"', '""', text)
    assert not re.search(r"https?:|url\((?!#)|@import|//|<script|xlink", inside)


def test_without_the_metrics_there_is_no_picture(report):
    assert not [*selections(report)]


def test_a_picture_says_the_shares_at_the_end(store, experiment):
    ones = {"selected_stage1": 70.0, "selected_logits": 50.0}
    (chart,) = constant(store, experiment, *(ones | {"selected_logits": x} for x in (49, 50, 54)))
    assert "At the end: stage1 70.00, logits 51.00." in chart.picture.alt
    texts, images = panels(chart)
    assert [text for text in texts if text in SPOTS] == ["stage1", "logits"]  # of the legend
    assert not images  # as nothing is known by class
    assert not chart.wide


@pytest.mark.slow
def test_a_map_is_the_mean_of_the_seeds_that_saw_the_class(store, experiment):
    first, second = [10.0, None, None, 0.0], [30.0, 90.0, None, 100.0]
    whole = {"selected_logits": 40.0}
    runs = [whole | {"selected_by_class": {"logits": rows}} for rows in (first, second)]
    (chart,) = constant(store, experiment, *runs)
    _, (image, _bar) = panels(chart)
    assert image.shape == (4, EPOCHS, 4)  # class, epoch, colour
    colours = mpl.colormaps["cividis"](np.array([0.2, 0.9, 0.0, 0.5]), bytes=True)
    for row in (0, 1, 3):
        assert (image[row] == colours[row]).all()
    assert (image[2, :, 3] == 0).all()  # transparent
    assert "By class at the end: logits 20.00 to 90.00." in chart.picture.alt


@pytest.mark.slow
def test_a_map_has_epochs_to_the_right_and_a_panel_per_spot(chart):
    texts, images = panels(chart)
    assert [text for text in texts if text in SPOTS] == [*SPOTS, *SPOTS]  # legend and titles
    assert len(images) == len(SPOTS) + 1
    for number, image in enumerate(images[:-1]):
        tables = [
            [
                shares(seed=seed)["selected_by_class"](epoch)[SPOTS[number]]
                for epoch in range(EPOCHS)
            ]
            for seed in range(3)
        ]
        expected = mpl.colormaps["cividis"](np.mean(tables, 0).T / 100, bytes=True)
        assert (image == expected).all()
    assert chart.picture.svg.count("image-rendering:pixelated") == len(SPOTS)


@pytest.mark.slow
def test_no_sample_of_any_class_is_an_empty_map(store, experiment):
    nobody = {"selected_logits": 0.0, "selected_by_class": {"logits": [None] * 10}}
    (chart,) = constant(store, experiment, nobody, nobody)
    _, (image, _bar) = panels(chart)
    assert not image[..., 3].any()
    assert "By class" not in chart.picture.alt


def test_runs_of_different_spots_have_no_picture(store, experiment):
    runs = [shares(spots=spots) for spots in (SPOTS, SPOTS[1:])]
    assert constant(store, experiment, *runs) == []


@pytest.mark.slow
@pytest.mark.parametrize("by_class", [{"logits": [5.0]}, dict.fromkeys(SPOTS, [5.0] * 9)])
def test_runs_of_different_classes_have_lines_alone(store, experiment, by_class):
    (chart,) = constant(store, experiment, shares(), shares() | {"selected_by_class": by_class})
    _, images = panels(chart)
    assert not images


@pytest.mark.parametrize(
    ("classes", "epochs"), slow_but([(1, 1), (2, 30), (10, 1), (1000, 30)], [(1, 1), (2, 30)])
)
def test_axes_have_few_numbers_and_whole_ones(store, classes, epochs):
    text = TEXT.replace(f"epochs: {EPOCHS}", f"epochs: {epochs}")
    report = chosen(store, parse(text, "axes"), classes=classes, spots=("logits",))
    (chart,) = selections(report)
    texts, _ = panels(chart)
    numbers = [text for text in texts if re.fullmatch(r"\W?[\d.]+", text)]
    assert all(number.isdecimal() for number in numbers)
    # Two axes of the lines, two of the map, and the bar: at most a dozen each.
    assert len(numbers) <= 5 * 12
    assert max(map(int, numbers)) <= max(100, classes - 1)


@pytest.mark.slow
@pytest.mark.parametrize("count", slow_but((1, 2, 4, 8), (4,)))
def test_panels_stand_in_rows_of_three_at_most(store, experiment, count):
    spots = [f"stage{number}" for number in range(count)]
    (chart,) = selections(chosen(store, experiment, spots=spots))
    places = re.findall(r"<image [^>]*matrix\(([^)]*)\)", chart.picture.svg)
    corners = [tuple(map(float, place.split()[-2:])) for place in places]
    assert len(corners) == len(set(corners)) == count
    assert len({x for x, _ in corners}) <= 3


def test_a_picture_follows_light_and_dark_and_is_the_same_for_everyone(selected, chart):
    texts = [*ET.fromstring(chart.picture.svg).iter(f"{SVG}text")]
    assert texts
    assert all("fill: currentColor" in text.get("style") for text in texts)
    assert not re.search("#0{6}|#f{6}", chart.picture.svg)
    with mpl.rc_context({"image.cmap": "jet", "image.origin": "lower", "legend.frameon": True}):
        assert [*selections(selected)] == [chart]


@pytest.mark.slow
def test_a_page_of_many_classes_is_small(store):
    text = TEXT.replace(f"epochs: {EPOCHS}", "epochs: 60")
    spots = ("stage1", "stage2", "stage3", "embedding", "logits")
    written = page(chosen(store, parse(text, "large"), classes=100, spots=spots))
    assert len(written) < 1_000_000


@pytest.mark.slow
def test_a_run_in_progress_is_shown_until_one_is_finished(store, experiment):
    runs = [run for run in experiment.runs if run.method.name == "kd"]
    put(store, runs[0], 90.0, epochs=3, finish=False, **shares())
    (chart,) = selections(gather(store, experiment))
    assert panels(chart)[1][0].shape[:2] == (10, 3)
    put(store, runs[1], 90.0, **shares())
    (chart,) = selections(gather(store, experiment))
    assert panels(chart)[1][0].shape[:2] == (10, EPOCHS)


def test_shares_by_class_are_part_of_the_data(store, experiment):
    nested = {"logits": [1.0, None]}
    put(store, experiment.runs[0], 90.0, selected_by_class=nested)
    value = to_json(gather(store, experiment))
    lines = value["students"][0]["runs"][0]["metrics"]
    assert [line["selected_by_class"] for line in lines] == [nested] * EPOCHS
