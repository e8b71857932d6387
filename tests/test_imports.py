"""The shape of the code: rooms import downwards, Ray stays in one, nothing is unpickled."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "raykd").rglob("*.py"))

# A room imports from its own level and from those above it here.
LEVELS = [
    "core",
    "storage",
    "models methods",
    "data",
    "tasks",
    "outputs",
    "teachers",
    "recipes",
    "config",
    "tracking",
    "training",
    "planning report prediction export register",
    "launch",
    "api",
    "cli",
]
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms.split()}

# The order inside the large rooms: modules and folders, as above. What is not listed is free.
INNER_LEVELS = {
    "training": [
        "checkpointing compiled ema finite optim",
        "learner weights hosts.base hosts.group",
        "evaluation mid_epoch microbenchmark",
        "probing",
        "inputs",
        "loop initial_state dry_run hosts.fsdp",
        "runs route_search load_trained",
        "cache_builder cache_verify integrity",
    ],
    "data": ["transforms", "sources", "packing", "dataset", "loading.loader"],
    "launch": ["private_cluster", "cluster capacity pool", "executor", "sweep"],
}


def name_of(path: Path) -> str:
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str | None:
    """The part of a module's name that has a level; None for the package itself."""
    return module.split(".")[1] if "." in module else None


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(ast.parse(path.read_bytes(), str(path))))


def imports(path: Path) -> Iterator[str]:
    """Dotted names that a file imports: modules where they are ours, whole names elsewhere."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def ours(path: Path) -> set[str]:
    """The modules of raykd that a file imports, for types or at run time."""
    return {name for name in imports(path) if name.split(".")[0] == "raykd"}


def level_of(module: str) -> int:
    """The level of a module's room; the package itself may import every room."""
    room = room_of(module)
    return LEVEL[room] if room else len(LEVELS)


def test_imports_point_down():
    upwards = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        for other in ours(path)
        if other != "raykd" and level_of(other) > level_of(name)
    ]
    assert upwards == []


def inner_level_of(module: str) -> tuple[str | None, int | None]:
    """A module's room, and its level there; None where it has none."""
    room, inside = room_of(module), module.split(".", 2)[-1]
    for number, names in enumerate(INNER_LEVELS.get(room or "", ())):
        if any(inside == name or inside.startswith(f"{name}.") for name in names.split()):
            return room, number
    return room, None


def test_imports_point_down_inside_the_large_rooms():
    upwards = []
    for name, path in MODULES.items():
        room, level = inner_level_of(name)
        for other in ours(path) if level is not None else ():
            theirs = inner_level_of(other)
            if theirs[0] == room and theirs[1] is not None and theirs[1] > level:
                upwards.append(f"{name} imports {other}")
    assert upwards == []


def test_no_two_modules_need_each_other():
    graph = {name: ours(path) - {name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("imports go round: " + " <- ".join(error.args[1]))


def test_only_launch_imports_ray():
    users = {
        room_of(module)
        for module, path in MODULES.items()
        if any(name.split(".")[0] == "ray" for name in imports(path))
    }
    assert users == {"launch"}


@pytest.mark.slow
def test_everything_outside_launch_runs_without_ray():
    names = [name for name in MODULES if room_of(name) != "launch"]
    script = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "assert 'ray' not in sys.modules\n"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_room_has_a_level_and_no_module_lies_beside_the_rooms():
    assert {room_of(name) for name in MODULES} - {None} == set(LEVEL)
    assert sorted((ROOT / "raykd").glob("*.py")) == [ROOT / "raykd" / "__init__.py"]


def test_every_room_says_what_is_in_it():
    rooms = {path.parent / "__init__.py" for path in FILES}
    assert [room for room in rooms if not ast.get_docstring(ast.parse(room.read_text()))] == []


def test_there_is_no_drawer_for_leftovers():
    drawers = {"utils", "util", "common", "misc", "helpers", "manager"}
    assert [name for name in MODULES if drawers & set(name.split("."))] == []


def test_code_is_ascii():
    assert [name for name, path in MODULES.items() if not path.read_bytes().isascii()] == []


def safe_loaders(path: Path) -> set[str]:
    """The safe YAML loaders that a file may name: PyYAML's, and its own subclasses of them."""
    known = {"yaml.SafeLoader", "yaml.CSafeLoader"}
    for node in nodes(path):
        if isinstance(node, ast.ClassDef) and known & {ast.unparse(base) for base in node.bases}:
            known.add(node.name)
    return known


def unsafe(path: Path) -> Iterator[str]:
    """Calls that may run code from what they read, and imports that hide such calls."""
    readers = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
    readers |= {"pandas.read_pickle"}
    for name in imports(path):
        if name.split(".")[0] in readers:
            yield f"import {name}"
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "yaml", "numpy"):
            hidden = {alias.name for alias in node.names} & {"load", "load_all", "unsafe_load"}
            yield from (f"from {node.module} import {name}" for name in hidden)
        if not isinstance(node, ast.Call):
            continue
        call, text = ast.unparse(node.func), ast.unparse(node)
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if call == "torch.load" and options.get("weights_only") != "True":
            yield text
        if call in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False":
            yield text
        if call in ("yaml.load", "yaml.load_all"):
            loader = options.get("Loader", ast.unparse(node.args[1]) if node.args[1:] else "")
            if loader not in safe_loaders(path):
                yield text
        if call in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "torch.package"):
            yield text


def test_nothing_read_from_disk_is_unpickled_or_executed():
    assert [(name, call) for name, path in MODULES.items() for call in unsafe(path)] == []


def test_the_rule_about_reading_finds_what_it_forbids(tmp_path):
    bad = [
        "import pickle",
        "from pickle import loads",
        "from torch import load",
        "import torch; torch.load('x')",
        "import torch; torch.load('x', weights_only=False)",
        "import yaml; yaml.load('x', yaml.Loader)",
        "import yaml; yaml.load('x', Loader=yaml.FullLoader)",
        "import yaml\nclass L(yaml.Loader): ...\nyaml.load('x', L)",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "eval('1')",
    ]
    good = [
        "import torch; torch.load('x', map_location='cpu', weights_only=True)",
        "import yaml; yaml.safe_load('x')",
        "import yaml\nclass L(yaml.SafeLoader): ...\nyaml.load('x', L)",
    ]
    for number, (text, wrong) in enumerate([(t, True) for t in bad] + [(t, False) for t in good]):
        path = tmp_path / f"{number}.py"
        path.write_text(text)
        assert bool(list(unsafe(path))) == wrong, text
