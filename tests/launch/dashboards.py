"""The dashboards that are shipped, and what they ask for."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raykd.launch.metric_names import COUNTERS, GAUGES

FOLDER = Path(__file__).parents[2] / "cluster" / "grafana"
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
# The metrics by the names that Ray gives them, and their tags.
EXPORTED = {f"ray_{name}": tags for name, (_, tags) in GAUGES.items()}
EXPORTED |= {f"ray_{name}_total": tags for name, (_, tags) in COUNTERS.items()}
# What Grafana puts in for variables where everything is selected.
_VARIABLES = {"$experiment": ".*", "$trial": ".*", "$__rate_interval": "20s"}


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The panels that draw something."""
    return (panel for panel in dashboard["panels"] if panel["type"] != "row")


def queries() -> dict[str, str]:
    """Every query of every panel, by the panel's title and the query's letter."""
    return {
        f"{name}: {panel['title']} {target['refId']}": target["expr"]
        for name, dashboard in DASHBOARDS.items()
        for panel in panels(dashboard)
        for target in panel["targets"]
    }


def filled(query: str) -> str:
    """A query as Grafana sends it."""
    return functools.reduce(lambda text, pair: text.replace(*pair), _VARIABLES.items(), query)
