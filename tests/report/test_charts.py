import re
from xml.etree import ElementTree as ET

import matplotlib as mpl
import pytest

from raykd.config.experiment import parse
from raykd.report import gather
from raykd.report.charts import charts
from raykd.report.svg import INK, look
from tests.report.stored import EPOCHS, TEXT, put
from tests.tiers import slow_but


def pictures(report):
    """The pictures there are; fails where one is no XML, as it must be in XHTML."""
    svgs = [chart.picture.svg for chart in charts(report) if chart.picture]
    for svg in svgs:
        ET.fromstring(svg)
    return svgs


@pytest.mark.slow
def test_a_picture_follows_light_and_dark_and_is_the_same_for_everyone(report):
    svgs = pictures(report)
    for svg in svgs:
        assert INK not in svg
        texts = [*ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        assert texts
        assert all("fill: currentColor" in text.get("style") for text in texts)
        assert "#ffffff" not in svg
    with mpl.rc_context({"lines.linewidth": 9.0, "axes.facecolor": "red", "text.usetex": True}):
        assert pictures(report) == svgs
        assert mpl.rcParams["lines.linewidth"] == 9.0


def test_no_two_groups_look_alike():
    assert len({tuple(look(number).values()) for number in range(120)}) == 120
    # In grey too, where only dash and marker are left.
    assert len({(look(number)["ls"], look(number)["marker"]) for number in range(30)}) == 30


@pytest.mark.parametrize(
    "loss", slow_but((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")), (-1.0, float("inf")))
)
def test_any_loss_can_be_drawn(store, experiment, loss):
    for number, run in enumerate(experiment.runs[:4]):
        put(store, run, 100.0, **({"loss": loss} if number != 1 else {}))
    for svg in pictures(gather(store, experiment)):
        assert not re.search(r'(d|x|y|transform)="[^"]*(nan|inf)', svg)


@pytest.mark.parametrize("epochs", slow_but((1, 2, 500), (1,)))
def test_any_number_of_epochs_can_be_drawn(store, epochs):
    text = TEXT.replace(f"epochs: {EPOCHS}", f"epochs: {epochs}")
    experiment = parse(text, "short or long")
    put(store, experiment.runs[0], 90.0, epochs=epochs)
    put(store, experiment.runs[3], 90.0, epochs=1, finish=False)
    assert len(pictures(gather(store, experiment))) == 5
