"""Dense distillation against golden values; its targets, and what it is invariant to."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes, Signal
from raykd.methods.combine import Combine
from raykd.methods.dense_distillation import DenseDistillation
from raykd.methods.presets import PRESETS
from raykd.methods.standardiser import Standardiser, hadamard
from raykd.models import build, measure
from tests.each import each
from tests.small import golden_embeddings, golden_maps, golden_tokens

GOLDEN = {  # ts, tt of the specification: formulas of the named projects' code
    "mse": 0.5877140513,
    "balanced": 0.531940699,
    "theia": 0.553899679,
    "dampened_mse": 0.256900891,
    "gram_mse": 0.1239359411,
    "gram_kl": 0.1232602702,
    "channel_kl": 0.1254398416,
}
NONE = Signal(0)
SHAPES = Shapes(0, 6, {"stage1": (6, 5, 1)}), Shapes(0, 6, {"stage4": (6, 5, 1)})


def loss_of(method, student, teacher, helpers=None):
    """The loss of vectors [B, D, T] under an identity as the projection."""
    if helpers is None:
        helpers = method.helpers(*SHAPES).double()
        with torch.no_grad():
            helpers["projection"].weight.copy_(torch.eye(6)[:, :, None, None])
    ids = torch.arange(len(student))
    batch = Batch(torch.zeros(len(student), 3, 1, 1), ids, ids, view=0, epoch=0)
    mine, theirs = (
        Outputs(features={f"{stage}.map": values[..., None]})
        for stage, values in (("stage1", student), ("stage4", teacher))
    )
    losses = method.losses(mine, theirs, batch, helpers)
    assert losses.keys() == {"stage1"}
    return losses["stage1"].item()


@each("distance", GOLDEN)
def test_golden_values(distance):
    student, teacher = golden_tokens()
    method = DenseDistillation(distance=distance)
    assert loss_of(method, student, teacher) == pytest.approx(GOLDEN[distance], rel=1e-6)


def test_mse_of_maps_has_its_golden_value_and_is_that_of_their_spectra():
    maps = golden_maps()
    mine, theirs = maps["fs5"], maps["ft"]
    losses = DenseDistillation(distance="mse").distances(mine.flatten(2), theirs.flatten(2))
    assert losses.mean().item() == pytest.approx(1.587123003, rel=1e-9)
    spectrum = torch.fft.fft2(mine - theirs, norm="ortho").abs().square()
    torch.testing.assert_close(spectrum.mean((1, 2, 3)), losses)


@pytest.mark.slow
def test_beta_of_one_is_torch_s_smooth_l1():
    method = DenseDistillation(beta=1.0)
    assert loss_of(method, *golden_tokens()) == pytest.approx(0.543955257, rel=1e-6)


@pytest.mark.slow
def test_angles_ignore_the_scale_of_the_student_and_distances_do_not():
    student, teacher = golden_tokens()
    for distance in ("cosine", "gram_mse", "gram_kl"):
        method = DenseDistillation(distance=distance)
        scaled = loss_of(method, 3 * student, teacher)
        assert scaled == pytest.approx(loss_of(method, student, teacher), rel=1e-9)
    method = DenseDistillation(distance="smooth_l1")
    assert loss_of(method, 3 * student, teacher) != pytest.approx(
        loss_of(method, student, teacher), rel=1e-2
    )


@pytest.mark.slow
def test_the_local_term_ignores_rotations_of_channels_and_is_0_at_one_place():
    student, teacher = golden_tokens()
    method = DenseDistillation(distance="gram_kl")
    rotation = torch.linalg.qr(torch.randn(6, 6).double())[0]
    plain = loss_of(method, student, teacher)
    assert loss_of(method, student, rotation @ teacher) == pytest.approx(plain, rel=1e-9)
    assert loss_of(method, rotation @ student, teacher) == pytest.approx(plain, rel=1e-9)
    assert loss_of(method, student[:, :, :1], teacher[:, :, :1]) == pytest.approx(0, abs=1e-12)


def test_lightly_train_s_third_version_is_the_sum_of_a_queue_and_a_local_term():
    queue, local = PRESETS["lightly_v3"].method["combine"]
    method = Combine.read({"combine": [{**queue, "size": 4}, local]})
    assert method.needs() == Signal.EMBEDDING | Signal.MAP
    assert method.spots({"stage1": 0}, {"stage1": 0}).keys() == {"stage1", "embedding"}
    helpers = method.helpers(*SHAPES, torch.arange(4)).double()
    with torch.no_grad():
        for part in helpers.values():
            weight = part["projection"].weight
            weight.copy_(torch.eye(6).view_as(weight))
    mine, theirs = (
        Outputs(features={"stage1.map": places.repeat(2, 1, 1)[..., None]}, embedding=embedding)
        for places, embedding in zip(golden_tokens(), golden_embeddings(), strict=True)
    )
    ids = torch.arange(4)
    batch = Batch(torch.zeros(4, 3, 1, 1), ids, ids, view=0, epoch=0)
    losses = method.losses(mine, theirs, batch, helpers)
    assert losses["embedding"].item() == pytest.approx(1.682642637, rel=1e-6)
    assert losses["stage1"].item() == pytest.approx(0.1232602702, rel=1e-6)


@pytest.mark.slow
def test_a_standardised_target_has_the_promised_moments():
    torch.manual_seed(0)
    vectors = torch.randn(5000, 8).double() @ torch.randn(8, 8).double() + 3
    blocks = [block.T[None] for block in vectors.split(1000)]
    for kind in ("global", "channel", "phi_s"):
        standardiser = Standardiser(8, kind).double()
        standardiser.calibrate(blocks)
        done = standardiser(vectors.T[None])[0].T
        torch.testing.assert_close(done.mean(0), torch.zeros(8).double(), rtol=0, atol=1e-9)
        variance = done.var(0, correction=0)
        assert variance.mean().item() == pytest.approx(1, rel=1e-9)
        assert torch.allclose(variance, torch.ones(8).double(), rtol=1e-9) == (kind != "global")
        factor = standardiser.factor
        matrix = factor if kind == "phi_s" else factor[:, 0].diag()
        back = torch.linalg.solve(matrix, done.T).T + standardiser.mean[:, 0]
        torch.testing.assert_close(back, vectors, rtol=0, atol=1e-9)
        if kind == "phi_s":  # a rotation times a number, so it can be inverted
            one = factor @ factor.T / (factor @ factor.T)[0, 0]
            torch.testing.assert_close(one, torch.eye(8).double(), rtol=0, atol=1e-12)


def test_a_channel_that_did_not_vary_is_divided_by_what_all_of_them_are():
    vectors = torch.tensor([[[1.0, 3.0], [0.0, 0.0], [-2.0, 2.0]]])  # variances 1, 0 and 4
    standardiser = Standardiser(3, "channel")
    standardiser.calibrate([vectors])
    deviation = torch.tensor([1.0, (5 / 3) ** 0.5, 2.0])
    torch.testing.assert_close(standardiser.factor[:, 0], 1 / deviation)


@pytest.mark.slow
@each("size", [1, 20, 28, 36, 44, 192, 768])
def test_hadamard_matrices_have_equal_magnitudes(size):
    matrix = hadamard(size) * size**0.5
    assert torch.allclose(matrix.abs(), torch.ones(1).double())
    torch.testing.assert_close(
        matrix @ matrix.T, size * torch.eye(size).double(), rtol=0, atol=1e-9
    )


@pytest.mark.slow
def test_one_phi_s_target_is_a_rescaled_one():
    student, teacher = golden_tokens()
    method = DenseDistillation(distance="mse", standardise="phi_s")
    helpers = method.helpers(*SHAPES).double()
    assert method.needs_calibration(helpers)
    method.calibrate(helpers, [Outputs(features={"stage4.map": teacher[..., None]})])
    standardiser, rows = helpers["standardiser"], student
    assert isinstance(standardiser, Standardiser)
    with torch.no_grad():  # the student's channels in the same space
        state = {"weight": standardiser.factor[:, :, None, None]}
        state["bias"] = -(standardiser.factor @ standardiser.mean)[:, 0]
        helpers["projection"].load_state_dict(state)
    phi = (standardiser.factor @ standardiser.factor.T)[0, 0].rsqrt()
    expected = loss_of(DenseDistillation(distance="mse"), rows, teacher) / phi.item() ** 2
    assert loss_of(method, rows, teacher, helpers) == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
def test_the_teacher_s_map_is_pooled_to_a_grid_and_the_student_s_brought_there():
    shapes = Shapes(0, 0, {"stage1": (3, 8, 8)}), Shapes(0, 0, {"stage1": (5, 6, 6)})
    method = DenseDistillation(distance="mse", grid=3)
    helpers = method.helpers(*shapes)
    batch = Batch(torch.zeros(2, 3, 1, 1), torch.zeros(2), torch.arange(2), view=0, epoch=0)
    student = Outputs(features={"stage1.map": torch.randn(2, 3, 8, 8)})
    whole = torch.randn(2, 5, 6, 6)
    pooled = torch.nn.functional.avg_pool2d(whole, 2)
    for teacher in (whole, pooled):  # as a cache has it
        answer = Outputs(features={"stage1.map": teacher})
        (loss,) = method.losses(student, answer, batch, helpers).values()
        mine = torch.nn.functional.interpolate(
            helpers["projection"](student.map), (3, 3), mode="bilinear"
        )
        assert loss.item() == pytest.approx((mine - pooled).square().mean().item(), rel=1e-6)


@pytest.mark.slow
def test_a_transformer_s_map_is_its_patches_after_the_last_norm():
    for name in ("timm/vit_tiny_patch16_224", "torchvision/vit_b_32"):
        network = build(name, 0).eval()
        pixels = torch.randn(1, 3, 224, 224)
        with torch.no_grad():
            answer = network.outputs(pixels, Signal.MAP | Signal.EMBEDDING)
        side = 14 if "16" in name else 7
        assert answer.map.shape[2:] == (side, side)
        torch.testing.assert_close(  # layer norms with weights 1 and biases 0
            answer.map.std(1, correction=0), torch.ones(1, side, side), rtol=1e-2, atol=1e-2
        )


def test_a_network_without_stages_is_refused():
    with pytest.raises(ConfigError, match="has no stages"):
        DenseDistillation().helpers(Shapes(0, 6, {}), SHAPES[1])


@pytest.mark.slow
def test_the_last_two_stages_are_side_by_side_at_the_last_one_s_size():
    network, pixels = build("resnet8x4", 0).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        one = network.outputs(pixels, Signal.MAP | Signal.FEATURES)
        two = network.outputs(pixels, Signal.MAP | Signal.BLOCKS)
    pooled = torch.nn.functional.avg_pool2d(one.features["stage2"], 2)
    assert torch.equal(two.map, torch.cat([pooled, one.map], dim=1))
    shapes = measure(network, (16, 16))
    method = DenseDistillation(distance="mse", blocks=2)
    helpers = method.helpers(SHAPES[0], shapes)
    assert helpers["projection"].weight.shape[0] == two.map.shape[1]
    with pytest.raises(ConfigError, match="the teacher has one stage"):
        method.helpers(*SHAPES)
    with pytest.raises(ValueError, match="give all the same blocks"):
        Combine(combine=(method, DenseDistillation()))


@pytest.mark.slow
@each("name", ["timm/vit_tiny_patch16_224", "torchvision/vit_b_32", "timm/test_vit3"])
def test_the_last_two_blocks_of_a_transformer_go_through_its_last_norm(name):
    torch.manual_seed(0)
    network = build(name, 0).eval()
    pixels = torch.randn(1, 3, 160 if "test" in name else 224, 160 if "test" in name else 224)
    with torch.no_grad():
        one, two = (network.outputs(pixels, Signal.MAP | more) for more in (NONE, Signal.BLOCKS))
        before, last = two.map.chunk(2, dim=1)
        assert torch.equal(last, one.map)
        # The block before is what the last one maps to the whole.
        plain = network.network
        blocks = plain.blocks if "timm" in name else plain.encoder.layers
        norm = plain.norm if "timm" in name else plain.encoder.ln
        seen = []
        handle = blocks[-2].register_forward_hook(lambda *call: seen.append(call[-1]))
        network(pixels)
        handle.remove()
    tokens = norm(seen[0])[:, -before[0, 0].numel() :]
    torch.testing.assert_close(before.flatten(2).mT, tokens)
    assert not torch.equal(before, last)


@pytest.mark.slow
def test_places_are_not_compared_with_each_other_where_there_is_one():
    one, more = Shapes(0, 6, {"stage3": (6, 1, 1)}), SHAPES[1]
    for shapes, grid in (((one, more), None), ((more, one), None), ((more, more), 1)):
        DenseDistillation(distance="cosine", grid=grid).helpers(*shapes)
        with pytest.raises(ConfigError, match="compares places with each other"):
            DenseDistillation(distance="gram_kl", grid=grid).helpers(*shapes)
