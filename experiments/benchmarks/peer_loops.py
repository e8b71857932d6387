"""One student, trained by raykd and by what else trains it: timm, torchdistill, a plain loop.

Each loop does the same work: the images of the same files, the same augmentation, networks, loss,
optimiser and schedule, an evaluation and a checkpoint after every epoch, one process, one thread,
float32. The first one is raykd's own command without the start of Python. The others are what
their users write, here with the libraries' own parts: timm's training script, which its package
does not hold, is restated from its documentation (loader, logit-distillation task, optimiser,
scheduler, meters and checkpoint saver are timm's); torchdistill's from the loop of its examples
(distillation box, loss, loaders and metric logger are torchdistill's). Memory is channels last
where there is an option for it: everywhere but in torchdistill.

Each runs in a process of its own, and the allocator is as the library leaves it: raykd sets its
own.

Shapes: B batch, C classes, H, W pixels.
"""

import importlib
import logging
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from torchvision import datasets, transforms

from experiments.benchmarks.plain_losses import softened
from raykd import models
from raykd.config.experiment import Experiment, parse
from raykd.config.resolve import resolve
from raykd.config.scale import Scale
from raykd.launch.executor import execute
from raykd.recipes import StudentRun
from raykd.storage.store import Store
from raykd.tracking.console import Terminal
from raykd.training.hosts.base import Host
from raykd.training.memory import keep_freed_memory
from raykd.training.runs import local_host, train

MEAN = STD = (0.5, 0.5, 0.5)  # the normalisation of every network here
TEMPERATURE, LABELS = 4.0, 0.1  # KD's, and the weight of the labels; the divergence has the rest
MOMENTUM, DECAY, GAMMA = 0.9, 5e-4, 0.1
LOGGED = 50  # steps between two lines of a log


@dataclass(frozen=True)
class Work:
    """A student to train on files in `folder`/train and `folder`/test, by class."""

    folder: Path
    teacher: str
    weights: Path  # the file of the teacher's plain network
    student: str
    side: int  # height and width of what the student sees, in pixels
    streamed: bool  # files are decoded in every epoch; else once, into memory
    chosen: tuple[int, ...] | str  # the teacher's output for each class, or how to find it
    outputs: int  # number of the teacher's classes
    teacher_side: int | None = None  # what the teacher sees; None: what the student sees
    epochs: int = 8
    views: int = 2  # in the cache
    batch: int = 64
    lr: float = 0.05
    seed: int = 0

    def milestones(self) -> list[int]:
        """Epochs (from 0) at which the learning rate falls: the default of raykd."""
        return [int(self.epochs * part) for part in (5 / 8, 3 / 4, 7 / 8)]

    def pad(self) -> int:
        """Pixels around an image in memory, of which a crop is drawn."""
        return self.side // 8

    def steps(self) -> int:
        """Steps of an epoch."""
        return sum(1 for path in (self.folder / "train").rglob("*.jpg")) // self.batch


class Spent(NamedTuple):
    """Seconds of one thing: CPU time of the process, and wall clock."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Measured:
    """Cost of a student, and its accuracy in percent after the last epoch."""

    step: Spent
    epoch: Spent  # with its evaluation and checkpoint
    whole: Spent
    top1: float


def _now() -> Spent:
    return Spent(time.process_time(), time.monotonic())


def _since(start: Spent) -> Spent:
    return Spent(*(b - a for a, b in zip(start, _now(), strict=True)))


def _median(spent: list[Spent]) -> Spent:
    return Spent(*(statistics.median(values) for values in zip(*spent, strict=True)))


@dataclass
class Clock:
    """The seconds of a training since this was made, and of its parts."""

    steps: list[Spent] = field(default_factory=list)  # all of an epoch's
    epochs: list[Spent] = field(default_factory=list)
    top1: float = 0.0
    _made: Spent = field(default_factory=_now)
    _begun: Spent = field(default_factory=_now)

    def begin(self) -> None:
        """An epoch begins."""
        self._begun = _now()

    def trained(self) -> None:
        """The last step of an epoch is done."""
        self.steps.append(_since(self._begun))

    def evaluated(self, top1: float) -> None:
        """An epoch is done, with its evaluation and its checkpoint; the next one begins."""
        self.epochs.append(_since(self._begun))
        self.top1 = top1
        self.begin()

    def measured(self, steps: int) -> Measured:
        """The medians over epochs, of which the first, with what is set up in it, has no part."""
        each = Spent(*(value / steps for value in _median(self.steps[1:])))
        return Measured(each, _median(self.epochs[1:]), _since(self._made), self.top1)


# raykd


def recipe_of(work: Work, store: Store, *, live: bool = False) -> StudentRun:
    """The recipe that a user's file describes."""
    read, augment = f"resize: {work.side}", f"{{pad: {work.pad()}, flip: true}}"
    if work.streamed:
        read, augment = f"stream: {{size: {work.side}}}", "{crop: {}, flip: true}"
    same = f"name: folder, mean: {[*MEAN]}, std: {[*STD]}, {read}"
    chosen = work.chosen if isinstance(work.chosen, str) else [*work.chosen]
    size = work.teacher_side or (work.side if work.streamed else "null")
    text = f"""
    data: {{path: {work.folder}}}
    run:
      model: {work.student}
      data: {{{same}, augment: {augment}}}
      teacher:
        model: {work.teacher}
        weights: {work.weights}
        classes: {chosen}
        data: {{{same}}}
        size: {size}
      method: {{name: kd, temperature: {TEMPERATURE}}}
      source: {"live" if live else "auto"}
      views: {work.epochs if live else work.views}
      seed: {work.seed}
      optim: {{epochs: {work.epochs}, batch: {work.batch}, lr: {work.lr},
               milestones: {work.milestones()}}}
    """
    (run,) = resolve(parse(text, "bench"), store).runs
    assert isinstance(run, StudentRun)
    return run


class _Timed:
    """A host that tells a clock of the ends of epochs."""

    def __init__(self, host: Host, clock: Clock) -> None:
        self.host, self.clock = host, clock

    def __getattr__(self, name: str) -> Any:
        """All else as the host does it."""
        return getattr(self.host, name)

    def restart(self, history: list[Mapping[str, Any]]) -> None:
        """The first epoch begins."""
        self.host.restart(history)
        self.clock.begin()

    def agree(self, module: nn.Module) -> None:
        """The last step of an epoch is done."""
        self.host.agree(module)
        self.clock.trained()

    def report(self, metrics: Mapping[str, Any], state: Callable[[], Any], *, last: bool) -> None:
        """An epoch is done."""
        self.host.report(metrics, state, last=last)
        self.clock.evaluated(metrics["top1"])


def _raykd(work: Work, *, live: bool) -> Measured:
    """All that the command does: images, the given teacher, its cache, the student."""
    keep_freed_memory()  # as every process of ours that trains
    with tempfile.TemporaryDirectory() as name:
        clock, store = Clock(), Store(Path(name))
        run = recipe_of(work, store, live=live)
        scale = Scale(checkpoint_seconds=0, decoders=0)
        execute(Experiment("bench", (run,), scale), store, Terminal(quiet=True), students=False)
        host: Any = _Timed(local_host(store, run, scale), clock)
        train(store, run, host)
        return clock.measured(work.steps())


def raykd_cached(work: Work) -> Measured:
    """The student from a cache of `views` views, which is computed first."""
    return _raykd(work, live=False)


def raykd_live(work: Work) -> Measured:
    """The student with the teacher in the loop, as the others have it."""
    return _raykd(work, live=True)


# Parts that the other loops share


def _part(name: str) -> Any:
    """A module of a library that may not be here, or that says little of its types."""
    return importlib.import_module(name)


class _Teacher(nn.Module):
    """The outputs for the images' classes of a frozen network that may see larger images."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.plain = models.build(work.teacher, work.outputs).network
        self.plain.load_state_dict(safetensors.torch.load_file(work.weights))
        self.eval().requires_grad_(False)
        self.side = work.teacher_side
        assert not isinstance(work.chosen, str)
        whole = work.chosen == tuple(range(work.outputs))
        self.chosen = None if whole else torch.tensor(work.chosen)
        self.pretrained_cfg = {"mean": MEAN, "std": STD}  # where timm looks for them

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits [B, C] of pixels [B, 3, H, W]."""
        if self.side is not None and self.side != pixels.shape[-1]:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True)
        logits = self.plain(pixels)
        return logits if self.chosen is None else logits[:, self.chosen]


class _InMemory(Dataset):
    """Images that were decoded once; a sample is a Pillow image, as of torchvision's CIFAR-10."""

    def __init__(self, root: Path, side: int) -> None:
        centre = transforms.Compose([transforms.Resize(side), transforms.CenterCrop(side)])
        self.images = [(centre(image), label) for image, label in datasets.ImageFolder(str(root))]
        self.transform: Callable[[Any], Any] = lambda image: image

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Any, int]:
        image, label = self.images[row]
        return self.transform(image), label


def _images(work: Work, split: str) -> Any:
    """The images of a split as torchvision reads them."""
    root = work.folder / split
    return datasets.ImageFolder(str(root)) if work.streamed else _InMemory(root, work.side)


def _drawn(work: Work) -> list[Any]:
    """torchvision's augmentation of Pillow images."""
    if work.streamed:
        return [transforms.RandomResizedCrop(work.side), transforms.RandomHorizontalFlip()]
    return [transforms.RandomCrop(work.side, padding=work.pad()), transforms.RandomHorizontalFlip()]


def _plain_images(work: Work) -> tuple[Any, Any]:
    """Training and test images as normalised tensors, by torchvision's transforms."""
    ready = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    centre = [transforms.Resize(round(work.side * 256 / 224)), transforms.CenterCrop(work.side)]
    train, test = _images(work, "train"), _images(work, "test")
    train.transform = transforms.Compose([*_drawn(work), *ready])
    test.transform = transforms.Compose([*(centre if work.streamed else []), *ready])
    return train, test


def _student(work: Work) -> nn.Module:
    """The plain network of the student, of random weights."""
    torch.manual_seed(work.seed)
    assert not isinstance(work.chosen, str)
    return models.build(work.student, len(work.chosen)).network


def _top1(network: nn.Module, batches: Any) -> float:
    """Percentage of right answers."""
    network.eval()
    right = count = 0
    with torch.no_grad():
        for pixels, labels in batches:
            right += int((network(pixels).argmax(1) == labels).sum())
            count += len(labels)
    return 100 * right / count


# A plain loop


def plain(work: Work) -> Measured:
    """The loop that anyone would write with torch and torchvision alone."""
    clock = Clock()
    last: Any = torch.channels_last
    teacher, student = _Teacher(work).to(memory_format=last), _student(work).to(memory_format=last)
    train_images, test_images = _plain_images(work)
    batches = DataLoader(train_images, work.batch, shuffle=True, drop_last=True)
    tests = DataLoader(test_images, 512)
    optimiser = torch.optim.SGD(
        student.parameters(), work.lr, momentum=MOMENTUM, weight_decay=DECAY
    )
    rates = torch.optim.lr_scheduler.MultiStepLR(optimiser, work.milestones(), GAMMA)
    with tempfile.TemporaryDirectory() as name:
        clock.begin()
        for epoch in range(work.epochs):
            student.train()
            total = 0.0
            for pixels, labels in batches:
                pixels = pixels.contiguous(memory_format=last)
                with torch.no_grad():
                    answers = teacher(pixels)
                logits = student(pixels)
                loss = LABELS * F.cross_entropy(logits, labels)
                loss = loss + (1 - LABELS) * softened(logits, answers, TEMPERATURE)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                total += loss.item()
            rates.step()
            clock.trained()
            top1 = _top1(student, tests)
            state = {"student": student.state_dict(), "optimiser": optimiser.state_dict()}
            torch.save(state | {"epoch": epoch}, Path(name) / "last.pt")
            clock.evaluated(top1)
    return clock.measured(work.steps())


# timm


def timm(work: Work) -> Measured:
    """timm's training script with `--kd-model-name`, as documented, of timm's parts."""
    data, optim, scheduler, task, utils = (
        _part(f"timm.{name}") for name in ("data", "optim", "scheduler", "task", "utils")
    )
    to_numpy = _part("timm.data.transforms").ToNumpy()

    clock = Clock()
    last: Any = torch.channels_last
    device = torch.device("cpu")
    teacher, student = _Teacher(work).to(memory_format=last), _student(work).to(memory_format=last)
    # Attributes that timm's networks have, and that its task reads.
    vars(student).update(
        pretrained_cfg=teacher.pretrained_cfg, num_classes=len(work.chosen), in_chans=3
    )
    train_images, test_images = (
        data.create_dataset("", str(work.folder / split), split) if work.streamed
        else _images(work, split)
        for split in ("train", "test")
    )  # fmt: skip
    same = {
        "input_size": (3, work.side, work.side),
        "interpolation": "bilinear",
        "mean": MEAN,
        "std": STD,
        "num_workers": 0,
        "device": device,
        "crop_pct": 224 / 256 if work.streamed else 1.0,
    }
    batches = data.create_loader(
        train_images, batch_size=work.batch, is_training=True, color_jitter=0.0, **same
    )
    tests = data.create_loader(test_images, batch_size=512, **same)
    if not work.streamed:  # timm has no padded crop of its own
        batches.dataset.transform = transforms.Compose([*_drawn(work), to_numpy])
    distillation = task.LogitDistillationTask(
        student,
        teacher,
        nn.CrossEntropyLoss(),
        task_loss_weight=LABELS,
        temperature=TEMPERATURE,
        device=device,
        verbose=False,
    )
    validation_loss = nn.CrossEntropyLoss()
    optimiser = optim.create_optimizer_v2(
        student, "momentum", work.lr, DECAY, MOMENTUM, filter_bias_and_bn=False
    )
    updates = len(batches)
    rates, _ = scheduler.create_scheduler_v2(
        optimiser,
        "multistep",
        work.epochs,
        decay_milestones=work.milestones(),
        decay_rate=GAMMA,
        warmup_lr=work.lr,
        updates_per_epoch=updates,
    )
    with tempfile.TemporaryDirectory() as name:
        saver = utils.CheckpointSaver(student, optimiser, checkpoint_dir=name, recovery_dir=name)
        clock.begin()
        for epoch in range(work.epochs):
            distillation.train()
            losses = utils.AverageMeter()
            for number, (pixels, labels) in enumerate(batches):
                pixels = pixels.contiguous(memory_format=last)
                result = distillation(pixels, labels)
                result["loss"].backward()
                optimiser.step()
                optimiser.zero_grad()
                if number % LOGGED == 0:
                    losses.update(result["loss"].item(), len(labels))
                rates.step_update(epoch * updates + number + 1, metric=losses.avg)
            clock.trained()
            found = {meter: utils.AverageMeter() for meter in ("loss", "top1", "top5")}
            student.eval()
            with torch.inference_mode():
                for pixels, labels in tests:
                    logits = student(pixels.contiguous(memory_format=last))
                    top = utils.accuracy(logits, labels, topk=(1, 5))
                    values = (validation_loss(logits, labels), *top)
                    for meter, value in zip(found.values(), values, strict=True):
                        meter.update(value.item(), len(labels))
            rates.step(epoch + 1, found["top1"].avg)
            saver.save_checkpoint(epoch, metric=found["top1"].avg)
            clock.evaluated(found["top1"].avg)
    return clock.measured(work.steps())


# torchdistill


def torchdistill(work: Work) -> Measured:
    """The loop of torchdistill's examples of image classification, around its distillation box."""
    logging.disable(logging.CRITICAL)
    files, boxes, logs = (
        _part(f"torchdistill.{name}")
        for name in ("common.main_util", "core.distillation", "misc.log")
    )

    clock, device = Clock(), torch.device("cpu")
    teacher, student = _Teacher(work), _student(work)
    train_images, test_images = _plain_images(work)
    paths = {f"{who}_module_path": "." for who in ("student", "teacher")}
    ends = {f"{who}_module_io": "output" for who in ("student", "teacher")}
    whole = {"forward_proc": "forward_batch_only", "forward_hook": {"output": []}}
    kd = {"temperature": TEMPERATURE, "alpha": LABELS, "reduction": "batchmean"}
    sampled = {"class_or_func": RandomSampler, "kwargs": {}}
    in_order = {"class_or_func": SequentialSampler, "kwargs": {}}
    config = {
        "num_epochs": work.epochs,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": sampled,
            "kwargs": {"batch_size": work.batch, "drop_last": True, "num_workers": 0},
        },
        "val_data_loader": {
            "dataset_id": "test",
            "sampler": in_order,
            "kwargs": {"batch_size": 512, "num_workers": 0},
        },
        "teacher": whole | {"requires_grad": False},
        "student": whole | {"requires_grad": True},
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": work.lr, "momentum": MOMENTUM, "weight_decay": DECAY},
        },
        "scheduler": {
            "key": "MultiStepLR",
            "kwargs": {"milestones": work.milestones(), "gamma": GAMMA},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "func2extract_model_loss": "extract_model_loss_dict",
            "kwargs": {
                "sub_terms": {
                    "kd": {
                        "criterion": {"key": "KDLoss", "kwargs": {**paths, **ends, **kd}},
                        "weight": 1.0,
                    }
                }
            },
        },
    }
    images = {"train": train_images, "test": test_images}
    box = boxes.get_distillation_box(teacher, student, images, config, device, None, False, 1.0)
    with tempfile.TemporaryDirectory() as name:
        clock.begin()
        for epoch in range(work.epochs):
            box.pre_epoch_process(epoch=epoch)
            log = logs.MetricLogger()
            log.add_meter("lr", logs.SmoothedValue(window_size=1, fmt="{value}"))
            for pixels, labels, more in log.log_every(box.train_data_loader, LOGGED, f"{epoch}"):
                loss = box.forward_process(pixels, targets=labels, supp_dict=more)
                box.post_forward_process(loss=loss)
                log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            clock.trained()
            top1 = _top1(box.student_model, ((p, t) for p, t, *_ in box.val_data_loader))
            box.post_epoch_process()
            path = str(Path(name) / "last.pt")
            files.save_ckpt(student, box.optimizer, box.lr_scheduler, top1, None, path)
            clock.evaluated(top1)
    return clock.measured(work.steps())


Loop = Callable[[Work], Measured]
RAYKD: dict[str, Loop] = {"raykd, cached": raykd_cached, "raykd, live": raykd_live}
PEERS: dict[str, Loop] = {"timm": timm, "torchdistill": torchdistill, "plain loop": plain}


def measured(loop: Loop, work: Work, folders: tuple[Path, ...] = ()) -> Measured:
    """Cost of a loop in a new process, with more `folders` to import from."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_alone, loop, work, folders).result()


def _alone(loop: Loop, work: Work, folders: tuple[Path, ...]) -> Measured:
    """A loop in this process, with one thread. All begin with timm imported: some would later."""
    importlib.import_module("timm")
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sys.path += map(str, folders)
    return loop(work)
