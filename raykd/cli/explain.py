"""The command that explains keys of experiment files: explain."""

import json
from typing import TYPE_CHECKING

import click

from raykd.cli.output import echo
from raykd.cli.shared import JSON, print_json, speaking
from raykd.core.descriptions import summary

if TYPE_CHECKING:
    from raykd.config.keys import Key


@click.command()
@click.argument("key", default="")
@JSON
@speaking
def explain(key: str, as_json: bool) -> None:
    """Describe a KEY of an experiment file: type, default, bounds, meaning.

    A part, such as run.optim, lists its keys; run.method lists the methods, and
    run.method[kd].temperature is a key of one of them.
    """
    from raykd.config.keys import explain as keys_at

    keys = keys_at(key)
    if as_json:
        print_json(
            {
                "key": key,
                "meanings": [
                    one.plain() | {"keys": [inner.plain() for inner in one.below()]}
                    if len(one.forms) == 1
                    else one.plain() | {"keys": []}
                    for one in keys
                ],
            }
        )
        return
    echo("\n\n".join(_text(one) for one in keys))


def _text(key: "Key") -> str:
    """A key with what there is to say about it, as lines."""
    lines = [f"{key.key}: {key.description}" if key.key else key.description]
    if key.key:
        lines += [f"  type     {key.type}", f"  default  {_default(key)}"]
        lines += [f"  in       {key.defined_in}"]
    if len(key.forms) > 1:
        width = max(len(form.label) for form in key.forms)
        for form in key.forms:
            lines.append(f"  {form.label:{width}}  {summary(form.description)}")
    else:
        inner = list(key.below())
        width = max((len(one.key) for one in inner), default=0)
        lines += [f"  {one.key:{width}}  {one.description} ({_short(one)})" for one in inner]
    return "\n".join(lines)


def _short(key: "Key") -> str:
    """The default of a key for one line: keys have their own."""
    return "{...}" if key.forms and isinstance(key.default, dict) and key.default else _default(key)


def _default(key: "Key") -> str:
    """The default of a key in words, as a file would have it."""
    if key.required:
        return "none, it must be given"
    if key.default is None and "null" not in key.type:
        return "as described"
    return json.dumps(key.default)
