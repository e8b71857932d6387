"""Spot-adaptive distillation in small: bases, networks, and samples that are taught as wanted."""

from copy import deepcopy
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, nn

from raykd.core.types import Batch, Outputs, Signal
from raykd.methods import METHODS, Method
from raykd.methods.at import AT
from raykd.methods.combine import Combine
from raykd.methods.crd import CRD
from raykd.methods.kd import KD
from raykd.methods.sakd_policy import gumbel
from raykd.models import build, measure
from raykd.models.staged import Staged
from raykd.teachers.source import LiveTeacher, SourceByLook
from tests.small import batch

PAPER = ("fitnet", "at", "sp", "cc", "vid", "relational_kd", "pkt", "ft", "nst", "crd")
REFUSED = ("label_only", "ab", "fsp", "teacher_free", "simkd", "jacobian")
REFUSED += ("multi_head_kd", "sakd")
BASES = [name for name in METHODS if name not in REFUSED]
LABELS = torch.arange(640) % 10
SMALL = {"width": 8, "negatives": 16}  # of crd's memory


def name_of(value):
    """Name of a parameter in a test's id; None leaves it to pytest."""
    if isinstance(value, tuple) and all(isinstance(part, str) for part in value):
        return "<-".join(value)
    return value if isinstance(value, str) else getattr(value, "name", None)


def base_of(name: str) -> Method:
    """A base with its defaults, and a small memory."""
    if name == "crd":
        return CRD(**SMALL)
    if name == "combine":
        return Combine(combine=(CRD(**SMALL), AT(), KD(weight=1.0)))
    return METHODS[name]()


def pixels_of(size: int, side: int, seed: int = 0) -> Tensor:
    """Random pixels, channels last in memory."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, 3, side, side, generator=generator)
    return pixels.contiguous(memory_format=torch.channels_last)


@cache
def _networks(student, teacher, side):
    """Networks that `networks` copies, since making one takes longer."""
    torch.manual_seed(0)
    made = build(student, 10), build(teacher, 10)
    for network in made:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.uniform_(-0.3, 0.3)
        with torch.no_grad():
            network.train()(pixels_of(6, side, seed=1))
        network.to(memory_format=torch.channels_last)
    return made[0], made[1].eval().requires_grad_(False)


def networks(student: str, teacher: str, side: int) -> tuple[Staged, Staged]:
    """A student in training mode and a frozen teacher, whose batch norms have seen something.

    Channels last in memory, as in the loop.
    """
    return deepcopy(_networks(student, teacher, side))


def helpers_of(method: Method, student: Staged, teacher: Staged, side: int = 16) -> nn.ModuleDict:
    """The method's helpers for 640 samples, always the same, calibrated where it asks for that."""
    torch.manual_seed(1)
    shapes = measure(student, (side, side)), measure(teacher, (side, side))
    helpers = method.helpers(*shapes, LABELS)
    if method.needs_calibration(helpers):
        method.calibrate(helpers, [answer(method, teacher, batch(side=side))])
    return helpers


def source(method: Method, teacher: Staged, **options):
    """Whoever answers for a live teacher about every look that the method asks for."""
    live = LiveTeacher(teacher, method.needs() | Signal.LIVE, **options)
    looks = method.looks().teacher
    return live if looks == ("given",) else SourceByLook(dict.fromkeys(looks, live))


def answer(method: Method, teacher: Staged, sample: Batch) -> Outputs:
    """Outputs of the teacher for every look that the method reads."""
    return source(method, teacher)(sample)


def seen(method: Method, student: Staged, sample: Batch) -> Outputs:
    """Outputs of the student in training for every look that the method reads."""
    made = {}
    for look in method.looks().student:
        pixels = (sample if look == "given" else sample.looks[look]).pixels
        made[look] = student.outputs(pixels, method.needs() | Signal.LIVE)
    return next(iter(made.values())).with_looks(made)


def force(helpers: nn.ModuleDict, gate: int) -> None:
    """Let the policy say the same of every sample, whatever the noise."""
    policy = helpers["routing"].policy
    nn.init.zeros_(policy.weight)
    nn.init.zeros_(policy.bias)
    policy.bias.data[0::2] = 1e4 if gate else -1e4


def decisions(helpers: nn.ModuleDict) -> int:
    """Number of decisions for each sample."""
    return len(helpers["selection"].names)


def _whom(method, helpers, sample):
    """bool [B, R]: who is taught where, as the method decides for a policy that knows nothing."""
    count = decisions(helpers)
    if method.mode == "random":
        return helpers["selection"].uniform(sample, count) < 0.5
    noise = gumbel(helpers["selection"].uniform(sample, 2 * count)).view(-1, count, 2)
    chosen = noise[:, :, 0] > noise[:, :, 1]
    return ~chosen if method.mode == "reverse" else chosen


def chosen_as(method, helpers: nn.ModuleDict, sample: Batch, wanted: Tensor) -> Batch:
    """The sample with ids by whose noise those are taught that `wanted` (bool [B, R]) says."""
    if "routing" in helpers:
        nn.init.zeros_(helpers["routing"].policy.weight)
        nn.init.zeros_(helpers["routing"].policy.bias)
    every = Batch(sample.pixels, sample.targets, torch.arange(len(LABELS)), 0, sample.epoch)
    decided = _whom(method, helpers, every)
    ids, free = [], torch.ones(len(LABELS), dtype=torch.bool)
    for row in wanted:
        found = ((decided == row).all(1) & free).nonzero()[0, 0]
        free[found] = False
        ids.append(int(found))
    return _with_ids(sample, torch.tensor(ids))


def _with_ids(sample, ids):
    """The sample, and every look at it, with other ids."""
    looks = {look: _with_ids(other, ids) for look, other in sample.looks.items()}
    return replace(sample, ids=ids, looks=looks)


def of_rows(sample: Batch, rows: Tensor) -> Batch:
    """Some rows of a batch, put together by hand."""
    return Batch(
        sample.pixels[rows],
        sample.targets[rows],
        sample.ids[rows],
        sample.view,
        sample.epoch,
        {look: of_rows(other, rows) for look, other in sample.looks.items()},
        None if sample.weights is None else sample.weights[rows],
    )


def state(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_state(module: nn.Module, expected: dict[str, Tensor]) -> None:
    """All weights and buffers are the expected ones, to the last bit."""
    for name, value in module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def assert_finite(losses: dict[str, Tensor]) -> None:
    """Every loss is one finite number in float32."""
    for spot, loss in losses.items():
        assert loss.shape == (), spot
        assert loss.dtype == torch.float32, spot
        assert bool(loss.isfinite()), spot


def assert_trains(module: nn.Module) -> None:
    """Every trained parameter has got a finite gradient."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert bool(parameter.grad.isfinite().all()), name


def total(losses: dict[str, Tensor]) -> Tensor:
    """The sum of all losses."""
    return torch.stack([*losses.values()]).sum()
