from raykd.core.descriptions import descriptions
from raykd.core.record import Record


class Base(Record):
    size: int = 1
    """Side in pixels."""
    rate: float = 0.5
    """Share that is
    kept.
    """


class Inner(Base):
    size: int = 2
    """Side of the inner one, in pixels."""
    seed: int = 0


def test_a_base_describes_what_a_class_does_not():
    assert descriptions(Inner) == {
        "size": "Side of the inner one, in pixels.",
        "rate": "Share that is kept.",
    }


def test_the_schema_of_a_record_has_the_descriptions():
    properties = Inner.model_json_schema()["properties"]
    assert properties["rate"]["description"] == "Share that is kept."
    assert "description" not in properties["seed"]


def test_a_class_without_a_source_has_none():
    kind = type("Made", (Record,), {"__annotations__": {"x": int}, "x": 1, "__module__": "nowhere"})
    assert descriptions(kind) == {}
