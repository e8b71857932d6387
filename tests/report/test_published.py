"""Published scores beside ours: shown where the experiment names them, and no part of a name."""

import pytest

from raykd.config.experiment import parse
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.report import gather, to_json, to_markdown
from raykd.report.page import page
from tests.each import each
from tests.report.stored import TEXT, finished
from tests.report.test_tables import shown

PUBLISHED = """
published:
- {match: {run.method.name: kd}, score: 91.25, source: a <paper>}
- {match: {run.model: resnet8}, score: 80, source: another}
"""


def test_a_published_score_stands_beside_ours(store):
    experiment = parse(TEXT + PUBLISHED, "digits")
    plain = parse(TEXT, "digits")
    assert [*map(fingerprint, experiment.runs)] == [*map(fingerprint, plain.runs)]
    finished(store, experiment)
    report = gather(store, experiment)
    value = {line["label"]: line["published"] for line in to_json(report)["students"]}
    assert value["kd"] == {"score": 91.25, "source": "a <paper>"}
    assert value["label_only"] == {"score": 80.0, "source": "another"}
    assert "publ. %" in shown(report)
    assert max(map(len, shown(report).splitlines())) <= 100
    assert "Published %: top-1 of the same pair in " in to_markdown(report)
    assert "91.25" in page(report)
    assert "a &lt;paper&gt;" in page(report)
    without = gather(store, plain)
    assert "publ" not in shown(without)
    assert "published" not in to_markdown(without).lower()


@each(
    ("text", "says"),
    [
        ("published: {score: 3}", "experiment.published: expected a list"),
        ("published: [{match: {run.methd: kd}, score: 3, source: a}]", "run.methd: no student"),
        ("published: [{match: {run.model: resnet8}, score: 300, source: a}]", r"published.0.score"),
        ("published: [{match: {run.model: resnet8}, score: 30}]", r"published.0.source"),
    ],
)
def test_a_published_score_is_checked(text, says):
    with pytest.raises(ConfigError, match=says):
        parse(f"{TEXT}\n{text}\n", "digits")
