"""Mixed samples: functions of a key, exact, and what their names say."""

import pytest
import torch

from raykd.data.dataset import Images
from raykd.data.loading.loader import Views
from raykd.data.recipe import ResolvedData
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.mixing import Mix, mixed_targets
from raykd.data.transforms.strong import Strong
from tests.each import each
from tests.tiers import slow_but

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
IDS = torch.arange(200)
KINDS = each(
    "mix",
    slow_but([Mix(), Mix(alpha=0.3), Mix(kind="cutmix")], [Mix(), Mix(kind="cutmix")]),
    ids=str,
)


def views_of(augment: Augment, **looks: Augment) -> Views:
    """200 images of noise, 6 x 8 pixels, in 5 classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (200, 6, 8, 3), dtype=torch.uint8, generator=generator)
    read = {"digest": "0", "classes": 5, "size": (6, 8), "mean": MEAN, "std": STD}
    data = ResolvedData(name="digits", augment=augment, seed=6, **read)
    others = {name: data.model_copy(update={"augment": value}) for name, value in looks.items()}
    return Views(Images(pixels, IDS % 5, tuple("abcde")), data, others)


def plain(views: Views, ids: torch.Tensor, view: int) -> torch.Tensor:
    """Grey levels of the samples before they are mixed, float64."""
    augment = views.data.augment.unmixed()
    return augment.apply(views.images.pixels[ids], ids, view, views.data.seed).double()


@KINDS
def test_a_mixed_sample_looks_the_same_in_any_batch(mix):
    views = views_of(Augment(pad=1, flip=True, mix=mix))
    whole = views.batch(IDS, 3)
    some = torch.tensor([77, 0, 199, 77])
    batch = views.batch(some, 3)
    assert torch.equal(batch.pixels, whole.pixels[some])
    assert torch.equal(batch.targets, whole.targets[some])
    assert not torch.equal(batch.pixels, views.batch(some, 4).pixels)


@pytest.mark.parametrize("alpha", [0.3])
def test_mixup_is_the_weighted_sum_of_two_views_of_the_same_number(alpha):
    views = views_of(Augment(pad=1, flip=True, mix=Mix(alpha=alpha)))
    batch = views.batch(IDS, 5)
    partners = views.data.augment.mix.partners(IDS, 5, views.data.seed, 200)
    weights = batch.weights.double().view(-1, 1, 1, 1)
    expected = weights * plain(views, IDS, 5) + (1 - weights) * plain(views, partners, 5)
    levels = (batch.pixels.permute(0, 2, 3, 1).double() * 0.25 + 0.5) * 255
    # float32 of numbers up to 2, multiplied by 64 grey levels.
    torch.testing.assert_close(levels, expected, rtol=0, atol=1e-4)


def test_cutmix_pastes_a_box_and_weighs_by_the_pixels_that_stay():
    views = views_of(Augment(mix=Mix(kind="cutmix")))
    batch = views.batch(IDS, 0)
    partners = views.data.augment.mix.partners(IDS, 0, views.data.seed, 200)
    levels = ((batch.pixels.permute(0, 2, 3, 1).double() * 0.25 + 0.5) * 255).round()
    sample, theirs = plain(views, IDS, 0), plain(views, partners, 0)
    kept = (levels == sample).all(-1)
    assert bool((kept | (levels == theirs).all(-1)).all())
    other = (partners != IDS) & (batch.weights < 1)
    torch.testing.assert_close(kept.double().mean((1, 2)).float()[other], batch.weights[other])
    for box in ~kept[other]:
        rows, columns = box.any(1).nonzero(), box.any(0).nonzero()
        area = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert area == box.sum()


@KINDS
def test_targets_are_the_two_labels_with_the_weights_of_their_pixels(mix):
    views = views_of(Augment(mix=mix))
    batch = views.batch(IDS, 1)
    partners = views.data.augment.mix.partners(IDS, 1, views.data.seed, 200)
    for row in range(200):
        expected = torch.zeros(5)
        expected[row % 5] += batch.weights[row]
        expected[partners[row] % 5] += 1 - batch.weights[row]
        torch.testing.assert_close(batch.targets[row], expected)
    heavier = torch.where(batch.weights >= 0.5, IDS, partners) % 5
    clear = (batch.weights != 0.5) | (partners % 5 == IDS % 5)
    assert torch.equal(batch.labels[clear], heavier[clear])


@each(("alpha", "deviation"), [(1.0, 12**-0.5), (0.3, (4 * 1.6) ** -0.5)])
def test_weights_follow_the_beta_distribution(alpha, deviation):
    ids = torch.arange(100_000)
    pixels = torch.zeros(len(ids), 1, 1, 3, dtype=torch.uint8)
    weights = Mix(alpha=alpha).blend(pixels, pixels, ids, 0, 1).weights.double()
    # Standard errors of a mean and of a deviation; 5 of them are passed once in 10**6.
    assert abs(weights.mean() - 0.5) < 5 * deviation / len(ids) ** 0.5
    assert abs(weights.std() - deviation) < 5 * deviation / (2 * len(ids)) ** 0.5
    assert torch.equal(weights * 256, (weights * 256).round())


def test_samples_that_are_not_seen_have_the_ids_of_those_that_are():
    augment = Augment(mix=Mix())
    views = views_of(augment, clean=augment.unmixed(), partner=augment.unmixed())
    rows = torch.arange(10, 45)
    for seen, unseen in zip(views.runs(rows, 16, 2), views.unseen(rows, 16, 2), strict=True):
        assert unseen.pixels.numel() == 0
        assert torch.equal(unseen.ids, seen.ids)
        assert [*unseen.looks] == [*seen.looks]
        for look, batch in unseen.looks.items():
            assert torch.equal(batch.ids, seen.looks[look].ids)
            assert torch.equal(batch.targets, seen.looks[look].targets)


def test_partners_are_spread_over_all_rows():
    counts = Mix().partners(torch.arange(100_000), 0, 3, 100).bincount(minlength=100)
    chi = ((counts - 1000) ** 2 / 1000).sum()
    assert chi < 161  # chi-squared of 99 degrees of freedom, quantile 0.9999


@KINDS
def test_looks_show_what_a_sample_was_mixed_from(mix):
    augment = Augment(pad=1, flip=True, mix=mix)
    views = views_of(augment, clean=augment.unmixed(), partner=augment.unmixed())
    batch = views.batch(torch.tensor([4, 9]), 2)
    clean, partner = batch.looks["clean"], batch.looks["partner"]
    ids = torch.tensor([4, 9])
    unmixed = views_of(augment.unmixed())
    assert torch.equal(clean.pixels, unmixed.batch(ids, 2).pixels)
    assert torch.equal(partner.ids, augment.mix.partners(ids, 2, views.data.seed, 200))
    assert torch.equal(partner.pixels, unmixed.batch(partner.ids, 2).pixels)
    assert torch.equal(partner.targets, partner.ids % 5)
    assert clean.weights is None


def test_a_mixed_or_strongly_augmented_sample_has_no_number_of_views():
    finite = Augment(pad=4, flip=True)
    assert finite.views() == 162
    for change in ({"mix": Mix()}, {"strong": Strong()}):
        assert finite.model_copy(update=change).views() > 10**9


def test_targets_of_a_sample_with_itself_are_its_label():
    labels = torch.tensor([1, 0])
    targets = mixed_targets(labels, labels, torch.tensor([0.25, 1.0]), 3)
    assert targets.tolist() == [[0, 1, 0], [1, 0, 0]]


def test_strong_views_are_functions_of_the_key():
    augment = Augment(pad=1, flip=True, strong=Strong())
    views = views_of(augment)
    whole = views.batch(IDS, 3)
    some = torch.tensor([77, 0, 199, 77])
    assert torch.equal(views.batch(some, 3).pixels, whole.pixels[some])
    assert not torch.equal(views.batch(some, 4).pixels, whole.pixels[some])
    changed = (whole.pixels != views_of(Augment(pad=1, flip=True)).batch(IDS, 3).pixels).flatten(1)
    assert bool(changed.any(1).all())  # each has its hole at least


def test_a_hole_is_a_grey_square_cut_off_at_the_border():
    views = views_of(Augment(strong=Strong(operations=0)))
    levels = ((views.batch(IDS, 0).pixels.permute(0, 2, 3, 1) * 0.25 + 0.5) * 255).round()
    hole = (levels != views.images.pixels).any(-1)
    assert bool((levels[hole] == 127).all())
    assert bool((hole.flatten(1).sum(1) <= 3 * 4).all())
    assert hole.flatten(1).sum(1).max() == 3 * 4
