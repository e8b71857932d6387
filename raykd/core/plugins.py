"""Plugins: files and installed packages that enter methods, networks and more in raykd's tables.

A plugin is known by the digest of its content. It is executed where an experiment or a command
names it, and in the workers of such an experiment: whatever is pickled with a `Plugin` in it, or
with a recipe that uses one, loads it before anything else in there is read. No other process
executes one, so a plugin's file in a store is only ever read.
"""

import contextlib
import hashlib
import importlib.abc
import importlib.metadata
import importlib.util
import re
import sys
import traceback
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from raykd.core.errors import ConfigError
from raykd.core.registry import Registry

GROUP = "raykd.plugins"  # entry points of installed plugins
_DIGITS = 8  # digits of a digest in the name of a module
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_NOTHING = (
    'registers nothing; put @raykd.register.method("a_name") above a class of a method, or '
    '@raykd.register.model("a_name") above a function of a network'
)

T = TypeVar("T")
Entry = tuple[Registry[Any], str, Any, tuple[str, ...]]  # table, name, thing, aliases


@dataclass(frozen=True)
class Plugin:
    """A plugin that is loaded in this process. Unpickling one loads it."""

    name: str  # the name of its file, or of the distribution
    digest: str  # SHA-256 of the content, in hex
    place: str = field(compare=False)  # path of the file, or the distribution again
    source: bytes | None = field(compare=False, repr=False)  # None: installed
    entries: list[Entry] = field(default_factory=list, compare=False, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return receive, (self.name, self.digest, self.place, self.source)

    @property
    def module(self) -> str:
        """Name of a file's module, equal in all processes."""
        stem = re.sub(r"\W", "_", self.name.removesuffix(".py"))
        return f"raykd_plugin_{stem}_{self.digest[:_DIGITS]}"


class _Source(importlib.abc.SourceLoader):
    """Loader of a module whose source is in memory."""

    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def get_filename(self, fullname: str) -> str:
        """The path that tracebacks name; on another machine there may be no such file."""
        return self._plugin.place

    def get_data(self, path: str) -> bytes:
        """The source. Raises `OSError` for bytecode, which is never written or read."""
        if path != self._plugin.place:
            raise FileNotFoundError(path)
        return self._plugin.source or b""


_loaded: dict[str, Plugin] = {}  # by digest; their entries are in the tables
_withdrawn: dict[str, Plugin] = {}  # former versions: recipes and pickles may still name them
_loading: list[Plugin] = []  # the innermost last
# Registered by modules that were imported before their plugin was named: by module.
_waiting: list[tuple[str, Entry]] = []


def loaded() -> tuple[Plugin, ...]:
    """The plugins of this process, in the order in which they were loaded."""
    return tuple(_loaded.values())


def any_loaded() -> bool:
    """True once a plugin was loaded in this process, or begins to be, also if it was withdrawn."""
    return bool(_loading or _loaded or _withdrawn)


def plugins_of(digests: Iterable[str]) -> tuple[Plugin, ...]:
    """The plugins with these digests, former versions included. Raises `ConfigError` for others."""
    known = _withdrawn | _loaded
    for digest in digests:
        if digest not in known:
            raise ConfigError(f"the plugin of digest {digest[:12]} is not loaded in this process")
    return tuple(known[digest] for digest in digests)


def load(named: str, folder: Path | None = None) -> Plugin:
    """Load a plugin: a file, relative to `folder`, or an installed distribution.

    Loading the same content again does nothing; a file that has changed replaces what it had
    entered before. Raises `ConfigError` where it cannot be read or executed, where it registers
    nothing, and where a name is taken; then nothing of it is entered.
    """
    if named.endswith(".py") or "/" in named or "\\" in named:
        path = Path(named).expanduser()
        return _load_file(path if folder is None else folder / path)
    return _load_installed(named, folder)


def receive(name: str, digest: str, place: str, source: bytes | None) -> Plugin:
    """The plugin of another process, loaded here, too. Raises `ConfigError` for other content."""
    if digest in _loaded:
        return _loaded[digest]
    if source is None:
        plugin = _load_installed(name, None)
        if plugin.digest != digest:
            raise ConfigError(
                f"the plugin {name} is installed on this machine with another content than on the "
                "driver's; install the same version on all"
            )
        return plugin
    if hashlib.sha256(source).hexdigest() != digest:
        raise ConfigError(f"the plugin {name} arrived with another content than it was sent with")
    return _load(Plugin(name, digest, place, source))


def enter(
    table: Registry[T], name: str, thing: T, aliases: Sequence[str] = (), module: str = "__main__"
) -> None:
    """Enter a thing of the plugin that is being loaded in a table.

    module: where it is written. One that is imported before it is named as a plugin waits until
    then. Raises `ConfigError` for a name that no plugin can use, and in a script or a notebook.
    """
    for word in (name, *aliases):
        if not isinstance(word, str) or not _NAME.fullmatch(word):
            raise ConfigError(
                f"{word!r} can be no name of a {table.kind}; use letters, digits and _, with a "
                "letter first"
            )
    if not _loading and module != "__main__":
        _waiting.append((module, (table, name, thing, tuple(aliases))))
        return
    if not _loading:
        raise ConfigError(
            f"the {table.kind} {name!r} is not registered in a plugin: its code could be no part "
            "of fingerprints, and no worker could import it. Write it to a file (in a notebook, "
            "begin the cell with %%writefile mine.py) and name that file among the experiment's "
            "plugins"
        )
    plugin = _loading[-1]
    try:
        table.add(name, thing, aliases, plugin.digest)
    except ValueError as error:
        whose = [other.name for other in loaded() if other.digest == table.origin(name)]
        known = f"; {whose[0]} has it already" if whose else "; raykd has one of its own"
        raise ConfigError(f"{error}{known}; choose another name") from error
    if isinstance(thing, type):
        thing.plugin = plugin.digest  # pyright: ignore[reportAttributeAccessIssue]
    plugin.entries.append((table, name, thing, tuple(aliases)))


def withdraw(plugin: Plugin) -> None:
    """Take a plugin's entries out of the tables; its module stays."""
    for table, name, *_ in reversed(plugin.entries):
        table.remove(name)
    del _loaded[plugin.digest]
    _withdrawn[plugin.digest] = plugin


def _load_file(path: Path) -> Plugin:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); a plugin is a Python file, relative to "
            "the experiment's, or the name of an installed package"
        ) from error
    digest = hashlib.sha256(source).hexdigest()
    return _load(Plugin(path.name, digest, str(path.resolve()), source))


def _load_installed(name: str, folder: Path | None) -> Plugin:
    try:
        distribution = importlib.metadata.distribution(name)
    except (importlib.metadata.PackageNotFoundError, ValueError) as error:
        is_file = folder is not None and (folder / f"{name}.py").is_file()
        advice = f"name the file: {name}.py" if is_file else "install it, or name a .py file"
        raise ConfigError(f"no package is installed as {name!r}; {advice}") from error
    points = [*distribution.entry_points.select(group=GROUP)]
    if not points:
        raise ConfigError(
            f"the package {name} has no entry point of group {GROUP}; in its pyproject.toml: "
            f'[project.entry-points."{GROUP}"]'
        )
    content = hashlib.sha256()
    for package in sorted({point.module.partition(".")[0] for point in points}):
        for path in _sources(name, package):
            content.update(path.name.encode() + b"\0" + path.read_bytes())
    plugin = Plugin(name, content.hexdigest(), name, None)
    return _load(plugin, [point.module for point in points])


def _sources(name: str, package: str) -> list[Path]:
    """The Python files of a package, which its digest covers."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise ConfigError(f"the package {name} names the module {package}, which is not there")
    folders = spec.submodule_search_locations
    if folders is None:
        return [Path(spec.origin or "")]
    return sorted(path for folder in folders for path in Path(folder).rglob("*.py"))


def _load(plugin: Plugin, modules: Sequence[str] = ()) -> Plugin:
    """Execute a plugin, unless it is loaded, and enter its things in the tables."""
    if plugin.digest in _loaded:
        return _loaded[plugin.digest]
    former = next((other for other in loaded() if other.place == plugin.place), None)
    if former is not None:
        withdraw(former)
    with _entering(plugin):
        if plugin.digest in _withdrawn:
            _enter_again(plugin, _withdrawn.pop(plugin.digest))
        elif plugin.source is None:
            for module in modules:
                _execute(plugin, lambda module=module: importlib.import_module(module))
            _enter_waiting({module.partition(".")[0] for module in modules})
        else:
            _execute(plugin, lambda: _run(plugin))
        if not plugin.entries:
            raise ConfigError(f"{plugin.name} {_NOTHING}")
    _loaded[plugin.digest] = plugin
    return plugin


@contextlib.contextmanager
def _entering(plugin: Plugin) -> Iterator[None]:
    """A region in which a plugin enters things; after an error none of them stay."""
    _loading.append(plugin)
    try:
        yield
    except BaseException:
        for table, name, *_ in reversed(plugin.entries):
            table.remove(name)
        plugin.entries.clear()
        sys.modules.pop(plugin.module, None)
        raise
    finally:
        _loading.pop()


def _enter_again(plugin: Plugin, former: Plugin) -> None:
    for table, name, thing, aliases in former.entries:
        enter(table, name, thing, aliases)


def _enter_waiting(packages: Container[str]) -> None:
    """Enter what modules of these packages have registered before."""
    for waiting in [*_waiting]:
        module, entry = waiting
        if module.partition(".")[0] in packages:
            _waiting.remove(waiting)
            enter(*entry)


def _run(plugin: Plugin) -> ModuleType:
    """Execute a file as a module of its own."""
    loader = _Source(plugin)
    spec = importlib.util.spec_from_loader(plugin.module, loader, origin=plugin.place)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    module.__file__ = plugin.place
    sys.modules[plugin.module] = module  # where annotations and pickles look its names up
    loader.exec_module(module)
    return module


def _execute(plugin: Plugin, run: Any) -> None:
    """Run a plugin's code; an error in it becomes a `ConfigError` with its line."""
    try:
        run()
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise ConfigError(f"{plugin.name}{line}: {error.msg}; correct it") from error
    except (Exception, SystemExit) as error:
        line = _line_of(error, plugin)
        if isinstance(error, ConfigError):
            raise ConfigError(f"{plugin.name}{line}: {error}") from error
        text = (str(error).strip() or "no message").splitlines()[0]
        advice = "correct it"
        if isinstance(error, ImportError):
            advice = (
                "install what it imports on all machines; a plugin of several files is a package "
                f"with an entry point of group {GROUP}"
            )
        raise ConfigError(
            f"{plugin.name}{line}: {type(error).__name__}: {text}; {advice}"
        ) from error


def _line_of(error: BaseException, plugin: Plugin) -> str:
    """The last line of a plugin that an error came through, as in ", line 7"."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == plugin.place
    ]
    return f", line {lines[-1]}" if lines else ""
