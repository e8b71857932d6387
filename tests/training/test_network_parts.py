"""Parts of a network that have rates of their own, and parts that stay as they are."""

import pytest
import safetensors.torch
import torch
from torch import nn

from raykd import models
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.methods.crd import CRD
from raykd.methods.kd import KD
from raykd.methods.sakd import SAKD
from raykd.models import build
from raykd.planning.preflight import preflight
from raykd.recipes import Optim
from raykd.storage.store import Store
from raykd.training import network_parts
from raykd.training.learner import Learner
from raykd.training.optim import build_optimiser, update
from tests.each import each
from tests.process_group import run_group
from tests.small import batch, helpers_of, pair, prepare, student_run, trained
from tests.training import group_work, scale_work
from tests.training.test_loop import twin
from tests.training.test_mid_epoch import ADAM, interrupted

RATES = {"stages": 0.1, "stage2": 3.0, "classifier": 10.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("store"))
    prepare(store, student_run(store))
    return store


def named_parts(network):
    """The names of the tensors of each part's own parameters and buffers."""
    parts = network_parts.parts_of(network)
    tensors = network.network.state_dict(keep_vars=True)
    return {
        part: {
            name
            for name, value in tensors.items()
            for module in modules
            for inner in (*module.parameters(recurse=False), *module.buffers(recurse=False))
            if value is inner
        }
        for part, modules in parts.items()
    }


@pytest.mark.slow
@each(
    ("name", "expected"),
    [
        ("resnet8", ["stem", "stage1", "stage2", "stage3", "pool", "classifier"]),
        ("torchvision/vit_b_16", ["stages", "classifier"]),
        ("timm/convnext_atto", ["stem", "stage1", "stage2", "stage3", "stage4"]),
        ("timm/vit_tiny_patch16_224", ["stages", "classifier"]),
    ],
)
def test_every_tensor_of_a_network_belongs_to_one_part(name, expected):
    with torch.device("meta"):
        network = build(name, 10)
    parts = named_parts(network)
    assert set(expected) <= parts.keys() <= {*expected, "pool", "classifier"}
    names = [name for part in parts.values() for name in part]
    assert sorted(names) == sorted(network.network.state_dict())
    assert parts["classifier"] and all(parts[part] for part in expected if part != "pool")


def gradients(learner):
    """Gradients of a step on a fixed batch."""
    sample = batch(8, 16)
    losses, _ = learner(sample, None, 1.0)
    torch.stack([*losses.values()]).sum().backward()
    return {name: value.grad.clone() for name, value in learner.named_parameters()}


def factor_of(name):
    """The factor that `RATES` has for a parameter of a student resnet8."""
    for part in ("stage2", "classifier"):
        if f".{part}." in name:
            return RATES[part]
    return RATES["stages"]


@each("kind", ["sgd", "adamw"])
def test_a_step_moves_each_part_by_its_own_rate(kind):
    rate, decay = 0.01, 0.02
    optim = Optim(name=kind, lr=rate, weight_decay=decay, momentum=0.9, parts=RATES)
    student, _ = pair()
    learner = Learner(student, KD(), nn.ModuleDict()).train()
    optimiser = build_optimiser(optim, learner, learner.factors(dict(optim.parts)))
    before = {name: value.detach().clone() for name, value in learner.named_parameters()}
    gradient = gradients(learner)
    update(optimiser, rate, None)
    for name, value in learner.named_parameters():
        step, start, g = rate * factor_of(name), before[name], gradient[name]
        if kind == "sgd":
            expected = start - step * (g + decay * start)
        else:  # the first step of Adam is g / (|g| + eps), whatever its moments' decays are
            expected = start * (1 - step * decay) - step * g / (g.abs() + 1e-8)
        torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-6)


def test_gradients_of_all_parts_are_clipped_by_their_norm_together():
    student, _ = pair()
    learner = Learner(student, KD(), nn.ModuleDict()).train()
    optim = Optim(parts=RATES, momentum=0.0, weight_decay=0.0, clip=0.1)
    optimiser = build_optimiser(optim, learner, learner.factors(dict(optim.parts)))
    before = {name: value.detach().clone() for name, value in learner.named_parameters()}
    gradient = gradients(learner)
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    assert norm > 0.1
    update(optimiser, 0.5, optim.clip)
    for name, value in learner.named_parameters():
        expected = before[name] - 0.5 * factor_of(name) * gradient[name] * 0.1 / norm
        torch.testing.assert_close(value.detach(), expected, rtol=1e-4, atol=1e-7)


def test_without_parts_the_optimiser_has_one_group_without_a_rate():
    learner = Learner(pair()[0], KD(), nn.ModuleDict())
    (group,) = build_optimiser(Optim(), learner, learner.factors({})).param_groups
    assert group["params"] == [*learner.parameters()]
    assert not {"rate", "together"} & group.keys()


@pytest.mark.slow
def test_helpers_have_a_factor_of_their_own(store):
    run = student_run(store, CRD(negatives=64))
    student, teacher = pair()
    shapes = models.measure(student, (16, 16)), models.measure(teacher, (16, 16))
    helpers = run.method.helpers(*shapes, torch.arange(40) % 10)
    learner = Learner(student, run.method, helpers)
    groups = build_optimiser(Optim(), learner, learner.factors({"helpers": 5.0})).param_groups
    assert {group["rate"]: {*group["params"]} for group in groups} == {
        1.0: {*student.parameters()},
        5.0: {value for value in helpers.parameters() if value.requires_grad},
    }


@pytest.mark.slow
def test_a_policy_keeps_its_own_pace_beside_the_factors(store):
    student, teacher = pair()
    method = SAKD()
    learner = Learner(student, method, helpers_of(method, student, teacher))
    rates = {"helpers": 4.0, "classifier": 10.0}
    *groups, policy = build_optimiser(Optim(), learner, learner.factors(rates)).param_groups
    assert {*policy["params"]} == {*learner.helpers["routing"].parameters()}
    assert (policy["rate"], policy["weight_decay"]) == (0.5 * 4.0, 1e-3)
    assert "together" not in policy  # it is clipped apart
    assert all(group["together"] for group in groups)
    frozen = Learner(student, method, learner.helpers, freeze=("helpers",))
    assert len(build_optimiser(Optim(), frozen).param_groups) == 1


FREEZE = ("stem", "stage1", "stage3")


def states(store, run):
    """Initial and final weights of a student."""
    torch.manual_seed(keyed_random.seed(run.seed))
    start = build(run.model, 10).network.state_dict()
    return start, safetensors.torch.load(trained(store, run))


def assert_frozen(start, end, parts):
    """The tensors of some stages are those of the start to the last bit; all others moved."""
    for name, value in start.items():
        same = torch.equal(value, end[name])
        assert same == (name.partition(".")[0] in parts), name


@each("kind", ["sgd", "adamw"])
def test_frozen_parts_stay_to_the_last_bit_with_their_statistics(store, kind):
    optim = Optim(name=kind, epochs=1, batch=32, ema=0.9, clip=1.0, freeze=FREEZE)
    run = student_run(store, optim=optim, precision="bfloat16" if kind == "adamw" else "float32")
    assert_frozen(*states(store, run), FREEZE)


@pytest.mark.slow
def test_a_run_with_parts_goes_on_as_if_it_had_not_stopped(store, tmp_path):
    optim = ADAM.model_copy(update={"parts": (("classifier", 10.0),), "freeze": FREEZE})
    run = student_run(store, optim=optim)
    alone = trained(store, run)
    assert interrupted(twin(store, tmp_path), run, [2, 3]) == alone


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*resource_tracker.*")
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_keep_what_is_frozen_and_rate_the_rest(store, tmp_path, workers):
    optim = Optim(epochs=1, batch=24, ema=0.9, parts={"classifier": 10.0}, freeze=FREEZE)
    run = student_run(store, optim=optim)
    other = twin(store, tmp_path / "store")
    run_group(workers, tmp_path, group_work.train, str(other.root), run, 0)
    assert_frozen(*states(other, run), FREEZE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*resource_tracker.*")
def test_workers_with_shares_of_the_weights_do_as_those_with_all_of_them(store, tmp_path):
    optim = Optim(epochs=1, batch=32, lr=0.01, parts={"classifier": 10.0}, freeze=FREEZE)
    results = []
    for shard in ("ddp", "fsdp"):
        run = student_run(store, optim=optim, seed=1)
        other = twin(store, tmp_path / shard)
        work = [(str(other.root), Scale(shard=shard), run)]
        run_group(2, tmp_path, scale_work.each, [(scale_work.train_each, work)])
        start, end = states(other, run)
        assert_frozen(start, end, FREEZE)
        results.append(end)
    for name, value in results[0].items():  # a sum over workers in another order
        torch.testing.assert_close(results[1][name], value, rtol=1e-4, atol=1e-5)


TEXT = """
run:
  model: resnet8
  data: {{name: digits, limit: 96, holdout: 0.1}}
  teacher: {{model: resnet8, optim: {{epochs: 2, batch: 32{teacher}}}}}
  method: {method}
  optim: {{epochs: 3, batch: 32{student}}}
"""


def refused(store, student="", teacher="", method="kd"):
    """The sentences of the refusal of an experiment."""
    text = TEXT.format(student=student, teacher=teacher, method=method)
    with pytest.raises(ConfigError) as caught:
        preflight(resolve(parse(text, "x"), store), store)
    return str(caught.value)


def test_parts_that_a_network_lacks_are_named_before_anything_is_trained(store):
    sentence = refused(store, ", parts: {stage9: 2.0}", ", freeze: [pool]")
    assert "experiment.run.optim.parts: resnet8 has no parameters in a part 'stage9'" in sentence
    assert "there are: stages, classifier, stage1, stage2, stage3, stem" in sentence
    assert "experiment.run.teacher.optim.freeze: resnet8 has no parameters in a part" in sentence


def test_a_network_that_is_wholly_frozen_is_refused(store):
    sentence = refused(store, ", freeze: [stages, classifier]")
    assert "experiment.run.optim.freeze: nothing of resnet8 is left to be trained" in sentence
    sentence = refused(store, ", freeze: [stages]", method="{name: fsp, init_epochs: 2}")
    assert "is left to be trained before the method's own training" in sentence


@each(
    ("keys", "sentence"),
    [
        ("parts: {head: 2}", "optim.parts: no part of a network is called 'head'; there are: st"),
        ("freeze: [body]", "optim.freeze.0: no part of a network is called 'body'"),
        ("parts: {stem: 2}, freeze: [stages]", "optim: stem is frozen and has a factor"),
        ("parts: {pool: 2}, freeze: [pool]", "optim: pool is frozen and has a factor"),
        ("parts: {pool: 0}", "optim.parts: pool: expected a factor from above 0"),
        ("parts: {pool: fast}", "optim.parts: pool: expected a factor from above 0"),
        ("parts: 3", "optim.parts: expected parts and their factors"),
        ("freeze: [stages, pool, classifier]", "optim: freeze names all of the network"),
    ],
)
def test_words_that_contradict_each_other_are_refused_as_they_are_read(keys, sentence):
    with pytest.raises(ConfigError) as caught:
        parse(TEXT.format(student=f", {keys}", teacher="", method="kd"), "x")
    assert sentence in str(caught.value)


def test_parts_are_a_mapping_in_files_and_in_plain_recipes(store):
    text = TEXT.format(student=", parts: {stem: 2, classifier: 10}", teacher="", method="kd")
    (run,) = parse(text, "x", ["run.optim.parts.pool=0.5"]).students()
    assert run.plain()["optim"]["parts"] == {"classifier": 10.0, "pool": 0.5, "stem": 2.0}
    assert type(run).read(run.plain()) == run
    assert Optim(freeze=("stem", "pool", "stem")) == Optim(freeze=("pool", "stem"))


@each("method", ["kd", "label_only"])
@each("named", ["parts: {helpers: 2.0}", "freeze: [helpers]"])
def test_helpers_of_a_method_without_any_are_refused(store, method, named):
    sentence = refused(store, f", {named}", method=method)
    assert f"names helpers, and method '{method}' has none with parameters" in sentence
