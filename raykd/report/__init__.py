"""Results of an experiment so far: read from the store, shown as a table, data or a page."""

from raykd.report.files import to_csv, to_json, to_markdown
from raykd.report.gather import gather, gather_sweep
from raykd.report.page import publish, write_page
from raykd.report.tables import console_table
from raykd.report.types import Report, Trial

__all__ = [
    "Report",
    "Trial",
    "console_table",
    "gather",
    "gather_sweep",
    "publish",
    "to_csv",
    "to_json",
    "to_markdown",
    "write_page",
]
