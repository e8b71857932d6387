"""The JSON schema of experiment files, by which editors complete, explain and check them."""

from typing import Any

from raykd.config.experiment import ExperimentFile
from raykd.methods import METHODS
from raykd.methods.presets import PRESETS
from raykd.outputs.codecs import CODECS, VECTOR_CODECS
from raykd.recipes import RCO

_RCO = "Choice of the teacher's epochs that teach in turn, in place of `route`; null: none."
_ASSISTANTS = (
    "Networks, or students, between the teacher and the student: the first learns from the "
    "teacher, and each is the teacher of the next (TAKD, arXiv 1902.03393)."
)


def schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of experiment files, shorthands included.

    Every property has a description, and a default unless it must be given or is a student's.
    """
    value = ExperimentFile.model_json_schema()
    student, teacher = value["$defs"]["StudentRun"], value["$defs"]["TeacherRun"]
    bases = [name for name in METHODS if name != "sakd"]
    for holder, key, names in (
        (student, "method", [*METHODS, *PRESETS]),
        (value["$defs"]["SAKD"], "base", bases),
        (student, "codec", list(CODECS)),
        (student, "embedding_codec", list(VECTOR_CODECS)),
        (student, "map_codec", list(VECTOR_CODECS)),
        (student, "derived_codec", list(VECTOR_CODECS)),
    ):
        what = "codec" if key.endswith("codec") else "method"
        name = {"enum": names, "description": f"the {what} with its defaults"}
        _widen(holder["properties"], key, {"anyOf": [name, _choice(holder["properties"][key])]})
    for name, preset in PRESETS.items():  # with keys, as an alias of its method
        kind = METHODS[preset.method.get("name", "combine")].__name__
        own = value["$defs"][kind]["properties"]["name"]
        own["enum"] = [*(own.get("enum") or [own.pop("const")]), name]
    parts = value["$defs"]["Combine"]["properties"]["combine"]
    names = list(parts["items"]["discriminator"]["mapping"])
    names += [name for name, preset in PRESETS.items() if "combine" not in preset.method]
    parts["items"] = {"anyOf": [{"enum": names}, parts["items"]]}
    teacher["required"].remove("data")  # where it is left out, the student's
    for holder in (student, teacher, value["$defs"]["Probe"]):
        _widen(holder["properties"], "data", {"$ref": "#/$defs/Data"})  # as users write it
    value["$defs"].pop("ResolvedData")
    route = RCO.model_json_schema()
    value["$defs"] |= route.pop("$defs", {}) | {"RCO": route}
    null = {"type": "null"}
    student["properties"]["rco"] = {
        "anyOf": [{"$ref": "#/$defs/RCO"}, null],
        "default": None,
        "description": _RCO,
    }
    assistant = {"anyOf": [{"type": "string"}, {"type": "object"}]}
    student["properties"]["assistants"] = {
        "type": "array",
        "items": assistant,
        "default": [],
        "description": _ASSISTANTS,
    }
    value["$defs"]["Assistant"] = student | {"required": ["model", "teacher"]}
    teachers = {
        "if": {"required": ["teacher"]},  # a teacher that has one is a student itself
        "then": {"$ref": "#/$defs/Assistant"},
        "else": {"$ref": "#/$defs/TeacherRun"},
    }
    panel = value["$defs"]["PanelRun"]
    panel["properties"]["panel"]["items"] = teachers
    taught = {"if": {"required": ["panel"]}, "then": {"$ref": "#/$defs/PanelRun"}, "else": teachers}
    _widen(student["properties"], "teacher", {"anyOf": [taught, null]})
    value["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return value


def _widen(properties: dict[str, Any], key: str, form: dict[str, Any]) -> None:
    """Give a property another form, and leave it its description and its default."""
    kept = {name: properties[key][name] for name in _SAID if name in properties[key]}
    properties[key] = form | kept


def _choice(value: dict[str, Any]) -> dict[str, Any]:
    """The form of a property, without what `_widen` leaves at the property itself."""
    return {name: inner for name, inner in value.items() if name not in _SAID}


_SAID = ("default", "description")
