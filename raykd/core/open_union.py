"""Unions of records that plugins may add members to."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema

from raykd.core.record import Record
from raykd.core.registry import Registry

_PLUGIN = "<plugin>"  # tag of all members from plugins


@dataclass(frozen=True)
class Open:
    """Annotation of a union whose records `name` tells apart: plugins' records belong to it, too.

    Pydantic compiles a union once, when the class that has it is made. What a plugin enters in the
    table later is looked up there, by its name.
    """

    table: Registry[Any]

    def kinds(self) -> Iterator[type[Record]]:
        """The classes of the table that come from plugins."""
        return (kind for name, kind in self.table.items() if self.table.origin(name))

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The union's schema, with one more branch for everything from plugins."""
        closed = handler(source)
        assert closed["type"] == "tagged-union"

        def json_schema(_: CoreSchema, handler: GetJsonSchemaHandler) -> Any:
            return handler(closed)

        return core_schema.tagged_union_schema(
            {
                **closed["choices"],
                _PLUGIN: core_schema.no_info_plain_validator_function(self._read),
            },
            self._tag,
            # Members are written out as what they are, not as what the union knows.
            serialization=core_schema.simple_ser_schema("any"),
            metadata={"pydantic_js_functions": [json_schema]},
        )

    def _tag(self, value: Any) -> str | None:
        """The tag of a value: its name, or that of all plugins."""
        if isinstance(value, Record):
            known = type(value) in self.table.values() and not self._is_plugins(value)
            return getattr(value, "name", None) if known else _PLUGIN
        if not isinstance(value, dict):
            return "<no keys>"
        name = value.get("name")
        return _PLUGIN if isinstance(name, str) and self.table.origin(name) else name

    def _is_plugins(self, value: Record) -> bool:
        return any(type(value) is kind for kind in self.kinds())

    def _read(self, value: Any) -> Record:
        """The record of a plugin's class, from itself or from plain data."""
        if isinstance(value, Record):
            if not self._is_plugins(value):
                kind = type(value).__name__
                raise ValueError(
                    f"{kind} is no {self.table.kind} that raykd knows; put it in a file, decorate "
                    f'it with @raykd.register.{self.table.kind}("a_name"), and name that file '
                    "among the experiment's plugins"
                )
            return value
        name = self.table.canonical(value["name"])
        try:
            return self.table[name].read({**value, "name": name})
        except ValidationError as error:
            # Errors inside stand below the name, as those of a union's other members do.
            lines = [
                InitErrorDetails(
                    type=line["type"],
                    loc=(name, *line["loc"]),
                    input=line["input"],
                    ctx=line.get("ctx", {}),
                )
                for line in error.errors()
            ]
            raise ValidationError.from_exception_data(error.title, lines) from error
