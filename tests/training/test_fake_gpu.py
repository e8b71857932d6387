"""Steps, batches, caches and metrics on a GPU that is none: no devices are mixed, and no waits.

`test_waiting` holds the steps of a run to the same with real numbers, and `test_gpu` on a device.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import Tensor, nn

from raykd.core.types import Look, Outputs, Signal
from raykd.data.in_memory import Images
from raykd.data.loading import loader
from raykd.data.loading.loader import Views
from raykd.data.recipe import ResolvedData
from raykd.data.transforms import augment as augmenting
from raykd.data.transforms import mixing
from raykd.data.transforms.augment import Augment
from raykd.data.transforms.colour import Colour
from raykd.data.transforms.crop import Crop
from raykd.data.transforms.erase import Erase
from raykd.data.transforms.mixing import Mix
from raykd.data.transforms.strong import Strong
from raykd.methods import METHODS, PRELUDES, Method
from raykd.methods.columns import DERIVED, FromColumns, StageMaps
from raykd.methods.kd import KD
from raykd.methods.margins import Head
from raykd.methods.mimic import MimicEmbedding
from raykd.models import measure
from raykd.models.cosine_classifier import CosineClassifier
from raykd.outputs.codecs import CODECS, Codec, Float16, Float32, Int8Channels, TopK, VectorCodec
from raykd.outputs.statistics import fitted
from raykd.register.contract import CLASSES
from raykd.tasks import TASKS, Faces, Task
from raykd.tasks.classification import CLASSIFICATION
from raykd.teachers.source import LiveTeacher, PanelTeacher
from raykd.training.ema import Average
from raykd.training.finite import not_finite
from raykd.training.learner import Learner
from tests.small import ALL, batch, outputs_of, pair
from tests.training.fake_gpu import CUDA, FakeGPU

# Pieces that wait for a GPU in each step: the functions that do, and why they must.
WAITS: Mapping[str, Mapping[str, str]] = {
    "method sakd": {"methods/sakd: SAKD.losses": "rows are chosen, and those alone are computed"},
    "transform crop": {"data/transforms/augment: Augment.apply": "each part has its own size"},
    "transform colour": {"data/transforms/colour: Colour.apply": "devices would round otherwise"},
    "transform strong": {"data/transforms/strong: Strong.apply": "devices would round otherwise"},
    "metrics of classification": {"tasks/classification: LabelledTask.metrics": "the end"},
    "metrics of features": {"tasks/features: Features.metrics": "the end of an evaluation"},
    "weights that are finite": {"training/finite: not_finite": "once an epoch"},
}
# Pieces that no machine without a GPU can run to their end, and why; test_gpu runs them.
ELSEWHERE = {
    "method jacobian": "autograd's engine wants a device",
}
# Tensors that are sent to a device once; those of a fake device must not stay.
SENT_ONCE = (loader._row, augmenting._coprime, mixing._edges, mixing._lengths)

NAMES = tuple("abcdefghij")
EVERY_TASK = {name: kind(name=name) for name, kind in TASKS.items()}
TRANSFORMS = {
    "pad": Augment(pad=2, flip=True),
    "crop": Augment(crop=Crop()),
    "colour": Augment(colour=Colour(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)),
    "strong": Augment(strong=Strong()),
    "erase": Augment(erase=Erase()),
    "mixup": Augment(mix=Mix()),
    "cutmix": Augment(mix=Mix(kind="cutmix")),
}
Piece = Callable[[], object]  # carried out on the fake GPU, twice where it waits


def test_nothing_mixes_devices_or_waits_for_them():
    gpu = FakeGPU()
    pieces = {**methods(gpu), **a_step(gpu), **codecs(gpu), **transforms(gpu), **ends(gpu)}
    faults = []
    try:
        for name, piece in pieces.items():
            error = failure(gpu, piece)
            if name in ELSEWHERE:
                faults += [] if error else [f"{name}: it runs to its end here now"]
            elif error is not None:
                faults.append(f"{name}: {error}")
            elif gpu.waits != set(WAITS.get(name, ())):
                faults.append(f"{name}: waits in {', '.join(sorted(gpu.waits)) or 'nothing'}")
    finally:
        for cached in SENT_ONCE:
            cached.cache_clear()
    assert not faults, "\n".join(faults)
    assert pieces.keys() >= {*WAITS, *ELSEWHERE}


def failure(gpu: FakeGPU, piece: Piece) -> str | None:
    """The error of a piece with its place; `gpu.waits` is what waited, not only at first."""
    gpu.waits.clear()
    try:
        with gpu():
            piece()
            if gpu.waits:
                gpu.waits.clear()
                piece()
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        text = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {text} ({frame.filename}, line {frame.lineno})"
    return None


def methods(gpu: FakeGPU) -> dict[str, Piece]:
    """The losses of every method by outputs of live networks, its scores, and its metrics."""
    student, teacher = pair(teacher="resnet8")
    shapes, labels = measure(student, (16, 16)), torch.arange(40) % CLASSES
    sample = gpu.batch(batch())
    student, teacher = gpu.moved(student), gpu.moved(teacher)
    functions = [kind(name=name) for name, kind in DERIVED.items()]
    functions.append(StageMaps(before_relu=True))
    with gpu():
        mine, theirs = outputs_of(student, sample, ALL), outputs_of(teacher, sample, ALL, functions)

    def losses(method: Method) -> Piece:
        helpers = gpu.moved(method.helpers(shapes, shapes, labels))

        def piece() -> None:
            found = method.losses(mine, theirs, sample, helpers)
            assert all(loss.device == CUDA for loss in found.values())
            if method.trains == "student":
                scores = method.scores(mine, theirs, helpers)
                assert CLASSIFICATION.label_loss(scores, sample, 0.1).device == CUDA

        return piece

    def sums(task: Task) -> Piece:
        return lambda: task.batch_sums(MimicEmbedding(), mine, theirs, sample, nn.ModuleDict())

    def faces(head: Head) -> Piece:
        classifier = gpu.moved(CosineClassifier(shapes.embedding, CLASSES, 64.0, sampled=True))
        seen, task = (
            mine.replace(network=None, classifier=classifier),
            Faces(head=head, partial=0.5),
        )
        del seen.logits
        return lambda: task.student_loss(seen, seen.any_tensor, sample, 0.1)

    kinds = {**METHODS, **PRELUDES}
    found = {f"method {n}": losses(kind(name=n)) for n, kind in kinds.items()}
    found |= {
        f"method {name} from a cache": losses(kind(name=name, source="cache"))
        for name, kind in METHODS.items()
        if issubclass(kind, FromColumns)
    }
    found |= {f"head {head}": faces(head) for head in get_args(Head)}
    return found | {f"a batch of task {n}": sums(task) for n, task in EVERY_TASK.items()}


def a_step(gpu: FakeGPU) -> dict[str, Piece]:
    """A step by a panel of two teachers with colours of their own, and the weights after it."""
    student, teacher = pair(teacher="resnet8")
    average = gpu.moved(Average(student, 0.9))
    learner, teacher = gpu.moved(Learner(student, KD(), nn.ModuleDict())), gpu.moved(teacher)
    sample = gpu.batch(batch())

    def step() -> None:
        own = ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), ((0.4, 0.4, 0.4), (0.3, 0.3, 0.3))
        live = LiveTeacher(teacher, Signal.LOGITS, student=own[0], own=own[1])
        gpu.waits.clear()  # the teacher was made, not asked
        losses, logits = learner(sample, PanelTeacher([live, live], "mean_logits")(sample), 1.0)
        assert {loss.device for loss in losses.values()} == {logits.device} == {CUDA}

    pieces: dict[str, Piece] = {
        "a step by a panel": step,
        "an average of weights": lambda: average.update_parameters(student),
        "weights that are finite": lambda: not_finite([learner]),
    }
    return pieces


def codecs(gpu: FakeGPU) -> dict[str, Piece]:
    """Rows of a cache, by every codec and each way to read it."""

    def decoded(codec: Codec) -> Piece:
        signals = Signal.LOGITS | Signal.EMBEDDING
        outputs = Outputs(torch.randn(8, CLASSES), embedding=torch.randn(8, 6))
        columns = {k: gpu.sent(v) for k, v in codec.encode(outputs, signals).items()}
        rows = gpu.sent(torch.arange(4))

        def piece() -> None:
            for reading in codec.readings().values():
                found = reading.decode(columns, rows, CLASSES)
                assert found.logits.device == found.embedding.device == CUDA

        return piece

    maps, attention = torch.randn(8, 4, 2, 2), torch.rand(8, 1, 2, 2)
    derived = Outputs(derived={"stage1": maps, "stage1.attention": attention})

    def columns(codec: VectorCodec) -> Piece:
        fits = fitted([derived], {"derived": codec}, None, 8)
        encoded = {k: gpu.sent(v) for k, v in fits.encode(derived).items()}
        there = replace(fits, fits={k: _sent(gpu, fit) for k, fit in fits.fits.items()})
        rows = gpu.sent(torch.arange(4))
        assert there.sizes  # which lie on the CPU, and are read once

        def piece() -> None:
            found = there.decode(encoded, rows, Outputs()).derived
            assert found["stage1"].shape == (4, 4, 2, 2) and found["stage1"].device == CUDA

        return piece

    vectors = {"float16": Float16(), "float32": Float32(), "int8": Int8Channels()}
    made = {n: TopK(k=3) if n == "topk" else kind(name=n) for n, kind in CODECS.items()}
    found = {f"codec {name}": decoded(codec) for name, codec in made.items()}
    return found | {f"columns as {name}": columns(codec) for name, codec in vectors.items()}


def _sent(gpu: FakeGPU, fit: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x if name == "shape" else gpu.sent(x) for name, x in fit.items()}


def transforms(gpu: FakeGPU) -> dict[str, Piece]:
    """Batches of images that lie on the GPU, by every transform, with the looks at them."""
    images = Images(torch.zeros(40, 8, 8, 3, dtype=torch.uint8), torch.arange(40) % CLASSES, NAMES)

    def shown(augment: Augment) -> Piece:
        data = ResolvedData(
            name="digits",
            augment=augment,
            digest="0" * 64,
            classes=CLASSES,
            size=(8, 8),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
        )
        plain = data.model_copy(update={"augment": augment.unmixed()})
        names: tuple[Look, ...] = ("clean", "partner") if augment.mix else ("clean",)
        views = Views(images, data, dict.fromkeys(names, plain))
        with gpu():
            there = views.to(CUDA)

        def piece() -> None:
            found = there.batch(gpu.sent(torch.arange(4)), 3)
            assert found.pixels.device == found.targets.device == CUDA

        return piece

    return {f"transform {name}": shown(augment) for name, augment in TRANSFORMS.items()}


def ends(gpu: FakeGPU) -> dict[str, Piece]:
    """The metrics of an evaluation, by tasks whose sums are of one kind."""
    numbers = {"classification": 6, "features": 10}  # where widths are 1
    found: dict[str, Piece] = {}
    for name, count in numbers.items():
        sums = gpu.sent(torch.zeros(count, dtype=torch.float64))
        found[f"metrics of {name}"] = partial(EVERY_TASK[name].metrics, sums, taught=True)
    return found
