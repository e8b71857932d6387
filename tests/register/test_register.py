"""Things of a plugin are as raykd's own in recipes, and its content in their fingerprints."""

import pickle
import subprocess
import sys

import pytest
import torch

from raykd.api.experiment import Experiment
from raykd.config.experiment import parse
from raykd.config.resolve import resolve
from raykd.core import plugins
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.data.sources import SOURCES
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


DATASET = '''
import raykd
from raykd.data.sources.published import digits


@raykd.register.dataset("own_digits", normalisation=((0.3,) * 3, (0.4,) * 3))
def own_digits(path):
    """Digits of one's own."""
    return digits(path)
'''


def test_a_dataset_is_read_by_its_plugin_and_named_by_what_reads_it(store, tmp_path):
    written(tmp_path, DATASET)
    text = "plugins: [mine.py]\nrun: {model: resnet8, data: {name: own_digits, limit: 96}}"
    experiment = resolve(parse(text, "x", path=str(tmp_path / "x.yaml")), store)
    (run,) = experiment.students()
    assert run.plugins == (plugins.loaded()[0].digest,)
    assert (run.data.classes, run.data.mean) == (10, (0.3, 0.3, 0.3))
    assert SOURCES["own_digits"].title == "Digits of one's own."


TASK = '''
import raykd
from raykd.tasks.classification import Classification


@raykd.register.task("strict")
class Strict(Classification):
    """Twice the loss of the labels."""

    def label_loss(self, scores, batch, smoothing):
        """Twice the cross entropy."""
        return 2 * super().label_loss(scores, batch, smoothing)
'''


def test_a_task_with_a_name_of_its_own_is_read(tmp_path):
    text = TASK.replace("(Classification)", "(Task)").replace(
        "from raykd.tasks.classification import Classification", "from raykd.tasks import Task"
    )
    with pytest.raises(ConfigError, match="the task 'strict' does not define batch_sums and"):
        plugins.load(str(written(tmp_path, text)))
    written(tmp_path, TASK)
    text = "plugins: [mine.py]\nrun: {model: resnet8, data: {name: digits}, task: strict}"
    (run,) = parse(text, "x", path=str(tmp_path / "x.yaml")).students()
    assert (run.task.name, run.task.headline) == ("strict", "top1")
    assert run.plugins == (plugins.loaded()[0].digest,)
    assert StudentRun.read(run.plain()) == run


@pytest.mark.slow
def test_a_recipe_arrives_with_its_plugin_in_a_process_that_has_none(tmp_path):
    written(tmp_path, METHOD + MODEL)
    run = student(tmp_path, "small", "mine")
    (tmp_path / "mine.py").unlink()
    script = (
        "import pickle, sys; run = pickle.load(sys.stdin.buffer)\n"
        "from raykd.core.record import fingerprint\n"
        "from raykd.models import build\n"
        "print(fingerprint(run), *build(run.model, 10).stages)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(run), capture_output=True, check=False
    )
    assert done.stdout.decode().split() == [fingerprint(run), "stem", "stage1"], done.stderr


def test_a_plugin_of_one_experiment_is_none_of_another(tmp_path):
    path = written(tmp_path, METHOD)
    run = student(tmp_path, method="mine")
    with pytest.raises(ConfigError, match=r"mine is of the plugin mine.py, .* not named here"):
        student(tmp_path, method="mine", plugins=[])
    with pytest.raises(ConfigError, match=f"add {path.resolve()} to plugins"):
        student(tmp_path, method="{combine: [mine, at]}", plugins=[])
    assert Experiment(run).students() == (run,)  # a recipe names its plugins itself
