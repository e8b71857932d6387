"""The short forms that `run` of an experiment file may have, written out.

The name alone of a method or a codec, a preset's, `combine: [crd, kd]`, a teacher without data of
its own, one with `weights` and `optim`, which is fine-tuned, `assistants`, `rco`.
"""

import json
from typing import Any

from pydantic import ValidationError

from raykd.config.messages import explain
from raykd.config.overrides import CODEC_KEYS
from raykd.core.errors import ConfigError
from raykd.methods import METHODS
from raykd.methods.presets import PRESETS
from raykd.recipes import RCO, AnyStudent, Search, StudentRun

# What an assistant has in common with its student where it does not say otherwise.
_SHARED = (
    "data",
    "task",
    "method",
    "label_weight",
    "label_smoothing",
    "optim",
    "views",
    "source",
    *CODEC_KEYS,
    "strong",
    "teacher_precision",
    "precision",
)


def read_student(tree: dict[str, Any]) -> AnyStudent:
    """Recipe that `run` of a file describes: a student, or one whose route has to be searched.

    Raises `ConfigError`, with every mistake on a line of its own.
    """
    tree = dict(tree)
    rco, assistants = tree.pop("rco", None), tree.pop("assistants", None)
    tree = _written_out(tree)
    if assistants:
        tree = _assisted(tree, assistants)
    run = record(StudentRun, tree, "experiment.run")
    if rco is None:
        return run
    choice = record(RCO, rco, "experiment.run.rco")
    try:
        return choice.students(run)
    except ValidationError as error:
        raise explain(error, Search, "experiment.run.rco") from error
    except ValueError as error:
        raise ConfigError(f"experiment.run.rco: {error}") from error


def record(model: Any, tree: Any, place: str) -> Any:
    """A record of a class, or a `ConfigError` that names every wrong key."""
    try:
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise explain(error, model, place) from error
    except TypeError as error:
        raise ConfigError(f"{place}: {error}; quote the value, or write a plain number") from error


def _written_out(tree: dict[str, Any]) -> dict[str, Any]:
    """A student's tree in which methods, codecs, teachers and the stage before are written out."""
    tree = dict(tree)
    if "method" in tree:
        tree["method"] = _method(tree["method"])
    for key in (*CODEC_KEYS, "task"):
        if isinstance(tree.get(key), str):
            tree[key] = {"name": tree[key]}
    teacher, before = tree.get("teacher"), tree.get("after")
    if isinstance(teacher, dict):
        tree["teacher"] = _teacher(tree, teacher)
    if isinstance(before, dict):
        tree["after"] = _written_out(before)
    return tree


def _teacher(student: dict[str, Any], teacher: dict[str, Any]) -> dict[str, Any]:
    """A teacher with what it leaves out: a student's data, and all else where it is a student."""
    if "panel" in teacher:
        members = teacher["panel"] if isinstance(teacher["panel"], list) else ()
        written = [_teacher(student, m) if isinstance(m, dict) else m for m in members]
        return {**teacher, "panel": written or teacher["panel"]}
    if isinstance(teacher.get("task"), str):
        teacher = {**teacher, "task": {"name": teacher["task"]}}
    if teacher.get("teacher"):
        shared = {key: student[key] for key in _SHARED if key in student}
        return _written_out({**shared, **teacher})
    if teacher.get("weights") is not None and "optim" in teacher:
        teacher = {"fine_tune": True, **teacher}
    if "data" not in teacher and "data" in student:
        return {**teacher, "data": _unmixed(student["data"])}
    return teacher


def _assisted(tree: dict[str, Any], assistants: Any) -> dict[str, Any]:
    """The student with a chain of assistants between the teacher and it (TAKD)."""
    if not isinstance(assistants, list):
        raise ConfigError(
            "experiment.run.assistants: expected a list of networks, the first of which learns "
            f"from the teacher, got {assistants!r}"
        )
    if not isinstance(tree.get("teacher"), dict):
        raise ConfigError("experiment.run.assistants: they stand below a teacher; add run.teacher")
    method = tree.get("method")
    if not isinstance(method, dict) or method.get("name") == "label_only":
        return tree  # no method reads them
    for number, assistant in enumerate(assistants):
        keys = {"model": assistant} if isinstance(assistant, str) else assistant
        if not isinstance(keys, dict):
            raise ConfigError(f"experiment.run.assistants: {assistant!r} is no network")
        tree = {**tree, "teacher": _teacher(tree, {**keys, "teacher": tree["teacher"]})}
        record(StudentRun, tree["teacher"], f"experiment.run.assistants.{number}")
    return tree


def _unmixed(data: Any) -> Any:
    """The student's data as its teacher learns from them: without mixing."""
    augment = data.get("augment") if isinstance(data, dict) else None
    if not isinstance(augment, dict) or "mix" not in augment:
        return data
    return {**data, "augment": {k: v for k, v in augment.items() if k != "mix"}}


def _method(tree: Any, within: tuple[str, ...] = ()) -> Any:
    """A method, with its shorthands written out: a name alone, a preset, `combine: [crd, kd]`.

    `within`: names of the class attributes whose defaults apply, inside a sum or as a base. Raises
    `ConfigError` where a preset that is a sum has keys, or is within a method.
    """
    if isinstance(tree, str):
        tree = {"name": tree}
    if not isinstance(tree, dict):
        return tree
    name = str(tree.get("name"))
    if name in PRESETS and name not in METHODS:
        preset, keys = PRESETS[name], {k: v for k, v in tree.items() if k != "name"}
        if "combine" in preset.method and (keys or within):
            what = "it has no keys of its own" if keys else "it is no part of another method"
            raise ConfigError(
                f"experiment.run.method: {name!r} is a sum, so {what}; write it out, and change "
                f"that: {preset.written()}"
            )
        tree = {**preset.method, **keys}
    if "combine" in tree:
        parts = tree["combine"]
        if isinstance(parts, list):
            parts = [_method(part, (*within, "combine_defaults")) for part in parts]
        return {"name": "combine", **tree, "combine": parts}
    if "base" in tree:
        tree = {**tree, "base": _method(tree["base"], ("sakd_defaults",))}
    if (name := str(tree.get("name"))) in METHODS:
        for defaults in within:
            tree = {**getattr(METHODS[name], defaults), **tree}
    return tree
