"""Instance relationship graph: the golden value, and graphs edge by edge."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Outputs, Shapes
from raykd.methods.irg import IRG, edges, transformation
from tests.each import each
from tests.small import batch, golden_embeddings, golden_logits, golden_maps

MAPS = golden_maps()
STUDENT, TEACHER, _ = golden_logits()
MINE, THEIRS = golden_embeddings()


def outputs(logits, embedding, *maps):
    return Outputs(logits, {f"stage{n}": value for n, value in enumerate(maps)}, embedding)


def losses_of(method, rows=slice(None)):
    """Of a student whose last stages have 3 and 3 channels, and a teacher's with 3 and 5."""
    student = [STUDENT, MINE, MAPS["fs5"], MAPS["a8"], MAPS["fs"]]
    teacher = [TEACHER, THEIRS, MAPS["ft"], MAPS["ft8"], MAPS["ft"]]
    student, teacher = ([value[rows] for value in values] for values in (student, teacher))
    return method.losses(outputs(*student), outputs(*teacher), batch(4), None)


def naive_edges(features):
    """|x_i - x_j|**2 over the largest, as a nested list."""
    rows = [row.flatten() for row in features]
    squared = [[((a - b) ** 2).sum().item() for b in rows] for a in rows]
    largest = max(max(row) for row in squared)
    return [[value / largest for value in row] for row in squared]


def narrowed(pixels, channels):
    """The mean of each of as many equal parts of the channels, which may share a channel."""
    count = len(pixels)
    parts = [(n * count // channels, -((n + 1) * count // -channels)) for n in range(channels)]
    return torch.stack([pixels[start:end].mean(0) for start, end in parts])


def naive_transformation(earlier, later):
    """Distance that each sample moves, from maps whose sides are in a whole ratio."""
    step = earlier.shape[2] // later.shape[2]
    moves = []
    for a, b in zip(earlier, later, strict=True):
        blocks = a.reshape(len(a), b.shape[1], step, b.shape[2], step)
        pooled = blocks.sum((2, 4)) / step**2
        channels = min(len(pooled), len(b))
        moves.append(((narrowed(pooled, channels) - narrowed(b, channels)) ** 2).sum().item())
    return [move / max(moves) for move in moves]


def mse(a, b):
    a, b = torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)
    return ((a - b) ** 2).mean().item()


def test_the_edges_loss_has_its_golden_value():
    loss = (edges(MINE) - edges(THEIRS)).square().mean()
    assert loss.item() == pytest.approx(0.001062052884, rel=1e-9)


@pytest.mark.slow
@each("features", [MINE, MAPS["fs"], 100 + 3 * MINE])
def test_edges_are_squared_distances_over_the_largest(features):
    expected = torch.tensor(naive_edges(features), dtype=torch.float64)
    torch.testing.assert_close(edges(features), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.slow
@each(("earlier", "later"), [("a8", "fs"), ("a8", "fs5"), ("ft", "gs1")])
def test_transformations_are_pooled_moves_over_the_largest(earlier, later):
    expected = torch.tensor(naive_transformation(MAPS[earlier], MAPS[later]), dtype=torch.float64)
    torch.testing.assert_close(transformation(MAPS[earlier], MAPS[later]), expected)


@pytest.mark.slow
def test_twice_the_channels_are_averaged_in_pairs():
    wide = torch.stack([MAPS["fs"][:, 0], MAPS["fs"][:, 0] + 2, *MAPS["fs5"].unbind(1)[:4]], dim=1)
    paired = (wide[:, 0::2] + wide[:, 1::2]) / 2
    expected = transformation(MAPS["a8"], paired)
    torch.testing.assert_close(transformation(MAPS["a8"], wide), expected)


@pytest.mark.slow
def test_vertices_edges_and_transformation_stand_at_their_spots():
    losses = losses_of(IRG(vertex=0.2, edge=3.0, transformation=4.0, weight=0.5))
    assert list(losses) == ["logits", "stage1", "stage2", "embedding"]
    vertex = mse(STUDENT.tolist(), TEACHER.tolist())
    assert losses["logits"].item() == pytest.approx(0.5 * 0.2 * vertex, rel=1e-12)
    pairs = {
        "stage1": (MAPS["a8"], MAPS["ft8"]),
        "stage2": (MAPS["fs"], MAPS["ft"]),
        "embedding": (MINE, THEIRS),
    }
    expected = {
        spot: 0.5 * 3 / 3 * mse(naive_edges(mine), naive_edges(theirs))
        for spot, (mine, theirs) in pairs.items()
    }
    moves = [
        naive_transformation(*maps)
        for maps in ((MAPS["a8"], MAPS["fs"]), (MAPS["ft8"], MAPS["ft"]))
    ]
    expected["stage2"] += 0.5 * 4 * mse(*moves)
    for spot, value in expected.items():
        assert losses[spot].item() == pytest.approx(value, rel=1e-10)


@pytest.mark.slow
def test_one_sample_alone_has_vertices_only():
    losses = losses_of(IRG(), slice(0, 1))
    assert losses["logits"] > 0
    assert all(losses[spot] == 0 for spot in ("stage1", "stage2", "embedding"))


@pytest.mark.slow
def test_equal_samples_give_no_edges_and_no_nan():
    for dtype in (torch.float32, torch.float64):
        same = torch.full((4, 6), 3.0, dtype=dtype, requires_grad=True)
        result = edges(same)
        (gradient,) = torch.autograd.grad((result - edges(THEIRS.to(dtype))).square().mean(), same)
        assert not result.any()
        assert bool(gradient.isfinite().all())


def test_networks_with_fewer_than_two_stages_are_refused():
    one = Shapes(10, 6, {"stage1": (3, 4, 4)})
    two = Shapes(10, 6, {"stage1": (3, 8, 8), "stage2": (3, 4, 4)})
    assert not IRG().helpers(two, two)
    with pytest.raises(ConfigError, match="the student has 1"):
        IRG().helpers(one, two)
    with pytest.raises(ConfigError, match="the teacher has 1"):
        IRG().helpers(two, one)


@pytest.mark.slow
def test_the_gradient_is_that_of_the_loss():
    def loss(logits, embedding, first, last):
        mine = outputs(logits, embedding, first, last)
        theirs = outputs(TEACHER[:3, :4], THEIRS[:3], MAPS["gt1"][:3], MAPS["gt1"][:3, :, :1, :1])
        return tuple(IRG().losses(mine, theirs, batch(3), None).values())

    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (3, 5), (3, 2, 2, 2), (3, 3, 1, 1)]
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(loss, inputs)
