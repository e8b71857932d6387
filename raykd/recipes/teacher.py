"""TeacherRun: the recipe of a teacher."""

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from raykd import models
from raykd.core.record import Limits, Recipe
from raykd.data.recipe import AnyData
from raykd.recipes.optim import Optim, Precision

Network = Annotated[str, AfterValidator(models.check_name)]  # an alias is read as the name


class TeacherRun(Recipe):
    """A teacher: trained here with the labels, or read from published or given weights."""

    kind: ClassVar[str] = "teachers"
    model: Network
    data: AnyData  # training images; a pretrained teacher takes the normalisation alone
    optim: Optim = Optim()
    label_smoothing: float = Field(default=0.0, ge=0, le=1)  # as in torch.nn.CrossEntropyLoss
    precision: Precision = "float32"
    seed: int = Field(default=0, ge=0, le=Limits.SEED)
    save_every: int = Field(default=10, ge=1, le=Limits.EPOCHS)  # epochs; the last is always saved
    refresh_statistics: bool = False  # batch norm's, by a pass over the images before each save
    weights: str | None = None  # a published name, or "sha256:..." of a file in the store

    @property
    def answers_classes(self) -> bool:
        """True where its logits are those of its data's classes."""
        return True

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved, in order; 0 alone for a pretrained one."""
        if self.weights is not None:
            return (0,)
        last = self.optim.epochs
        return (*range(self.save_every, last, self.save_every), last)
