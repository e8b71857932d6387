"""Plugins, those of docs/plugins.md among them, and a region after which no plugin is left."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from raykd.core import plugins

METHOD = '''
from torch import Tensor

import raykd
from raykd.core.types import Batch
from raykd.methods.base import LogitMethod, Schedule


@raykd.register.method("mine", aliases=["my_own"])
class Mine(LogitMethod):
    """Distance of logits."""

    weight: Schedule = 1.0
    power: int = 2

    def logit_loss(self, student: Tensor, teacher: Tensor, batch: Batch) -> Tensor:
        """Their mean distance."""
        return (student - teacher).abs().pow(self.power).mean()
'''
MODEL = """
import torch.nn.functional as F
from torch import Tensor, nn

import raykd


@raykd.register.model("small")
class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3, padding=1)
        self.fc = nn.Linear(16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.first(x))), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.second(x)), 1).flatten(1)
        return self.fc(F.dropout(x, 0.1, training=self.training))
"""


PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"


def written_from_the_page(folder: Path) -> Path:
    """A folder with the files that docs/plugins.md shows; each begins with a comment, its name."""
    text = PAGE.read_text()
    for language in ("python", "yaml"):
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
            written(folder, block, block.split()[1])
    return folder


@contextlib.contextmanager
def withdrawing() -> Iterator[None]:
    """A region after which the plugins that it loaded are gone."""
    before = plugins.loaded()
    try:
        yield
    finally:
        for plugin in reversed(plugins.loaded()):
            if plugin not in before:
                plugins.withdraw(plugin)


def written(folder: Path, text: str, name: str = "mine.py") -> Path:
    """A plugin's file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text)
    return path
