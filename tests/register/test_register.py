"""What a plugin registers is as raykd's own in recipes, and its content in their fingerprints."""

import pickle

import pytest
import torch

from raykd.config.experiment import parse
from raykd.core import plugins
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.methods import METHODS
from raykd.models import build
from raykd.recipes import StudentRun
from tests.plugin import METHOD, MODEL, withdrawing, written


@pytest.fixture(autouse=True)
def no_plugin_is_left():
    with withdrawing():
        yield


def student(folder, model="resnet8", method="kd", **named):
    """The student of an experiment file in a folder."""
    lines = [
        f"plugins: {named.get('plugins', ['mine.py'])}",
        "run:",
        f"  model: {model}",
        "  data: {name: digits}",
        f"  teacher: {{model: {named.get('teacher', 'resnet8')}}}",
        f"  method: {method}",
    ]
    experiment = parse("\n".join(lines), "x", path=str(folder / "x.yaml"))
    (run,) = experiment.students()
    return run


def test_a_recipe_names_the_plugins_that_it_uses_and_no_others(tmp_path):
    written(tmp_path, METHOD)
    written(tmp_path, MODEL, "net.py")
    both = ["mine.py", "net.py"]
    plain = student(tmp_path, plugins=both)
    assert plain.plugins == plain.teacher.plugins == ()
    mine, net = (plugin.digest for plugin in plugins.loaded())
    assert student(tmp_path, method="mine", plugins=both).plugins == (mine,)
    assert student(tmp_path, method="{combine: [mine, at]}", plugins=both).plugins == (mine,)
    assert student(tmp_path, method="{name: sakd, base: mine}", plugins=both).plugins == (mine,)
    assert student(tmp_path, "small", "mine", plugins=both).plugins == tuple(sorted((mine, net)))
    taught = student(tmp_path, method="mine", teacher="small", plugins=both)
    assert taught.plugins == (mine,)
    assert taught.teacher.plugins == (net,)


def test_a_changed_plugin_changes_the_fingerprints_of_what_uses_it_alone(tmp_path):
    def fingerprints():
        runs = [student(tmp_path, method=method) for method in ("mine", "kd")]
        runs.append(student(tmp_path, "small", "kd"))
        return [fingerprint(run) for run in runs] + [fingerprint(run.teacher) for run in runs]

    written(tmp_path, METHOD + MODEL)
    before = fingerprints()
    written(tmp_path, METHOD + MODEL + "# changed\n")
    after = fingerprints()
    assert [a == b for a, b in zip(before, after, strict=True)] == [
        False, True, False, True, True, True,
    ]  # fmt: skip


def test_a_copy_of_a_recipe_names_the_plugins_that_it_uses_then(tmp_path):
    written(tmp_path, METHOD)
    run = student(tmp_path, method="mine")
    assert run.model_copy(update={"method": METHODS["kd"]()}).plugins == ()
    assert run.model_copy(update={"seed": 3}).plugins == run.plugins


def test_recipes_survive_json_and_pickle(tmp_path):
    written(tmp_path, METHOD)
    run = student(tmp_path, method="{name: my_own, weight: [[0, 1.0], [9, 0.5]]}")
    assert run.method.name == "mine"
    assert StudentRun.read(run.plain()) == run
    assert pickle.loads(pickle.dumps(run)) == run
    assert run.plain()["plugins"] == [plugins.loaded()[0].digest]


def test_mistakes_within_a_plugins_method_have_their_key(tmp_path):
    written(tmp_path, METHOD)
    for method, sentence in {
        "{name: mine, powr: 3}": r"run\.method\.powr: no such key; did you mean 'power'\?",
        "{name: mine, power: x}": r"run\.method\.power: .*integer, got 'x'",
        "mime": r"run\.method\.name: no method is called 'mime'; did you mean 'mine'\?",
        "{combine: [at, {name: mine, x: 1}]}": r"run\.method\.combine\.1\.x: no such key",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            student(tmp_path, method=method)


def test_mistakes_about_plugins_have_their_line(tmp_path):
    written(tmp_path, METHOD)
    for named, sentence in {
        "[other.py]": r"plugins\.0: .*other\.py: cannot be read .*\(.*x\.yaml, line 1\)",
        "mine.py": r"experiment\.plugins: expected a list, such as \[mine\.py\], got 'mine\.py'",
        "[3]": r"experiment\.plugins\.0: expected a file or a package.*got 3",
    }.items():
        with pytest.raises(ConfigError, match=sentence):
            student(tmp_path, plugins=named)
    text = "run: {plugins: [mine.py], model: resnet8, data: {name: digits}}"
    with pytest.raises(ConfigError, match=r"run\.plugins: name plugins at the top of the file"):
        parse(text, "x")


def test_a_plugins_network_has_stages_and_becomes_a_backbone(tmp_path):
    plugins.load(str(written(tmp_path, MODEL)))
    torch.manual_seed(0)
    network = build("small", 7).eval()
    pixels = torch.randn(2, 3, 16, 16)
    assert torch.equal(network(pixels), network.network(pixels))
    assert [*network.stages] == ["stem", "stage1"]
    assert build("small", 0)(pixels).shape == (2, 16)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        ("lambda: None", "'bad' cannot be made .TypeError.*given the number of classes"),
        ("lambda classes: 3", "expected its function to return an nn.Module, got int"),
        ("lambda classes: Small(5)", "was asked for 10 classes, and its classifier 'fc' has 5"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused(tmp_path, function, sentence):
    text = f"{MODEL}\n\nraykd.register.model('bad')({function})\n"
    plugins.load(str(written(tmp_path, text)))
    with pytest.raises(ConfigError, match=sentence):
        build("bad", 10)


def test_an_unregistered_method_is_refused_with_the_way_to_register_it(tmp_path):
    kind = type("Other", (METHODS["kd"],), {"__module__": __name__})
    with pytest.raises(ValueError, match=r"Other is no method that raykd knows; put it in a file"):
        StudentRun(model="resnet8", data={"name": "digits"}, method=kind())
