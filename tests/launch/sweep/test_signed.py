"""Tune's notes: what would be unpickled bears its user's mark, or is not read."""

import pickle
from pathlib import Path

import pytest
from pyarrow import fs

from raykd.config.resolve import resolve
from raykd.core.errors import CacheCorrupt, ConfigError
from raykd.launch.sweep import signed
from raykd.launch.sweep.driver import sweep
from raykd.storage.store import Store
from raykd.tracking.console import Teller
from raykd.training.sweep_sheets import read_sheets, sweep_name
from tests.launch.ray_marks import RAY
from tests.planted_files import Planted

NAMES = [
    "tuner.pkl",
    "experiment_state-2026-01-01_00-00-00.json",
    "search_gen_state-2026-01-01_00-00-00.json",
    "searcher-state-2026-01-01_00-00-00.pkl",
    "trial/error.pkl",
]
EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet8, optim: {epochs: 1, batch: 64}}
  method: kd
  optim: {epochs: 1, batch: 32}
grid: {run.seed: [0, 1]}
scale: {workers: 1}
"""


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without a key."""
    monkeypatch.delenv(signed.KEY, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config" / "raykd" / "key"


def put(folder: Path, name: str, data: bytes, files: fs.FileSystem | None = None) -> Path:
    """Write a file as Tune does: from a copy of its own, through pyarrow."""
    aside, path = folder / "aside", folder / "notes" / name
    aside.parent.mkdir(parents=True, exist_ok=True)
    aside.write_bytes(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    fs.copy_files(str(aside), str(path), destination_filesystem=files or signed.sealed(None))
    return path


def taken(path: Path, folder: Path) -> bytes:
    """What a file holds, as Tune gets it: copied, and read."""
    files = signed.sealed(None)
    fs.copy_files(str(path), str(folder / "back"), source_filesystem=files)
    with files.open_input_file(str(path)) as file, files.open_input_stream(str(path)) as stream:
        data = file.read()
        assert stream.read() == data == (folder / "back").read_bytes()
    return data


@pytest.mark.parametrize("name", NAMES)
def test_what_was_marked_is_read_as_it_was_written(tmp_path, name):
    signed.key(make=True)
    path = put(tmp_path, name, b"notes")
    assert path.read_bytes().startswith(b"notes\n#raykd")
    assert taken(path, tmp_path) == b"notes"
    signed.check(signed.sealed(None), str(path.parent))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["unmarked", "altered", "renamed", "another's"])
def test_what_others_may_have_written_is_not_read(tmp_path, name, how, home):
    signed.key(make=True)
    path = put(tmp_path, name, b"notes")
    if how == "unmarked":
        path.write_bytes(b"notes")
    elif how == "altered":
        path.write_bytes(b"m" + path.read_bytes()[1:])
    elif how == "renamed":
        path = path.rename(path.with_name("tuner2.pkl"))
    else:
        home.write_text("0" * 64)
    files = signed.sealed(None)
    with pytest.raises(CacheCorrupt, match="no mark of your key"):
        taken(path, tmp_path)
    with pytest.raises(CacheCorrupt, match="sweep --fresh"):
        signed.check(files, str(path.parent))


def test_other_files_are_as_they_are(tmp_path):
    signed.key(make=True)
    for name in ("result.json", "events.out.tfevents.1", "trial/params.json"):
        path = put(tmp_path, name, b"notes")
        assert path.read_bytes() == taken(path, tmp_path) == b"notes"


def test_the_key_is_its_user_s_alone(home):
    assert signed.key() is None
    made = signed.key(make=True)
    assert made == signed.key(make=True) == home.read_bytes() and len(made) == 64
    assert home.stat().st_mode & 0o777 == 0o600
    assert [*home.parent.iterdir()] == [home]
    home.chmod(0o644)
    with pytest.raises(ConfigError, match=r"others can read this key; chmod 600"):
        signed.key()


def test_a_key_may_come_from_the_environment(monkeypatch, home):
    monkeypatch.setenv(signed.KEY, "secret")
    assert signed.key(make=True) == b"secret"
    assert not home.exists()


def test_a_key_that_cannot_be_kept_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written .*set \$RAYKD_KEY"):
        signed.key(make=True)


def test_the_key_goes_nowhere_with_the_file_system():
    made = signed.key(make=True)
    files = signed.sealed(None)
    data = pickle.dumps(files)
    assert made is not None and made not in data
    assert pickle.loads(data).equals(files)


def ray(test):
    """A test with the marks of those that start Ray."""
    for mark in [*RAY, pytest.mark.filterwarnings("ignore::UserWarning")]:
        test = mark(test)
    return test


@ray
def test_a_sweep_does_not_go_on_with_notes_that_others_planted(cluster, tmp_path):
    from raykd.config.experiment import parse

    experiment, store = parse(EXPERIMENT, "small"), Store(tmp_path / "store")
    quiet = Teller(quiet=True)
    assert sweep(experiment, store, quiet).count("finished") == 2
    assert sweep(experiment, store, quiet).count("finished") == 2  # from its own notes
    name = sweep_name(resolve(experiment, store))
    notes = store.root / "tune" / name
    key = signed.key()
    assert key is not None
    assert not [p for p in store.root.rglob("*") if p.is_file() and key in p.read_bytes()]
    pickled = [path for path in notes.iterdir() if signed.is_pickled(path.name)]
    assert len(pickled) >= 3
    for path in pickled:
        whole = path.read_bytes()
        planted = Planted(tmp_path / "marker")
        path.write_bytes(pickle.dumps(planted))
        with pytest.raises(CacheCorrupt, match=path.name):
            sweep(experiment, store, quiet)
        assert not (tmp_path / "marker").exists()
        path.write_bytes(whole)
    (notes / "searcher-state-9999.pkl").write_bytes(pickle.dumps(Planted(tmp_path / "marker")))
    with pytest.raises(CacheCorrupt, match="searcher-state-9999"):
        sweep(experiment, store, quiet)
    assert not (tmp_path / "marker").exists()
    assert sweep(experiment, store, quiet, fresh=True).count("finished") == 2
    assert len(read_sheets(store, name)) == 2
