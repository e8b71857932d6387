"""The trials that a sweep still has to run, from the sheets in the store."""

import pytest
from ray.tune.experiment import Trial

from raykd.config.experiment import basis, parse
from raykd.config.search_space import Space
from raykd.launch.sweep.early_stopping import scheduler
from raykd.launch.sweep.trial import is_reported
from raykd.launch.sweep.tune_setup import Proposals, configurations
from raykd.storage.store import Store
from raykd.training.sweep_sheets import Sheet

pytestmark = pytest.mark.ray
RUN = """
run: {model: resnet8, data: {name: digits}, teacher: {model: resnet8}}
grid: {run.method: [kd, skd]}
search: {run.optim.lr: {loguniform: [0.01, 0.1]}}
"""


def space_of(sweep: str) -> Space:
    space = parse(f"{RUN}sweep: {sweep}", "small").space
    assert space is not None
    return space


def proposed(space: Space, store: Store, sheets: list[Sheet]) -> dict[str, dict]:
    """Every trial that is still to be run and its configuration, by name."""
    names: dict[str, str] = {}
    proposals = Proposals(space, "top1", store, sheets, names)
    configs = [proposals.suggest(str(number)) for number in range(proposals.left)]
    assert proposals.suggest("one more") == proposals.FINISHED
    return dict(zip(names.values(), configs, strict=True))


def test_trials_that_are_over_are_not_proposed_again(tmp_path):
    space, store = space_of("{samples: 3, seed: 5}"), Store(tmp_path)
    configs = configurations(space)
    assert configs == configurations(space) and len(configs) == 6
    names = [f"{number:05d}" for number in range(6)]
    assert proposed(space, store, []) == dict(zip(names, configs, strict=True))
    sheets = [
        Sheet("00001", configs[1], "one", "stopped"),
        Sheet("7c3f9_00002", configs[2], "one", "stopped"),  # as older versions named it
        Sheet("00004", configs[4], "one", "failed"),
        Sheet("00005", configs[5], "one", "running"),
    ]
    left = proposed(space, store, sheets)
    assert left == {names[n]: configs[n] for n in (0, 3, 4, 5)}


def test_optuna_goes_on_with_what_it_drew_and_draws_nothing_twice(tmp_path):
    pytest.importorskip("optuna")
    space, store = space_of("{samples: 6, algorithm: optuna}"), Store(tmp_path)
    first = proposed(space, store, [])
    assert len(first) == 6 and first == proposed(space, store, [])
    sheets = [
        Sheet("00000", first["00000"], "one", "stopped", last={"top1": 10.0}),
        Sheet("00001", first["00001"], "one", "stopped"),
        Sheet("00002", first["00002"], "one", "failed"),
    ]
    left = proposed(space, store, sheets)
    assert sorted(left) == ["00002", "00003", "00004", "00005"]
    assert left.pop("00002") == first["00002"]
    earlier = {config["run.optim.lr"] for config in first.values()}
    assert not earlier & {config["run.optim.lr"] for config in left.values()}


@pytest.mark.parametrize(
    ("compare", "expected"),
    [("alike", ["CONTINUE", "CONTINUE", "STOP"]), ("all", ["CONTINUE", "STOP", "STOP"])],
)
def test_early_stopping_compares_trials_of_one_method(compare, expected):
    text = f"{RUN}sweep: {{samples: 2, scheduler: asha, grace_epochs: 2, compare: {compare}}}"
    small = parse(text, "small")
    assert small.space is not None
    rule = scheduler(small, small.space, "top1")
    actions = []
    for number, (method, top1) in enumerate((("kd", 60.0), ("skd", 30.0), ("skd", 20.0))):
        config = {"run.method": method, "run.optim.lr": 0.01 * (number + 1)}
        trial = Trial("raykd", config=config, trial_id=str(number), stub=True)
        rule.on_trial_add(None, trial)
        actions.append(rule.on_trial_result(None, trial, {"epochs_done": 2, "top1": top1}))
    assert actions == expected


def test_an_epoch_without_the_metric_that_compares_is_not_reported():
    run = basis(parse(f"{RUN}sweep: {{samples: 1}}", "small").runs[0])
    epochs = [{"epoch": n, "cka": 50.0} | ({"knn_top1": 9.0} if n == 1 else {}) for n in range(3)]
    assert [is_reported(run, epoch, "knn_top1") for epoch in epochs] == [False, True, False]
    assert [is_reported(run, epoch, "cka") for epoch in epochs] == [True, True, True]
    last = run.optim.epochs - 1
    assert not is_reported(run, {"epoch": last, "cka": 50.0}, "cka")
