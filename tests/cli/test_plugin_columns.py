"""Columns of a plugin's own, from the teacher to the student, and what is refused of them."""

import json

import pytest
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import load
from raykd.config.resolve import resolve
from raykd.core import plugins
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.outputs.manifest import read_manifest
from raykd.recipes import OutputsRun
from raykd.register.contract import check_plugin
from raykd.storage.store import Store
from raykd.training.cache_builder import needed_bytes
from raykd.training.checkpointing import read_result
from tests.each import each
from tests.plugin import withdrawing, written, written_from_the_page


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return written_from_the_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def call(*words, code=0):
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def student(folder, store, *overrides):
    """The student of the page's experiment."""
    (run,) = resolve(load(folder / "peaks.yaml", overrides), store).students()
    return run


def with_plugin(page, folder, *changes):
    """A folder with the page's experiment, and its plugin with some words changed."""
    text = (page / "peaks.py").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    written(folder, (page / "peaks.yaml").read_text(), "peaks.yaml")
    return written(folder, text, "peaks.py").parent


def test_a_student_learns_from_a_plugins_columns_as_from_the_live_teacher(page, store):
    last = {}
    for source in ("cache", "live"):
        words = (f"run.method.source={source}", "run.optim.lr=0.001", "run.derived_codec=float32")
        words = (page / "peaks.yaml", *words, "--store", store.root)
        bytes_of = json.loads(call("plan", *words, "--json").stdout)["bytes"]
        made = json.loads(call("run", *words, "--json").stdout)["work"]["made"]
        run = student(page, store, *words[1:4])
        assert (made["caches"], run.cached()) == ((2, True) if source == "cache" else (0, False))
        last[source] = read_result(store.path(run))["last"]
        if source == "cache":
            (cache,) = run.caches_at(0)
            sizes = [needed_bytes(one, n) for one, n in ((cache, 96), (run.test_caches()[0], 359))]
            assert sum(sizes) == bytes_of
            (shard,) = read_manifest(store.path(cache)).shards
            assert 0 <= shard.bytes - sizes[0] < 5000  # head and foot of the file
    losses = [name for name in last["live"] if name.startswith("loss_stage")]
    assert len(losses) == 3
    for name in losses:
        assert last["cache"][name] == pytest.approx(last["live"][name], rel=1e-4), name


def test_a_stored_cache_asks_for_the_plugin_and_is_verified_with_it(page, store):
    call("precompute", page / "peaks.yaml", "--store", store.root)
    given = ("--plugin", page / "peaks.py")
    plugins.withdraw(plugins.loaded()[-1])
    assert "give --plugin peaks.py" in call("show", "caches", "--store", store.root, code=2).output
    rows = json.loads(call("show", "caches", "--store", store.root, "--json", *given).stdout)
    assert "dense, peaks float16" in [row["codec"] for row in rows]
    checked = json.loads(call("verify", "--store", store.root, "--json", *given).stdout)
    lost = {row["codec"]: row["lost"] for row in checked["caches"]}
    assert lost["dense, peaks float16"] < 1e-5


def test_the_plugin_of_the_page_keeps_the_laws_from_both_sources(page):
    rows = [*check_plugin(plugins.load(str(page / "peaks.py")))]
    assert all(row["sound"] for row in rows), rows
    assert rows[0]["found"].startswith("stem.peaks 1x16x16, stage1.peaks 1x16x16")
    assert {row["name"] for row in rows[1:]} == {"peak_matching", "peak_matching, source: cache"}


def test_an_edited_function_has_other_caches_and_one_with_settings_has_them_in_the_name(
    page, store, tmp_path
):
    field = ('pixel of every stage, as [B, 1, H, W]."""\n',
             'pixel of every stage, as [B, 1, H, W]."""\n\n    factor: float = 1.0\n')  # fmt: skip
    changes = [(), (field,), (field, ("return (Peaks(),)", "return (Peaks(factor=2.0),)"))]
    caches = []
    for number, some in enumerate(changes):
        (cache,) = student(with_plugin(page, tmp_path / str(number), *some), store).caches_at(0)
        assert cache.plugins == (plugins.loaded()[-1].digest,)
        assert OutputsRun.read(cache.plain()) == cache
        caches.append(cache)
        plugins.withdraw(plugins.loaded()[-1])
    assert len({fingerprint(cache) for cache in caches}) == 3
    assert caches[2].derived[0].plain() == {"name": "peaks", "factor": 2.0}


def test_a_student_and_its_cache_name_the_plugin_of_a_function_from_another_file(
    page, store, tmp_path
):
    folder = with_plugin(page, tmp_path)
    text = (folder / "peaks.py").read_text()
    head, function, method = text.split("@raykd.register.")
    written(folder, f"{head}@raykd.register.{function}", "column.py")
    body = method.replace("Peaks()", 'DERIVED["peaks"](name="peaks")')
    body = f"from raykd.methods.columns import DERIVED\n{head}@raykd.register.{body}"
    written(folder, body, "peaks.py")
    experiment = folder / "peaks.yaml"
    experiment.write_text(experiment.read_text().replace("[peaks.py]", "[column.py, peaks.py]"))
    run = student(folder, store)
    column, both = plugins.loaded()[0].digest, {one.digest for one in plugins.loaded()}
    assert set(run.plugins) == both
    assert run.caches_at(0)[0].plugins == (column,)
    assert student(folder, store, "run.method.source=live").plugins == tuple(both - {column})


def test_a_function_that_is_not_registered_is_refused_before_anything_is_computed(page, tmp_path):
    folder = with_plugin(page, tmp_path, ('@raykd.register.column("peaks")\n', ""))
    for command in ("plan", "run", "precompute"):
        words = (command, folder / "peaks.yaml", "--store", tmp_path / "store")
        message = " ".join(call(*words, code=2).output.split())
        assert "stores columns of Peaks, which raykd does not know; put @raykd.reg" in message
    assert not (tmp_path / "store" / "teachers").exists()


def test_a_loss_that_fails_on_these_networks_is_told_before_anything_is_computed(page, tmp_path):
    folder = with_plugin(page, tmp_path, ("True) - teacher)", "True) - teacher[..., 1:])"))
    for command in ("plan", "run"):
        words = (command, folder / "peaks.yaml", "--store", tmp_path / "store")
        message = " ".join(call(*words, code=2).output.split())
        assert "run.method: a step of method 'peak_matching' with resnet8 fails at" in message
        assert f"{folder / 'peaks.py'}, line " in message and "(RuntimeError: The size" in message
    assert not (tmp_path / "store" / "teachers").exists()


@each(
    ("old", "new", "sentence"),
    [
        ('@raykd.register.column("peaks")', '@raykd.register.column("maps")', "raykd has one"),
        ("class Peaks(Derived)", "class Peaks", "expected a subclass of raykd.methods.derived"),
        ("def columns(self, outputs", "def column(self, outputs", "does not define columns"),
    ],
)
def test_what_is_no_function_of_columns_is_refused(page, tmp_path, old, new, sentence):
    with pytest.raises(ConfigError, match=sentence):
        plugins.load(str(with_plugin(page, tmp_path, (old, new)) / "peaks.py"))


@each(
    ("old", "new", "sentence"),
    [
        ("return Signal.FEATURES", "return Signal.TOKENS", "it reads tokens; expected some of"),
        ("return Signal.FEATURES", "return Signal.LOGITS", "it has no columns"),
        ("outputs.features.items()", "[('x', outputs.logits)]", "reads what `reads` does not name"),
        ("{name}.peaks", "peaks.{name}", "'peaks.stem' is of no spot"),
        ("keepdim=True)", "keepdim=True).half()", "is torch.float16 .*expected float32"),
        ("keepdim=True)", "keepdim=False)", "expected float32"),
        ("keepdim=True)", "keepdim=True) / 0", "is not finite"),
        ("keepdim=True)", "keepdim=True) - maps.mean()", "are others of other samples' rows"),
        ("maps.amax", "maps.mul_(2).amax", "changes the teacher's outputs in place"),
        (' if "." not in name', "", "are others beside outputs that it does not read"),
        ("{name}.peaks", "{name}.attention", "'stage1.attention' is another one of AttentionMaps"),
    ],
)  # fmt: skip
def test_a_function_that_breaks_a_law_is_found(page, tmp_path, old, new, sentence):
    with withdrawing():
        plugin = plugins.load(str(with_plugin(page, tmp_path, (old, new)) / "peaks.py"))
        row = next(check_plugin(plugin))
    assert not row["sound"]
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(row["found"])
