"""What a table says where its seeds share their augmentation."""

import pytest

from raykd.config.experiment import parse
from raykd.report import gather, to_markdown
from tests.report.stored import DATA, TEXT

SENTENCE = "Seeds share their augmentation"
AUGMENTED = TEXT.replace(DATA, DATA.replace("size", "augment: {pad: 1}, size"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (AUGMENTED, True),
        (TEXT, False),  # there is nothing to share
        (AUGMENTED.replace("seed: [0, 1, 2]", "seed: [1]"), False),  # and no deviation
        (AUGMENTED + "  run.views_by_seed: [true]\n", False),
        (AUGMENTED + "  run.views_by_seed: [false, true]\n", True),
    ],
)
def test_a_deviation_that_lacks_augmentation_s_part_is_said_to_lack_it(store, text, said):
    text_of_page = to_markdown(gather(store, parse(text, "digits"))).replace("\\_", "_")
    assert (SENTENCE in text_of_page) == said
    assert ("run.views_by_seed: true" in text_of_page) == said
