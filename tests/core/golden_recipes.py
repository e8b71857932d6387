"""Twenty recipes, and what `golden_recipes.json` pins of them: fingerprints and defaults.

python -m tests.core.golden_recipes    # writes the file
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from raykd.core.record import Recipe, Record, fingerprint
from raykd.data.recipe import ResolvedData, Stream
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.colour import Colour
from raykd.data.transforms.crop import Crop
from raykd.data.transforms.erase import Erase
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.methods import METHODS
from raykd.outputs.codecs import Int8, TopK
from raykd.recipes import Optim, OutputsRun, Search, StudentRun, TeacherRun
from raykd.teachers.anchor_route import Route

FILE = Path(__file__).with_name("golden_recipes.json")

CIFAR = ResolvedData(
    name="cifar100",
    validation=0.1,
    augment=Augment(pad=4, flip=True),
    digest="0123456789abcdef0123",
    classes=100,
    size=(32, 32),
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
)
IMAGENET = CIFAR.model_copy(
    update={
        "name": "folder",
        "validation": None,
        "stream": Stream(size=224),
        "augment": Augment(
            crop=Crop(), flip=True, colour=Colour(brightness=0.4), erase=Erase(), mix=Mix()
        ),
        "size": (224, 224),
    }
)
TEACHER = TeacherRun(model="resnet32x4", data=CIFAR)
PRETRAINED = TeacherRun(model="torchvision/resnet34", data=IMAGENET, weights="IMAGENET1K_V1")
ASSISTANT = StudentRun(model="resnet20", data=CIFAR, teacher=TEACHER, method=METHODS["kd"]())


def _student(name: str, teacher: TeacherRun | StudentRun = TEACHER, **fields: Any) -> StudentRun:
    own = {"data": teacher.data, "teacher": teacher, "method": METHODS[name]()} | fields
    return StudentRun(model="resnet8x4", **own)


def _preludes() -> Iterator[tuple[str, Recipe]]:
    for method in ("ab", "ft"):
        prelude = _student(method).prelude()
        assert prelude is not None
        yield f"prelude of {method}", prelude


RECIPES: dict[str, Recipe] = {
    "teacher": TEACHER,
    "teacher, pretrained": PRETRAINED,
    "teacher, adamw": TEACHER.model_copy(update={"optim": Optim(name="adamw", lr=1e-3)}),
    "cache": OutputsRun(teacher=TEACHER, anchor=240, data=CIFAR),
    "cache, topk": OutputsRun(
        teacher=PRETRAINED, anchor=0, data=IMAGENET, codec="topk", k=10, precision="bfloat16"
    ),
    "cache, test": OutputsRun(teacher=TEACHER, anchor=240, data=CIFAR.test(), split="test"),
    "label_only": StudentRun(model="resnet8x4", data=CIFAR),
    "kd": _student("kd"),
    "kd, int8": _student("kd", codec=Int8(), views=8, seed=2),
    "kd, strong look": _student("kd", strong=Strong(), views_by_seed=True, label_smoothing=0.1),
    "kd of an assistant": _student("kd", ASSISTANT),
    "spherical_kd, topk": _student(
        "skd", PRETRAINED, codec=TopK(), method=METHODS["skd"](temperature=1.0), label_weight=0.5
    ),
    "crd": _student("crd"),
    "at along a route": _student("at", route=Route(anchors=(120, 240), starts=(0, 100))),
    "dkd after another": _student("dkd", after=_student("dkd"), first_epoch=240),
    "irg": _student("irg"),
    "sakd": _student("sakd", method=METHODS["sakd"](base=METHODS["fitnet"]())),
    "search": Search(
        student=_student("kd"), threshold=1.6, temperature=1.0, measure="kl", at_most=None
    ),
    **dict(_preludes()),
}


def classes() -> dict[str, type[Record]]:
    """The record classes that the recipes are made of, by name."""
    found: dict[str, type[Record]] = {}

    def visit(value: object) -> None:
        for part in value if isinstance(value, tuple) else ():
            visit(part)
        if isinstance(value, Record):
            found[type(value).__name__] = type(value)
            for name in type(value).model_fields:
                visit(getattr(value, name))

    for recipe in RECIPES.values():
        visit(recipe)
    return dict(sorted(found.items()))


def defaults(record: type[Record]) -> dict[str, Any]:
    """The revision and the defaults of a record class, as plain values."""
    fields = record.model_fields.items()
    given = {name: field.get_default(call_default_factory=True) for name, field in fields}
    optional = {name: given[name] for name, field in fields if not field.is_required()}
    return {"revision": record.revision, "defaults": to_jsonable_python(optional)}


def current() -> dict[str, Any]:
    """The content that the file should have."""
    return {
        "records": {name: defaults(record) for name, record in classes().items()},
        "fingerprints": {name: fingerprint(recipe) for name, recipe in RECIPES.items()},
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(current(), indent=1) + "\n")
