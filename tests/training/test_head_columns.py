"""Students of a teacher's heads: the prelude that trains those, then the cache, then they."""

import pytest
import torch
from pydantic import ValidationError

from raykd.config.experiment import Experiment
from raykd.config.scale import Scale
from raykd.core.errors import CacheCorrupt, CacheMismatch
from raykd.core.record import fingerprint
from raykd.launch.executor import execute
from raykd.methods.at import AT
from raykd.methods.combine import Combine
from raykd.methods.kd import KD
from raykd.methods.multi_head_kd import MultiHeadKD
from raykd.methods.sakd import SAKD
from raykd.outputs.codecs import Float32
from raykd.outputs.manifest import read_manifest
from raykd.planning.plan import plan
from raykd.planning.remaining import pieces
from raykd.recipes import Optim, OutputsRun, PanelRun
from raykd.report.catalogue import verify_caches
from raykd.storage.store import Store, read_json, write_json
from raykd.teachers.anchor_route import Route
from raykd.teachers.source import CachedTeacher
from raykd.tracking.console import Terminal
from raykd.training.cache_builder import CacheBuild, needed_bytes
from raykd.training.cache_verify import compare
from raykd.training.checkpointing import RESULT, read_result
from raykd.training.inputs import live_teacher, open_cache, teachers
from raykd.training.runs import ShardMaker, local_host, train
from raykd.training.weights import HELPERS, checksums, load_state, save_state
from tests.small import CPU, digits, prepare, student_run
from tests.training.test_derived_columns import whole_view

METHOD = MultiHeadKD(head="linear", head_epochs=2)
SLOWLY = Optim(epochs=2, batch=32, lr=1e-3)  # large steps would make much of small differences
QUIET = Terminal(quiet=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("store"))


def run_of(store, method=METHOD, **fields):
    return student_run(store, method, **{"views": 1} | fields)


def alone(run, **scale):
    return Experiment("small", (run,), Scale(**scale))


@pytest.mark.parametrize("codec", [None, Float32()])
def test_a_row_of_the_cache_is_what_the_live_heads_say(store, codec):
    run = run_of(store, derived_codec=codec)
    prepare(store, run)
    batch, cache = whole_view(store, run), run.outputs_at(0)
    source = teachers(store, run, CPU)(0)
    assert run.cached() and isinstance(source, CachedTeacher)
    said = [one(batch).derived for one in (source, live_teacher(store, cache, CPU))]
    assert [*said[0]] == [*said[1]] == ["stage1.logits", "stage2.logits"]
    for name, column in said[1].items():
        assert torch.equal(said[0][name], column if codec else column.half().float())
        assert column.shape == (96, 10) and not column.requires_grad
    assert compare(store, cache, 64, CPU).difference < 0.01
    manifest = read_manifest(store.path(cache))
    assert manifest is not None
    assert 0 <= manifest.shards[0].bytes - needed_bytes(cache, 96) < 5000  # head and foot
    kd = needed_bytes(run_of(store, KD()).outputs_at(0), 1)
    assert needed_bytes(cache, 1) == kd + 2 * 10 * (4 if codec else 2)


def test_a_student_of_the_cache_has_the_losses_of_a_live_one(store):
    cached, live = (run_of(store, optim=SLOWLY, source=s) for s in ("auto", "live"))
    prepare(store, cached, live)
    assert not live.cached() and cached.prelude() == live.prelude()
    for run in (cached, live):
        train(store, run, local_host(store, run))
        assert not (store.path(run) / HELPERS).exists()  # the student's heads are not kept
    losses = [read_result(store.path(run))["last"] for run in (cached, live)]
    for spot in ("loss_stage1", "loss_stage2", "loss_logits"):
        assert losses[0][spot] == pytest.approx(losses[1][spot], rel=1e-3)


def test_students_share_heads_and_cache_and_other_heads_have_others(store):
    same = [
        run_of(store),
        run_of(store, seed=3),
        run_of(store, model="resnet14"),
        run_of(store, optim=Optim(epochs=5, batch=32, lr=0.3, milestones=(2,))),
        run_of(store, METHOD.model_copy(update={"weight": 0.1, "temperature": 2.0})),
        run_of(store, SAKD(base=METHOD, mode="random")),
        run_of(store, Combine(combine=(KD(), METHOD))),
    ]
    work = plan(same)
    assert len(work.preludes) == 1 and work.behind_caches() == work.preludes
    assert len({run.outputs_at(0) for run in same}) == 1
    changes = ({"head": "conv"}, {"head_epochs": 3}, {"head_lr": 0.1})
    others = [run_of(store, METHOD.model_copy(update=change)) for change in changes]
    caches = [run.outputs_at(0) for run in (same[0], *others)]
    assert len({fingerprint(cache) for cache in caches}) == 4
    assert caches[0].label == "dense, logits of linear heads float16"
    assert plan([run_of(store, "ft")]).behind_caches() == ()


def test_parts_and_wrappers_read_the_heads_from_a_cache_or_live(store):
    stored = run_of(store, Combine(combine=(METHOD, AT(source="cache"))))
    live = run_of(store, Combine(combine=(METHOD, AT())))
    assert stored.cached() and not live.cached()
    prepare(store, stored, live)
    found = []
    for run in (stored, live):
        source = teachers(store, run, CPU)(0)
        assert source is not None
        found.append(source(whole_view(store, run)).derived)
    for name in ("stage1.logits", "stage2.logits"):
        assert torch.equal(found[0][name], found[1][name].half().float())
    always = run_of(store, SAKD(base=METHOD, mode="random"))
    assert always.cached()
    prepare(store, always)
    train(store, always, local_host(store, always))
    with pytest.raises(ValidationError, match="as modes always and random do not"):
        SAKD(base=METHOD)


def test_what_has_no_heads_is_refused(store):
    cache = run_of(store).outputs_at(0)
    for wrong in ({"prelude": None}, {"derived": ()}):
        with pytest.raises(ValidationError, match="go together"):
            OutputsRun(**(dict(cache) | wrong))
    panel = PanelRun(panel=(run_of(store).teacher, run_of(store).teacher))
    with pytest.raises(ValidationError, match="of which a panel has several"):
        run_of(store, teacher=panel)
    with pytest.raises(ValidationError, match="needs a teacher"):
        run_of(store, teacher=None)
    with pytest.raises(ValidationError, match="keep one"):
        Combine(combine=(METHOD, MultiHeadKD()))


def test_along_a_route_each_anchor_has_a_cache_and_all_have_the_last_heads(store):
    run = run_of(store, route=Route(anchors=(1, 2), starts=(0, 1)))
    work = plan([run])
    assert {job.run.anchor for job in work.caches if job.run.split == "train"} == {1, 2}
    assert work.preludes == (run_of(store).prelude(),)


def test_a_prelude_that_was_altered_after_its_cache_is_found(tmp_path):
    store = Store(tmp_path)
    run = run_of(store)
    prepare(store, run)
    cache, prelude = run.outputs_at(0), run.prelude()
    path = store.path(prelude) / HELPERS
    data = path.read_bytes()
    path.write_bytes(data[:-4] + bytes(4))
    with pytest.raises(CacheCorrupt, match=r"preludes/.*were truncated or altered"):
        open_cache(store, cache, [0], CPU)
    path.write_bytes(data)
    open_cache(store, cache, [0], CPU)
    # One that was trained again, and says something else.
    save_state(path, {name: value + 1 for name, value in load_state(path).items()})
    result = path.with_name(RESULT)
    write_json(result, read_json(result) | {"weights": checksums(path.parent)})
    with pytest.raises(CacheMismatch, match="of its prelude"):
        open_cache(store, cache, [0], CPU)


def test_a_plan_trains_the_heads_before_it_fills_the_cache(tmp_path):
    store = Store(tmp_path)
    run = run_of(store)
    work = plan([run])
    kinds = [piece.kind for piece in pieces(alone(run), store, work)]
    assert kinds == ["teacher", "prelude", "cache", "cache", "students"]
    first = execute(alone(run), store, QUIET, students=False)
    assert first.made == {"teachers": 1, "caches": 2, "preludes": 1, "students": 0}
    again = execute(alone(run), store, QUIET, students=False)
    assert again.reused == {"teachers": 1, "caches": 2, "preludes": 1, "students": 0}
    cache = run.outputs_at(0)
    rows, errors = verify_caches(store, [cache], 16)
    assert rows[0]["views"] == 1 and not errors
    student = execute(alone(run), store, QUIET)
    assert student.made == {"teachers": 0, "caches": 0, "preludes": 0, "students": 1}
    # Without the prelude, the cache's numbers cannot be asked for again.
    store.path(run.prelude()).rename(tmp_path / "away")
    _, errors = verify_caches(store, [cache], 16)
    assert "its prelude" in str(errors[0]) and "is missing or not finished" in str(errors[0])


@pytest.mark.slow
def test_a_build_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    whole, cut = Store(tmp_path / "whole"), Store(tmp_path / "cut")
    for place in (whole, cut):
        digits(place, limit=96)
    run = run_of(whole, views=3)
    execute(alone(run), whole, QUIET)
    cache = run.outputs_at(0)
    for needed in (*plan([run]).teachers, *plan([run]).preludes):
        train(cut, needed, local_host(cut, needed))
    build = CacheBuild(cut, cache, (0, 1, 2))
    ShardMaker(cut, cache, CPU).make(build.parts(1)[0])  # and nothing is committed
    outcome = execute(alone(run), cut, QUIET)
    assert outcome.made == {"teachers": 0, "caches": 2, "preludes": 0, "students": 1}
    files = [sorted(s.path(cache).glob("view-*.arrow")) for s in (whole, cut)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]  # with checksums
    assert len(files[0]) == 3
    weights = [(s.path(run) / "weights.safetensors").read_bytes() for s in (whole, cut)]
    assert weights[0] == weights[1]
