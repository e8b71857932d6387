import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markupsafe import escape

from raykd.config.experiment import parse
from raykd.report import gather, write_page
from raykd.report.page import page, publish
from tests.report.stored import TEXT, finished


class Page(HTMLParser):
    """The tags, links and anchors of a page; fails where tags do not close as they open."""

    VOID = ("meta", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.anchors = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append((tag, values))
        self.links += [values[key] for key in ("href",) if key in values]
        self.anchors += [values["id"]] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_report_of_nothing_is_a_page_too(store, experiment):
    text = page(gather(store, experiment))
    assert "No epoch is done yet" in text
    assert "<figure>" not in text


@pytest.mark.slow
def test_a_page_is_drawn_again_where_its_report_has_changed(report, store):
    path = publish(report, store)
    os.utime(path, (0, 0))
    publish(report, store)
    assert path.stat().st_mtime == 0
    publish(replace(report, students=report.students[:1]), store)
    assert path.stat().st_mtime > 0


def test_the_page_stands_alone(report, written, tmp_path):
    path = tmp_path / "reports" / "digits.html"
    write_page(report, path)
    text = path.read_text()
    assert text == written  # the same every time
    parsed = Page(text)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "link", "iframe", "object", "svg"}
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r'base64,[^"]*"', "", text))
    (policy,) = (a["content"] for _, a in parsed.tags if "http-equiv" in a)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def test_every_line_of_the_page_leads_to_its_recipes(report, written):
    parsed = Page(written)
    assert len(set(parsed.anchors)) == len(parsed.anchors)
    assert all(link.startswith("#") and link[1:] in parsed.anchors for link in parsed.links)
    runs = [run for group in (*report.teachers, *report.students) for run in group.runs]
    assert {run.fingerprint for run in runs} <= set(parsed.anchors)


def test_pictures_and_tables_can_be_read_aloud(written):
    tags = Page(written).tags
    pictures = [values for tag, values in tags if tag == "img" and values["alt"]]
    assert len(pictures) == 6
    assert "kd 93.17" in pictures[0]["alt"]
    assert "On the front: kd, teacher." in pictures[3]["alt"]
    assert "teacher 97.00" in pictures[0]["alt"]
    assert all(values.get("scope") in ("row", "col") for tag, values in tags if tag == "th")


@pytest.mark.slow
def test_names_from_files_are_escaped_in_a_page(store):
    evil = "\"><script>alert('&')</script>[bold]"
    text = TEXT.replace("{model: resnet8x4}", "{model: resnet8x4, weights: WEIGHTS}")
    experiment = parse(text.replace("WEIGHTS", json.dumps(evil)), evil)
    finished(store, experiment)
    written = page(gather(store, experiment))
    assert "script" not in {tag for tag, _ in Page(written).tags}
    assert str(escape(evil)) in written
    assert "a &lt;fast&gt; processor" in written
