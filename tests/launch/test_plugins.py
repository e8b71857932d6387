"""Workers of every kind load the plugins of what they are given."""

import pytest

from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.core import plugins
from raykd.launch.executor import execute
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from tests.launch.ray_marks import RAY
from tests.plugin import METHOD, MODEL, withdrawing, written

pytestmark = [*RAY, pytest.mark.timeout(900)]
QUIET = Terminal(quiet=True)
LOGGER = '''
from raykd.tracking.logger import Tracker


@raykd.register.logger("lines")
class Lines(Tracker):
    """A line in a file of the store for each epoch."""

    def begin(self, run, history):
        """Nothing."""

    def epoch(self, run, metrics):
        """Write a line."""
        with (self.store.root / "lines").open("a") as file:
            file.write(f"{run.model} {metrics['epoch']}\\n")

    def end(self, run, result):
        """Nothing."""
'''
EXPERIMENT = """
plugins: [mine.py]
run:
  model: small
  data: {name: digits, limit: 96}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  method: mine
  optim: {epochs: 2, batch: 32}
scale: {checkpoint_seconds: 0, track: [lines]}
"""


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


def experiment(folder, store, *overrides):
    """The experiment of a plugin's network and method."""
    written(folder, METHOD + MODEL + LOGGER)
    path = written(folder, EXPERIMENT, "x.yaml")
    return resolve(load(path, overrides), store)


def test_a_pool_ray_train_and_this_process_make_the_same_of_a_plugin(cluster, tmp_path):
    results = []
    for workers in (0, 1, 2):
        store = Store(tmp_path / f"store{workers}")
        ours = experiment(tmp_path / "files", store, f"scale.workers={workers}")
        execute(ours, store, QUIET)
        (student,) = ours.students()
        assert student.plugins == (plugins.loaded()[0].digest,)
        results.append((store.path(student) / "weights.safetensors").read_bytes())
        lines = (store.root / "lines").read_text().splitlines()
        assert lines == ["resnet8 0", "small 0", "small 1"]
        (kept,) = (store.root / "plugins").glob("*.py")
        assert kept.read_bytes() == (tmp_path / "files" / "mine.py").read_bytes()
    assert results[0] == results[1]


def test_trials_of_a_sweep_load_it_too(cluster, tmp_path):
    from raykd.launch.sweep.driver import sweep

    store = Store(tmp_path / "store")
    overrides = ("grid.run.method=[mine, kd]", "run.optim.epochs=1", "scale.workers=2")
    swept = sweep(experiment(tmp_path, store, *overrides), store, QUIET)
    assert [sheet.state for sheet in swept.sheets] == ["finished", "finished"]
    search = ("search.run.method.power={choice: [2, 3]}", "sweep.samples=1", "scale.workers=1")
    swept = sweep(experiment(tmp_path, store, *search), store, QUIET)
    assert [sheet.state for sheet in swept.sheets] == ["finished"]
