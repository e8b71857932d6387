"""Words of messages: numbers with their nouns."""

_SINGULAR = {
    "searches": "search",
    "caches": "cache",
    "hashes": "file of hashes",
    "weights": "file of weights",
}


def counted(number: int, nouns: str) -> str:
    """A number with its noun, which is given in the plural: "2 teachers", "1 teacher"."""
    if number != 1:
        return f"{number:,} {nouns}"
    head, blank, rest = nouns.partition(" ")
    return f"1 {_SINGULAR.get(head, head.removesuffix('s'))}{blank}{rest}"
