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
_Whole: TypeAlias = Annotated[int, Field(ge=-Limits.SEED, le=Limits.SEED)]
_Number: TypeAlias = Annotated[float, Field(ge=-Limits.RATE, le=Limits.RATE)]
_Any: TypeAlias = Annotated[int, Field(ge=0, le=Limits.WORKERS), Tag("number")]


Match = dict[str, str | _Whole | _Number | bool | None]  # dotted keys of `run` with their values


class Rule(Record):
    """Students whose recipe has these values (dotted keys of `run`) get that many workers."""

    match: Match
    """Dotted keys of `run`, each with the value that a student must have there."""
    workers: Annotated[_Some | _Between, Discriminator(_form)]
    """Workers that train such a student together: a number, or [least, most]."""


class Scale(Record):
    """Spread of the work over machines; no part of it changes what a run means."""

    workers: Annotated[_Any | _Between, Discriminator(_form)] = 0
    """Workers that train one student together; 0: this process, without Ray; [least, most]: as many
    as there are.
    """
    teacher_workers: Annotated[_Any | _Between, Discriminator(_form)] | None = None
    """Workers that train a teacher together; null: as `workers`."""
    rules: tuple[Rule, ...] = ()
    """Other numbers of workers for some students; the first rule that matches counts."""
    parallel: int | None = Field(default=None, ge=1, le=Limits.WORKERS)
    """Students of one worker that are trained at a time; null: as many as fit."""
    cpus: float = Field(default=1.0, gt=0, le=Limits.WORKERS)
    """CPUs of a worker; without Ray, threads of this process."""
    gpus: float | None = Field(default=None, ge=0, le=Limits.WORKERS)
    """GPUs of a worker; null: 1 where there are GPUs."""
    decoders: int | None = Field(default=None, ge=0, le=1024)
    """Processes of each worker that decode streamed images; null: by its CPUs."""
    on_bad_image: Literal["error", "skip"] = "error"
    """Answer to a streamed image that cannot be decoded: stop, or show the next one."""
    shard: Literal["ddp", "fsdp"] = "ddp"
    """Each worker holds all weights (ddp), or a part of them (fsdp)."""
    accumulate: int = Field(default=1, ge=1, le=Limits.ROWS)
    """Parts into which a worker's share of a batch is cut, one after the other."""
    compile: bool | Literal["reduce-overhead", "max-autotune-no-cudagraphs"] = False
    """Use torch.compile for the student's forward and backward; reduce-overhead: with CUDA graphs.

    """
    teacher_batch: int | None = Field(default=None, ge=1, le=Limits.ROWS)
    """Images that a teacher sees at a time where it fills a cache; null: 256, fewer of large ones.
    """
    checkpoint_seconds: float = Field(default=30.0, ge=0, le=Limits.SECONDS)
    """Seconds between two checkpoints at the ends of epochs."""
    checkpoint_within_seconds: float = Field(default=300.0, ge=0, le=Limits.SECONDS)
    """Seconds between two checkpoints within an epoch."""
    max_failures: int = Field(default=3, ge=0, le=Limits.WORKERS)
    """Failures of a run's workers after which it is given up."""
    wait_minutes: float = Field(default=0.0, ge=0, le=Limits.SECONDS)
    """Minutes to wait for nodes of an autoscaler; 0: work that does not fit is refused."""
    grid_limit: int = Field(default=10_000, ge=1, le=1_000_000)
    """Largest number of students of a grid, or of trials."""
    local_gb: float | None = Field(default=None, gt=0, le=1e9)
    """Size of a node's copies of a remote store's shards, in GB; null: no bound."""
    track: tuple[str, ...] = ()
    """Loggers of metrics beside metrics.jsonl: tensorboard, wandb, mlflow."""
    address: str | None = None
    """Address of a Ray cluster; null: one that runs here, else a new one."""

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
