"""Numbers with their nouns."""

from raykd.core.words import counted


def test_a_noun_is_in_the_singular_for_one_alone():
    nouns = ("teachers", "caches", "searches", "hashes", "students of this experiment")
    assert [counted(1, noun) for noun in nouns] == [
        "1 teacher", "1 cache", "1 search", "1 file of hashes", "1 student of this experiment",
    ]  # fmt: skip
    assert counted(0, "teachers") == "0 teachers"
    assert counted(1200, "images") == "1,200 images"
