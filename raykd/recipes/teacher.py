"""TeacherRun: the recipe of a teacher."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, Field, PlainSerializer, PlainValidator, model_validator

from raykd import models
from raykd.core.errors import ConfigError
from raykd.core.record import Limits, Recipe
from raykd.data.recipe import AnyData
from raykd.recipes.optim import Optim, Precision
from raykd.tasks import AnyTask, Classification

Network = Annotated[str, AfterValidator(models.check_name)]  # an alias is read as the name
Weights = Annotated[str, Field(min_length=1)]
_Index = Annotated[int, Field(ge=0, le=Limits.WIDTH)]
_One = _Index | str  # a class of the teacher's: its index, or its name
_Written = str | list[_Index | list[_Index]] | dict[str, _One | list[_One]]
# As `read_classes` has it: a word or a path, or a tuple for each class of the data.
Classes = str | tuple[tuple[int | str, ...], ...]


def read_classes(value: Any) -> Classes | None:
    """A map of classes as a file has it, in a form that can be hashed.

    A list becomes a tuple of the teacher's indices for each class of the data, a mapping a tuple
    of the data's class and the teacher's. Raises `ValueError` for another value.
    """
    if value is None or (isinstance(value, str) and value):
        return value
    rows: list[tuple[Any, ...]] = []
    if isinstance(value, dict):
        rows = [(name, *_several(item)) for name, item in value.items()]
    elif isinstance(value, list | tuple):
        rows = [_several(item) for item in value]
    numbers = all(_is_index(item) for row in rows for item in row)
    named = all(
        isinstance(row[0], str) and all(isinstance(item, str) or _is_index(item) for item in row)
        for row in rows
        if row
    )
    if not rows or not all(rows) or not (numbers or named):
        raise ValueError(
            "expected names, wordnet, the path of a CSV file, a list with the teacher's index (or "
            "a list of indices) for each class of the data, or {class: the teacher's class}; got "
            f"{str(value)[:100]}"
        )
    return tuple(rows)


def _is_index(item: Any) -> bool:
    return type(item) is int and 0 <= item <= Limits.WIDTH


def _several(item: Any) -> tuple[Any, ...]:
    """The members of a list, or the item alone."""
    return tuple(item) if isinstance(item, list | tuple) else (item,)


class TeacherRun(Recipe):
    """A teacher: trained here with the labels, or read from published or given weights.

    Its network may have other outputs than the data have classes. `classes` then says which of
    them each class of the student's data is: resolved, a tuple of indices for each class, whose
    probabilities add (`models.class_map`). Without it, a method may read anything but logits.

    `size` is the side of the square that it sees. Streamed images are decoded at that size; views
    of images in memory are brought to it on the device, bicubic with antialiasing. By default a
    given teacher sees streamed images as its weights say (size, part of the picture, bilinear or
    bicubic), and images in memory as they are.

    With `fine_tune` it is trained here from its weights. A classifier of another number of classes
    is replaced by a new one. A file of an experiment says so by giving `optim` beside `weights`.
    """

    kind: ClassVar[str] = "teachers"
    model: Network
    """Network, by a name of `raykd show models`, such as resnet56, torchvision/... or timm/...."""
    data: AnyData
    """Training images; a given teacher takes their normalisation alone. Left out: the student's."""
    optim: Optim = Optim()
    """Optimiser and schedule of its training."""
    task: AnyTask = Classification()  # pyright: ignore[reportInvalidTypeForm]
    """Purpose of a teacher that is trained here: its label loss, and what judges it."""
    label_smoothing: float = Field(default=0.0, ge=0, le=1)
    """Label smoothing e, as in torch.nn.CrossEntropyLoss: targets (1 - e) * target + e / C."""
    precision: Precision = "float32"
    """Number format of forward and backward in its training."""
    seed: int = Field(default=0, ge=0, le=Limits.SEED)
    """Seed of the initial weights and of the order of samples."""
    save_every: int = Field(default=10, ge=1, le=Limits.EPOCHS)
    """Epochs between two saved checkpoints; the last epoch is always saved."""
    refresh_statistics: bool = False
    """Measure the batch norms' statistics by a pass over the images before each save."""
    weights: Weights | None = None
    """Given weights: a published name, hub:owner/name or a file; null: it is trained here."""
    outputs: int | None = Field(default=None, ge=0, le=Limits.WIDTH)
    """Outputs of its own head; 0: an encoder without a classifier; null: its data's classes."""
    classes: Annotated[
        Classes | None,
        PlainValidator(read_classes, json_schema_input_type=_Written | None),
        PlainSerializer(lambda value: value),  # pydantic's own warns of tuples in a union (2.14)
    ] = None
    """Its outputs for each class of the student's data: names, wordnet, a CSV file, a list or a
    mapping; null: they are the same.
    """
    size: int | None = Field(default=None, ge=1, le=Limits.PIXELS)
    """Side in pixels of the square that it sees; null: as its weights say, or as the images are."""
    fine_tune: bool = False
    """Train it from its weights; false: the weights are the teacher."""

    @model_validator(mode="after")
    def _check(self) -> "TeacherRun":
        if self.fine_tune and self.weights is None:
            raise ValueError("fine_tune: there are no weights to start from; add weights")
        if self.refresh_statistics and self.optim.freeze:
            raise ValueError(
                "refresh_statistics would replace the statistics of frozen batch norms; leave it "
                "or optim.freeze out"
            )
        return self

    @property
    def is_given(self) -> bool:
        """True for a teacher that is not trained here: its weights are the teacher's."""
        return self.weights is not None and not self.fine_tune

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if self.task != Classification() and (self.is_given or not self.task.labelled):
            raise ValueError(
                f"task {self.task.name!r} is no training with labels of a teacher; leave it out"
                if not self.task.labelled
                else f"task {self.task.name!r} is of a training, and the weights are given; leave "
                "it out, or give the teacher an optim of its own"
            )
        if not self.is_given and self.data.labels == "none":
            leave = "leave its optim out" if self.fine_tune else "give it weights"
            raise ValueError(
                "a teacher that is trained here learns from labels, and data.labels is none; "
                f"{leave}, or give it data of its own with labels"
            )
        return self

    def origins(self) -> Iterator[str]:
        """The digest of the plugin of its network."""
        yield models.origin(self.model)

    def anchors(self) -> tuple[int, ...]:
        """The epochs at which its weights are saved, in order; 0 alone for a given one."""
        if self.is_given:
            return (0,)
        last = self.optim.epochs
        return (*range(self.save_every, last, self.save_every), last)

    @property
    def answers_classes(self) -> bool:
        """True if its logits are those of the classes of the student's data."""
        return self.outputs is None or self.classes is not None

    def own_classes(self) -> int:
        """Number of classes of its own head; 0 for an encoder."""
        return self.data.resolved().classes if self.outputs is None else self.outputs

    def logit_count(self) -> int:
        """Number of its logits: those of the map, or of its own head."""
        groups = self.groups()
        return self.own_classes() if groups is None else len(groups)

    def is_tested(self) -> bool:
        """True if its logits can be held against the labels of its own data."""
        return 0 < self.logit_count() == self.data.resolved().classes

    def groups(self) -> tuple[tuple[int, ...], ...] | None:
        """Its outputs for each class of the student's data; None: its logits as they are.

        Raises `ConfigError` where the map was not resolved yet.
        """
        if self.classes is None:
            return None
        groups = [] if isinstance(self.classes, str) else self.classes
        numbers = [tuple(item for item in row if isinstance(item, int)) for row in groups]
        if not numbers or [*map(len, numbers)] != [*map(len, groups)]:
            raise ConfigError("run.teacher.classes: the names of the classes were not read yet")
        return tuple(numbers)
