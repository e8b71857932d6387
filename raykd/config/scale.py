"""Scale: the spread of an experiment's work over machines."""

from typing import Annotated, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from raykd.core.record import Limits, Record

Between: TypeAlias = tuple[int, int]  # workers that train together: at least, and at most
Workers: TypeAlias = int | Between  # 0: this process, without Ray


def least(workers: Workers) -> int:
    """Least number of workers."""
    return workers if isinstance(workers, int) else workers[0]


def most(workers: Workers) -> int:
    """Largest number of workers."""
    return workers if isinstance(workers, int) else workers[1]


def _form(value: object) -> str:
    """Tag of the form of a number of workers, so that messages speak of that form."""
    return "between" if isinstance(value, list | tuple) else "number"


_Count: TypeAlias = Annotated[int, Field(ge=0, le=Limits.WORKERS)]
_Between: TypeAlias = Annotated[tuple[_Count, _Count], Tag("between")]
_Some: TypeAlias = Annotated[int, Field(ge=1, le=Limits.WORKERS), Tag("number")]
_Any: TypeAlias = Annotated[int, Field(ge=0, le=Limits.WORKERS), Tag("number")]


class Rule(Record):
    """Students whose recipe has these values (dotted keys of `run`) get that many workers."""

    match: dict[str, str | int | float | bool | None]
    workers: Annotated[_Some | _Between, Discriminator(_form)]


class Scale(Record):
    """Spread of the work over machines; no part of it changes what a run means."""

    # Workers that train one student together. 0: this process, without Ray; [least, most]: as many
    # as there are.
    workers: Annotated[_Any | _Between, Discriminator(_form)] = 0
    # Workers that train a teacher; None: as `workers`.
    teacher_workers: Annotated[_Any | _Between, Discriminator(_form)] | None = None
    rules: tuple[Rule, ...] = ()  # the first that matches a student overrides `workers`
    # One-worker students at a time; None: as many as fit.
    parallel: int | None = Field(default=None, ge=1, le=Limits.WORKERS)
    # CPUs per worker; without Ray, threads of this process.
    cpus: float = Field(default=1.0, gt=0, le=Limits.WORKERS)
    # GPUs per worker; None: 1 where there are GPUs.
    gpus: float | None = Field(default=None, ge=0, le=Limits.WORKERS)
    # Processes of each worker that decode streamed images; None: chosen by its CPUs.
    decoders: int | None = Field(default=None, ge=0, le=1024)
    on_bad_image: Literal["error", "skip"] = "error"  # for streamed images; skip: show the next one
    shard: Literal["ddp", "fsdp"] = "ddp"  # each worker holds all weights, or a part of them
    # Gradient accumulation: parts of a worker's share of a batch, one after the other.
    accumulate: int = Field(default=1, ge=1, le=Limits.ROWS)
    # torch.compile of the student's forward and backward; reduce-overhead: CUDA graphs.
    compile: bool | Literal["reduce-overhead", "max-autotune-no-cudagraphs"] = False
    # Seconds between checkpoints at the ends of epochs, and within an epoch.
    checkpoint_seconds: float = Field(default=30.0, ge=0, le=Limits.SECONDS)
    checkpoint_within_seconds: float = Field(default=300.0, ge=0, le=Limits.SECONDS)
    # Failures of a run's workers before it is given up.
    max_failures: int = Field(default=3, ge=0, le=Limits.WORKERS)
    # Minutes to wait for nodes that an autoscaler adds; 0: work that does not fit is refused.
    wait_minutes: float = Field(default=0.0, ge=0, le=Limits.SECONDS)
    grid_limit: int = Field(default=10_000, ge=1, le=1_000_000)  # students of a grid, or trials
    # Copies of a remote store's shards on a node, in GB; None: no bound.
    local_gb: float | None = Field(default=None, gt=0, le=1e9)
    track: tuple[str, ...] = ()  # loggers of metrics beside metrics.jsonl: tensorboard
    address: str | None = None  # address of a Ray cluster; None: a running one, else a new one

    @property
    def elastic(self) -> bool:
        """True if a training's number of workers may change, with uneven shares."""
        return any(isinstance(workers, tuple) for workers in self._given())

    @model_validator(mode="after")
    def _check(self) -> "Scale":
        for workers in self._given():
            if isinstance(workers, tuple) and not 1 <= workers[0] <= workers[1]:
                raise ValueError(
                    "workers: expected a number, or [least, most] with 1 <= least <= most; "
                    f"got [{workers[0]}, {workers[1]}]"
                )
        # torch 2.15 keeps the first part's gradients in memory that the second part's overwrite.
        if self.accumulate > 1 and self.compile == "reduce-overhead":
            raise ValueError(
                "compile: CUDA graphs lose the gradients of all parts but one; expected true "
                "beside accumulate above 1, got 'reduce-overhead'"
            )
        return self

    def _given(self) -> tuple[Workers | None, ...]:
        """Every number of workers that is said."""
        return (self.workers, self.teacher_workers, *(rule.workers for rule in self.rules))
