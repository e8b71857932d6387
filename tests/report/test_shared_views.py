"""Remark of a table whose seeds share their augmentation."""

from raykd.config.experiment import parse
from raykd.report import gather
from raykd.report.tables import legend
from tests.report.stored import DATA, TEXT

SENTENCE = "Seeds share their augmentation"
AUGMENTED = TEXT.replace(DATA, DATA.replace("size", "augment: {pad: 1}, size"))


def test_a_deviation_that_lacks_augmentation_s_part_is_said_to_lack_it(store):
    for text, shared in (
        (AUGMENTED, True),
        (TEXT, False),  # there is nothing to share
        (AUGMENTED.replace("seed: [0, 1, 2]", "seed: [1]"), False),  # and no deviation
        (AUGMENTED + "  run.views_by_seed: [true]\n", False),
        (AUGMENTED + "  run.views_by_seed: [false, true]\n", True),
    ):
        notes = legend(gather(store, parse(text, "digits")))
        assert (SENTENCE in notes) == shared
        assert ("run.views_by_seed: true" in notes) == shared
