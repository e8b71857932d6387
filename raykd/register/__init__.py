"""Decorators of plugins: they enter things of one's own in the same tables as raykd's.

    import raykd

    @raykd.register.model("mine")
    def mine(classes: int) -> nn.Module: ...

A plugin is one file that an experiment names (`plugins: [mine.py]`), or an installed package with
an entry point of group `raykd.plugins`. Names have letters, digits and underscores. A name that is
taken is a `ConfigError`.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic.fields import FieldInfo
from torch import nn

from raykd.core import plugins
from raykd.core.descriptions import summary
from raykd.core.errors import ConfigError, RaykdError
from raykd.core.record import Record
from raykd.data.sources import IMAGENET, SOURCES, Reader, Source, Triple
from raykd.methods import METHODS
from raykd.methods.base import Method, canonical
from raykd.methods.columns import DERIVED
from raykd.methods.derived import Derived
from raykd.models import NETWORKS
from raykd.models.staged import Staged
from raykd.models.traced import staged_module
from raykd.tasks import TASKS, Task
from raykd.tasks.base import HEADINGS
from raykd.tracking import TRACKERS
from raykd.tracking.logger import Tracker

__all__ = ["column", "dataset", "logger", "method", "model", "task"]

_Kind = TypeVar("_Kind", bound=type)
_Made = TypeVar("_Made", bound=Callable[..., nn.Module])
_Read = TypeVar("_Read", bound=Reader)


def method(name: str, *, aliases: Sequence[str] = ()) -> Callable[[_Kind], _Kind]:
    """Decorator of a method: a final subclass of `raykd.methods.base.Method`, or of its kinds.

    All its fields have defaults. Its field `name` may be left out.
    """
    return _record("method", METHODS, Method, name, aliases)


def column(name: str, *, aliases: Sequence[str] = ()) -> Callable[[_Kind], _Kind]:
    """Decorator of a function of columns: a final subclass of `raykd.methods.derived.Derived`.

    All its fields have defaults. Its field `name` may be left out.
    """
    return _record("column", DERIVED, Derived, name, aliases)


def task(name: str, *, aliases: Sequence[str] = ()) -> Callable[[_Kind], _Kind]:
    """Decorator of a task: a final subclass of `raykd.tasks.Task`.

    All its fields have defaults. Its `headline` is one of `raykd.tasks.base.HEADINGS`.
    """
    enter = _record("task", TASKS, Task, name, aliases)

    def decorate(kind: _Kind) -> _Kind:
        headline = enter(kind)().headline
        if headline not in HEADINGS:
            raise ConfigError(
                f"the task {name!r}: its headline is {headline!r}; expected one of "
                f"{', '.join(HEADINGS)}"
            )
        return kind

    return decorate


def model(
    name: str,
    *,
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
    aliases: Sequence[str] = (),
) -> Callable[[_Made], _Made]:
    """Decorator of a function, or a class, from a number of classes to an `nn.Module`.

    The module takes normalised pixels [B, 3, H, W] and returns logits [B, classes], with weights
    from torch's global generator. `stages` and `classifier` name parts of it, see
    `models.traced.staged_module`; a `models.Staged` has its own.
    """

    def decorate(make: _Made) -> _Made:
        if not callable(make):
            raise ConfigError(f"the network {name!r}: expected a function, got {make!r}")

        def build(classes: int) -> Staged:
            try:
                network = make(classes)
            except (RaykdError, NotImplementedError):
                raise
            except Exception as error:
                if "meta" in str(error):  # a device of torch's, on which not all can be made
                    raise
                text = (str(error).strip() or "no message").splitlines()[0]
                raise ConfigError(
                    f"the network {name!r} cannot be made ({type(error).__name__}: {text}); its "
                    "function is given the number of classes and returns an nn.Module"
                ) from error
            return staged_module(name, network, classes, stages, classifier)

        plugins.enter(NETWORKS, name, build, aliases, make.__module__)
        return make

    return decorate


def dataset(
    name: str,
    *,
    normalisation: tuple[Triple, Triple] = IMAGENET,
    in_files: bool = False,
    aliases: Sequence[str] = (),
) -> Callable[[_Read], _Read]:
    """Decorator of a function that returns a `raykd.data.sources.splits.Dataset`.

    It is given the path of `data.path`, or None; where `in_files`, a path or URL as a text, and
    `labels`, False where none are needed. `normalisation`: mean and std of pixels in 0 to 1.
    """

    def decorate(read: _Read) -> _Read:
        source = Source(summary(read.__doc__), read, normalisation, in_files)
        plugins.enter(SOURCES, name, source, aliases, read.__module__)
        return read

    return decorate


def logger(name: str, *, aliases: Sequence[str] = ()) -> Callable[[_Kind], _Kind]:
    """Decorator of a subclass of `raykd.tracking.logger.Tracker`, for `scale.track`."""

    def decorate(kind: _Kind) -> _Kind:
        _check_final("logger", name, kind, Tracker)
        plugins.enter(TRACKERS, name, kind, aliases, kind.__module__)
        return kind

    return decorate


def _check_final(what: str, name: str, kind: Any, base: type) -> None:
    """Raise `ConfigError` where a thing is no subclass of `base`, or lacks parts of it."""
    if not (isinstance(kind, type) and issubclass(kind, base)):
        expected = f"{base.__module__}.{base.__name__}"
        raise ConfigError(f"the {what} {name!r}: expected a subclass of {expected}, got {kind!r}")
    lacks = sorted(getattr(kind, "__abstractmethods__", ()))
    if lacks:
        raise ConfigError(f"the {what} {name!r} does not define {' and '.join(lacks)}")


def _record(
    what: str, table: Any, base: type[Record], name: str, aliases: Sequence[str]
) -> Callable[[_Kind], _Kind]:
    """Decorator of a final subclass of a record class whose `name` tells them apart."""

    def decorate(kind: Any) -> Any:
        _check_final(what, name, kind, base)
        required = [key for key, value in kind.model_fields.items() if value.is_required()]
        if required not in ([], ["name"]):
            fields = ", ".join(key for key in required if key != "name")
            raise ConfigError(f"the {what} {name!r}: give a default to its fields {fields}")
        _set_name(kind, name, aliases)
        plugins.enter(table, name, kind, aliases, kind.__module__)
        return kind

    return decorate


def _set_name(kind: Any, name: str, aliases: Sequence[str]) -> None:
    """Give a record class the field `name` that its siblings have: a literal, with a default."""
    field = kind.model_fields["name"]
    if field.default == name and not aliases:
        return
    if "name" in vars(kind).get("__annotations__", {}):
        raise ConfigError(
            f"the {name!r} is called {field.default!r} by its field; leave the field name out"
        )
    words: Any = Annotated[Literal[(name, *aliases)], canonical(name)]
    kind.__pydantic_fields__["name"] = FieldInfo.from_annotated_attribute(words, name)
    kind.model_rebuild(force=True)
