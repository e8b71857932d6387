"""What an experiment has found so far: read from the store, shown as a table, data or a page."""

from raykd.report.page import write_page
from raykd.report.summary import gather
from raykd.report.tables import console_table, to_json, to_markdown
from raykd.report.types import Report

__all__ = ["Report", "console_table", "gather", "to_json", "to_markdown", "write_page"]
