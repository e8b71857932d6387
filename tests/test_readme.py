"""README's table of methods against the code."""

from pathlib import Path

from raykd.report.catalogue import catalogue, markdown
from raykd.storage.store import Store

README = Path(__file__).parents[1] / "README.md"


def test_the_table_of_methods_is_the_one_that_show_prints(tmp_path):
    table = markdown(catalogue("methods", Store(tmp_path)))
    assert table in README.read_text(), "`raykd show methods --markdown` prints the table"
