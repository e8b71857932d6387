"""A student trained inside the workers of a TorchTrainer that is not ours."""

import json

import pytest
from ray.train import UserCallback

import raykd
from tests.launch.ray_marks import RAY

pytestmark = RAY
SHORT = {"epochs": 2, "batch": 32}
STUDENT = raykd.Student(
    "resnet8",
    data=raykd.Data("digits", holdout=0.1, limit=96, augment={"pad": 1}),
    teacher=raykd.Teacher("resnet8", optim=SHORT),
    method="kd",
    optim=SHORT,
)


class Reports(UserCallback):
    """A line of JSON for each report; Ray Train calls this in its controller."""

    def __init__(self, path):
        self.path = path

    def after_report(self, run_context, metrics, checkpoint):
        with self.path.open("a") as file:
            file.write(json.dumps(metrics[0]) + "\n")


def train_func(config):
    """The loop of somebody else's workers."""
    import raykd

    raykd.train_here(config["student"], config["store"])


def fit(student, store, folder):
    """The reports of a group of two workers that trains a student."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    folder.mkdir(exist_ok=True)
    reports = folder / "reports.jsonl"
    reports.write_text("")
    trainer = TorchTrainer(
        train_func,
        train_loop_config={"student": student, "store": str(store)},
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(storage_path=str(folder), callbacks=[Reports(reports)]),
    )
    trainer.fit()
    return [json.loads(line) for line in reports.read_text().splitlines()]


def test_a_student_is_trained_in_the_workers_of_others(cluster, tmp_path):
    from ray.train import TrainingFailedError

    store = tmp_path / "store"
    with pytest.raises(TrainingFailedError, match="lacks what the student learns from"):
        fit(STUDENT, store, tmp_path / "ray")
    raykd.cache(STUDENT, store, workers=0, quiet=True)
    done = fit(raykd.Experiment(STUDENT), store, tmp_path / "ray")
    (student,) = raykd.results(STUDENT, store, quiet=True)
    assert student.result["workers"] == 2
    assert done[-1]["epoch"] == 1
    assert done[-1]["top1"] == student.result["last"]["top1"]
    assert not fit(student.recipe, store, tmp_path / "ray")  # there is nothing to train
    (same,) = raykd.run(STUDENT, store, workers=0, quiet=True)
    assert same.result == student.result
