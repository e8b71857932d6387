"""Optim: the optimiser and the schedule of a training."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)

from raykd.core.record import Limits, Record

Epoch = Annotated[int, Field(ge=0, le=Limits.EPOCHS)]
Precision = Literal["float32", "bfloat16"]
_PARTS = ("stages", "pool", "classifier", "helpers")
_STAGE = re.compile(r"stem|stage[0-9]{1,3}")


def _check_part(name: Any) -> str:
    """The name of a part; raises `ValueError` where no network has a part of that name."""
    if isinstance(name, str) and (name in _PARTS or _STAGE.fullmatch(name)):
        return name
    raise ValueError(
        f"no part of a network is called {name!r}; there are: {', '.join(_PARTS)}, and single "
        "stages such as stem and stage1"
    )


def _pairs(value: Any) -> Any:
    """The sorted pairs of a mapping from parts to factors, which a record can hold."""
    pairs = dict(value) if isinstance(value, tuple) else value
    if not isinstance(pairs, Mapping):
        raise ValueError(f"expected parts and their factors ({{classifier: 10.0}}), got {value!r}")
    for name, factor in pairs.items():
        _check_part(name)
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not (is_number and 0 < factor <= Limits.RATE):
            raise ValueError(
                f"{name}: expected a factor from above 0 to {Limits.RATE:g}, got {factor!r}; "
                "freeze names what is not to be trained"
            )
    return tuple(sorted((name, float(factor)) for name, factor in pairs.items()))


def _sorted(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names once each, in one order, so that equal recipes are equal."""
    return tuple(sorted(set(names)))


_FACTOR = {"type": "number", "exclusiveMinimum": 0, "maximum": Limits.RATE}
Factors = Annotated[
    tuple[tuple[str, float], ...],
    BeforeValidator(_pairs),
    PlainSerializer(dict),
    WithJsonSchema({"type": "object", "additionalProperties": _FACTOR}),
]
Frozen = Annotated[tuple[Annotated[str, AfterValidator(_check_part)], ...], AfterValidator(_sorted)]


class Optim(Record):
    """The optimiser and its schedule. The defaults are the CRD benchmark's for CIFAR.

    Epochs are counted from 0: a milestone of 150 is the first epoch with the lower rate. The last,
    partial batch of an epoch is dropped (the benchmark keeps it); other samples in every epoch.

    `parts` and `freeze` name parts of the network that is trained: `classifier`; a stage, such as
    `stem` or `stage1`, or all `stages`; `pool`, which is everything else; and `helpers`, the
    method's own modules. In a network of a library whose stages share their parameters (a
    transformer's), `stages` is everything but the classifier. A single stage's factor stands in
    place of that of `stages`. What is frozen has no gradients and no weight decay, and its batch
    norms stay in evaluation mode.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    """Optimiser."""
    epochs: int = Field(default=240, ge=1, le=Limits.EPOCHS)
    """Epochs of training."""
    batch: int = Field(default=64, ge=1, le=Limits.ROWS)
    """Samples of a step, over all workers together."""
    per_class: int = Field(default=1, ge=1, le=Limits.WIDTH)
    """Samples of one class that follow each other in an epoch, for losses of their pairs; 1: any.
    """
    lr: float = Field(default=0.05, gt=0, le=Limits.RATE)
    """Learning rate at the beginning, or after the warm-up."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum, for sgd."""
    nesterov: bool = False
    """Nesterov's form of the momentum, for sgd."""
    weight_decay: float = Field(default=5e-4, ge=0, le=1000)
    """Weight decay of every parameter."""
    schedule: Literal["multistep", "cosine", "constant"] = "multistep"
    """Course of the learning rate: steps at milestones, half a cosine to 0, or none."""
    milestones: tuple[Epoch, ...] | None = None
    """Epochs (from 0) at which the rate is multiplied by gamma; null: 5/8, 3/4 and 7/8 of all."""
    gamma: float = Field(default=0.1, gt=0, le=1000)
    """Factor of the learning rate at each milestone."""
    warmup_epochs: int = Field(default=0, ge=0, le=Limits.EPOCHS)
    """Epochs in which the rate grows linearly from 0, step by step; 0: none."""
    clip: float | None = Field(default=None, gt=0, le=Limits.RATE)
    """Largest L2 norm of all gradients together (a policy's apart); null: no limit."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of averaged weights, which are evaluated and kept; null: no average."""
    parts: Factors = Field(default=(), json_schema_extra={"default": {}})
    """Parts of the network, each with the multiple of `lr` that it is trained with."""
    freeze: Frozen = ()
    """Parts of the network that are not trained."""
    evaluate_every: int = Field(default=1, ge=1, le=Limits.EPOCHS)
    """Epochs between two evaluations on test and validation images; the last epoch always is."""

    @model_validator(mode="after")
    def _check(self) -> "Optim":
        late = [epoch for epoch in self.milestones or () if epoch >= self.epochs]
        if late:
            raise ValueError(
                f"milestone {late[0]} lies beyond the {self.epochs} epochs; "
                "leave milestones out to scale them with the epochs"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"{self.warmup_epochs} epochs of warm-up leave none of the {self.epochs} epochs"
            )
        if self.per_class > self.batch:
            raise ValueError(
                f"per_class: expected at most the batch of {self.batch}, got {self.per_class}"
            )
        _check_parts(dict(self.parts), self.freeze)
        return self

    def evaluates(self, epoch: int) -> bool:
        """True for an epoch (from 0) after which the network is evaluated."""
        return (epoch + 1) % self.evaluate_every == 0 or epoch + 1 == self.epochs


def _check_parts(factors: Mapping[str, float], frozen: Iterable[str]) -> None:
    """Raise `ValueError` where a part is frozen and rated, or no part of a network is trained."""
    frozen = set(frozen)
    for name in factors:
        whole = "stages" if _STAGE.fullmatch(name) else name
        if name in frozen or whole in frozen:
            raise ValueError(
                f"{name} is frozen and has a factor for its rate; leave one of freeze and parts out"
            )
    if frozen.issuperset(("stages", "pool", "classifier")):
        raise ValueError("freeze names all of the network; leave out what is to be trained")
