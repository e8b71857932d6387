"""Descriptions of a record's fields: the docstrings under them, read from the source when asked.

Pydantic can read them itself (`use_attribute_docstrings`), as each class is made; that is a tenth
of the time that importing all recipes takes.
"""

import ast
import functools
import inspect
import sys
from itertools import pairwise

from pydantic import BaseModel


def summary(text: str | None) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join(inspect.cleandoc(text or "").partition("\n\n")[0].split())


def descriptions(kind: type[BaseModel]) -> dict[str, str]:
    """The docstring of each field of a class, or of the nearest base that describes it."""
    texts: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        texts |= _of_module(owner.__module__).get(owner.__qualname__, {})
    return {name: texts[name] for name in kind.model_fields if name in texts}


@functools.cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """The docstrings of the fields of each class of a module; nothing where it has no source."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError):  # in a notebook, or built in
        return {}
    return {node.name: _of_class(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _of_class(node: ast.ClassDef) -> dict[str, str]:
    """The docstrings of the fields of one class."""
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in pairwise(node.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
        if isinstance(text.value.value, str)
    }
