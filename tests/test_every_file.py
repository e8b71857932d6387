"""`raykd verify` finds a flipped bit in a file of any kind, and names that file."""

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load, parse
from raykd.config.resolve import resolve
from raykd.data.packing import into_store
from raykd.storage.store import Store
from raykd.training.sweep_sheets import Sheet, sweep_name, write_sheet
from tests.data.photos import photos, streamed
from tests.each import each
from tests.tiers import slow_but

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 32}}
  optim: {epochs: 1, batch: 32}
grid:
  run.method: [skd, {name: ft, paraphraser_epochs: 1}]
"""
GIVEN = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, weights: FILE}
  method: kd
"""
# Where a store has files of each kind that a command may read again.
KINDS = (
    "teachers/*/weights-0001.safetensors",
    "teachers/*/metrics.jsonl",
    "teachers/*/result.json",
    "teachers/*/recipe.json",
    "students/*/weights.safetensors",
    "students/*/weights-stage.safetensors",
    "students/*/result.json",
    "preludes/*/weights-helpers.safetensors",
    "preludes/*/result.json",
    "caches/*/view-*.arrow",
    "caches/*/manifest.json",
    "images/*-original/train.arrow",
    "images/*-original/images.json",
    "images/??????????????????*/train-index.arrow",
    "images/??????????????????*/test-stops.arrow",
    "images/stamps/*",
    "images/packs/*/train-0*.arrow",
    "images/packs/*/train-index.arrow",
    "images/packs/*/pack.json",
    "weights/*",
    "sweeps/*/trials/*.json",
    "caches/*/calibration-*.safetensors",
)


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A store with a file of every kind."""
    folder = tmp_path_factory.mktemp("full")
    file, store = folder / "small.yaml", Store(folder / "store")
    file.write_text(EXPERIMENT)
    done = call("run", file, "--store", store.root)
    assert done.exit_code == 0, done.output
    experiment = resolve(load(file), store)
    sheet = Sheet("a_1", {"run.method": "kd"}, "x", "finished", experiment.runs[0], None, 1.0)
    write_sheet(store, sweep_name(experiment), sheet)
    (trained,) = store.root.glob(KINDS[0])
    resolve(parse(GIVEN.replace("FILE", str(trained)), "given"), store)
    streamed(store, photos(folder / "photos"))
    into_store(store, "digits", None, lambda text: None)
    return store.root


def test_what_is_as_it_was_written_is_sound(full):
    done = call("verify", "--rows", 0, "--store", full)
    assert done.exit_code == 0, done.output
    for kind in ("2 students", "1 prelude", "1 pack", "1 file of weights", "1 sweep"):
        assert kind in done.output


@each("pattern", slow_but(KINDS, [*KINDS[::4], KINDS[-1]]))
def test_a_flipped_bit_is_found_and_its_file_named(full, pattern):
    path = min(full.glob(pattern))
    data = path.read_bytes()
    for place in (0, len(data) // 3, len(data) - 1):
        flipped = bytearray(data)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        try:
            done = call("verify", "--rows", 0, "--store", full)
        finally:
            path.write_bytes(data)
        assert done.exit_code == 5, (place, done.output, done.exception)
        assert f"error: {path}: " in done.stderr, (place, done.stderr)
