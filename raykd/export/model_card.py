"""`README.md`: the model card of an exported network, from `model_card.md.j2`."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader

from raykd.data.sources import SOURCES


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
    body = template.render(**config, files=files, code=code).strip("\n") + "\n"
    header = yaml.safe_dump(metadata(config), sort_keys=False)
    text = f"---\n{header}---\n\n{body}"
    if find_spec("huggingface_hub") is None:
        return text
    from huggingface_hub import ModelCard

    return str(ModelCard(text)).rstrip("\n") + "\n"


def metadata(config: dict[str, Any]) -> dict[str, Any]:
    """The Hub's facts about a network, without a license, which is its owner's to choose.

    Data sets are those that are known by their name; base models those that lie on the Hub.
    """
    facts = config["raykd"]
    kind = "image-classification" if config["num_classes"] else "image-feature-extraction"
    tags = [kind, "knowledge-distillation", "raykd"]
    if any(name.endswith(".onnx") for name in facts["files"]):
        tags.append("onnx")
    value = {"library_name": config["library"], "pipeline_tag": kind, "tags": tags}
    name = facts["dataset"]
    if name in SOURCES and not SOURCES[name].in_files:
        value["datasets"] = [name]
    if facts["base_models"]:
        value["base_model"] = facts["base_models"]
    return value
