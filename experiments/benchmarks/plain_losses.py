"""Plain implementations of the methods' losses, the baseline of `methods.py`.

One function for each method or prelude, from (method, student, teacher, batch, helpers) to the
weighted loss; the helpers are the modules of raykd's method. Written like the public reference
code, for default settings and an epoch after every warm-up. Tensors `x_s` are the student's, `x_t`
the teacher's.

Shapes: B batch, C classes, D embedding width, K channels, H, W pixels.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from raykd.core.types import Batch, Outputs

Plain = Callable[[Any, Outputs, Outputs, Batch, Any], Tensor]


def softened(student: Tensor, teacher: Tensor, temperature: Any) -> Tensor:
    """Hinton's loss: T**2 KL(softmax(teacher / T) || softmax(student / T))."""
    log_student = F.log_softmax(student / temperature, dim=1)
    soft = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_student, soft, reduction="batchmean") * temperature**2


def standard(logits: Tensor) -> Tensor:
    """Rows with mean 0 and std 1."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (logits.std(dim=1, keepdim=True) + 1e-7)


def kd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """KL divergence of the softened logits."""
    return method.weight * softened(student.logits, teacher.logits, method.temperature)


def skd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """KL divergence of the softened, layer-normalised logits."""
    shape, radius = student.logits.shape[1:], helpers["radius"].value
    x_s = radius * F.layer_norm(student.logits, shape, eps=1e-7)
    x_t = radius * F.layer_norm(teacher.logits, shape, eps=1e-7)
    return method.weight * softened(x_s, x_t, method.temperature)


def dkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Masks, as in the authors' code."""
    temperature, labels = method.temperature, batch.labels[:, None]
    target = torch.zeros_like(student.logits).scatter_(1, labels, 1).bool()
    other = torch.ones_like(student.logits).scatter_(1, labels, 0).bool()

    def of_two(logits: Tensor) -> Tensor:
        soft = F.softmax(logits / temperature, dim=1)
        parts = ((soft * mask).sum(dim=1, keepdim=True) for mask in (target, other))
        return torch.cat([*parts], dim=1)

    log_two = of_two(student.logits).log()
    tckd = F.kl_div(log_two, of_two(teacher.logits), reduction="batchmean") * temperature**2
    x_s = F.log_softmax(student.logits / temperature - 1000.0 * target, dim=1)
    x_t = F.softmax(teacher.logits / temperature - 1000.0 * target, dim=1)
    nckd = F.kl_div(x_s, x_t, reduction="batchmean") * temperature**2
    return method.alpha * tckd + method.beta * nckd


def nkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Soft cross entropies of the target and of the other classes, selected by a mask."""
    labels, temperature = batch.labels[:, None], method.temperature
    log_target = F.log_softmax(student.logits, dim=1).gather(1, labels)
    soft_target = F.softmax(teacher.logits, dim=1).gather(1, labels)
    other = torch.ones_like(student.logits).scatter_(1, labels, 0).bool()
    x_s = student.logits[other].reshape(len(labels), -1) / temperature
    x_t = teacher.logits[other].reshape(len(labels), -1) / temperature
    cross = -(F.softmax(x_t, dim=1) * F.log_softmax(x_s, dim=1)).sum(dim=1).mean()
    loss = -(soft_target * log_target).mean() + method.gamma * temperature**2 * cross
    return method.weight * loss


def dist(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Pearson correlations of rows and of columns."""

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)

    x_s = F.softmax(student.logits / method.temperature, dim=1)
    x_t = F.softmax(teacher.logits / method.temperature, dim=1)
    inter = 1 - pearson(x_s, x_t).mean()
    intra = 1 - pearson(x_s.T, x_t.T).mean()
    return method.weight * method.temperature**2 * (method.beta * inter + method.gamma * intra)


def logit_standardisation(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """KL divergence of the softened, standardised logits."""
    x_s, x_t = standard(student.logits), standard(teacher.logits)
    return method.weight * softened(x_s, x_t, method.temperature)


class _Reversed(torch.autograd.Function):
    """Identity with a reversed gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def ctkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """KL divergence at a trained temperature, whose gradient is reversed."""
    temperature = 1 + 20 * torch.sigmoid(_Reversed.apply(helpers["temperature"].theta))
    return method.weight * softened(student.logits, teacher.logits, temperature)


def mlkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Samples, classes and batches, at every temperature, on two views."""
    x_s, x_t, labels = student.logits, teacher.logits, batch.targets
    strong, strong_teacher = student.look("strong").logits, teacher.look("strong").logits
    confidence = F.softmax(x_t, dim=1)
    most, total = confidence.max(dim=1).values, confidence.sum(dim=0)
    samples = (most <= most.quantile(0.5)).float()
    classes = (total <= total.quantile(0.5)).float()
    loss = torch.zeros((), device=x_s.device)

    def each(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        log_student = F.log_softmax(student / temperature, dim=1)
        soft = F.softmax(teacher / temperature, dim=1)
        return F.kl_div(log_student, soft, reduction="none").sum(1) * temperature**2

    for t in method.temperatures:
        loss = loss + (each(x_s, x_t, t) * samples).mean()
        p, q = F.softmax(x_s / t, dim=1), F.softmax(x_t / t, dim=1)
        loss = loss + (((p.T @ p - q.T @ q) ** 2).sum(1) * classes).sum() / p.shape[1]
        loss = loss + (((p @ p.T - q @ q.T) ** 2).sum(1) * samples).sum() / p.shape[0]
        loss = loss + each(strong, strong_teacher, t).mean()
    return method.weight * loss + method.strong_label_weight * F.cross_entropy(strong, labels)


def cosine_kd(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Cosines of the classes' columns, at one temperature and at a temperature per sample."""

    def columns(x_s: Tensor, x_t: Tensor) -> Tensor:
        return 2 * (1 - F.cosine_similarity(x_s, x_t, dim=0).abs().mean())

    x_s, x_t, one = student.logits, teacher.logits, method.temperature
    plain = columns(F.softmax(x_s / one, dim=1), F.softmax(x_t / one, dim=1)) * one**2
    with torch.no_grad():
        cosine = F.cosine_similarity(F.softmax(x_s, dim=1), F.softmax(x_t, dim=1), dim=1)
        share = (cosine.max() - cosine) / (cosine.max() - cosine.min())
        each = (method.low + (method.high - method.low) * share)[:, None]
    weighted = columns(F.softmax(x_s / each, dim=1), F.softmax(x_t / each, dim=1))
    return method.weight * (plain + weighted * each.mean() ** 2)


def sample_contrastive_kd(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """InfoNCE with exponentials: the teacher's logits against those of other samples."""
    x_s, x_t = F.normalize(student.logits, dim=1), F.normalize(teacher.logits, dim=1)
    positive = (x_s * x_t).sum(dim=1).exp()
    others = (x_s @ x_s.T).exp()
    others = others - torch.diag(others.diagonal())
    return method.weight * -(positive / (positive + others.sum(dim=1))).log().mean()


def mimic_logits(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Mean squared error of logits."""
    return method.weight * F.mse_loss(student.logits, teacher.logits)


def stkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """KL divergence of the softened logits of mixed samples."""
    return method.weight * softened(student.logits, teacher.logits, method.temperature)


def relational_kd(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Distances from inner products and angles from B x B x D differences, as the authors'."""

    def distances(e: Tensor) -> Tensor:
        square = e.pow(2).sum(dim=1)
        product = e @ e.t()
        result = (square[:, None] + square[None, :] - 2 * product).clamp(min=1e-12).sqrt()
        result = result * (1 - torch.eye(len(e), device=e.device))
        return result / result[result > 0].mean()

    def angles(e: Tensor) -> Tensor:
        differences = F.normalize(e[None] - e[:, None], p=2, dim=2)
        return torch.bmm(differences, differences.transpose(1, 2)).view(-1)

    x_s, x_t = student.embedding, teacher.embedding
    with torch.no_grad():
        distances_t, angles_t = distances(x_t), angles(x_t)
    distance = F.smooth_l1_loss(distances(x_s), distances_t)
    angle = F.smooth_l1_loss(angles(x_s), angles_t)
    return method.weight * (method.distance_weight * distance + method.angle_weight * angle)


def pkt(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Divergence of the conditional probabilities of neighbours."""

    def neighbours(e: Tensor) -> Tensor:
        e = e / (e.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-7)
        similarity = (e @ e.t() + 1.0) / 2.0
        return similarity / similarity.sum(dim=1, keepdim=True)

    x_s, x_t = neighbours(student.embedding), neighbours(teacher.embedding)
    return method.weight * (x_t * torch.log((x_t + 1e-7) / (x_s + 1e-7))).mean()


def cc(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Products of neighbouring differences."""
    x_s, x_t = helpers["student"](student.embedding), helpers["teacher"](teacher.embedding)
    delta = (x_s - x_t).abs()
    return 0.02 * (delta[:-1] * delta[1:]).sum(1).mean()


def crd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """All sampled rows are gathered from the memory first, as in the authors' code."""
    memory, size = helpers["memory"], len(batch.ids)
    x_s, x_t = helpers["student"](student.embedding), helpers["teacher"](teacher.embedding)
    rows = memory.sample_rows(batch, method.negatives, relaxed=False)
    count, total = method.negatives, len(memory.targets)
    loss = torch.zeros((), device=x_s.device)
    for vectors, bank, z in (
        (x_s, memory.teacher, memory.z_student),
        (x_t, memory.student, memory.z_teacher),
    ):
        gathered = torch.index_select(bank, 0, rows.view(-1)).view(size, count + 1, -1)
        products = torch.bmm(gathered, vectors[:, :, None]).squeeze(2)
        out = torch.exp(torch.div(products, method.temperature))
        if z.item() == 0:
            z.copy_(out.detach().mean() * total)
        out = out / z
        noise = count / total
        positive = torch.log(out[:, 0] / (out[:, 0] + noise + 1e-7))
        negative = torch.log(torch.full_like(out[:, 1:], noise) / (out[:, 1:] + noise + 1e-7))
        loss = loss - (positive.sum() + negative.sum()) / size
    with torch.no_grad():
        for bank, vectors in ((memory.student, x_s), (memory.teacher, x_t)):
            new = bank[batch.ids] * method.momentum + vectors * (1 - method.momentum)
            bank[batch.ids] = new / new.pow(2).sum(1, keepdim=True).sqrt()
    return method.weight * loss


def mimic_embedding(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Squared distance of embeddings."""
    x_s = student.embedding
    if "projection" in helpers:
        x_s = helpers["projection"](x_s)
    return method.weight * ((x_s - teacher.embedding) ** 2).sum(dim=1).mean()


def fitnet(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Mean squared error of the regressor."""
    prediction = helpers["regressor"](student.features[method.stage])
    return method.weight * F.mse_loss(prediction, teacher.features[method.stage])


def pooled(maps: Tensor, like: Tensor) -> Tensor:
    """The maps, average-pooled to the size of others."""
    return F.adaptive_avg_pool2d(maps, (like.shape[2], like.shape[3]))


def same_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, the larger one average-pooled to the smaller size."""
    if student.shape[2] > teacher.shape[2]:
        return pooled(student, teacher), teacher
    if student.shape[2] < teacher.shape[2]:
        return student, pooled(teacher, student)
    return student, teacher


def shared_maps(student: Outputs, teacher: Outputs) -> list[tuple[Tensor, Tensor]]:
    """Pairs of maps of the stages that both networks have."""
    names = [name for name in student.features if name.startswith("stage")]
    return [(student.features[n], teacher.features[n]) for n in names if n in teacher.features]


def attention(maps: Tensor) -> Tensor:
    """Mean squares over channels, flat, with L2 norm 1."""
    return F.normalize(maps.pow(2).mean(1).reshape(len(maps), -1), dim=1)


def at(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Mean squared difference of attention."""
    loss = torch.zeros((), device=student.logits.device)
    for x_s, x_t in shared_maps(student, teacher):
        x_s, x_t = same_size(x_s, x_t)
        loss = loss + (attention(x_s) - attention(x_t)).pow(2).mean()
    return method.weight * loss


def sp(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Difference of row-normalised Gram matrices."""

    def similarity(outputs: Outputs) -> Tensor:
        flat = [*outputs.features.values()][-1].reshape(len(outputs.logits), -1)
        return F.normalize(flat @ flat.t(), dim=1)

    difference = similarity(teacher) - similarity(student)
    return method.weight * difference.pow(2).sum() / len(difference) ** 2


def vid(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Gaussian negative log likelihood."""
    loss = torch.zeros((), device=student.logits.device)
    for stage, helper in helpers.items():
        x_s, x_t = same_size(student.features[stage], teacher.features[stage])
        variance = (torch.log(1 + torch.exp(helper.rho)) + 1e-5).view(1, -1, 1, 1)
        error = (helper.mean(x_s) - x_t) ** 2
        loss = loss + (0.5 * (error / variance + torch.log(variance))).mean()
    return method.weight * loss


def ab_init(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Squared hinges with masks, as in the authors' code."""
    loss, count = torch.zeros((), device=student.logits.device), len(helpers)
    for number, (stage, connector) in enumerate(helpers.items(), start=1):
        x_s, x_t = connector(student.features[f"{stage}.pre"]), teacher.features[f"{stage}.pre"]
        hinges = (x_s + 1) ** 2 * ((x_s > -1) & (x_t <= 0)).float()
        hinges = hinges + (x_s - 1) ** 2 * ((x_s <= 1) & (x_t > 0)).float()
        loss = loss + 2.0 ** (number - count) * hinges.sum() / len(x_s)
    return method.weight * 3 / 1000 * loss


def ft_paraphraser(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Mean squared error of the reconstruction."""
    x_t = [*teacher.features.values()][-1]
    return F.mse_loss(helpers["paraphraser"](x_t), x_t)


def ft(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Absolute difference of the factors' attention."""
    x_s, x_t = ([*o.features.values()][-1] for o in (student, teacher))
    x_s = helpers["translator"](x_s)
    x_s, x_t = same_size(x_s, helpers["paraphraser"].encoder(x_t))
    return method.weight * (attention(x_s) - attention(x_t)).abs().mean()


def kl_of(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """temperature**2 * KL(teacher || student)."""
    log_s, p_t = F.log_softmax(student / temperature, 1), F.softmax(teacher / temperature, 1)
    return F.kl_div(log_s, p_t, reduction="batchmean") * temperature**2


def multi_head_kd(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Cross entropy and divergence of each head, and the divergence of the logits."""
    loss = method.weight * kl_of(student.logits, teacher.logits, method.temperature)
    for stage, head in helpers.items():
        logits = head(student.features[stage])
        distilled = kl_of(logits, teacher.derived[f"{stage}.logits"], method.temperature)
        loss = loss + method.head_weight * (F.cross_entropy(logits, batch.targets) + distilled)
    return loss


def teacher_heads(
    method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any
) -> Tensor:
    """Cross entropy of each head of the teacher."""
    heads = helpers["teacher_heads"].items()
    logits = (head(teacher.features[stage]) for stage, head in heads)
    return torch.stack([F.cross_entropy(z, batch.targets) for z in logits]).sum()


def fsp_init(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Flows by broadcasting: B x K x K x H x W products."""

    def flow(shallow: Tensor, deep: Tensor) -> Tensor:
        shallow, deep = same_size(shallow, deep)
        return (shallow.unsqueeze(1) * deep.unsqueeze(2)).flatten(3).mean(-1)

    names = [name for name in student.features if name in teacher.features]
    loss = torch.zeros((), device=student.logits.device)
    for one, two in pairwise(names):
        x_s = flow(student.features[one], student.features[two])
        x_t = flow(teacher.features[one], teacher.features[two])
        loss = loss + (x_s - x_t).pow(2).mean()
    return method.weight * loss


def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Maximum mean discrepancy of channels by broadcasting: B x K x K x HW products."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2)

    student, teacher = same_size(student, teacher)
    x_s = F.normalize(student.reshape(*student.shape[:2], -1), dim=2)
    x_t = F.normalize(teacher.reshape(*teacher.shape[:2], -1), dim=2)
    constant = kernel(x_t, x_t).mean().detach()
    return constant + kernel(x_s, x_s).mean() - 2 * kernel(x_s, x_t).mean()


def nst(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Discrepancies of all stages."""
    loss = torch.zeros((), device=student.logits.device)
    for x_s, x_t in shared_maps(student, teacher):
        loss = loss + discrepancy(x_s, x_t)
    return method.weight * loss


def irg(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Vertices, edges and transformations, as in the Knowledge-Distillation-Zoo."""

    def edges(x: Tensor) -> Tensor:
        x = x.reshape(len(x), -1)
        square = x.pow(2).sum(dim=1)
        squared = (square[:, None] + square[None, :] - 2 * x @ x.t()).clamp(min=1e-12)
        squared = squared * (1 - torch.eye(len(x), device=x.device))
        return squared / squared.max()

    def transformation(earlier: Tensor, later: Tensor) -> Tensor:
        earlier = pooled(earlier, later)
        if earlier.shape[1] != later.shape[1]:
            earlier, later = earlier.mean(1, keepdim=True), later.mean(1, keepdim=True)
        square = (earlier - later).pow(2).reshape(len(later), -1).sum(1)
        return square / square.max()

    x_s, x_t = [*student.features.values()][-2:], [*teacher.features.values()][-2:]
    pairs = [*zip(x_s, x_t, strict=True), (student.embedding, teacher.embedding)]
    edge = torch.stack([F.mse_loss(edges(a), edges(b)) for a, b in pairs]).mean()
    change = F.mse_loss(transformation(*x_s), transformation(*x_t))
    vertex = F.mse_loss(student.logits, teacher.logits)
    sums = method.vertex * vertex + method.edge * edge + method.transformation * change
    return method.weight * sums


def ofd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Partial distances to the teacher above its margins, as in mdistiller."""
    loss, count = torch.zeros((), device=student.logits.device), len(helpers)
    for number, (stage, connector) in enumerate(helpers.items(), start=1):
        spot = f"{stage}.pre"
        x_s, x_t = same_size(student.features[spot], teacher.features[spot])
        x_s, target = connector(x_s), torch.max(x_t, connector.margin.view(1, -1, 1, 1))
        square = F.mse_loss(x_s, target, reduction="none")
        square = square * ((x_s > target) | (target > 0)).float()
        loss = loss + square.sum() / len(x_s) / 2 ** (count - number)
    return method.weight * loss


def reviewkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Fusions and the hierarchical context loss, as in mdistiller."""

    def context(x_s: Tensor, x_t: Tensor) -> Tensor:
        loss, weight, total = F.mse_loss(x_s, x_t), 1.0, 1.0
        for side in (4, 2, 1):
            if side < x_s.shape[2]:
                weight /= 2
                small_s, small_t = (F.adaptive_avg_pool2d(x, (side, side)) for x in (x_s, x_t))
                loss, total = loss + F.mse_loss(small_s, small_t) * weight, total + weight
        return loss / total

    spots = {name: student.features.get(name) for name in helpers}
    spots["embedding"] = student.embedding[:, :, None, None]
    loss, fused = torch.zeros((), device=student.logits.device), None
    for name, helper in helpers.items():
        x = helper.enter(spots[name])
        if fused is not None:
            fused = F.interpolate(fused, x.shape[2:], mode="nearest")
            z = torch.sigmoid(helper.attend(torch.cat([x, fused], dim=1)))
            x = x * z[:, 0:1] + fused * z[:, 1:2]
        if x.shape[2:] != helper.size:
            x = F.interpolate(x, helper.size, mode="nearest")
        fused = x
        x_t = teacher.features.get(f"{name}.pre", teacher.embedding[:, :, None, None])
        loss = loss + context(helper.leave(x), x_t)
    return method.weight * loss


def simkd(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Mean squared error of the projected map."""
    x_s, x_t = ([*o.features.values()][-1] for o in (student, teacher))
    if x_s.shape[2] > x_t.shape[2]:
        x_s = pooled(x_s, x_t)
    return method.weight * F.mse_loss(*same_size(helpers["projector"].layers(x_s), x_t))


def jacobian(method: Any, student: Outputs, teacher: Outputs, batch: Batch, helpers: Any) -> Tensor:
    """Gradients of the labels' logits, as in the Knowledge-Distillation-Zoo."""

    def gradient(outputs: Outputs, create: bool) -> Tensor:
        rows = torch.arange(len(outputs.logits), device=outputs.logits.device)
        selected = outputs.logits[rows, batch.labels]
        (grad,) = torch.autograd.grad(
            selected,
            outputs.pixels,
            torch.ones_like(selected),
            create_graph=create,
            retain_graph=True,
        )
        return F.normalize(grad.reshape(len(grad), -1), dim=1)

    x_s, x_t = gradient(student, create=True), gradient(teacher, create=False).detach()
    return method.weight * F.mse_loss(x_s, x_t)


PLAIN: Mapping[str, Plain] = {
    "kd": kd,
    "spherical_kd": skd,
    "dkd": dkd,
    "nkd": nkd,
    "dist": dist,
    "logit_standardisation": logit_standardisation,
    "ctkd": ctkd,
    "mlkd": mlkd,
    "cosine_kd": cosine_kd,
    "sample_contrastive_kd": sample_contrastive_kd,
    "mimic_logits": mimic_logits,
    "stkd": stkd,
    "relational_kd": relational_kd,
    "pkt": pkt,
    "cc": cc,
    "crd": crd,
    "mimic_embedding": mimic_embedding,
    "fitnet": fitnet,
    "at": at,
    "sp": sp,
    "vid": vid,
    "ab_init": ab_init,
    "ft_paraphraser": ft_paraphraser,
    "ft": ft,
    "fsp_init": fsp_init,
    "nst": nst,
    "irg": irg,
    "ofd": ofd,
    "reviewkd": reviewkd,
    "multi_head_kd": multi_head_kd,
    "teacher_heads": teacher_heads,
    "simkd": simkd,
    "jacobian": jacobian,
}
