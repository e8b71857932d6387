"""Every number that a file can hold has limits, which a real run meets and a typo does not."""

from collections.abc import Iterator
from typing import Any

import pytest

import raykd.planning.scaling  # noqa: F401 - its records are looked at, too
from raykd.config.experiment import parse
from raykd.core.errors import ConfigError
from raykd.core.record import Record

TEXT = """
run:
  model: resnet8
  data: {name: digits}
  teacher: {model: resnet8, optim: {epochs: 3}}
"""


# What another check says the lower limit of, and what a rule compares with any value.
def is_of_files(record: type[Record]) -> bool:
    """True for a record that is the shape of a file that raykd writes itself."""
    return record.__module__ in ("raykd.data.image_index", "raykd.data.in_memory")


def records(kind: type[Record] = Record) -> Iterator[type[Record]]:
    for inner in kind.__subclasses__():
        if inner.__module__.startswith("raykd.") and not is_of_files(inner):
            yield inner
        yield from records(inner)


def numbers(schema: Any) -> Iterator[dict[str, Any]]:
    """The parts of a JSON schema that describe a number."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number") and not {"const", "enum"} & schema.keys():
            yield schema
        for key, inner in schema.items():
            yield from () if key in ("$defs", "default") else numbers(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from numbers(inner)


def lacking(record: type[Record]) -> Iterator[tuple[str, str, str]]:
    schema = record.model_json_schema()
    schema = schema.get("$defs", {}).get(record.__name__, schema)
    for name, field in schema.get("properties", {}).items():
        for number in numbers(field):
            for limit in ("minimum", "maximum"):
                bounds = {limit, f"exclusive{limit.capitalize()}"}
                if not bounds & number.keys():
                    yield record.__name__, name, limit


def test_every_number_of_every_record_has_limits():
    assert len([*records()]) > 60
    assert [field for record in {*records()} for field in lacking(record)] == []


BEYOND = [
    ("run.optim.lr=1e300", "less than or equal to 1e+30, got 1e+300"),
    ("run.optim.epochs=1e23", "valid integer, got 1e+23"),
    ("run.optim.epochs=2400000", "less than or equal to 100000, got 2400000"),
    (f"run.optim.batch={10**20}", "less than or equal to 2147483647"),
    ("run.optim.milestones=[-5, 2]", "greater than or equal to 0, got -5"),
    ("run.optim.clip=1e300", "less than or equal to 1e+30"),
    ("run.data.augment.pad=100000", "less than or equal to 128, got 100000"),
    ("run.data.resize=100000", "less than or equal to 16384, got 100000"),
    ("run.data.stream={size: 100000, resize: 100000}", "less than or equal to 16384"),
    ("run.data.std=[0.2, 0.0, 0.2]", "greater than 0, got 0.0"),
    ("run.data.std=[-0.2, 0.2, 0.2]", "greater than 0, got -0.2"),
    ("run.data.std=[58.4, 57.1, 57.4]", "less than or equal to 10, got 58.4"),
    ("run.data.mean=[123.7, 116.3, 103.5]", "less than or equal to 1, got 123.7"),
    (f"run.seed={2**63}", "less than or equal to 9223372036854775807"),
    (f"run.data.seed={2**70}", "less than or equal to 9223372036854775807"),
    ("run.views=99999999999", "run.views: input should be less than or equal to 2147483647"),
    ("run.method={name: kd, weight: 1e30}", "less than or equal to 1e+09, got 1e+30"),
    ("run.method={name: kd, weight: [[0, 1e30]]}", "less than or equal to 1e+09"),
    ("run.method={name: kd, temperature: 1e30}", "less than or equal to 10000, got 1e+30"),
    ("run.method={name: crd, negatives: 16384000000}", "less than or equal to 1048576"),
    ("run.teacher.save_every=10000000", "less than or equal to 100000"),
    ("scale.workers=1000000", "less than or equal to 100000, got 1000000"),
    ("scale.workers=[1, 1000000]", "less than or equal to 100000, got 1000000"),
    ("scale.decoders=100000", "less than or equal to 1024, got 100000"),
    ("sweep.samples=1000000000", "less than or equal to 1000000, got 1000000000"),
    ("sweep.seed=4294967296", "less than or equal to 4294967295, got 4294967296"),
    ("sweep.samples=20000", "experiment.sweep: it draws 20,000 trials (20,000 samples)"),
]


def test_a_number_beyond_its_limits_is_refused_with_them():
    for override, limit in BEYOND:
        with pytest.raises(ConfigError) as error:
            parse(TEXT, "x", [override])
        assert limit in str(error.value)
        bounds = [line for line in str(error.value).splitlines() if "less than" in line]
        assert not bounds or len(bounds) == len(str(error.value).splitlines())


def test_a_grid_is_counted_before_it_is_laid_out_and_its_limit_can_be_raised():
    values = [*range(200)]
    axes = [f"grid.run.{key}={values}" for key in ("seed", "data.seed", "teacher.seed")]
    with pytest.raises(ConfigError) as error:
        parse(TEXT, "x", axes)
    assert str(error.value) == (
        "experiment.grid: it lays out 8,000,000 students (200 of run.seed x 200 of run.data.seed x "
        "200 of run.teacher.seed), more than the 10,000 of scale.grid_limit; vary less, or raise "
        "that"
    )
    few = ["grid.run.seed=[1, 2, 3]", "grid.run.data.seed=[1, 2]"]
    with pytest.raises(ConfigError, match="lays out 6 students"):
        parse(TEXT, "x", [*few, "scale.grid_limit=5"])
    assert len(parse(TEXT, "x", [*few, "scale.grid_limit=6"]).runs) == 6
