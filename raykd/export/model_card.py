"""`README.md`: the model card of an exported network, from `model_card.md.j2`."""

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader


def card(config: dict[str, Any], files: Sequence[str], *, code: bool = False) -> str:
    """Text of the README of a folder that has this `config.json` and these files.

    `code`: there is a `model.py`, too.
    """
    environment = Environment(loader=PackageLoader("raykd.export", ""), autoescape=False)
    environment.filters |= {
        "percent": lambda value: "unknown" if value is None else f"{value:.2f} %",
        "thousands": lambda count: f"{count:,}",
    }
    template = environment.get_template("model_card.md.j2")
    return template.render(**config, files=files, code=code).rstrip("\n") + "\n"
