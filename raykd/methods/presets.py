"""Presets: methods as other programs set them, each by one name in an experiment file.

A recipe and its fingerprint have the method that a preset stands for, so both ways of writing it
are one run.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml


class Preset(NamedTuple):
    """A method by its fields, and where they are from."""

    method: Mapping[str, Any]
    source: str

    def written(self) -> str:
        """The method as a file has it, on one line."""
        line = yaml.safe_dump(self.method, default_flow_style=True, sort_keys=False, width=1000)
        return line.strip()


_QUEUE = {"name": "feature_distillation", "distance": "queue"}
_GRAM = {"name": "dense_distillation", "distance": "gram_kl"}
_COSINE = {"name": "panel_distillation", "embedding_distance": "cosine", "drop": 0.0}
_BALANCED = {"map_share": 0.9, "beta": 2.0, "standardise": "none"}
_PHI_S = {"map_distance": "mse", "standardise": "phi_s"}

PRESETS: Mapping[str, Preset] = {
    "lightly_v1": Preset(_QUEUE, "LightlyTrain's distillation v1"),
    "lightly_v2": Preset(
        {"name": "dense_distillation", "distance": "mse", "blocks": 2},
        "LightlyTrain's distillation v2",
    ),
    "lightly_v3": Preset({"combine": [_QUEUE, _GRAM]}, "LightlyTrain's distillation v3"),
    "am_radio": Preset(_COSINE | _BALANCED, "AM-RADIO, arXiv 2312.06709"),
    "radio": Preset(_COSINE | _PHI_S, "RADIOv2.5, with PHI-S, arXiv 2410.01680"),
    "c_radio": Preset(
        _COSINE | _PHI_S | {"embedding_distance": "angle"}, "C-RADIOv4, arXiv 2601.17237"
    ),
    "theia": Preset(
        {"name": "dense_distillation", "distance": "theia", "standardise": "channel"},
        "Theia, arXiv 2407.20179",
    ),
    "unic": Preset({"name": "panel_distillation", "projector": "ladder"}, "UNIC, arXiv 2408.05088"),
}
