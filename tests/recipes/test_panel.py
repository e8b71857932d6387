"""Panels of teachers in files and recipes: what is written, what is planned, what is refused."""

import itertools

import jsonschema
import pytest
import yaml

from raykd.config.experiment import parse
from raykd.config.schema import schema
from raykd.core.errors import ConfigError
from raykd.core.record import canonical, fingerprint
from raykd.data.recipe import Data, Stream
from raykd.data.transforms.augment import Augment
from raykd.methods.kd import KD
from raykd.outputs.codecs import Int8, TopK
from raykd.planning.plan import plan
from raykd.recipes import Optim, PanelRun, StudentRun, TeacherRun
from raykd.report.labels import labels
from tests.each import each

DATA = Data(name="cifar10", augment=Augment(pad=4), digest="0" * 20, classes=10)
A, B, C = (TeacherRun(model=name, data=DATA) for name in ("resnet56", "resnet32", "wrn_16_2"))
SHORT = Optim(epochs=3)
FILE = """
run:
  model: resnet8
  data: {name: digits, augment: {mix: {kind: mixup}}}
  teacher:
    panel:
    - {model: resnet14, optim: {epochs: 30}}
    - {model: resnet20, optim: {epochs: 20}}
    combine: mean_logits
    shares: [0.25, 0.75]
  method: kd
"""


def student(*members, **changes) -> StudentRun:
    panel = PanelRun(panel=members, **changes.pop("panel", {}))
    values = {"model": "resnet20", "data": DATA, "teacher": panel, "method": KD(), "optim": SHORT}
    return StudentRun(**(values | changes))


@pytest.mark.slow
def test_a_file_names_the_members_and_they_have_the_student_s_images():
    (run,) = parse(FILE, "test").runs
    assert isinstance(run, StudentRun) and isinstance(run.teacher, PanelRun)
    assert (run.teacher.combine, run.teacher.shares) == ("mean_logits", (0.25, 0.75))
    assert [member.model for member in run.members()] == ["resnet14", "resnet20"]
    assert all(member.data == Data(name="digits") for member in run.members())
    jsonschema.validate(yaml.safe_load(FILE), schema())


@pytest.mark.slow
def test_an_assistant_may_learn_from_a_panel_and_be_a_member_of_one():
    (run,) = parse(FILE + "  assistants: [resnet14]\n", "test").runs
    (assistant,) = run.members()
    assert isinstance(assistant.teacher, PanelRun)
    member = {"model": "resnet14", "teacher": {"model": "resnet20"}, "method": "kd"}
    panel = yaml.safe_dump({"panel": [member, {"model": "resnet20"}]}, default_flow_style=True)
    text = f"run:\n  model: resnet8\n  data: {{name: digits}}\n  method: kd\n  teacher: {panel}"
    (run,) = parse(text, "test").runs
    first, second = run.members()
    assert isinstance(first, StudentRun) and isinstance(second, TeacherRun)
    work = plan([run.model_copy(update={"optim": SHORT})])
    assert [made.model for made in work.students] == ["resnet14", "resnet8"]
    assert work.teachers == (second,)
    jsonschema.validate(yaml.safe_load(text), schema())


def test_a_mistake_in_a_member_is_named_with_its_place():
    for old, new, message in [
        ("resnet20", "resnet21", "experiment.run.teacher.panel.1.model: "),
        ("[0.25, 0.75]", "[1.0]", "experiment.run.teacher: 2 teachers need as many shares, got 1"),
        ("[0.25, 0.75]", "[0, 0.0]", "experiment.run.teacher: shares: all are 0"),
        ("[0.25, 0.75]", "[2, -1]", "experiment.run.teacher.shares.1: input should be greater"),
        ("mean_logits", "mean", "experiment.run.teacher.combine: input should be "),
        ("combine:", "combin:", "experiment.run.teacher.combin: no such key; did you mean"),
    ]:
        with pytest.raises(ConfigError) as caught:
            parse(FILE.replace(old, new), "test")
        assert str(caught.value).startswith(message), str(caught.value)


def test_it_survives_json_and_each_field_has_a_fingerprint():
    runs = [
        student(A, B),
        student(B, A),
        student(A, B, panel={"combine": "mean_logits"}),
        student(A, B, panel={"shares": (1.0, 2.0)}),
        student(A),
        student(A, B, C),
    ]
    assert [StudentRun.read(run.plain()) for run in runs] == runs
    assert len({fingerprint(run) for run in runs}) == len(runs)
    assert '"combine"' not in canonical(runs[0])


def test_all_subsets_of_some_teachers_read_one_cache_of_each():
    teachers = (A, B, C)
    subsets = [s for n in (1, 2, 3) for s in itertools.combinations(teachers, n)]
    runs = [student(*s, panel={"combine": c}) for s in subsets for c in ("mean_logits",)]
    runs += [student(*s) for s in subsets]
    alone = [
        StudentRun(model="resnet20", data=DATA, teacher=teacher, method=KD(), optim=SHORT)
        for teacher in teachers
    ]
    work = plan(runs)
    assert work.teachers == teachers
    assert set(work.caches) == set(plan(alone).caches)
    assert len(work.caches) == 2 * len(teachers)  # training and test images of each


def test_a_live_panel_has_caches_of_the_test_images_alone():
    caches = plan([student(A, B, source="live")]).caches
    assert [(job.run.teacher, job.run.split) for job in caches] == [(A, "test"), (B, "test")]


def test_each_member_answers_at_its_own_resolution():
    stream = {"size": 32, "resize": 36}
    mine = DATA.model_copy(update={"stream": Stream(**stream), "size": (32, 32)})
    larger = DATA.model_copy(update={"stream": Stream(size=64, resize=72), "size": (64, 64)})
    near, far = A.model_copy(update={"data": mine}), B.model_copy(update={"data": larger})
    run = student(near, far, data=mine)
    assert [cache.data.stream.size for cache in run.caches_at(0)] == [32, 64]
    with pytest.raises(ValueError, match="leave run"):
        student(near, far, data=mine, source="live")


REFUSED = {
    "features": ({"method": "at"}, "method 'at' reads features, of which a panel has several"),
    "embeddings": ({"method": "pkt"}, "'pkt' reads embedding, of which a panel has several"),
    "a prelude": ({"method": "ab"}, "'ab' reads preactivations, of which a panel has several"),
    "pixels": ({"method": "jacobian"}, "'jacobian' reads pixels, of which a panel has several"),
    "a sum": ({"method": {"combine": ["crd", "kd"]}}, "'crd . kd' reads embedding, of which"),
    "a policy": ({"method": {"name": "sakd", "base": "kd"}}, "reads embedding, classifier, of"),
    "some classes": (
        {"method": {"name": "kd", "temperature": 1.0}, "codec": {"name": "topk"}},
        "codec 'topk' keeps other classes of each member of a panel, whose mean is over all; "
        "use codec: dense or int8",
    ),
    "a route": ({"route": {"anchors": [10]}}, "run.teacher is a panel; leave run.route out"),
    "a choice of routes": ({"rco": {"anchors": 2}}, "experiment.run.rco: a route leads through"),
}


@each("name", REFUSED)
def test_what_one_answer_is_not_enough_for_is_refused(name):
    changes, message = REFUSED[name]
    tree = yaml.safe_load(FILE)
    tree["run"] |= changes
    with pytest.raises(ConfigError, match=message):
        parse(yaml.safe_dump(tree), "test")


def test_every_method_that_reads_logits_alone_takes_a_panel():
    for method in ("kd", "dkd", "dist", "mlkd", "stkd", "hard_kd", "logit_standardisation"):
        text = FILE.replace("method: kd", f"method: {method}").replace("{mix: {kind: mixup}}", "{}")
        assert parse(text, "test", ["run.codec=int8"]).runs
    always = {"name": "sakd", "base": "kd", "mode": "always"}
    assert parse(FILE, "test", [f"run.method={always}"]).runs
    assert student(A, B, codec=Int8())
    assert student(A, B, codec=TopK(), source="live")


def test_panels_have_labels_by_their_members():
    runs = [student(A, B), student(A, C), student(A, C, panel={"shares": (1.0, 3.0)})]
    assert labels([run.plain() for run in runs]) == [
        "kd from resnet56 + resnet32 teacher.shares=none",
        "kd from resnet56 + wrn_16_2 teacher.shares=none",
        "kd from resnet56 + wrn_16_2 teacher.shares=[1.0,3.0]",
    ]
    slower = B.model_copy(update={"optim": Optim(epochs=100)})
    found = labels([student(A, B).plain(), student(A, slower).plain()])
    assert found == [f"kd teacher.panel.1.epochs={epochs}" for epochs in (240, 100)]
