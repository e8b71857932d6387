"""The short forms of experiment files that stand for routes and for chains of assistants."""

import json

import jsonschema
import pytest

from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.config.schema import schema
from raykd.config.strict_yaml import read_yaml
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.methods.kd import KD
from raykd.methods.presets import PRESETS
from raykd.recipes import Optim, SearchedStudent, StudentRun, TeacherRun
from raykd.recipes.rco import along
from tests.each import each

PLAIN = """
run:
  model: resnet8
  data: {name: digits, augment: {pad: 1}, validation: 0.2}
  teacher: {model: resnet8x4, optim: {epochs: 40}}
  method: kd
  optim: {epochs: 12}
"""
ROUTE = PLAIN + "  rco: {anchors: 2}\n"
GREEDY = PLAIN + "  rco: {select: greedy}\n"
CHAIN = PLAIN + "  assistants: [resnet14, resnet8]\n"


def any_student(text: str, *overrides: str):
    (run,) = parse(text, "test", overrides).runs
    return run


def student(text: str, *overrides: str) -> StudentRun:
    run = any_student(text, *overrides)
    assert isinstance(run, StudentRun)
    return run


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        parse(text, "test", overrides)
    return str(error.value)


def above(run: StudentRun) -> list[str]:
    """The networks from the student up to its teacher."""
    found, one = [run.model], run.teacher
    while isinstance(one, StudentRun):
        found.append(one.model)
        one = one.teacher
    return [*found, one.model] if one else found


# Presets


@each("name", list(PRESETS))
def test_a_preset_is_the_method_that_it_stands_for(name):
    method = json.dumps(PRESETS[name].method)
    one, other = (student(PLAIN, f"run.method={each}") for each in (name, method))
    assert fingerprint(one) == fingerprint(other)
    jsonschema.validate(read_yaml(PLAIN.replace("kd", name), "test"), schema())


def test_a_preset_may_be_changed_and_be_a_part_of_a_sum():
    run = student(PLAIN, "run.method={name: radio, grid: 2, weight: 3.0}")
    assert (run.method.label, run.method.grid, run.method.weight) == ("panel_distillation", 2, 3.0)
    assert run.method.standardise == "phi_s"
    run = student(PLAIN, "run.method={combine: [theia, kd]}")
    assert run.method.label == "dense_distillation + kd"
    assert "did you mean 'lightly_v3'?" in refusal(PLAIN, "run.method=lightly_v5")


@each(
    "method",
    [
        "{name: radio, grid: 7}",
        "{name: lightly_v3}",
        "{combine: [theia, kd]}",
        "{combine: [crd, {name: at}]}",
    ],
)
def test_the_schema_takes_presets_with_keys_and_names_within_a_sum(method):
    jsonschema.validate(read_yaml(PLAIN.replace("kd", method), "test"), schema())


@each(
    ("method", "words"),
    {
        "{name: lightly_v3, grid: 7}": "'lightly_v3' is a sum, so it has no keys of its own; write",
        "{combine: [lightly_v3, kd]}": "it is no part of another method; write it out, and change",
        "{name: [radio]}": "no method is called",
    }.items(),
)
def test_a_preset_that_cannot_stand_where_it_does_says_what_can(method, words):
    assert words in refusal(PLAIN, f"run.method={method}")


# Routes


@each("stages", ["multi_stage", "one_stage"])
def test_a_route_is_written_as_the_way_in_which_it_is_chosen(stages):
    for rco, anchors in {
        "{}": (10, 20, 30, 40),
        "{anchors: 2}": (20, 40),
        "{interval: 30}": (30, 40),
    }.items():
        run = student(PLAIN, f"run.rco={rco}", f"run.rco.stages={stages}")
        assert run == along(student(PLAIN), anchors, stages)


def test_a_route_of_one_anchor_or_none_is_the_plain_student():
    for rco in ("null", "{anchors: 1}", "{interval: 40}", "{select: greedy, anchors: 1}"):
        assert fingerprint(student(PLAIN, f"run.rco={rco}")) == fingerprint(student(PLAIN))


def test_a_greedy_route_is_still_to_be_found():
    run = any_student(GREEDY, "run.rco.threshold=1.25", "run.rco.anchors=3")
    assert isinstance(run, SearchedStudent)
    assert (run.search.student, run.search.threshold) == (student(PLAIN), 1.25)
    assert (run.search.at_most, run.search.measure, run.stages) == (3, "kl", "multi_stage")
    assert (run.search.temperature, any_student(GREEDY).search.threshold) == (1.0, 1.6)


def test_a_grid_may_vary_how_a_route_is_chosen():
    text = PLAIN + "grid: {run.rco: [null, {anchors: 2}, {select: greedy}], run.seed: [0, 1]}\n"
    runs = parse(text, "test").runs
    assert [isinstance(run, SearchedStudent) for run in runs] == [False] * 4 + [True] * 2
    plain = [student(PLAIN, f"run.seed={seed}") for seed in (0, 1)]
    assert list(runs[:2]) == plain
    assert list(runs[2:4]) == [along(run, (20, 40), "multi_stage") for run in plain]
    assert [run.search.student for run in runs[4:]] == plain


def test_a_grid_of_methods_leaves_the_one_that_asks_no_teacher_without_a_route():
    runs = parse(ROUTE + "grid: {run.method: [label_only, kd]}\n", "test").runs
    assert [len(run.stages()) for run in runs] == [1, 2]


def test_students_of_one_search_share_it():
    text = GREEDY + "grid: {run.rco.stages: [multi_stage, one_stage]}\n"
    experiment = parse(text, "test")
    assert len(experiment.runs) == 2
    assert len(experiment.searches()) == 1
    assert experiment.students() == ()


def test_resolving_fills_in_every_stage_every_assistant_and_what_is_searched(store):
    stages = resolve(parse(ROUTE, "test"), store).runs[0]
    assert {stage.data.digest for stage in stages.stages()} == {stages.data.digest} != {""}
    assert {stage.teacher.data.classes for stage in stages.stages()} == {10}
    chain = resolve(parse(CHAIN, "test"), store).runs[0]
    assert chain.teacher.teacher.teacher.data.digest == chain.teacher.data.digest != ""
    found = resolve(parse(GREEDY, "test"), store).runs[0]
    assert found.search.student.data.digest == found.search.student.teacher.data.digest != ""
    assert fingerprint(found.search.stage((10, 40))) == fingerprint(found.along((10, 40)))


ROUTE_MISTAKES = {
    "more anchors than there are": (
        ["run.rco={anchors: 5}"],
        "experiment.run.rco: 5 anchors are asked for and the teacher saves 4, [10, 20, 30, 40]; "
        "lower teacher.save_every, or ask for fewer",
    ),
    "an interval that is not saved": (
        ["run.rco={interval: 15}"],
        "experiment.run.rco: an interval of 15 wants the teacher's epoch 15, and saved are "
        "[10, 20, 30, 40]; choose a multiple of teacher.save_every",
    ),
    "two ways at once": (
        ["run.rco={interval: 10, anchors: 2}"],
        "experiment.run.rco: interval goes with select: equal, and stands in place of anchors",
    ),
    "a greedy choice by intervals": (
        ["run.rco={select: greedy, interval: 10}"],
        "experiment.run.rco: interval goes with select: equal, and stands in place of anchors",
    ),
    "a route beside it": (
        ["run.rco={anchors: 2}", "run.route={anchors: [40]}"],
        "experiment.run.rco: it chooses the route through a teacher: add run.teacher, and leave "
        "run.route out",
    ),
    "a greedy choice without held-out images": (
        ["run.rco={select: greedy}", "run.data.validation=null"],
        "experiment.run.rco: the greedy choice of anchors measures on images that nothing is "
        "trained on; add run.data.validation, such as 0.2: the share that the experiment holds "
        "out",
    ),
    "a loss that is no measure": (
        ["run.rco={select: greedy, measure: loss}", "run.method=mlkd"],
        "experiment.run.rco: method 'mlkd' reads several looks at a sample, so its loss is no "
        "measure between checkpoints; use rco.measure: kl",
    ),
    "a method that trains the teacher": (
        ["run.rco={anchors: 2}", "run.method={name: sakd, mode: both}"],
        "experiment.run.rco: method 'sakd(at, both)' trains the teacher, and a route would "
        "change it on the way; leave run.route out",
    ),
    "a key that there is not": (
        ["run.rco={treshold: 2}"],
        "experiment.run.rco.treshold: no such key; did you mean 'threshold'?",
    ),
    "a word": (
        ["run.rco=greedy"],
        "experiment.run.rco: expected keys and values ({key: value}), got 'greedy'",
    ),
    "no anchors": (
        ["run.rco={anchors: 0}"],
        "experiment.run.rco.anchors: input should be greater than or equal to 1, got 0",
    ),
    "a share that is no share": (
        ["run.data.validation=1.0"],
        "experiment.run.data.validation: input should be less than 1, got 1.0\n"
        "experiment.run.teacher.data.validation: input should be less than 1, got 1.0",
    ),
}


def test_a_mistake_in_a_route_is_named_with_its_place_and_its_remedy():
    messages = {what: refusal(PLAIN, *words) for what, (words, _) in ROUTE_MISTAKES.items()}
    assert messages == {what: message for what, (_, message) in ROUTE_MISTAKES.items()}


# Assistants


def test_assistants_stand_between_student_and_teacher_in_the_order_of_the_list():
    run = student(CHAIN)
    assert above(run) == ["resnet8", "resnet8", "resnet14", "resnet8x4"]
    assert run.teacher.teacher.teacher == student(PLAIN).teacher
    assert isinstance(run.teacher.teacher.teacher, TeacherRun)


def test_an_assistant_has_what_the_student_has_where_it_says_nothing_else():
    run = student(CHAIN, "run.views=3", "run.label_weight=0.3", "run.teacher_precision=bfloat16")
    plain = student(PLAIN, "run.views=3", "run.label_weight=0.3", "run.teacher_precision=bfloat16")
    first = run.teacher.teacher
    assert first == plain.model_copy(update={"model": "resnet14"})
    assert run.teacher == plain.model_copy(update={"teacher": first})
    assert run == plain.model_copy(update={"teacher": run.teacher})


def test_an_assistant_may_be_written_out():
    text = "[{model: resnet14, optim: {epochs: 5}, method: {name: kd, temperature: 2.0}}, resnet8]"
    run = student(PLAIN, f"run.assistants={text}")
    first, second = run.teacher.teacher, run.teacher
    assert (first.optim, first.method) == (Optim(epochs=5), KD(temperature=2.0))
    assert (second.optim, second.method) == (Optim(epochs=12), KD())


def test_no_assistants_are_plain_distillation():
    for nothing in ("[]", "null"):
        assert student(PLAIN, f"run.assistants={nothing}") == student(PLAIN)


def test_students_of_several_seeds_share_their_assistants():
    runs = parse(CHAIN + "grid: {run.seed: [0, 1, 2]}\n", "test").runs
    assert len({run.teacher for run in runs}) == 1
    assert len({fingerprint(run) for run in runs}) == 3


def test_a_baseline_asks_no_assistant():
    run = student(CHAIN, "run.method=label_only")
    assert run == student(PLAIN, "run.method=label_only")


def test_a_grid_may_vary_the_chain():
    text = PLAIN + "grid: {run.assistants: [[], [resnet14], [resnet14, resnet8]]}\n"
    assert [len(above(run)) for run in parse(text, "test").runs] == [2, 3, 4]


def test_a_teacher_that_has_a_teacher_is_an_assistant():
    text = "{model: resnet14, teacher: {model: resnet8x4, optim: {epochs: 40}}}"
    assert student(PLAIN, f"run.teacher={text}") == student(PLAIN, "run.assistants=[resnet14]")


def test_the_schema_takes_what_can_be_read():
    expected = schema()
    for text in (PLAIN, ROUTE, GREEDY, CHAIN):
        jsonschema.validate(read_yaml(text), expected)


CHAIN_MISTAKES = {
    "no teacher": (
        ["run.teacher=null"],
        "experiment.run.assistants: they stand below a teacher; add run.teacher",
    ),
    "one network": (
        ["run.assistants=resnet14"],
        "experiment.run.assistants: expected a list of networks, the first of which learns from "
        "the teacher, got 'resnet14'",
    ),
    "a number": (["run.assistants=[3]"], "experiment.run.assistants: 3 is no network"),
}


def test_a_mistake_in_a_chain_is_named_with_its_place_and_its_remedy():
    messages = {what: refusal(CHAIN, *words) for what, (words, _) in CHAIN_MISTAKES.items()}
    assert messages == {what: message for what, (_, message) in CHAIN_MISTAKES.items()}


def test_an_assistant_that_cannot_be_used_alone_is_refused():
    message = refusal(CHAIN, "run.method=simkd")
    assert "cannot be used without parts of its teacher, so it can teach no one" in message
    given = student(CHAIN, "run.method=simkd", "run.assistants=[{model: resnet14, method: kd}]")
    assert above(given) == ["resnet8", "resnet14", "resnet8x4"]


def test_a_mistake_in_an_assistant_is_told_where_it_was_made():
    for override in (
        "run.method=simkd",
        "run.assistants=[resnot14]",
        "run.assistants=[{modle: x}]",
    ):
        assert "experiment.run.assistants" in refusal(CHAIN, override)
    assert "assistants" in refusal(CHAIN, "run.assistants=[resnet14]", "run.rco={}")


def test_a_student_does_not_go_on_after_one_of_other_images(store, tmp_path):
    import numpy as np
    from PIL import Image

    for name in map(str, range(10)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(5):
            pixels = np.full((8, 8, 3), 20 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{number}.png")
    after = "{model: resnet8, data: {name: folder}}"
    experiment = parse(PLAIN, "test", [f"run.after={after}", f"data.path={tmp_path / 'photos'}"])
    with pytest.raises(ConfigError, match="goes on after"):
        resolve(experiment, store)
