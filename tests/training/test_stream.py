"""Whole runs over images that are decoded while they go on."""

import gc
import os
from pathlib import Path

import pytest
import torch

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.data.dataset import open_images
from raykd.data.recipe import Data, Stream
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.crop import Crop
from raykd.launch.executor import execute
from raykd.methods.at import AT
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.recipes import Optim, StudentRun, TeacherRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.tracking.jsonl import read_metrics
from raykd.training import inputs
from raykd.training.runs import local_host, train
from tests.data.photos import photos, streamed
from tests.small import CPU

QUIET = Terminal(quiet=True)


def recipes(store: Store, root: Path, **changes) -> StudentRun:
    """A student at 24 pixels of a teacher at 32."""
    data = streamed(store, root, 24)
    assert data.stream is not None
    own = data.model_copy(update={"stream": Stream(size=32, resize=36), "size": (32, 32)})
    teacher = TeacherRun(model="resnet8", data=own, optim=Optim(epochs=2, batch=8), save_every=2)
    values = {"model": "resnet8", "data": data, "teacher": teacher, "method": KD()}
    values |= {"optim": Optim(epochs=2, batch=8), "views": 2}
    return StudentRun(**(values | changes))


@pytest.fixture
def root(tmp_path):
    return photos(tmp_path / "photos")


def carried(store: Store, *runs: StudentRun, **scale) -> None:
    execute(Experiment("stream", runs, Scale(checkpoint_seconds=0, **scale)), store, QUIET)


@pytest.mark.slow
def test_a_student_from_the_cache_of_a_teacher_at_another_resolution_is_that_of_the_live_one(
    store, root
):
    cached = recipes(store, root)
    live = cached.model_copy(update={"source": "live"})
    assert list(live.looks()) == ["teacher"] and not cached.looks()
    carried(store, cached, live, decoders=0)
    device = torch.device("cpu")
    answers = [inputs.teachers(store, run, device)(0) for run in (cached, live)]
    host = local_host(store, live)
    views, _ = inputs.views(store, live, host)
    batch = views.batch(torch.arange(24), 1)
    stored, asked = (source(batch).logits for source in answers if source is not None)
    assert (stored - asked).abs().max() < 4e-3
    losses = [read_metrics(store.path(run))[-1]["loss"] for run in (cached, live)]
    assert abs(losses[0] - losses[1]) < 5e-3
    before = live.outputs_at(0).data.size
    assert before == (32, 32)


@pytest.mark.slow
def test_a_run_is_the_same_with_and_without_other_processes(tmp_path, root):
    weights = []
    for decoders in (0, 1):
        store = Store(tmp_path / f"store{decoders}")
        run = recipes(store, root)
        carried(store, run, decoders=decoders)
        weights.append((store.path(run) / "weights.safetensors").read_bytes())
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_other_processes_draw_nothing_from_the_generator_of_dropout(store, root):
    data = streamed(store, root)
    views = inputs.views_of(open_images(store, data)[0], data, CPU, Scale(decoders=1))
    before = torch.get_rng_state()
    for epoch in range(2):
        assert len([*views.runs(torch.arange(24), 8, epoch)]) == 3
        assert torch.equal(torch.get_rng_state(), before)


def test_bad_images_are_counted_in_the_metrics(store, root):
    path = root / "train/class1/003.jpg"
    path.write_bytes(path.read_bytes()[:-60])
    data = streamed(store, root, augment=Augment(crop=Crop()))
    run = StudentRun(model="resnet8", data=data, optim=Optim(epochs=1, batch=24))
    train(store, run, local_host(store, run, Scale(on_bad_image="skip")))
    assert read_metrics(store.path(run))[-1]["bad_images"] == 1


def test_a_live_teacher_is_asked_in_one_way_at_another_resolution(store, root):
    with pytest.raises(ValueError, match="asks its teacher in person at the student's resolution"):
        recipes(store, root, method=SAKD(base=AT()))


def resident(process: int) -> int:
    """Megabytes of a process and of those that it started; 0 of one that has just ended."""
    page = os.sysconf("SC_PAGE_SIZE")
    try:
        own = int(Path(f"/proc/{process}/statm").read_text().split()[1]) * page // 2**20
        started = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return 0
    return own + sum(resident(int(child)) for child in started)


@pytest.mark.slow
def test_memory_does_not_grow_with_epochs(store, tmp_path):
    root = photos(tmp_path / "many", classes=4, each=64, side=120)
    data = streamed(store, root, 96)
    train, _ = open_images(store, data)
    views = inputs.views_of(train, data, CPU, Scale(decoders=2))
    order, sizes = torch.arange(len(train)).view(-1, 32), []
    for epoch in range(20):
        for batch in views.batches(order, epoch, epoch):
            assert len(batch.pixels) == 32
        gc.collect()
        sizes.append(resident(os.getpid()))
    print("MB after each epoch:", sizes)
    assert max(sizes[10:]) - max(sizes[3:8]) < 12


def test_the_data_of_an_experiment_file_are_read(store, root):
    from raykd.config.experiment import parse
    from raykd.config.resolve import resolve

    text = f"""
data: {{path: {root}}}
run:
  model: resnet8
  data: {{name: folder, stream: {{size: 24, resize: 28}}, augment: {{crop: {{}}, flip: true}}}}
  teacher: {{model: resnet8, optim: {{epochs: 1, batch: 8}}}}
  method: kd
  optim: {{epochs: 1, batch: 8}}
scale: {{decoders: 1, on_bad_image: skip}}
"""
    [run] = resolve(parse(text, "streamed"), store).students()
    assert run.data.size == (24, 24) and run.data.classes == 3
    assert isinstance(run.data, Data) and run.teacher is not None
    assert run.teacher.data.stream == run.data.stream
