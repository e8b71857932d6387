"""The page as a browser shows it."""

import re
import shutil
import subprocess
from html import escape

import numpy as np
import pytest
from PIL import Image

from raykd.config.experiment import parse
from raykd.report import Trial, gather, write_page
from tests.report.stored import ROUTES, routed

NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
SETTINGS = (
    "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync disable-dev-shm-usage "
    "disable-background-networking disable-component-update hide-scrollbars"
)
OPTIONS = [*(f"--{name}" for name in SETTINGS.split()), "--host-resolver-rules=MAP * ~NOTFOUND"]
WIDTH = 360  # of a phone, in pixels

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome is installed")


@pytest.fixture
def written(store, tmp_path):
    """The page of an experiment with routes, searches and trials, and its report."""
    experiment = parse(ROUTES, "a-long-name-of-an-experiment-that-has-no-space-in-it")
    routed(store, experiment)
    config = {"run.optim.lr": 0.1234567, "run.method": "kd", "run.method.temperature": 4.0}
    trial = Trial("0001", config, None, "failed", "the loss is not finite; " * 8, 12.0)
    report = gather(store, experiment, [trial])
    path = tmp_path / "page.html"
    write_page(report, path)
    return path, report


def browse(path, folder, *options):
    """Output of headless Chromium for a file."""
    command = [BROWSER, *OPTIONS, f"--user-data-dir={folder / 'profile'}", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout


@pytest.mark.slow
def test_a_browser_shows_the_numbers_and_asks_nobody(written, tmp_path):
    path, report = written
    picture = tmp_path / "page.png"
    dom = browse(path, tmp_path, "--dump-dom", f"--screenshot={picture}", "--window-size=1000,2000")
    (table,) = re.findall(r"<table>.*?</table>", dom, re.DOTALL)[:1]
    for group in report.students:
        assert f"{group.score.mean:.2f}" in table
    inside = re.sub(r'"data:image/svg[^"]*"', '""', path.read_text())
    assert "default-src 'none'" in inside
    assert not re.search(r"https?:|//|<script|@import", inside)
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.shape == (2000, 1000)
    assert pixels.std(axis=1).astype(bool).mean() > 0.5  # of the rows are not blank


@pytest.mark.slow
def test_a_phone_scrolls_tables_and_not_the_page(written, tmp_path):
    path, _ = written
    frame = tmp_path / "frame.html"
    # The page itself runs no script, so a page around it measures.
    frame.write_text(
        f'<iframe width="{WIDTH}" height="800" srcdoc="{escape(path.read_text())}"></iframe><p></p>'
        "<script>onload = () => { const page = frames[0].document.documentElement;"
        "document.querySelector('p').textContent = `${page.scrollWidth} of ${page.clientWidth}`;"
        "}</script>"
    )
    dom = browse(frame, tmp_path, "--dump-dom")
    (scroll, client) = re.findall(r"<p>(\d+) of (\d+)</p>", dom)[0]
    assert int(scroll) == int(client) <= WIDTH
