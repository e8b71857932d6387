"""A plan on machines that are only described."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from raykd.cli import main
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError, NoRoom
from raykd.methods import METHODS
from raykd.models import build, parameter_count
from raykd.planning import scaling
from raykd.planning.forecast import Line, forecast, read_cluster, totals
from raykd.planning.plan import plan
from raykd.storage.store import Store
from raykd.training.microbenchmark import forward_flops, step_cost
from raykd.training.result import forward_cost
from tests.each import each

MACHINES = Path(__file__).parents[2] / "cluster" / "machines.yaml"
TEXT = """
run:
  model: resnet8
  data: {name: digits, holdout: 0.1, limit: 96, augment: {pad: 1}}
  teacher: {model: resnet20, optim: {epochs: 2, batch: 32}}
  method: kd
  views: 2
  optim: {epochs: 3, batch: 32}
grid: {run.seed: [0, 1, 2]}
scale: {workers: 2}
"""


@pytest.fixture
def ready(tmp_path):
    """An experiment, its store and its plan."""
    store = Store(tmp_path / "store")
    experiment = resolve(parse(TEXT, "small"), store)
    return experiment, store, plan(experiment.students())


def cost_of(model):
    """Parameters of a network, and FLOPs of its forward of one digit."""
    network = build(model, 10)
    return parameter_count(network), forward_cost(network, model, (8, 8))[0]


def test_a_plan_by_hand(ready):
    cluster = read_cluster(MACHINES)
    teacher, *caches, students = forecast(*ready, cluster)
    train, test = sorted(caches, key=lambda line: "train" not in line.label)
    size, flops = cost_of("resnet8")
    # A backward is worth two forwards, and the first convolution's has no gradient of the images.
    each = (3 * flops - 2 * 9 * 3 * 16 * 64) / (312e12 * 0.25)
    ring = scaling.ring_seconds(cluster, 4 * size, 2)
    step = 0.005 + 16 * each + ring
    assert (students.count, students.workers, students.at_once) == (3, 2, 3)
    assert students.limit == "compute"
    # Three steps an epoch, three epochs; every node reads 96 rows of 24 bytes in each.
    assert students.seconds == pytest.approx(scaling.GROUP_SECONDS + 9 * step, rel=1e-6)
    assert students.read == 3 * 3 * 96 * 24
    assert students.cost == pytest.approx(8 * 30 * students.seconds / 3600)
    assert (train.written, test.written) == (2 * 96 * 24, 180 * 24)
    assert (train.limit, train.seconds) == ("storage", pytest.approx(2 * 96 * 24 / 5e9))
    assert (teacher.workers, teacher.read) == (2, 0)


def test_what_a_method_trains_and_its_live_teacher_count(ready):
    run = ready[0].runs[0]
    targets = torch.arange(96) % 10
    size, flops = step_cost(run, targets)
    heads = run.model_copy(update={"method": METHODS["multi_head_kd"]()})
    live = run.model_copy(update={"source": "live"})
    assert step_cost(heads, targets)[0] > 10 * size
    assert step_cost(heads, targets)[1] > 10 * flops
    # The teacher's forward, and nothing that is trained.
    forward = cost_of("resnet20")[1]
    assert step_cost(live, targets) == (size, pytest.approx(flops + forward))
    assert forward_flops(run.teacher, run.data) == forward


@each(
    ("gpus", "change", "seconds"),
    [
        (8, {}, 100.0),
        (1, {}, 150.0),
        (8, {"layer": 1}, 150.0),
        (8, {"kind": "teacher"}, 150.0),
        (8, {"workers": 2}, 150.0),
    ],
)
def test_trainings_of_one_layer_share_the_gpus(gpus, change, seconds):
    cluster = read_cluster(MACHINES).model_copy(update={"nodes": 1, "gpus": gpus})
    one = Line("students", "kd", 1, 1, 1, 0, 0, 100.0, 0.0, "compute")
    other = replace(one, label="crd", seconds=50.0, **change)
    assert totals([one, other], cluster) == {
        "seconds": seconds,
        "cost": pytest.approx(30 * seconds / 3600),
    }


def test_assistants_are_of_the_layer_before_their_students(tmp_path):
    words = ["grid.run.method=[kd, dkd]", "scale.workers=1", "run.assistants=[resnet14]"]
    store = Store(tmp_path / "store")
    experiment = resolve(parse(TEXT, "small", words), store)
    work = plan(experiment.students())
    lines = forecast(experiment, store, work, read_cluster(MACHINES))
    assert [line.layer for line in lines if line.kind == "students"] == [0, 1, 0, 1]


def test_what_does_not_fit_is_refused(ready):
    small = read_cluster(MACHINES).model_copy(update={"nodes": 1, "gpus": 1})
    with pytest.raises(NoRoom, match="2 workers, and the cluster has 1 GPUs"):
        forecast(*ready, small)


@pytest.mark.slow
def test_a_rate_measures_the_networks_here(ready):
    given = read_cluster(MACHINES)
    one, ten = (
        sum(
            line.seconds
            for line in forecast(
                *ready,
                given.model_copy(update={"tflops": None, "rate": rate, "fixed_ms": 0.0}),
            )
            if line.kind == "cache"
        )
        for rate in (1.0, 1000.0)
    )
    assert one > 30 * ten  # two measurements of few steps each


@pytest.mark.slow
def test_the_command_prints_a_line_a_piece_and_the_sum(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(TEXT)
    words = ["plan", str(file), "--store", str(tmp_path / "store"), "--cluster", str(MACHINES)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    assert "teacher" in done.output and "students" in done.output and "compute" in done.output
    assert "0 of 3 students are in the store" in done.output
    assert "0.25 of 312 Tflop/s" in done.output
    done = CliRunner().invoke(main, [*words, "--json"])
    value = json.loads(done.stdout)
    assert value["cluster"]["nodes"] == 8 and len(value["items"]) == 4
    assert value["seconds"] == pytest.approx(sum(item["seconds"] for item in value["items"]))


def test_a_file_that_describes_no_cluster_is_refused(tmp_path):
    for text, answer in (("[", "not YAML"), ("nodes: 1\nspeed: 3", "speed: "), ("3", "keys and")):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(ConfigError, match=answer):
            read_cluster(tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_cluster(tmp_path / "none.yaml")
