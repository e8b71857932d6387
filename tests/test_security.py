"""Whoever can write where raykd reads cannot run code with it, nor reach files elsewhere.

Each test puts a pickle that would make a file in one of the places that raykd reads from.
"""

import io
import json
import pickle
import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.core import safe_names
from raykd.core.errors import CacheCorrupt, ConfigError, DataError, Unreachable
from raykd.data.dataset import open_images, read
from raykd.data.recipe import Data
from raykd.data.sources import pack_format
from raykd.data.sources.encoded_image import decode
from raykd.data.sources.files import Files
from raykd.data.sources.pack_format import read_pack
from raykd.data.sources.tars import read_webdataset
from raykd.export.folder import check_folder
from raykd.outputs.manifest import read_manifest
from raykd.prediction.lookup import by_fingerprint
from raykd.recipes import Search
from raykd.report.catalogue import catalogue
from raykd.storage import arrow, locks
from raykd.storage.atomic import write_atomic
from raykd.storage.filesystem import Remote
from raykd.storage.store import Store
from raykd.tracking.jsonl import JsonLines, read_metrics
from raykd.training import sweep_sheets, weights
from raykd.training.checkpointing import Checkpoints
from raykd.training.inputs import open_cache
from raykd.training.route_results import read_decisions
from tests.data.files import encoded, picture, put
from tests.data.packs import packed
from tests.each import each
from tests.planted_files import Planted
from tests.small import CPU, digits, prepare, student_run, teacher_run, train_logits, trained
from tests.tiers import slow_but


@pytest.fixture(autouse=True)
def marker(tmp_path):
    """A file that a planted pickle would make; no test may leave it there."""
    path = tmp_path / "marker"
    yield path
    assert not path.exists()


@pytest.fixture
def planted(marker) -> bytes:
    return pickle.dumps(Planted(marker))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store with a teacher, its caches and a student."""
    store = Store(tmp_path_factory.mktemp("finished") / "store")
    run = student_run(store)
    prepare(store, run)
    trained(store, run)
    return store


@pytest.fixture
def store(finished, tmp_path) -> Store:
    """A copy of it."""
    shutil.copytree(finished.root, tmp_path / "store")
    return Store(tmp_path / "store")


def torch_zip(planted: bytes) -> bytes:
    """A file of torch's format whose object is a planted pickle."""
    real, out = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(2)}, real)
    with zipfile.ZipFile(real) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = planted if name.endswith("data.pkl") else source.read(name)
            target.writestr(name, data)
    return out.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {"pickle": lambda data: data, "torch": torch_zip}


def test_the_planted_pickle_works(planted, marker):
    pickle.loads(planted)
    assert marker.exists()
    marker.unlink()
    torch.load(io.BytesIO(torch_zip(planted)), weights_only=False)
    assert marker.exists()
    marker.unlink()


@each("form", FORMS)
def test_a_checkpoint(tmp_path, planted, form):
    (tmp_path / "checkpoint.pt").write_bytes(FORMS[form](planted))
    with pytest.raises(CacheCorrupt, match="checkpoint cannot be read"):
        Checkpoints(tmp_path).restore()


@each(
    ("form", "suffix"),
    slow_but(
        [(form, suffix) for form in FORMS for suffix in (".pt", ".pth", ".safetensors")],
        [("torch", ".pt"), ("pickle", ".safetensors")],
    ),
)
def test_weights_that_are_given(tmp_path, planted, form, suffix):
    store = Store(tmp_path / "store")
    file = tmp_path / f"given{suffix}"
    file.write_bytes(FORMS[form](planted))
    (tmp_path / "x.yaml").write_text(
        "run:\n  model: resnet8\n  data: {name: digits, limit: 96}\n"
        f"  teacher: {{model: resnet8, weights: {file}}}\n"
    )
    with pytest.raises(ConfigError, match=r"weights cannot be read|not unpickled"):
        resolve(load(tmp_path / "x.yaml"), store)
    with pytest.raises(CacheCorrupt, match=r"weights cannot be read|not unpickled"):
        weights.load_state(file)


def test_weights_that_were_given_and_replaced(tmp_path):
    store = Store(tmp_path / "store")
    kept = store.root / "weights" / f"{'0' * 64}.pt"
    kept.parent.mkdir(parents=True)
    torch.save({"w": torch.zeros(2)}, kept)
    with pytest.raises(CacheCorrupt, match="truncated or altered"):
        weights.pretrained(store, teacher_run(store, weights=f"sha256:{kept.name}"))


@each("value", [[1], {"w": 1}, torch.zeros(2)])
def test_weights_are_tensors_by_their_names(tmp_path, value):
    torch.save(value, tmp_path / "x.pt")
    with pytest.raises(CacheCorrupt, match="tensors by their names"):
        weights.load_state(tmp_path / "x.pt")


@pytest.mark.parametrize("form", slow_but(FORMS, ["torch"]))
def test_weights_of_artefacts(store, planted, form):
    run = student_run(store)
    path = weights.anchor_path(store, run.teacher, 2)
    path.write_bytes(FORMS[form](planted))
    with pytest.raises(CacheCorrupt, match="truncated or altered"):
        weights.load_teacher(store, run.teacher, 2, CPU)
    with pytest.raises(CacheCorrupt, match="weights cannot be read"):
        weights.load_state(path)
    result = path.with_name("result.json")
    result.write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"result\.json"):
        weights.load_teacher(store, run.teacher, 2, CPU)
    result.write_text("{}")
    with pytest.raises(CacheCorrupt, match=r"result\.json"):
        weights.load_teacher(store, run.teacher, 2, CPU)


def test_weights_that_were_downloaded(tmp_path, planted, monkeypatch):
    import torchvision

    from raykd.models import build

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("resnet18")["IMAGENET1K_V1"].url
    path = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    path.write_bytes(torch_zip(planted))
    with pytest.raises(ConfigError, match="holds more than tensors"):
        build("torchvision/resnet18", 1000, "IMAGENET1K_V1")


@pytest.mark.parametrize("what", ["teachers", "students", "caches"])
def test_recipes_and_results_of_artefacts(store, planted, what):
    folder = next((store.root / what).iterdir())
    (folder / "recipe.json").write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"recipe\.json: cannot be read"):
        catalogue(what, store)
    if what != "caches":
        with pytest.raises(CacheCorrupt, match=r"recipe\.json: cannot be read"):
            by_fingerprint(store, folder.name)
        shown = CliRunner().invoke(main, ["show", what, "--store", str(store.root)])
        assert (shown.exit_code, "recipe.json: cannot be read" in shown.output) == (5, True)
        recipe = student_run(store) if what == "students" else teacher_run(store)
        (store.path(recipe) / "recipe.json").write_text(recipe.model_dump_json())
        (store.path(recipe) / "result.json").write_bytes(planted)
        with pytest.raises(CacheCorrupt, match=r"result\.json: cannot be read"):
            catalogue(what, store)


def test_metrics(tmp_path, planted):
    (tmp_path / "metrics.jsonl").write_bytes(planted + b"\n")
    with pytest.raises(CacheCorrupt, match=r"metrics\.jsonl: not lines of JSON"):
        read_metrics(tmp_path)


def test_shards_and_manifests_of_caches(store, planted):
    run = train_logits(student_run(store))
    folder = store.path(run)
    shard = next(folder.glob("view-000000-*.arrow"))
    whole = shard.read_bytes()
    shard.write_bytes(planted)
    with pytest.raises(CacheCorrupt, match="truncated or altered"):
        open_cache(store, run, [0], CPU).take(torch.arange(3), 0)
    with pytest.raises(CacheCorrupt, match="not an Arrow file"):
        arrow.read(shard)
    shard.write_bytes(whole)
    manifest = folder / "manifest.json"
    text = manifest.read_text()
    manifest.write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"manifest\.json: not a readable manifest"):
        open_cache(store, run, [0], CPU)
    for name in ("../../x", "/etc/passwd", "x\0y", "a/b"):
        value = json.loads(text)
        del value["seal"]
        value["shards"][0]["checksum"] = name
        manifest.write_text(json.dumps(value))
        with pytest.raises(CacheCorrupt, match="checksum"):
            read_manifest(folder)


def test_decisions_of_a_search(tmp_path, planted):
    store = Store(tmp_path / "store")
    data = digits(store, limit=96, validation=0.2)
    student = student_run(store, data=data, teacher=teacher_run(store, data=data))
    values = {"threshold": 0.1, "temperature": 4.0, "measure": "kl", "at_most": None}
    search = Search(student=student, **values)
    path = store.path(search) / "decisions.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"decisions\.json: .*cannot be read"):
        read_decisions(store, search)


def test_sheets_of_a_sweep(tmp_path, planted):
    store = Store(tmp_path / "store")
    sweep_sheets.write_sheet(store, "s", sweep_sheets.Sheet("a_1", {}, "x"))
    path = store.root / "sweeps" / "s" / "trials" / "a_1.json"
    text = path.read_text()
    path.write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"a_1\.json: cannot be read"):
        sweep_sheets.read_sheets(store, "s")
    path.write_text('{"strange": 1}')
    with pytest.raises(CacheCorrupt, match="not a sheet of a trial"):
        sweep_sheets.read_sheets(store, "s")
    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    path.write_text(text.replace("a_1", "../../../../victim"))
    with pytest.raises(CacheCorrupt, match="seal does not match"):
        sweep_sheets.read_sheets(store, "s")
    path.write_text(re.sub(',\\s*"seal": "[^"]+"', "", path.read_text()))
    with pytest.raises(CacheCorrupt, match="it is of trial"):
        sweep_sheets.read_sheets(store, "s")
    with pytest.raises(CacheCorrupt, match="a sheet is of a trial called"):
        sweep_sheets.read_sheet(store, "s", "../../../../victim")
    assert victim.exists()


@pytest.mark.parametrize("name", slow_but(["images.json", "train.arrow"], ["train.arrow"]))
def test_images_of_the_store(tmp_path, planted, name):
    store = Store(tmp_path / "store")
    data = digits(store)
    (store.root / "images" / f"{data.digest}-original" / name).write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=name):
        open_images(store, data)


def test_digests_lead_nowhere_else(tmp_path):
    for digest in ["../../x", "/etc", "x\0", "C:\\x"]:
        with pytest.raises(ConfigError, match=r"run\.data\.digest: expected 20 hex digits"):
            read(Store(tmp_path / "store"), Data(name="digits", digest=digest), None)


@pytest.mark.parametrize(
    "name",
    slow_but(
        ["sha256:../../x.pt", "sha256:/etc/x.pt", "sha256:x", f"sha256:{'0' * 64}.pkl"],
        ["sha256:../../x.pt"],
    ),
)
def test_weights_of_the_store_lead_nowhere_else(tmp_path, name):
    (tmp_path / "x.yaml").write_text(
        "run:\n  model: resnet8\n  data: {name: digits, limit: 96}\n"
        f"  teacher: {{model: resnet8, weights: '{name}'}}\n"
    )
    with pytest.raises(ConfigError, match="64 hex digits"):
        resolve(load(tmp_path / "x.yaml"), Store(tmp_path / "store"))


def test_arrays_of_numpy_are_no_images(tmp_path, planted, marker):
    for form in ("npy", "npz"):
        folder = tmp_path / form / "a"
        save = np.save if form == "npy" else np.savez
        data = io.BytesIO()
        save(data, np.array([Planted(marker)], dtype=object), allow_pickle=True)
        for other in (folder, folder.parent / "b"):
            put(other / "x.png", data.getvalue())
        with pytest.raises(DataError, match="cannot be decoded as an image"):
            read(Store(tmp_path / "store"), Data(name="folder"), folder.parent)


def test_pictures_that_another_program_would_read(tmp_path):
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) run\n%%EOF\n"
    with pytest.raises(DataError, match="cannot be decoded as an image"):
        decode(eps, "x.png")


@each("name", ["x.parquet", "x.arrow"])
def test_files_that_are_no_tables(tmp_path, planted, name):
    (tmp_path / name).write_bytes(planted)
    with pytest.raises(DataError, match="cannot be read as a table"):
        read(Store(tmp_path / "store"), Data(name="table"), tmp_path / name)


@each("column", ["image", "label"])
@each("name", ["x.parquet", "x.arrow"])
def test_tables_whose_values_are_pickles(tmp_path, planted, name, column):
    metadata = {"ARROW:extension:name": "ray.data.arrow_pickled_object"}
    metadata["ARROW:extension:metadata"] = planted
    values = {"image": pa.array([planted, planted], pa.large_binary()), "label": pa.array([0, 1])}
    values[column] = pa.array([planted, planted], pa.large_binary())
    fields = [
        pa.field(key, value.type, metadata=metadata if key == column else None)
        for key, value in values.items()
    ]
    table = pa.table([*values.values()], schema=pa.schema(fields))
    if name.endswith("parquet"):
        pq.write_table(table, tmp_path / name)
    else:
        with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
    with pytest.raises(DataError, match=r"is a column of ray\.data\.arrow_pickled_object values"):
        read(Store(tmp_path / "store"), Data(name="table"), tmp_path / name)


def pack_of(tmp_path: Path) -> Path:
    """A pack of some images."""
    for number in range(6):
        path = tmp_path / "images" / f"c{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(number)))
    packed(tmp_path / "images", tmp_path / "pack")
    return tmp_path / "pack"


@each("name", ["pack.json", "train-index.arrow", "train-text.arrow"])
def test_packs(tmp_path, planted, name):
    pack = pack_of(tmp_path)
    (pack / name).write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=name):
        read_pack(str(pack))


@each("name", ["../victim", "/tmp/victim", "x/../../victim", "..\\victim"])
def test_names_in_packs_lead_nowhere_else(tmp_path, name):
    pack = pack_of(tmp_path)
    victim = tmp_path / "victim"
    victim.write_bytes(b"before")
    facts = json.loads((pack / "pack.json").read_text())
    del facts["checksum"]
    index = facts["splits"]["train"]["index"]
    facts["splits"]["train"]["index"] = index | {name: arrow.checksum(b"before")}
    (pack / "pack.json").write_text(json.dumps(pack_format.sealed(facts)))
    with pytest.raises(CacheCorrupt, match=r"pack\.json: the index of"):
        read_pack(str(pack))
    train = facts["splits"]["train"] | {"index": index}
    facts["splits"] = {"train": train, name: train}
    (pack / "pack.json").write_text(json.dumps(pack_format.sealed(facts)))
    with pytest.raises(CacheCorrupt, match=r"pack\.json: the index of"):
        read_pack(str(pack))


OUTSIDE = ["../x", "a/../../x", "/etc/passwd", "a\0b", ".."]
OUTSIDE += ["C:\\x", "c:/x", "..\\x", "\\\\host\\x"]  # as Windows writes them


def test_files_below_a_root_stay_there(tmp_path):
    for name in OUTSIDE:
        files = Files.at(tmp_path)
        for call in (files.read, files.open, files.load, files.find, files.remove):
            with pytest.raises(DataError, match="not a name of a file in there"):
                call(name)
        with pytest.raises(DataError, match="not a name of a file in there"):
            files.put(name, b"x")
        remote = Remote(f"file://{tmp_path}")
        for call in (remote.read, remote.entry, remote.delete, remote.entries):
            with pytest.raises(CacheCorrupt, match="not the name of a file in there"):
                call(name)


def test_other_names_are_names():
    for name in ["", "a", "a/b", "a..b", "...", "a/..b/c", ":", "c:", "train/x y.png"]:
        assert safe_names.is_below(name)


def test_names_in_an_index_lead_nowhere_else(tmp_path):
    from raykd.data.sources.byte_ranges import Names, Ranges

    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "root").mkdir()
    one = torch.zeros(1, dtype=torch.int64)
    ranges = Ranges(Files.at(tmp_path / "root"), Names.of(["../secret"]), one, one, one + 6)
    with pytest.raises(DataError, match="not a name of a file in there"):
        ranges.read(0)


def test_members_of_tar_files_are_never_unpacked(tmp_path, planted):
    with tarfile.open(tmp_path / "train-000.tar", "w") as file:
        for name, data in [("../../a.png", encoded(picture(0))), ("../../a.cls", b"0")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name in ("../../b.pyd", "../../b.pickle", "../../b.pth"):
            info = tarfile.TarInfo(name)
            info.size = len(planted)
            file.addfile(info, io.BytesIO(planted))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        file.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError):
        read_webdataset(str(tmp_path))
    assert sorted(tmp_path.rglob("*")) == before


@each(
    "text",
    [
        "!!python/object/apply:pathlib.Path.touch [MARKER]",
        "!!python/object/apply:os.system ['touch MARKER']",
        "!!python/name:os.system",
        "run: !!python/object/new:os.system ['touch MARKER']",
    ],
)
def test_experiments(tmp_path, marker, text, planted):
    path = tmp_path / "x.yaml"
    path.write_text(text.replace("MARKER", str(marker)))
    with pytest.raises(ConfigError, match="not YAML"):
        load(path)
    with pytest.raises(ConfigError, match="not YAML"):
        load(Path(__file__).parents[1] / "experiments" / "quickstart.yaml", [f"run.seed={text}"])
    path.write_bytes(planted)
    with pytest.raises(ConfigError):
        load(path)


def test_folders_of_exports(tmp_path, planted):
    (tmp_path / "config.json").write_bytes(planted)
    with pytest.raises(ConfigError, match="there are other files"):
        check_folder(tmp_path, teacher_run(Store(tmp_path / "store")))


@pytest.mark.slow
def test_copies_of_a_store_at_a_url(tmp_path, planted, monkeypatch, finished):
    monkeypatch.setenv("RAYKD_LOCAL", str(tmp_path / "local"))
    shutil.copytree(finished.root, tmp_path / "far")
    far = Store(f"file://{tmp_path}/far")
    run = student_run(finished)
    path = far.path(run)
    for name in ("result.json", "recipe.json", "weights.safetensors", "checkpoint.pt"):
        (tmp_path / "far" / "students" / path.name / name).write_bytes(planted)
    with pytest.raises(CacheCorrupt, match=r"recipe\.json"):
        far.has(run)
    (path / "recipe.json").write_bytes((finished.path(run) / "recipe.json").read_bytes())
    with pytest.raises(CacheCorrupt, match=r"result\.json"):
        weights.checked(weights.finished(far, run, "weights.safetensors"))
    with pytest.raises(CacheCorrupt, match=r"(recipe|result)\.json"):
        catalogue("students", far)
    with pytest.raises(CacheCorrupt, match="checkpoint cannot be read"):
        Checkpoints(path, store=far).restore()


def test_links_are_replaced_and_not_followed(tmp_path):
    store, outside = Store(tmp_path / "store"), tmp_path / "outside"
    (outside / "folder").mkdir(parents=True)
    (outside / "file").write_text("before")
    store.root.mkdir()
    for name in ("file", "folder"):
        (store.root / name).symlink_to(outside / name)
    write_atomic(store.root / "file", b"after")
    assert (outside / "file").read_text() == "before"
    (outside / "folder" / "kept").touch()
    store.remove(store.root / "folder")
    assert (outside / "folder" / "kept").exists()
    assert not (store.root / "folder").exists()


@pytest.mark.slow
def test_nothing_is_written_on_through_a_link(tmp_path):
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text("before")
    folder.mkdir()
    (folder / "metrics.jsonl").symlink_to(outside)
    with pytest.raises(Unreachable, match="cannot be written"):
        JsonLines(folder).epoch(teacher_run(Store(tmp_path)), {"loss": 1.0})
    store = Store(tmp_path / "store")
    recipe = teacher_run(store)
    lock = store.root / "locks" / f"teachers-{store.path(recipe).name}.run"
    lock.parent.mkdir(parents=True)
    lock.symlink_to(outside)
    with pytest.raises(Unreachable, match="symbolic links"), locks.held(store, recipe, "run"):
        pass
    assert outside.read_text() == "before"
