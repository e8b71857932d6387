"""Students below a teacher whose epochs are saved, and the stores that they are trained in."""

import safetensors.torch

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.launch.executor import Outcome, execute
from raykd.methods.kd import KD
from raykd.recipes import AnyStudent, Optim, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.training import weights
from raykd.training.runs import local_host, train
from tests.small import digits

QUIET = Terminal(quiet=True)
EPOCHS = Optim(epochs=2, batch=32)


def student_below(store: Store, epochs: int, **changes) -> StudentRun:
    """A student below a wider teacher of some epochs, all of which are saved."""
    data = digits(store, limit=96, holdout=0.03, validation=0.03)
    optim = Optim(epochs=epochs, batch=32)
    values = {
        "model": "resnet8",
        "data": data,
        "teacher": TeacherRun(model="resnet8x4", data=data, optim=optim, save_every=1),
        "method": KD(),
        "optim": EPOCHS,
    }
    return StudentRun(**(values | changes))


def store_with_teacher(path, epochs: int) -> Store:
    """A new store with that teacher."""
    store = Store(path)
    teacher = student_below(store, epochs).teacher
    assert isinstance(teacher, TeacherRun)
    train(store, teacher, local_host(store, teacher))
    (store.root / "caches").mkdir()
    return store


def twin(store: Store, path, *kinds: str) -> Store:
    """Another store with the same images, teachers and, unless said otherwise, caches."""
    path.mkdir()
    for kind in kinds or ("images", "teachers", "caches"):
        (path / kind).symlink_to(store.root / kind)
    return Store(path)


def carried(store: Store, *runs: AnyStudent) -> Outcome:
    """Carry runs out in this process, with a checkpoint after every epoch."""
    return execute(Experiment("small", runs, Scale(checkpoint_seconds=0)), store, QUIET)


def state(store: Store, run: StudentRun, name: str = weights.STUDENT):
    """The tensors of one of a finished student's files; none where it has no such file."""
    path = store.path(run) / name
    return safetensors.torch.load_file(path) if path.is_file() else {}


def released(store: Store, run: StudentRun) -> bytes:
    return (store.path(run) / weights.STUDENT).read_bytes()
