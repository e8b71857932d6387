"""Contrastive representation distillation: the loss and its memory, and how negatives are drawn."""

import math
from dataclasses import replace

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.core.types import Batch, Outputs, Shapes
from raykd.methods.crd import CRD, contrastive_loss
from tests.each import each

SIZE, WIDTH = 40, 5
LABELS = torch.arange(SIZE) * 7 % 4  # ten rows of each of four classes
UNEVEN = torch.tensor([0] * 20 + [1] * 12 + [2] * 8)
CHI_99_999 = 148.2  # the 0.999 quantile of chi-square with 99 degrees of freedom
CHI_19_999 = 43.82  # with 19


def helpers_of(method, labels=LABELS, seed=0):
    torch.manual_seed(seed)
    return method.helpers(Shapes(10, 6, {}), Shapes(10, 3, {}), labels).double()


def batch(ids, epoch=0, labels=LABELS):
    ids = torch.as_tensor(ids)
    return Batch(torch.empty(0), labels[ids], ids, view=0, epoch=epoch)


def embeddings(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, 6, generator=generator, dtype=torch.float64)
    return student, torch.randn(rows, 3, generator=generator, dtype=torch.float64)


def loss_of(method, helpers, sample, student, teacher):
    logits = torch.zeros(len(student), 4, dtype=torch.float64)
    mine, theirs = Outputs(logits, embedding=student), Outputs(logits, embedding=teacher)
    losses = method.losses(mine, theirs, sample, helpers)
    assert list(losses) == ["embedding"]
    return losses["embedding"]


def drawn(method, helpers, sample):
    relaxed = method.positive == "relaxed"
    return helpers["memory"].sample_rows(sample, method.negatives, relaxed=relaxed)


class Naive:
    """The method sample by sample and negative by negative, with a memory of its own."""

    def __init__(self, method, helpers):
        self.method, self.helpers, self.z = method, helpers, {}
        self.banks = {who: [*helpers["memory"].get_buffer(who).clone()] for who in WHO}

    def unit(self, who, row):
        layer = self.helpers[who].linear
        vector = layer.weight @ row + layer.bias
        return vector / (vector**2).sum().sqrt()

    def side(self, who, other, vectors, rows):
        """L_side of the vectors of `who` against the memory of `other`."""
        tau, count = self.method.temperature, self.method.negatives
        powers = [
            [(self.banks[other][j] @ vector / tau).exp() for j in row]
            for vector, row in zip(vectors, rows, strict=True)
        ]
        if who not in self.z:
            flat = [power.item() for row in powers for power in row]
            self.z[who] = sum(flat) / len(flat) * SIZE
        noise, total = count / SIZE, 0.0
        for row in powers:
            o = [power / self.z[who] for power in row]
            total = total + (o[0] / (o[0] + noise + 1e-7)).log()
            total = total + sum((noise / (score + noise + 1e-7)).log() for score in o[1:])
        return -total / len(rows)

    def step(self, sample, student, teacher, rows):
        """The weighted loss; then the memory moves."""
        vectors = {
            "student": [self.unit("student", row) for row in student],
            "teacher": [self.unit("teacher", row) for row in teacher],
        }
        loss = self.side("student", "teacher", vectors["student"], rows)
        loss = loss + self.side("teacher", "student", vectors["teacher"], rows)
        m = self.method.momentum
        for who in WHO:
            for i, vector in zip(sample.ids.tolist(), vectors[who], strict=True):
                moved = m * self.banks[who][i] + (1 - m) * vector.detach()
                self.banks[who][i] = moved / (moved**2).sum().sqrt()
        return self.method.weight * loss


WHO = ("student", "teacher")


@each("positive", ["exact", "relaxed"])
@each("negatives", [7, 60])  # without and with repetition
def test_two_steps_are_the_formulas_with_their_memory(positive, negatives):
    method = CRD(width=WIDTH, negatives=negatives, positive=positive, momentum=0.3)
    helpers = helpers_of(method)
    memory, naive = helpers["memory"], Naive(method, helpers)
    for step, ids in enumerate(([3, 30, 14, 9], [9, 0, 39, 2])):
        sample = batch(ids, epoch=step)
        student, teacher = embeddings(4, seed=step)
        student.requires_grad_()
        reached = [student, *(p for who in WHO for p in helpers[who].parameters())]
        rows = drawn(method, helpers, sample).tolist()
        expected = naive.step(sample, student, teacher, rows)
        loss = loss_of(method, helpers, sample, student, teacher)
        torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
        for mine, theirs in zip(
            torch.autograd.grad(loss, reached), torch.autograd.grad(expected, reached), strict=True
        ):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)
        for who in WHO:
            bank, z = memory.get_buffer(who), memory.get_buffer(f"z_{who}")
            expected = torch.stack(naive.banks[who])
            torch.testing.assert_close(bank, expected, rtol=1e-12, atol=1e-14)
            assert z.item() == pytest.approx(naive.z[who], rel=1e-12)


def test_a_side_s_loss_is_the_noise_contrast():
    scores = torch.tensor([[0.5, 0.1, 0.02]], dtype=torch.float64)
    noise = 2 / 100
    expected = -math.log(0.5 / (0.5 + noise + 1e-7))
    expected -= sum(math.log(noise / (o + noise + 1e-7)) for o in (0.1, 0.02))
    assert contrastive_loss(scores, 100).item() == pytest.approx(expected, rel=1e-12)


def test_the_memory_starts_uniform_between_bounds_that_follow_from_its_width():
    method = CRD(negatives=1)
    memory = method.helpers(Shapes(4, 6, {}), Shapes(4, 6, {}), LABELS)["memory"]
    bound = 1 / math.sqrt(128 / 3)
    for bank in (memory.student, memory.teacher):
        assert bank.shape == (SIZE, 128)
        assert bank.abs().max() <= bound
        # 5,120 uniform numbers: 6 standard errors of the mean and of the mean square.
        assert abs(bank.mean()) < 6 * bound / math.sqrt(3 * bank.numel())
        share = (bank / bound).square().mean()
        assert abs(share - 1 / 3) < 6 * math.sqrt(4 / 45 / bank.numel())


def test_z_is_set_once_to_the_rows_times_the_mean_score():
    method = CRD(width=WIDTH, negatives=12)
    helpers = helpers_of(method)
    memory, sample = helpers["memory"], batch([5, 6, 7])
    student, teacher = embeddings(3, seed=0)
    rows = drawn(method, helpers, sample)
    scores = {}
    for who, other, rows_of in (("student", "teacher", student), ("teacher", "student", teacher)):
        kept = memory.get_buffer(other)[rows]
        scores[who] = (torch.einsum("bke,be->bk", kept, helpers[who](rows_of)) / 0.07).exp()
    assert memory.z_student == memory.z_teacher == 0
    loss_of(method, helpers, sample, student, teacher)
    for who in WHO:
        expected = SIZE * scores[who].mean()
        torch.testing.assert_close(memory.get_buffer(f"z_{who}"), expected.detach())
    before = memory.z_student.clone(), memory.z_teacher.clone()
    loss_of(method, helpers, batch([1, 2, 3], epoch=1), *embeddings(3, seed=5))
    assert torch.equal(torch.stack(before), torch.stack([memory.z_student, memory.z_teacher]))


def test_a_step_moves_the_batch_s_rows_only_and_leaves_them_at_length_1():
    method = CRD(width=WIDTH, negatives=9)
    helpers = helpers_of(method)
    before = {who: helpers["memory"].get_buffer(who).clone() for who in WHO}
    ids = torch.tensor([30, 2, 17])
    loss_of(method, helpers, batch(ids), *embeddings(3, seed=0))
    rest = torch.ones(SIZE, dtype=torch.bool).index_fill(0, ids, False)
    for who in WHO:
        bank = helpers["memory"].get_buffer(who)
        assert not bank.requires_grad
        assert torch.equal(bank[rest], before[who][rest])
        assert (bank[ids] != before[who][ids]).all()
        torch.testing.assert_close(bank[ids].norm(dim=1), torch.ones(3).double())


def test_the_loss_is_that_of_the_memory_before_the_step():
    method = CRD(width=WIDTH, negatives=9)
    first, second = helpers_of(method), helpers_of(method)
    sample, inputs = batch([3, 4]), embeddings(2, seed=1)
    loss = loss_of(method, first, sample, *inputs)
    assert torch.equal(loss, loss_of(method, second, sample, *inputs))
    assert not torch.equal(loss, loss_of(method, first, sample, *inputs))


def test_the_state_is_the_memory_and_z_alone():
    method = CRD(width=WIDTH, negatives=9)
    helpers = helpers_of(method)
    assert set(helpers["memory"].state_dict()) == {"student", "teacher", "z_student", "z_teacher"}
    loss_of(method, helpers, batch([3, 4]), *embeddings(2, seed=1))
    resumed = helpers_of(method)  # the same run builds the same, then loads
    resumed.load_state_dict(helpers.state_dict())
    inputs = batch([4, 11], epoch=1), *embeddings(2, seed=2)
    assert torch.equal(loss_of(method, helpers, *inputs), loss_of(method, resumed, *inputs))


@each("labels", [LABELS, UNEVEN])
@each("negatives", [1, 13, 20])
def test_negatives_are_distinct_and_of_other_classes(labels, negatives):
    method = CRD(width=2, negatives=negatives)
    helpers = helpers_of(method, labels)
    rows = drawn(method, helpers, batch(torch.arange(SIZE), labels=labels))
    assert rows.shape == (SIZE, 1 + negatives)
    assert torch.equal(rows[:, 0], torch.arange(SIZE))
    for row in rows.tolist():
        assert len(set(row[1:])) == negatives
        assert all(labels[j] != labels[row[0]] for j in row[1:])


def test_all_rows_of_other_classes_are_drawn_where_there_are_no_more():
    method = CRD(width=2, negatives=30)
    rows = drawn(method, helpers_of(method), batch(torch.arange(SIZE)))
    for row in rows.tolist():
        others = [j for j in range(SIZE) if LABELS[j] != LABELS[row[0]]]
        assert sorted(row[1:]) == others


def test_more_negatives_than_there_are_come_with_repetition_and_from_all_of_them():
    method = CRD(width=2, negatives=500)
    rows = drawn(method, helpers_of(method), batch(torch.arange(SIZE)))
    for row in rows.tolist():
        # 500 of 30: one is missing with a chance of 30 * (29 / 30)**500 = 1e-6.
        assert set(row[1:]) == {j for j in range(SIZE) if LABELS[j] != LABELS[row[0]]}


@each("negatives", [13, 24, 35])  # 20 to 32 rows are of another class
@each("positive", ["exact", "relaxed"])
def test_what_is_drawn_depends_on_neither_batch_nor_order(negatives, positive):
    method = CRD(width=2, negatives=negatives, positive=positive)
    helpers = helpers_of(method, UNEVEN)
    whole = drawn(method, helpers, batch(torch.arange(SIZE), labels=UNEVEN))
    order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))
    moved = drawn(method, helpers, batch(order, labels=UNEVEN))
    assert torch.equal(moved, whole[order])
    for size in (1, 7):
        parts = [drawn(method, helpers, batch(ids, labels=UNEVEN)) for ids in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])
    mixed = replace(batch(order, labels=UNEVEN), targets=torch.rand(SIZE, 4), view=3)
    assert torch.equal(drawn(method, helpers, mixed), whole[order])


@each("negatives", [13, 60])
def test_what_is_drawn_follows_from_seed_and_epoch_and_not_from_torch_s_generator(negatives):
    method = CRD(width=2, negatives=negatives)
    sample = batch(torch.arange(SIZE))
    rows = drawn(method, helpers_of(method), sample)
    torch.manual_seed(99)
    assert torch.equal(drawn(method, helpers_of(method), sample), rows)
    other_seed = drawn(method, helpers_of(method, seed=1), sample)
    other_epoch = drawn(method, helpers_of(method), replace(sample, epoch=1))
    for other in (other_seed, other_epoch):
        assert (other[:, 1:] != rows[:, 1:]).any(1).all()


def test_relaxed_positives_are_any_of_the_sample_s_class():
    method = CRD(width=2, negatives=3, positive="relaxed")
    helpers = helpers_of(method, UNEVEN)
    every = [drawn(method, helpers, batch(torch.arange(SIZE), e, UNEVEN)) for e in range(100)]
    positives = torch.stack(every)[:, :, 0]
    assert torch.equal(UNEVEN[positives], UNEVEN.expand(100, -1))
    seen = torch.bincount(positives[:, :20].flatten(), minlength=SIZE)[:20].double()
    assert ((seen - 100) ** 2 / 100).sum() < CHI_19_999  # 2,000 draws of 20 rows, seed 0


def test_negatives_are_drawn_evenly():
    labels = torch.arange(200) % 2
    method = CRD(width=2, negatives=25)
    helpers = helpers_of(method, labels)
    every = [drawn(method, helpers, batch(torch.arange(200), e, labels)) for e in range(10)]
    rows = torch.cat(every)
    seen = torch.bincount(rows[rows[:, 0] % 2 == 0][:, 1:].flatten(), minlength=200)[1::2]
    # 1,000 draws of 25 of 100 rows without repetition: the variance is 1 - 25 / 100 as large,
    # times 100 / 99.
    statistic = ((seen.double() - 250) ** 2 / 250).sum() / 0.75 * 99 / 100
    assert statistic < CHI_99_999


def test_several_workers_share_z_and_the_memory():
    # Two workers with half a batch each; `gather` is played by handing over the other's half.
    method = CRD(width=WIDTH, negatives=9)
    alone = helpers_of(method)
    ids, (student, teacher) = torch.tensor([3, 30, 14, 9]), embeddings(4, seed=0)
    whole = loss_of(method, alone, batch(ids), student, teacher)
    halves = []
    for part in (slice(0, 2), slice(2, 4)):
        own = helpers_of(method)
        memory = own["memory"]
        rows = drawn(method, own, batch(ids))
        mine, theirs = own["student"](student).detach(), own["teacher"](teacher).detach()
        scores = [
            (torch.einsum("bke,be->bk", bank[rows], v) / 0.07).exp().mean(1)
            for bank, v in ((memory.teacher, mine), (memory.student, theirs))
        ]
        answers = iter([*scores, ids, mine, theirs])
        memory.gather = lambda rows, answers=answers: next(answers)
        halves.append(loss_of(method, own, batch(ids[part]), student[part], teacher[part]))
        for name, value in memory.state_dict().items():
            torch.testing.assert_close(value, alone["memory"].state_dict()[name])
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_both_maps_give_vectors_of_length_1():
    helpers = helpers_of(CRD(width=WIDTH))
    for who, rows in zip(WHO, embeddings(3, seed=0), strict=True):
        torch.testing.assert_close(helpers[who](rows).norm(dim=1), torch.ones(3).double())


def test_rows_without_labels_or_of_one_class_are_refused():
    shapes = Shapes(10, 6, {}), Shapes(10, 3, {})
    with pytest.raises(ConfigError, match="labels"):
        CRD().helpers(*shapes)
    with pytest.raises(ConfigError, match="of one"):
        CRD().helpers(*shapes, torch.zeros(5, dtype=torch.int64))


def test_a_class_without_rows_does_no_harm():
    labels = torch.tensor([0, 2, 2, 5, 0, 5, 5])
    method = CRD(width=2, negatives=4)
    rows = drawn(method, helpers_of(method, labels), batch(torch.arange(7), labels=labels))
    assert all(labels[j] != labels[row[0]] for row in rows.tolist() for j in row[1:])
    assert all(len(set(row[1:])) == 4 for row in rows.tolist())
