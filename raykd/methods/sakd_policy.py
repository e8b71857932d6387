"""Policy of spot-adaptive distillation, and the routing network from which it learns.

Song et al. 2022, arXiv 2205.02399, as in the official code. Shapes: B batch, C classes, D embedding
width, R decisions: one for each of the base's spots, and the last one for the logits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from raykd.core import keyed_random
from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Network, Outputs, Shapes
from raykd.methods.base import full_precision, precise
from raykd.methods.feature_maps import Regressor, check_sequential
from raykd.methods.helper_kinds import Paced, Shared, Tally

CHOOSE_ALL_BIAS = 10.0  # initial bias towards the teacher where both networks are homogeneous


def gumbel(uniform: Tensor) -> Tensor:
    """Gumbel noise from uniform numbers in [0, 1), with the epsilons of the official code."""
    return -torch.log(-torch.log(uniform + 1e-20) + 1e-20)


def choose(scores: Tensor, noise: Tensor, temperature: float) -> Tensor:
    """Gates [B, R]: exactly 1 where the teacher is chosen, otherwise 0, with a soft gradient.

    Straight-through Gumbel softmax (Jang et al. 2017, arXiv 1611.01144). `scores` and `noise` are
    [B, R, 2], for teacher and student. P(1) is the softmax of the scores; the temperature affects
    only the gradient.
    """
    noisy = scores + noise
    soft = torch.softmax(noisy / temperature, dim=2)[:, :, 0]
    hard = (noisy[:, :, 0] >= noisy[:, :, 1]).to(soft.dtype)
    return hard + (soft - soft.detach())


def route_loss(
    routed: Tensor,
    student: Tensor,
    targets: Tensor,
    gates: Tensor,
    gamma: float,
    gather: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> Tensor:
    """gamma**sign(CE(routed) - CE(student)) * CE(routed) + max(0, B / 2 - sum of gates).

    CE is the cross entropy in nats. The hinge encourages the teacher's logits for half of the
    batch; as in the official code, it is not divided by B. `routed` and `student` are logits
    [B, C], `gates` [B] those at the logits. With `gather`, sign and hinge are those of the batch of
    all workers, over which the gradients are averaged.
    """
    size, count = len(gates), gates.sum()
    route = F.cross_entropy(routed, targets)
    plain = F.cross_entropy(student, targets)
    sums = torch.stack([size * route, size * plain, count, count.new_full((), size)]).detach()
    all_route, all_plain, all_count, all_size = gather(sums[None]).sum(0)
    factor = gamma ** torch.sign(all_route - all_plain)
    active = all_count < all_size / 2
    # The mean over workers, weighted by their samples, becomes a sum over all samples.
    return factor * route + all_size / size * active * (size / 2 - count)


def segments(network: Network, spots: Sequence[str]) -> list[list[nn.Module]]:
    """Modules up to the first spot, from each spot to the next, and from the last to the logits."""
    parts = {**network.stages, "embedding": network.pool, "logits": network.classifier}
    names, modules = [*parts], [*parts.values()]
    ends = [names.index(spot) + 1 for spot in (*spots, "logits")]
    return [modules[start:stop] for start, stop in pairwise((0, *ends))]


class Router(Paced, Shared):
    """Policy, and adapters between the two networks; only the routing loss trains them.

    `spots`: spot of the student -> spot of the teacher, without the logits; `columns`: spot ->
    column of its decision.
    """

    def __init__(
        self,
        student: Shapes,
        teacher: Shapes,
        spots: Mapping[str, str],
        columns: Mapping[str, int],
        *,
        choose_all: bool,
        relu: bool,
        rerun_teacher: bool,
    ) -> None:
        """`choose_all`: the initial policy chooses the teacher; `relu`: adapters end in a ReLU.

        `rerun_teacher`: the teacher is trained, so its outputs are not those of evaluation mode.
        Raises `ConfigError` where the teacher's spots have another order, or where a network
        cannot be run from stage to stage.
        """
        if any(spot != "embedding" for spot in spots):
            for shapes in (student, teacher):
                check_sequential(shapes, "sakd", "runs networks from stage to stage")
        depths = [[*teacher.features, "embedding"].index(spot) for spot in spots.values()]
        if depths != sorted(set(depths)):
            raise ConfigError(
                "method 'sakd' goes from spot to spot, and its base compares the student's "
                f"{', '.join(spots)} with the teacher's {', '.join(spots.values())}, which do not "
                "follow each other. Choose networks with as many stages, or another base."
            )
        super().__init__()
        self.rerun_teacher = rerun_teacher
        self.spots, self.columns = dict(spots), dict(columns)
        decisions = max(columns.values()) + 1
        self.policy = nn.Linear(teacher.embedding + student.embedding, 2 * decisions)
        if choose_all:
            with torch.no_grad():
                self.policy.bias[::2] += CHOOSE_ALL_BIAS
        self.to_teacher, self.to_student = nn.ModuleDict(), nn.ModuleDict()
        for spot, teacher_spot in spots.items():
            self.to_teacher[spot] = _adapter(student, teacher, spot, teacher_spot, relu)
            self.to_student[spot] = _adapter(teacher, student, teacher_spot, spot, relu)

    def gates(
        self, student: Tensor, teacher: Tensor, uniform: Tensor, temperature: float
    ) -> Tensor:
        """Gates [B, R] for embeddings [B, D], which get no gradient.

        `uniform` [B, 2 R]: random numbers in [0, 1); `temperature`: of the Gumbel softmax.
        """
        with full_precision(uniform):
            both = torch.cat([precise(teacher.detach()), precise(student.detach())], dim=1)
            scores = self.policy(both).unflatten(1, (-1, 2))
            return choose(scores, gumbel(uniform).view_as(scores), temperature)

    def loss(
        self, student: Outputs, teacher: Outputs, batch: Batch, gates: Tensor, gamma: float
    ) -> Tensor:
        """Loss of policy and adapters; `batch` has the student's pixels.

        The routing network runs in the student's precision.
        """
        pixels, bfloat16 = batch.pixels, student.logits.dtype == torch.bfloat16
        with torch.autocast(pixels.device.type, torch.bfloat16, bfloat16):
            routed = self(student.network, pixels, teacher, gates)
        with full_precision(routed):
            plain, gate = precise(student.logits.detach()), gates[:, -1]
            return route_loss(precise(routed), plain, batch.targets, gate, gamma, self.gather)

    def forward(self, student: Network, pixels: Tensor, teacher: Outputs, gates: Tensor) -> Tensor:
        """Logits [B, C] of the two networks, joined sample by sample by the gates.

        `pixels` are the student's, `teacher` has the teacher's outputs for the same samples. Both
        networks run in evaluation mode, the adapters in their current mode; the networks' weights
        get no gradients. Up to the first spot, the student runs without a graph, and the teacher's
        outputs are used instead of running it.
        """
        with _eval_mode(student, *([teacher.network] if self.rerun_teacher else [])):
            first, *segments_s = segments(student, [*self.spots])
            x_s = _without_grad(first, pixels)
            x_t, segments_t = self._teacher_segments(teacher)
            for spot, next_s, next_t in zip(self.spots, segments_s, segments_t, strict=True):
                # Each network continues from the features that the gate chooses, adapted to it.
                gate = gates[:, self.columns[spot]].view(-1, *[1] * (x_s.dim() - 1))
                joined_t = gate * x_t + (1 - gate) * self.to_teacher[spot](x_s)
                joined_s = gate * self.to_student[spot](x_t) + (1 - gate) * x_s
                x_s = _with_frozen_weights(next_s, joined_s)
                x_t = _with_frozen_weights(next_t, joined_t)
            gate = gates[:, -1:]
            return gate * x_t + (1 - gate) * x_s

    def _teacher_segments(self, teacher: Outputs) -> tuple[Tensor, list[list[nn.Module]]]:
        """The teacher's features at the first spot, and its modules from each spot to the next."""
        spots = [*self.spots.values()]
        if self.rerun_teacher:
            first, *others = segments(teacher.network, spots)
            return precise(_without_grad(first, teacher.pixels)), others
        if not spots:
            return precise(teacher.logits.detach()), []
        if spots == ["embedding"]:  # only the classifier runs, which a cached teacher has, too
            return precise(teacher.embedding.detach()), [[teacher.classifier]]
        _, *others = segments(teacher.network, spots)
        return precise(teacher.features[spots[0]].detach()), others


@contextmanager
def _eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Context in which networks are in evaluation mode."""
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, modes, strict=True):
            network.train(training)


def _adapter(source: Shapes, target: Shapes, spot: str, target_spot: str, relu: bool) -> nn.Module:
    """Adapter from one network's features at a spot to the shape of the other's."""
    if spot == "embedding":
        return nn.Linear(source.embedding, target.embedding)
    return Regressor(source.features[spot], target.features[target_spot], relu=relu)


def _without_grad(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Output of the modules without a graph."""
    with torch.no_grad():
        for module in modules:
            x = module(x)
    return x


def _with_frozen_weights(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Output of the modules, with a gradient only for `x`."""
    for module in modules:
        fixed = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
        x = functional_call(module, fixed, (x,)) if fixed else module(x)
    return x


class Selection(Tally):
    """Numbers of chosen samples by decision and class: int64 [R + 1, C]; last row: all samples."""

    def __init__(self, names: Sequence[str], classes: int) -> None:
        """`names` of the R decisions."""
        super().__init__(len(names) + 1, classes)
        self.names = tuple(names)
        self.seed = keyed_random.drawn_seed()

    def uniform(self, batch: Batch, count: int) -> Tensor:
        """Random numbers [B, count] in [0, 1), a function of (seed, sample, epoch)."""
        counter = batch.ids[:, None] * count + torch.arange(count, device=batch.ids.device)
        return keyed_random.uniform(self.seed, counter, batch.epoch, keyed_random.GATE)

    def add(self, chosen: Tensor, labels: Tensor) -> None:
        """Count the samples of a batch: `chosen` is bool [B, R], `labels` int64 [B]."""
        rows = F.pad(chosen, (0, 1), value=True).T.long()
        self.counts.index_add_(1, labels, rows)

    def metrics(self, counts: Tensor) -> dict[str, Any]:
        """Percentages: `selected_<name>`, and `selected_by_class`: name -> list over classes."""
        *chosen, total = counts.tolist()
        shares: dict[str, Any] = {}
        by_class: dict[str, list[float | None]] = {}
        for name, row in zip(self.names, chosen, strict=True):
            shares[f"selected_{name}"] = 100 * sum(row) / max(1, sum(total))
            by_class[name] = [
                round(100 * count / size, 1) if size else None
                for count, size in zip(row, total, strict=True)
            ]
        return shares | {"selected_by_class": by_class}
