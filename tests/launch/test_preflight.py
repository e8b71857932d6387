"""The law: what `plan` refuses, `run` refuses in the same words before it begins, and so do all."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from raykd import models
from raykd.cli import main
from raykd.config.experiment import Experiment, load, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core.errors import ConfigError, NoRoom, WorkFailed
from raykd.launch.executor import execute
from raykd.launch.sweep.driver import sweep
from raykd.methods import METHODS
from raykd.planning.preflight import preflight
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.tasks import TASKS
from raykd.tracking.console import Terminal
from raykd.training import runs as fit
from raykd.training.runs import local_host, train
from tests.each import each
from tests.small import digits, student_run, teacher_run
from tests.tiers import slow_but

EXPERIMENT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet14, optim: {epochs: 1, batch: 32}}
  method: kd
  optim: {epochs: 1, batch: 32}
"""
TINY = "run.data.resize=4"  # the last maps of a resnet are one pixel
ONE = "a worker's share of a batch is 1 sample, which this network's batch norm cannot be trained"
BAD = {
    "one sample": (["run.optim.batch=1", TINY], f"experiment.run.optim.batch: {ONE}"),
    "one sample of the teacher": (
        ["run.teacher.optim.batch=1", TINY],
        f"experiment.run.teacher.optim.batch: {ONE}",
    ),
    "one sample a part": (["scale.accumulate=32", TINY], ONE),
    "one sample a worker": (["run.optim.batch=2", "scale.workers=2", TINY], ONE),
    "one sample of most workers": (["run.optim.batch=3", "scale.workers=[1, 3]", TINY], ONE),
    "workers that do not divide": (
        ["run.optim.batch=33", "scale.workers=2"],
        "experiment.run.optim.batch: a global batch of 33 does not divide among 2 workers",
    ),
    "more workers than samples": (
        ["run.optim.batch=2", "scale.workers=[1, 3]"],
        "no sample for each of 3 workers",
    ),
    "parts that do not divide": (["scale.accumulate=3"], "do not divide into 3 parts"),
    "a batch beyond the images": (["run.optim.batch=97"], "fewer than one batch of 97"),
    "a teacher's batch beyond the images": (
        ["run.teacher.optim.batch=97"],
        "experiment.run.teacher.optim.batch: 96 training samples are fewer",
    ),
    "an assistant's batch beyond the images": (
        ["run.assistants=[{model: resnet8, optim: {batch: 97}}]"],
        "experiment.run.assistants.optim.batch: 96 training samples are fewer",
    ),
    "a limit beyond the images": (
        ["run.data.limit=5000"],
        "experiment.run.data.limit: 5000 is more than the 1617 training samples",
    ),
    "a teacher's limit": (
        ["run.teacher.data={name: digits, limit: 5000}"],
        "experiment.run.teacher.data.limit: 5000 is more than",
    ),
    "nothing held out": (["run.data.holdout=0.0001"], "experiment.run.data.holdout: 0.0001 of"),
    "unequal channels": (
        ["run.method=fsp", "run.teacher.model=resnet8x4"],
        "experiment.run.method: method 'fsp' needs equal numbers of channels",
    ),
    "a teacher that does not average": (
        ["run.method=simkd", "run.teacher.model=mobilenet_v2_x0_5"],
        "experiment.run.method: method 'simkd' averages",
    ),
    "a part of a sum": (
        ["run.method={combine: [fsp, kd]}", "run.teacher.model=resnet8x4"],
        "needs equal numbers of channels",
    ),
    "a teacher of another size": (
        ["run.teacher.model=torchvision/vit_b_16"],
        "experiment.run.teacher.model: torchvision/vit_b_16 does not take images of 8x8 pixels",
    ),
    "a student of another size": (
        ["run.model=torchvision/vgg11"],
        "experiment.run.model: torchvision/vgg11 does not take images of 8x8 pixels",
    ),
    "published weights of other classes": (
        [
            "run.teacher.model=torchvision/resnet18",
            "run.teacher.weights=DEFAULT",
            "run.teacher.size=8",
            "run.teacher.fine_tune=false",
        ],
        "experiment.run.method: method 'kd' reads the teacher's logits, and torchvision/resnet18 "
        "has those of 1000 classes, the data 10; say with run.teacher.classes which",
    ),
    "published weights of other images": (
        [
            "run.teacher.model=torchvision/resnet18",
            "run.teacher.weights=DEFAULT",
            "run.teacher.fine_tune=false",
        ],
        "experiment.run.teacher: its weights are for images of 224 pixels a side, and it would see "
        "8; set run.teacher.size: 224 to enlarge them, or 8 to use them as they are",
    ),
    "weights that there are not": (
        ["run.teacher.model=torchvision/resnet18", "run.teacher.weights=NONE_SUCH"],
        "has no weights called 'NONE_SUCH'",
    ),
    "a number that cannot be shared out": (
        ["run.method=ctkd", "scale.workers=2", "scale.shard=fsdp"],
        "is one number, which cannot be shared out",
    ),
    "a codec that keeps all classes": (
        ["run.codec={name: topk, k: 10}", "run.method={name: kd, temperature: 1.0}"],
        "lower run.codec.k",
    ),
    "a memory of mixed samples": (
        ["run.method=crd", "run.data.augment.mix={kind: mixup}"],
        "remembers each training sample",
    ),
    "a memory within a sum that mixes": (
        ["run.method={combine: [crd, stkd]}"],
        "remembers each training sample",
    ),
    "an anchor beyond the teacher": (["run.route={anchors: [9]}"], "anchor 9 lies beyond"),
    "more anchors than there are": (["run.rco={anchors: 3}"], "3 anchors are asked for"),
    "a method without a teacher": (["run.teacher=null"], "method 'kd' needs a teacher"),
    "a grid of millions": (
        [f"grid.run.{key}={[*range(1, 201)]}" for key in ("seed", "data.seed", "teacher.seed")],
        "experiment.grid: it lays out 8,000,000 students",
    ),
    "a number of hours": (["run.optim.epochs=1:30"], "'1:30' is 90 to YAML 1.1 alone"),
    "an alias of itself": (
        ["run.optim=&a {milestones: [*a]}"],
        "a mapping or list that contains it",
    ),
}
# One mistake for each place that finds some.
QUICK = [
    "a batch beyond the images",
    "unequal channels",
    "one sample of most workers",
    "a limit beyond the images",
    "a student of another size",
    "published weights of other classes",
]
GOOD = {
    "a head start": ["run.method={name: ab, init_epochs: 1}"],
    "a paraphraser": ["run.method={name: ft, paraphraser_epochs: 1}"],
    "flows": ["run.method={name: fsp, init_epochs: 1}"],
    "a borrowed classifier": ["run.method=simkd"],
    "spots": ["run.method=sakd"],
    "a memory": ["run.method={combine: [{name: crd, negatives: 64}, kd]}"],
    "spheres": ["run.method=skd"],
    "pre-activations": ["run.method=ofd"],
    "several looks": ["run.method=mlkd"],
    "one sample where maps are large": ["run.optim.batch=1", "run.data.limit=40"],
    "a route": ["run.teacher.optim.epochs=2", "run.teacher.save_every=1", "run.rco={anchors: 2}"],
    "a search": [
        "run.teacher.optim.epochs=2",
        "run.teacher.save_every=1",
        "run.rco={select: greedy}",
        "run.data.validation=0.2",
        "run.data.limit=96",
    ],
    "an assistant": ["run.assistants=[resnet8]"],
    "a network whose widths are tensors": ["run.teacher.model=torchvision/regnet_x_400mf"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with an experiment file and the store of all tests here."""
    folder = tmp_path_factory.mktemp("law")
    (folder / "mine.yaml").write_text(EXPERIMENT)
    return folder


def said(place: Path, command: str, overrides: list[str], code: int) -> str:
    """Message of a command's refusal, without the lines on what it reads."""
    words = [command, str(place / "mine.yaml"), *overrides, "--store", str(place / "store")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr.partition("error: ")[2]


def made(place: Path) -> list[str]:
    kinds = ("teachers", "caches", "preludes", "students")
    return [str(path) for kind in kinds for path in (place / "store" / kind).glob("*")]


@each("what", slow_but(BAD, QUICK[:2]))
def test_what_a_plan_refuses_a_run_refuses_in_the_same_words_and_leaves_nothing(place, what):
    overrides, message = BAD[what]
    plan = said(place, "plan", overrides, 2)
    assert message in plan
    assert said(place, "run", overrides, 2) == plan
    assert made(place) == []


# Mistakes that some methods make, or all of them; each task is tried with each method.
OF_METHODS = [
    ["run.optim.batch=97"],
    ["run.teacher=null"],
    ["run.codec={name: topk, k: 2}"],
    *([f"run.task={name}", "run.optim.batch=97"] for name in TASKS),
]


@each("method", [pytest.param(name, marks=pytest.mark.slow) for name in METHODS])
def test_what_a_plan_refuses_of_a_method_or_a_task_a_run_refuses_too(place, method):
    refused = 0
    for overrides in OF_METHODS:
        words = [str(place / "mine.yaml"), f"run.method={method}", *overrides]
        words += ["--store", str(place / "store")]
        plan = CliRunner().invoke(main, ["plan", *words])
        if plan.exit_code:
            run = CliRunner().invoke(main, ["run", *words])
            assert (run.exit_code, plan.exit_code) == (2, 2), (overrides, run.output)
            messages = [result.stderr.partition("error: ")[2] for result in (plan, run)]
            assert messages[0] == messages[1] != "", overrides
            assert made(place) == []
            refused += 1
    assert refused >= 5  # each task, with a batch beyond the images, at least


@pytest.mark.slow
@pytest.mark.parametrize("command", ["precompute", "sweep"])
@pytest.mark.parametrize("what", QUICK[:2])
def test_so_do_all_commands(place, what, command):
    overrides, _ = BAD[what]
    assert said(place, command, overrides, 2) == said(place, "plan", overrides, 2)
    assert made(place) == []


@pytest.mark.parametrize("call", slow_but([execute, sweep], [sweep]))
def test_python_is_refused_in_the_same_words(place, call):
    overrides = ["run.optim.batch=97"]
    store = Store(place / "store")
    experiment = resolve(load(place / "mine.yaml", overrides), store)
    with pytest.raises(ConfigError) as error:
        call(experiment, store, Terminal(quiet=True))
    assert f"{error.value}\n" == said(place, "plan", overrides, 2)
    assert made(place) == []


@pytest.mark.slow
@pytest.mark.parametrize("what", GOOD)
def test_what_a_plan_accepts_is_carried_out(tmp_path, what):
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    for command in ("plan", "run"):
        said(tmp_path, command, GOOD[what], 0)


def refusal(store: Store, *overrides: str) -> list[str]:
    experiment = resolve(parse(EXPERIMENT, "x", overrides, "mine.yaml"), store)
    with pytest.raises(ConfigError) as error:
        preflight(experiment, store)
    return str(error.value).splitlines()


@pytest.mark.slow
def test_all_mistakes_come_at_once_each_once_with_its_place(store):
    text = EXPERIMENT.replace("batch: 32}}", "batch: 97}}").replace("method: kd", "method: fsp")
    experiment = resolve(
        parse(text, "x", ["run.model=resnet8x4", "grid.run.seed=[0, 1, 2]"], "mine.yaml"), store
    )
    with pytest.raises(ConfigError) as error:
        preflight(experiment, store)
    teacher, method = str(error.value).splitlines()
    also = "; in fsp resnet8x4 seed 0 and 2 more students"
    assert teacher.startswith("experiment.run.teacher.optim.batch: 96 training samples are fewer")
    assert teacher.endswith(f"{also} (mine.yaml, line 5)")
    assert method.startswith("experiment.run.method: method 'fsp' needs equal numbers of channels")
    assert method.endswith(f"{also} (mine.yaml, line 6)")


@pytest.mark.slow
def test_a_key_stands_where_it_was_said_last(store):
    (line,) = refusal(store, "run.optim.batch=97")
    assert line.endswith("(run.optim.batch=... on the command line)")
    (line,) = refusal(store, "run.optim={epochs: 1, batch: 97}")
    assert line.endswith("(run.optim=... on the command line)")
    (line,) = refusal(store, "grid.run.optim.batch=[97]")
    assert line.endswith("(grid.run.optim.batch=... on the command line)")


@pytest.mark.slow
def test_a_large_grid_makes_no_more_networks_than_one_student(store, monkeypatch):
    built = []
    build = models.build

    def counted(*words):
        built.append(words)
        return build(*words)

    monkeypatch.setattr(models, "build", counted)
    few = resolve(parse(EXPERIMENT, "x"), store)
    preflight(few, store)
    count = len(built)
    axes = [f"grid.run.seed={[*range(40)]}", "grid.run.optim.lr=[0.1, 0.2, 0.3, 0.4, 0.5]"]
    many = resolve(parse(EXPERIMENT, "x", axes), store)
    assert len(many.runs) == 200
    preflight(many, store)
    assert len(built) == 2 * count


@pytest.mark.slow
def test_what_is_finished_is_not_looked_at(store):
    run = student_run(store, "label_only", teacher=None)
    small = Experiment("small", (run,), Scale())
    execute(small, store, Terminal(quiet=True))
    odd = Experiment("small", (run,), Scale(workers=5))
    preflight(odd, store)
    with pytest.raises(ConfigError, match="does not divide among 5 workers"):
        preflight(Experiment("small", (run.model_copy(update={"seed": 9}),), odd.scale), store)


@pytest.mark.slow
def test_caches_that_do_not_fit_the_disk_are_refused_before_their_teacher_is_trained(
    store, monkeypatch
):
    monkeypatch.setattr("raykd.planning.remaining.needed_bytes", lambda run, rows: 10**18)
    small = Experiment("small", (student_run(store),), Scale())
    with pytest.raises(NoRoom, match=r"lower run\.views"):
        execute(small, store, Terminal(quiet=True))
    assert list((store.root / "teachers").glob("*")) == []


@pytest.mark.slow
def test_a_failed_teacher_is_what_is_said_of_a_method_that_trains_something_before(store):
    teacher = teacher_run(store, optim=Optim(epochs=1, batch=32, lr=1e30))
    for method in ("ab", "ft", "fsp"):
        runs = (student_run(store, method, teacher=teacher),)
        with pytest.raises(WorkFailed, match="not finite"):
            execute(Experiment("small", runs, Scale()), store, Terminal(quiet=True))
    assert list((store.root / "preludes").glob("*")) == []


@pytest.mark.slow
def test_a_training_that_is_called_alone_refuses_single_samples_too(store):
    run = teacher_run(store, data=digits(store, limit=33, resize=4), optim=Optim(epochs=1, batch=1))
    with pytest.raises(ConfigError, match="share of a batch is 1 sample"):
        train(store, run, local_host(store, run))


@pytest.mark.slow
def test_statistics_are_refreshed_whatever_the_number_of_images(store, monkeypatch):
    monkeypatch.setattr(fit, "BATCH", 32)
    run = teacher_run(
        store,
        data=digits(store, limit=33, resize=4),
        optim=Optim(epochs=1, batch=16),
        refresh_statistics=True,
    )
    train(store, run, local_host(store, run))
    assert store.has(run)
