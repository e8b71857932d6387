import numpy as np
import pytest
import scipy.stats

from raykd.config.experiment import Experiment, parse
from raykd.core.errors import CacheCorrupt
from raykd.outputs.manifest import Manifest, Part, Shard, write_manifest
from raykd.planning.plan import plan
from raykd.report import gather
from raykd.report.comparison import summarise
from raykd.report.types import Summary
from raykd.training.checkpointing import RESULT
from tests.report.stored import EPOCHS, TEXT, TOP1, finished, put


def by_label(report):
    return {group.label: group for group in report.students}


def test_students_that_differ_in_seed_alone_are_one_group(report):
    assert [group.label for group in report.students] == [
        "label_only",
        "kd",
        "spherical_kd temperature=2.0",
        "spherical_kd temperature=4.0",
    ]
    assert all([run.seed for run in group.runs] == [0, 1, 2] for group in report.students)
    assert [group.label for group in report.teachers] == ["teacher"]


def test_a_group_is_summed_up_by_its_sample(report):
    kd = by_label(report)["kd"]
    values = np.array(TOP1["kd"])
    assert (kd.score.n, kd.score.mean) == (3, pytest.approx(values.mean()))
    assert kd.score.std == pytest.approx(np.sqrt(((values - values.mean()) ** 2).sum() / 2))
    assert kd.best.mean == pytest.approx(values.mean() + 0.5)
    assert (kd.agreement.mean, kd.agreement.std) == (pytest.approx(81.0), pytest.approx(1.0))
    assert kd.kl.mean == pytest.approx(0.25)
    assert (kd.images_per_second, kd.seconds) == (1001.0, pytest.approx(9.0))
    assert (kd.network, kd.parameters) == ("resnet8", 78_042)


def test_one_value_has_no_spread():
    assert summarise([3.0]) == Summary(1, 3.0, std=None, low=None, high=None)
    assert summarise([]) is None


def test_the_gain_over_the_labels_is_the_t_interval_of_the_pairs(report):
    gain = by_label(report)["kd"].gain
    expected = scipy.stats.ttest_rel(TOP1["kd"], TOP1["label_only"]).confidence_interval(0.95)
    assert gain.n == 3
    assert gain.mean == pytest.approx(np.mean(TOP1["kd"]) - np.mean(TOP1["label_only"]))
    assert (gain.low, gain.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert by_label(report)["label_only"].gain is None


def test_a_gain_takes_the_seeds_that_both_have(store, experiment):
    runs = {(run.method.name, run.seed): run for run in experiment.runs}
    for name, seed in (("label_only", 1), ("label_only", 2), ("kd", 0), ("kd", 1)):
        put(store, runs[name, seed], TOP1[name][seed])
    gain = by_label(gather(store, experiment))["kd"].gain
    assert (gain.n, gain.mean, gain.low) == (1, TOP1["kd"][1] - TOP1["label_only"][1], None)


def test_a_gain_compares_equal_settings_only(store):
    text = TEXT.replace("grid:", "grid:\n  run.optim.lr: [0.05, 0.1]")
    experiment = parse(text, "rates")
    for run in plan(experiment.runs).students:
        if run.method.name == "kd" or run.optim.lr == 0.1:
            put(store, run, 50.0 if run.optim.lr == 0.1 else 90.0)
    groups = by_label(gather(store, experiment))
    assert groups["kd lr=0.05"].gain is None
    assert groups["kd lr=0.1"].gain.mean == 0.0


def test_a_run_without_a_teacher_is_the_reference_of_one_with(store):
    kd = parse(TEXT, "taught").runs
    alone = [
        run.model_copy(update={"teacher": None}) for run in kd if run.method.name == "label_only"
    ]
    runs = (*alone, *(run for run in kd if run.method.name == "kd"))
    experiment = Experiment("mixed", runs, parse(TEXT, "").scale)
    finished(store, experiment)
    groups = by_label(gather(store, experiment))
    assert [*groups] == ["label_only teacher=none", "kd"]
    assert groups["kd"].gain.n == 3


def test_a_finished_run_without_its_result_is_an_error(store, experiment):
    put(store, experiment.runs[0], 90.0)
    (store.path(experiment.runs[0]) / RESULT).unlink()
    with pytest.raises(CacheCorrupt, match=r"result\.json.*remove the folder"):
        gather(store, experiment)


def test_the_cost_counts_what_the_caches_hold(store, experiment):
    finished(store, experiment)
    for job in plan(experiment.runs).caches:
        shards = (Shard(Part(0, 0, 120), 900, "a"), Shard(Part(1, 0, 100), 100, "b"))
        manifest = Manifest(job.run.plain(), "weights", 120, shards)
        write_manifest(store.path(job.run), manifest)
    cost = gather(store, experiment).cost
    assert (cost.forwards, cost.bytes) == (2 * 220, 2 * 1000)  # of training and of test images
    assert cost.epochs == 9 * EPOCHS  # of all students but those with the labels alone
    assert (cost.teacher_seconds, cost.student_seconds) == (8.0, 4 * (8.0 + 9.0 + 10.0))
