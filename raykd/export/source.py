"""`model.py`: one of raykd's own networks as a file that needs torch alone.

Its code is that of `raykd.models`: the network's builder, and what that uses.
"""

import ast
import importlib.machinery
import importlib.util
import itertools
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from jinja2 import Environment, PackageLoader

from raykd.core.version import __version__
from raykd.models import NETWORKS

FILE = "model.py"
_OURS = "raykd.models."
_IN_ORDER = "in_order"  # makes a `Staged`; the file has one that makes the plain network


@cache
def source(model: str, classes: int) -> str | None:
    """Text of the file of a network with `classes` outputs; with 0, without its classifier.

    None where `raykd.models` does not define the network itself, as those of libraries.
    """
    if model not in NETWORKS:
        return None
    build, arguments = NETWORKS[model], ()
    if isinstance(build, partial):
        build, arguments = build.func, build.args
    if not build.__module__.startswith(_OURS):
        return None
    collected = _Collected()
    collected.add(build.__module__, build.__name__)
    environment = Environment(loader=PackageLoader("raykd.export", ""), autoescape=False)
    template = environment.get_template("model.py.j2")
    text = template.render(
        model=model,
        about=ast.get_docstring(_tree(build.__module__)),
        version=__version__,
        imports=collected.import_lines(),
        definitions=_apart([*collected.definitions.values()]),
        call=f"{build.__name__}({', '.join(map(repr, (*arguments, classes or 1)))})",
        classes=classes,
    )
    return text.replace(" -> Staged:", " -> nn.Module:").rstrip("\n") + "\n"


class _Uncached(importlib.machinery.SourceFileLoader):
    """Loader that leaves no folder of bytecode beside the file."""

    def set_data(self, path: str, data: bytes, *, _mode: int = 0o666) -> None:
        """Write nothing."""


def module_at(path: Path) -> ModuleType:
    """A file that this process has just written, as a module."""
    name = f"exported_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    assert spec is not None and spec.loader is not None, f"{path} is no file of Python"
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Collected:
    """Definitions of modules in `raykd.models`, each after those that it uses."""

    def __init__(self) -> None:
        self.definitions: dict[str, str] = {}  # name -> source
        # Module -> names in it, and "" -> modules; at first what the template needs.
        self.imports: dict[str, set[str]] = {
            "": {"json", "torch"},
            "collections": {"OrderedDict"},
            "pathlib": {"Path"},
            "torch": {"Tensor", "nn"},
        }

    def add(self, module: str, name: str) -> None:
        """Collect a definition, and first what it uses."""
        node = _definitions(module).get(name)
        if node is None:
            self._add_imported(module, name)
            return
        lines = _definition_lines(module, node)
        if name in self.definitions:
            assert self.definitions[name] == lines, f"two definitions are called {name}"
            return
        for used in _names_in(node):
            if used != name:
                self.add(module, used)
        self.definitions[name] = lines

    def _add_imported(self, module: str, name: str) -> None:
        """Collect what a module imports by a name; nothing where that is no import of its own."""
        for node in _tree(module).body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for alias in node.names:
                if (alias.asname or alias.name.partition(".")[0]) != name:
                    continue
                origin = node.module if isinstance(node, ast.ImportFrom) else None
                if origin is None or not origin.startswith(_OURS):
                    imported = alias.name + (f" as {alias.asname}" if alias.asname else "")
                    self.imports.setdefault(origin or "", set()).add(imported)
                elif name not in (_IN_ORDER, "Staged"):
                    self.add(origin, alias.name)

    def import_lines(self) -> list[str]:
        """Imports of the definitions, a line each: Python's own modules first."""
        lines = [f"import {name}" for name in self.imports.get("", ())]
        lines += [
            f"from {origin} import {', '.join(sorted(names))}"
            for origin, names in self.imports.items()
            if origin
        ]
        return sorted(lines, key=lambda line: ("torch" in line, line.startswith("from"), line))


def _apart(definitions: list[str]) -> str:
    """Definitions with two empty lines between them, but for neighbours of one line each."""
    text = definitions[0]
    for before, after in itertools.pairwise(definitions):
        text += "\n" if "\n" not in before + after else "\n\n\n"
        text += after
    return text


@cache
def _text(module: str) -> str:
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} is no file"
    return Path(spec.origin).read_text()


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse(_text(module))


@cache
def _definitions(module: str) -> dict[str, ast.stmt]:
    """The functions, classes and constants of a module, by name."""
    found: dict[str, ast.stmt] = {}
    for node in _tree(module).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def _names_in(node: ast.stmt) -> list[str]:
    """Names that a definition reads, in the order of their first use."""
    names = [child.id for child in ast.walk(node) if isinstance(child, ast.Name)]
    return [*dict.fromkeys(names)]


def _definition_lines(module: str, node: ast.stmt) -> str:
    """The whole lines of a definition, with its decorators."""
    decorators: list[Any] = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return "\n".join(_text(module).splitlines()[first - 1 : node.end_lineno])
