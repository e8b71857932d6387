"""Training inside the workers of another program's `ray.train.torch.TorchTrainer`."""

from raykd.api.experiment import Keys, experiment_of, plain
from raykd.api.work import ExperimentLike, StoreLike, prepared, store_of
from raykd.config.scale import Scale
from raykd.config.shorthand import record
from raykd.core.errors import ConfigError
from raykd.data.recipe import ResolvedData
from raykd.planning.plan import plan
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tracking.logger import Labels


def train_here(
    student: ExperimentLike, store: StoreLike = None, *, scale: Scale | Keys | None = None
) -> None:
    """Train one student together with the other workers of the group; every worker calls it.

        def train_func(config):
            raykd.train_here(config["student"], "/shared/raykd")

        raykd.cache(student, "/shared/raykd")  # its teacher and caches
        TorchTrainer(
            train_func,
            train_loop_config={"student": student},
            scaling_config=ScalingConfig(num_workers=4, use_gpu=True),
        ).fit()
        raykd.results(student, "/shared/raykd")

    student: a `Student`, an `Experiment` of one, a recipe, or a file. store: as in `run`; all
    workers must reach it. scale: what a worker reads of it, as {"accumulate": 2}; default: that of
    the experiment. Metrics of epochs are reported to Ray Train, whose callbacks get them; its
    `Result.metrics` is None, since checkpoints lie in the store (Ray 2.60). A student that the
    store has is not trained again, and one that was begun goes on from its checkpoint, as after
    `raykd.run`.

    Raises `ConfigError` where it is not one student, or something that it needs is not there.
    """
    from raykd.launch.train import on_first_worker, train_in_group

    run, artefacts, settings = on_first_worker(lambda: _prepared(student, store, scale))
    if not on_first_worker(lambda: artefacts.has(run)):
        train_in_group(artefacts, run, settings, Labels("train_here"))


def _prepared(
    student: ExperimentLike, store: StoreLike, scale: Scale | Keys | None
) -> tuple[StudentRun, Store, Scale]:
    """The one student, with its images read, its store, and what a worker reads of a scale."""
    experiment = experiment_of(student)
    settings = experiment.parsed.scale
    if scale is not None:
        settings = record(Scale, plain(scale), "experiment.scale")
    runs = experiment.students()
    if len(runs) != 1 or len(experiment) != 1:
        raise ConfigError(
            f"train_here: {experiment.name} has {len(experiment)} students, or one whose route is "
            "to be searched, and a group of workers trains one; give that one"
        )
    (run,) = runs
    if isinstance(run.data, ResolvedData):
        artefacts = store_of(store, settings.local_gb)
    else:
        resolved, artefacts, _ = prepared(experiment, store, quiet=True)
        (run,) = resolved.students()
    artefacts.ensure_root()
    _check_needs(artefacts, run)
    return run, artefacts, settings


def _check_needs(store: Store, run: StudentRun) -> None:
    """Raise `ConfigError` where a training that comes before this one's is not in the store."""
    if store.has(run):
        return
    work = plan([run])
    before = (*work.teachers, *work.preludes, *work.students)
    missing = [one for one in before if one != run and not store.has(one)]
    if missing:
        names = ", ".join(f"{one.kind} {store.path(one).name[:8]}" for one in missing)
        raise ConfigError(
            f"train_here: {store.shown} lacks what the student learns from ({names}); make it "
            "first: raykd.cache makes teachers and caches, raykd.run students and preludes"
        )
