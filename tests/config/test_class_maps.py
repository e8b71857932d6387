"""The map from the data's classes to a teacher's: every form that a file may have."""

import csv

import pytest

from raykd.config.class_maps import read_table, resolve_classes
from raykd.config.experiment import parse
from raykd.config.portable import portable
from raykd.config.resolve import resolve
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.recipes import TeacherRun
from raykd.recipes.teacher import read_classes
from tests.each import each

OURS = ("tench", "English_springer", "crane")
THEIRS = (("tench", "Tinca tinca"), ("crane",), ("English springer",), ("Crane", "lifter"), ("7",))
DIGITS = """
run:
  model: resnet8
  data: {name: digits}
  teacher: {model: resnet8, data: {name: digits}}
  method: kd
"""

FORMS = {
    "names": ("names", ((0,), (2,), (1,))),
    "indices": ([4, 0, [1, 3]], ((4,), (0,), (1, 3))),
    "names by class": (
        {"tench": "tinca tinca", "crane": ["lifter", "crane"], "English_springer": 2},
        ((0,), (2,), (3, 1)),
    ),
    "an index as text": ({"tench": "0", "crane": "3", "English_springer": "7"}, ((0,), (4,), (3,))),
}


@each("form", FORMS)
def test_every_form_becomes_indices(form):
    written, expected = FORMS[form]
    groups = resolve_classes(read_classes(written), OURS, 5, THEIRS)
    assert groups == expected
    assert resolve_classes(groups, OURS, 5, ()) == expected  # once more, and nothing changes


def test_rows_of_a_table_of_one_class_add(tmp_path):
    path = tmp_path / "classes.csv"
    with path.open("w", newline="") as file:
        rows = [("tench", "0"), ("crane", "lifter"), ("English_springer", "2"), ("crane", "1")]
        csv.writer(file).writerows([("class", "teacher"), *rows])
    assert resolve_classes(str(path), OURS, 5, THEIRS) == ((0,), (2,), (3, 1))
    assert read_table(str(path)) == tuple(rows)


def test_wordnet_ids_are_those_of_imagenet_in_its_usual_order():
    pytest.importorskip("timm")
    ids = ("n01440764", "n02102040", "n02979186", "n03888257")
    assert resolve_classes("wordnet", ids, 1000, ()) == ((0,), (217,), (482,), (701,))
    with pytest.raises(ConfigError, match=r"called 'n01440765'; did you mean 'n0144\d+'\?"):
        resolve_classes("wordnet", ("n01440765",), 1000, ())
    with pytest.raises(ConfigError, match="no list of ImageNet's classes has 10; the usual one"):
        resolve_classes("wordnet", ids, 10, ())


MISTAKES = {
    "an unknown name": (
        {"tench": 0, "crane": "lifted", "English_springer": 2},
        "none of the teacher's 5 classes is called 'lifted' (for the data's class 'crane'); did "
        "you mean 'lifter'?",
    ),
    "an unknown class": ({"tensh": 0}, "the data have no class 'tensh'; did you mean 'tench'?"),
    "a class without one": ({"tench": 0, "crane": []}, "2 have none, the first is 'English_spring"),
    "an ambiguous name": (
        {"tench": 0, "crane": "CRANE", "English_springer": 2},
        "'CRANE' (for the data's class 'crane') is the name of 2 of the teacher's classes, 1, 3; "
        "give the index",
    ),
    "too few": ([0, 1], "for each of the 3 classes of the data, got 2"),
    "an index beyond": ([0, 5, 1], "5 for the class 'English_springer' is out of range; the"),
    "twice": ([0, [1, 2], 1], "1 stands 2 times, for 'English_springer' and 'crane'; a class of"),
    "twice in a group": ([0, [1, 1], 2], "1 stands 2 times for 'English_springer'; name it once"),
    "no class at all": (
        {"zzz": 0},
        "have no class 'zzz'; they are called tench, English_springer, ",
    ),
    "no file": ("name", "is no file"),
}


@each("what", MISTAKES)
def test_a_mistake_is_a_sentence(what):
    written, message = MISTAKES[what]
    message = "name cannot be read as one (No such file" if what == "no file" else message
    with pytest.raises(ConfigError) as error:
        resolve_classes(read_classes(written), OURS, 5, THEIRS)
    text = str(error.value)
    assert message in text and "\n" not in text


def test_weights_without_names_and_encoders_are_said(tmp_path):
    with pytest.raises(ConfigError, match="weights do not name their 5 classes; give wordnet"):
        resolve_classes("names", OURS, 5, ())
    with pytest.raises(
        ConfigError, match=r"'1.0' \(for .* 'tench'\) is no index, and the teacher's"
    ):
        resolve_classes((("tench", "1.0"), ("English_springer", 2), ("crane", 0)), OURS, 5, ())
    with pytest.raises(ConfigError, match="an encoder, which has no classes; leave the key out"):
        resolve_classes("names", OURS, 0, ())
    path = tmp_path / "x.csv"
    for text, message in (
        ("", "found none"),
        ("class,teacher\n", "found none"),
        ("a,1\nb,2,3\n", "row 2 is 'b,2,3'"),
        ("a;1\n", "row 1 is 'a;1'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=message):
            resolve_classes(str(path), OURS, 5, THEIRS)


@each("written", [[], {}, "", [[]], 3, [0.5], [-1], [True], {"a": {"b": 1}}])
def test_what_is_no_map_is_refused_when_it_is_read(written):
    with pytest.raises(ConfigError, match=r"run\.teacher\.classes: expected names, wordnet, the"):
        parse(DIGITS, "x", [f"run.teacher.classes={written!r}"])


def test_a_mapping_is_a_value_like_any_other(digits):
    groups = read_classes({"0": [1, 2], "1": "x"})
    assert groups == (("0", 1, 2), ("1", "x"))
    teacher = TeacherRun(model="resnet8", data=digits, classes=groups)
    assert hash(teacher) == hash(TeacherRun.read(teacher.plain()))
    with pytest.raises(ConfigError, match="were not read yet"):
        teacher.groups()
    plain = TeacherRun(model="resnet8", data=digits)
    assert fingerprint(teacher) != fingerprint(plain)
    assert fingerprint(plain.model_copy(update={"outputs": None})) == fingerprint(plain)


def test_a_resolved_map_is_of_indices_and_the_same_however_it_was_written(store, tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("".join(f"{9 - n},{n}\n" for n in range(10)))
    forms = [str(path), [*range(9, -1, -1)], {str(n): str(9 - n) for n in range(10)}]
    teachers = set()
    for form in forms:
        experiment = parse(DIGITS, "x", [f"run.teacher.classes={form!r}"])
        teachers.add(resolve(experiment, store).runs[0].teacher)
    (teacher,) = teachers
    assert teacher.groups() == tuple((n,) for n in range(9, -1, -1))
    assert (teacher.outputs, teacher.own_classes(), teacher.answers_classes) == (None, 10, True)
    wrong = parse(DIGITS, "x", ["run.teacher.classes=[0, 1]"])
    with pytest.raises(ConfigError, match=r"run\.teacher\.classes: expected an index, or a list"):
        resolve(wrong, store)
    same = resolve(parse(DIGITS, "x", ["run.teacher.classes=names"]), store).runs[0].teacher
    assert same.groups() == tuple((n,) for n in range(10))


def test_a_table_travels_with_the_experiment(store, tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("".join(f"{9 - n},{n}\n" for n in range(10)))
    text = DIGITS + "search: {run.optim.lr: {uniform: [0.01, 0.1]}}\n"
    experiment = parse(text, "x", [f"run.teacher.classes={path}"])
    base = portable(experiment, store).space.base
    path.unlink()
    assert read_classes(base["teacher"]["classes"])[0] == ("9", "0")


def test_a_table_may_have_quotes_and_spaces(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b'\xef\xbb\xbf"tench", "3"\r\n English_springer ,\t2\r\n"crane" ,0\r\n\r\n')
    assert resolve_classes(str(path), OURS, 5, ()) == ((3,), (2,), (0,))
