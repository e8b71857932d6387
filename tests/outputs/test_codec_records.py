"""Codecs in recipes: how they are written, what they change, which method refuses which."""

import re

import jsonschema
import pytest
import yaml

from raykd.config.experiment import parse
from raykd.config.schema import schema
from raykd.core.errors import ConfigError
from raykd.core.record import fingerprint
from raykd.core.types import Signal
from raykd.data.recipe import Data
from raykd.data.transforms.augment import Augment
from raykd.methods import METHODS
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.kd import KD
from raykd.methods.pkt import PKT
from raykd.methods.sakd import SAKD
from raykd.methods.skd import SKD
from raykd.methods.stkd import STKD
from raykd.outputs.codecs import CODECS, Dense, Int8, TopK
from raykd.outputs.codecs.topk import TAILS
from raykd.recipes import OutputsRun, StudentRun, TeacherRun
from tests.tiers import slow_but

DATA = Data(name="cifar10", augment=Augment(pad=4), digest="0" * 20, classes=10)
TEACHER = TeacherRun(model="resnet56", data=DATA)
COOL = KD(temperature=1.0)
FILE = """
run:
  model: resnet8
  data: {name: digits}
  teacher: {model: resnet14, optim: {epochs: 30}}
  method: {name: kd, temperature: 1.0}
"""


def student(**changes) -> StudentRun:
    return StudentRun(
        **({"model": "resnet20", "data": DATA, "teacher": TEACHER, "method": COOL} | changes)
    )


def read(text, *overrides):
    (run,) = parse(text, "test", overrides).runs
    return run


@pytest.mark.parametrize("name", slow_but(CODECS, ["topk"]))
def test_a_name_alone_stands_for_the_codec_with_its_defaults(name):
    text = FILE + f"  codec: {name}\n"
    assert read(text).codec == CODECS[name]()
    jsonschema.validate(yaml.safe_load(text), schema())
    assert read(FILE, f"run.codec={name}").codec == CODECS[name]()


def test_a_codec_is_written_with_what_differs():
    text = FILE + "  codec: {name: topk, k: 5, tail: ghost}\n"
    assert read(text).codec == TopK(k=5, tail="ghost")
    jsonschema.validate(yaml.safe_load(text), schema())
    assert read(FILE + "  codec: topk\n", "run.codec.k=3").codec == TopK(k=3)
    grid = "grid: {run.codec: [dense, int8, {name: topk, k: 4}]}\n"
    assert [run.codec for run in parse(FILE + grid, "t").runs] == [Dense(), Int8(), TopK(k=4)]


def test_a_mistake_in_a_codec_is_named_with_its_place():
    for given, message in [
        ("int9", "experiment.run.codec.name: no codec is called 'int9'; did you mean 'int8'?"),
        ("{name: topk, k: 0}", "experiment.run.codec.k: input should be greater than or equal"),
        ("{name: topk, tial: ghost}", "experiment.run.codec.tial: no such key; did you mean"),
        ("{name: int8, k: 3}", "experiment.run.codec.k: no such key"),
        ("{k: 3}", "experiment.run.codec.name: this key must be given; there are: dense, int8"),
    ]:
        with pytest.raises(ConfigError) as caught:
            read(FILE + f"  codec: {given}\n")
        assert str(caught.value).startswith(message)


def test_the_schema_finds_a_codec_that_there_is_not():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(FILE + "  codec: int9\n"), schema())


def test_assistants_and_stages_have_the_students_codec():
    run = read(FILE + "  codec: int8\n  assistants: [resnet20]\n")
    assert run.teacher.codec == run.codec == Int8()
    route = "  codec: {name: topk, k: 3}\n  rco: {anchors: 3}\n"
    assert {stage.codec for stage in read(FILE + route).stages()} == {TopK(k=3)}


def test_the_default_codec_spelled_out_is_the_default():
    assert fingerprint(student()) == fingerprint(student(codec=Dense()))


def test_caches_of_test_and_validation_images_are_dense():
    run = student(codec=TopK(k=3), data=DATA.model_copy(update={"validation": 0.1}))
    assert run.outputs_at(0).stored() == TopK(k=3)
    assert run.test_caches()[0].stored() == Dense()
    assert run.validation_outputs(240).stored() == Dense()


def test_a_cache_has_a_k_where_it_keeps_so_many():
    for changes in [{"codec": "topk"}, {"codec": "int8", "k": 3}, {"k": 3}]:
        with pytest.raises(ValueError, match="do not go together"):
            OutputsRun(teacher=TEACHER, anchor=240, data=DATA, **changes)


def test_every_method_reads_what_keeps_all_classes():
    for kind in METHODS.values():
        assert Dense().serves(kind())
        assert Int8().serves(kind())


def test_a_method_that_reads_no_logits_accepts_any_codec():
    for kind in METHODS.values():
        method = kind()
        few = all(TopK(tail=tail).serves(method) for tail in TAILS)
        assert few or Signal.LOGITS in method.needs()


ACCEPTED = [
    (KD(temperature=1.0), TAILS),
    (KD(temperature=2.0), ("uniform",)),
    (KD(temperature=0.5), ("uniform", "renormalise")),
    (KD(), ()),
    (SKD(temperature=1.0), ("uniform", "renormalise")),
    (SKD(temperature=1.0, variant="teacher_std"), ("uniform", "renormalise")),
    (SKD(temperature=1.0, variant="l2"), ()),
    (SKD(), ()),
    (STKD(temperature=1.0), TAILS),
    (STKD(temperature=1.0, teacher="mixed_output"), ("uniform", "renormalise")),
    (STKD(temperature=1.0, clean_kd=0.5), ("uniform", "renormalise")),
    (STKD(temperature=1.0, incorrect_only=0.5), ()),
    (Combine(combine=(CRD(), KD(temperature=1.0))), TAILS),
    (Combine(combine=(CRD(), SKD(temperature=1.0))), ("uniform", "renormalise")),
    (Combine(), ()),
    (SAKD(base=PKT(), temperature=1.0), ()),
    (SAKD(base=PKT(), temperature=1.0, mode="always"), TAILS),
    (SAKD(base=PKT(), mode="always"), ()),
    *((METHODS[name](), ()) for name in ("dkd", "nkd", "dist", "ctkd", "mlkd", "mimic_logits")),
]


def test_a_method_accepts_the_tails_with_which_its_losses_are_right():
    for method, tails in ACCEPTED:
        assert tuple(tail for tail in TAILS if TopK(k=3, tail=tail).serves(method)) == tuple(tails)
        for tail in TAILS:
            if tail in tails:
                student(method=method, codec=TopK(k=3, tail=tail))
            else:
                with pytest.raises(ValueError, match=r"codec 'topk'.*codec: dense or int8"):
                    student(method=method, codec=TopK(k=3, tail=tail))


REFUSED = {
    "dkd": (
        METHODS["dkd"](),
        TopK(k=3),
        "method 'dkd' reads all classes, and codec 'topk' keeps 3 of them; "
        "use codec: dense or int8",
    ),
    "a temperature": (
        KD(),
        TopK(k=3),
        "method 'kd' cannot learn at temperature 4 from codec 'topk' with tail 'uniform'; "
        "use method.temperature: 1.0, or codec: dense or int8",
    ),
    "a tail": (
        SKD(temperature=1.0),
        TopK(k=3, tail="ghost"),
        "method 'spherical_kd' cannot learn at temperature 1 from codec 'topk' with tail 'ghost'; "
        "use codec.tail: uniform or renormalise, or codec: dense or int8",
    ),
    "a temperature and a tail": (
        SKD(),
        TopK(k=3, tail="ghost"),
        "method 'spherical_kd' cannot learn at temperature 4 from codec 'topk' with tail 'ghost'; "
        "use method.temperature: 1.0 with codec.tail: uniform or renormalise, or codec: dense or "
        "int8",
    ),
    "a tail that suits a lower temperature": (
        KD(temperature=2.0),
        TopK(k=3, tail="ghost"),
        "method 'kd' cannot learn at temperature 2 from codec 'topk' with tail 'ghost'; "
        "use codec.tail: uniform, or method.temperature: 1.0, or codec: dense or int8",
    ),
    "as many as there are": (
        COOL,
        TopK(k=10),
        "codec 'topk' keeps 10 logits of a row, and the data have 10 classes; "
        "lower run.codec.k, or use codec: dense or int8",
    ),
}


def test_a_refusal_says_what_to_do():
    for method, codec, message in REFUSED.values():
        with pytest.raises(ValueError, match=re.escape(message)):
            student(method=method, codec=codec)


def test_a_student_that_reads_no_logits_from_a_cache_may_be_beside_those_that_do():
    for changes in [
        {"method": METHODS["at"]()},
        {"method": KD(), "source": "live"},
        {"method": PKT()},
    ]:
        assert student(codec=TopK(k=3), **changes)


def test_a_baseline_may_be_beside_them_too():
    assert StudentRun(model="resnet20", data=DATA, codec=TopK(k=3))
