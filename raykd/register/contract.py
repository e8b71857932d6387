"""The contract of methods and networks, raykd's own and those of plugins, on two small networks.

A law raises `ContractError`, with a sentence. `check_plugin` checks a plugin's methods and networks
against all of them.

Shapes: B batch, C classes, H, W pixels.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from raykd.core.errors import ConfigError, RaykdError
from raykd.core.plugins import Plugin
from raykd.core.types import CACHEABLE, MAP_SUFFIX, Batch, Look, Outputs, Signal
from raykd.methods import METHODS
from raykd.methods.base import Method, value_at
from raykd.methods.columns import (
    DERIVED,
    FromColumns,
    modules_of,
    read_by,
    shapes_of_columns,
    with_columns,
)
from raykd.methods.derived import Derived
from raykd.models import NETWORKS, build, measure
from raykd.models.staged import Staged
from raykd.training.learner import Learner

CLASSES = 10
ALL = (
    Signal.LOGITS
    | Signal.EMBEDDING
    | Signal.FEATURES
    | Signal.LIVE
    | Signal.PREACTIVATIONS
    | Signal.PIXELS
    | Signal.CLASSIFIER
    | Signal.MAP
)


# Signals that functions of columns may read: their sizes are known without a teacher's answer.
_STORABLE = Signal.LOGITS | Signal.EMBEDDING | Signal.FEATURES | Signal.PREACTIVATIONS | Signal.MAP


class ContractError(RaykdError):
    """The error for a method, or a network, that breaks a law of the contract."""


def pair(seed: int = 0, teacher: str = "resnet8x4") -> tuple[Staged, Staged]:
    """A student resnet8 and a wider teacher for images of 16 x 16 and 10 classes."""
    torch.manual_seed(seed)
    return build("resnet8", CLASSES), build(teacher, CLASSES).eval().requires_grad_(False)


def pair_for(method: Method) -> tuple[Staged, Staged]:
    """A student and a teacher that a method can compare."""
    student, teacher = pair()
    try:
        helpers_of(method, student, teacher)
    except ConfigError:  # such as one that compares stages of equal widths
        return pair(teacher="resnet14")
    return pair()


def batch(size: int = 8, side: int = 16, seed: int = 0) -> Batch:
    """Random pixels and labels, with every other look at them."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, CLASSES, (size,), generator=generator)

    def look(looks: dict[Look, Batch], weights: Tensor | None = None) -> Batch:
        pixels = torch.randn(size, 3, side, side, generator=generator)
        return Batch(pixels, targets, torch.arange(size), 0, 0, looks, weights)

    names: tuple[Look, ...] = ("clean", "partner", "strong")
    return look({name: look({}) for name in names}, torch.full((size,), 0.25))


def outputs_of(
    network: Staged, sample: Batch, wanted: Signal, derived: Sequence[Derived] = ()
) -> Outputs:
    """Outputs of a network for every look at a batch, with the columns of some functions."""

    def outputs(pixels: Tensor) -> Outputs:
        if Signal.PIXELS in wanted:
            pixels = pixels.detach().requires_grad_()
        found = network.outputs(pixels, wanted | read_by(derived))
        return with_columns(found, derived, wanted, modules) if derived else found

    modules = _modules(network, sample, derived) if derived else nn.ModuleDict()

    given = outputs(sample.pixels)
    looks: dict[Look, Outputs] = {look: outputs(b.pixels) for look, b in sample.looks.items()}
    return given.with_looks({"given": given, **looks})


def _modules(network: Staged, sample: Batch, derived: Sequence[Derived]) -> nn.ModuleDict:
    """The modules of some functions, equal each time."""
    like, side = next(network.parameters()), sample.pixels.shape[-1]
    with torch.random.fork_rng(devices=()), like.device:
        torch.manual_seed(0)
        modules = modules_of(derived, measure(network, (side, side)), CLASSES)
    return modules if like.dtype == torch.float32 else modules.to(like.dtype)


def helpers_of(
    method: Method,
    student: Staged,
    teacher: Staged,
    side: int = 16,
    targets: Tensor | None = None,
) -> nn.ModuleDict:
    """The method's helpers for two networks, calibrated on one batch where it asks for that.

    `targets`: int64 [N], labels of all training samples; None: 40 of all classes.
    """
    shapes = measure(student, (side, side)), measure(teacher, (side, side))
    targets = torch.arange(40) % CLASSES if targets is None else targets
    helpers = method.helpers(*shapes, targets)
    if method.needs_calibration(helpers):
        outputs: list[Outputs] = [teacher.outputs(batch().pixels, ALL)]
        method.calibrate(helpers, outputs)
    return helpers


def _seeded(
    method: Method, student: Staged, teacher: Staged, targets: Tensor | None = None
) -> nn.ModuleDict:
    """Helpers that are equal each time."""
    torch.manual_seed(0)
    return helpers_of(method, student, teacher, targets=targets)


def survives_json(method: Method) -> None:
    """A method equals what is read from its JSON."""
    if type(method).read(method.plain()) != method:
        raise ContractError("its fields are not the same after JSON; use numbers, texts and tuples")


def losses_are_finite(method: Method) -> None:
    """Losses are finite scalars in float32, keyed by the spots that it declares."""
    student, teacher = pair_for(method)
    sample = batch()
    mine, theirs = (
        outputs_of(student, sample, ALL),
        outputs_of(teacher, sample, ALL, method.derived()),
    )
    losses = method.losses(mine, theirs, sample, helpers_of(method, student, teacher))
    spots = method.spots(mine.features, theirs.features).keys()
    if method.name in METHODS and method.needs() and losses.keys() - {"route"} != spots:
        raise ContractError(
            f"its losses are keyed by {', '.join(losses) or 'nothing'}, and `spots` declares "
            f"{', '.join(spots)}; key each loss by what it compares"
        )
    for spot, loss in losses.items():
        if loss.shape != () or loss.dtype != torch.float32:
            raise ContractError(
                f"its loss {spot!r} is {loss.dtype} {[*loss.shape]}; expected one number in float32"
            )
        if not bool(loss.isfinite()):
            raise ContractError(f"its loss {spot!r} of random outputs is {float(loss.detach())}")


def needs_are_what_it_reads(method: Method) -> None:
    """It works with exactly the signals that it declares, and gives the same from a cache."""
    student, teacher = pair_for(method)
    sample, needs, looks = batch(), method.needs(), method.looks()
    helpers = _seeded(method, student, teacher)
    mine = outputs_of(student, sample, method.student_needs() | needs | Signal.LIVE)
    theirs = outputs_of(teacher, sample, needs, method.derived())
    mine = mine.with_looks({look: mine.look(look) for look in looks.student})
    theirs = theirs.with_looks({look: theirs.look(look) for look in looks.teacher})
    try:
        few = method.losses(mine, theirs, sample, helpers)
        method.scores(mine, theirs, helpers)
    except LookupError as error:
        raise ContractError(f"it reads what `needs` and `looks` do not name ({error})") from error
    if needs & ~CACHEABLE:
        return  # there is no cache of it
    maps = {theirs.map_stage + MAP_SUFFIX: theirs.map} if Signal.MAP in needs else {}
    plain = Outputs(theirs.logits, maps, theirs.embedding if Signal.EMBEDDING in needs else None)
    if Signal.DERIVED in needs:
        plain = plain.replace(derived=theirs.derived)
    plain = plain.with_looks({look: theirs.look(look) for look in looks.teacher})
    again = method.losses(mine, plain, sample, _seeded(method, student, teacher))
    for spot, loss in few.items():
        if spot in again and not torch.allclose(loss, again[spot], rtol=1e-5, atol=1e-7):
            raise ContractError(f"its loss {spot!r} from a cache is not that of the live teacher")


def what_it_does_not_read_changes_nothing(method: Method) -> None:
    """Its losses are the same to the last bit beside signals, columns and teachers of others."""
    student, teacher = pair_for(method)
    sample, own, needs = batch(), method.derived(), method.needs()
    mine = outputs_of(student, sample, method.student_needs() | needs | Signal.LIVE)
    theirs = outputs_of(teacher, sample, needs, own)

    every = [kind(name=name) for name, kind in DERIVED.items()]
    columns = (*own, *(function for function in every if function not in own))
    ways = {
        "signals that it does not declare": (
            outputs_of(student, sample, ALL | method.student_needs()),
            outputs_of(teacher, sample, ALL | needs, own),
        ),
        "columns that it does not name": (mine, outputs_of(teacher, sample, needs, columns)),
    }
    if not method.panel:  # the others are what such a method reads
        ways["a teacher that it does not read"] = (mine, _beside_another(theirs, student, sample))

    losses = method.losses(mine, theirs, sample, _seeded(method, student, teacher))
    for what, (ours, answers) in ways.items():
        others = method.losses(ours, answers, sample, _seeded(method, student, teacher))
        for spot, loss in losses.items():
            if not torch.equal(loss, others[spot]):
                raise ContractError(f"its loss {spot!r} changes with {what}")


def _beside_another(answers: Outputs, network: Staged, sample: Batch) -> Outputs:
    """A teacher's outputs for every look, as those of the first of two teachers."""

    def first_of_two(one: Outputs, pixels: Tensor) -> Outputs:
        return one.replace(panel=(one, network.outputs(pixels, ALL)))

    shown: dict[Look, Batch] = {"given": sample, **sample.looks}
    looks: dict[Look, Outputs] = {
        look: first_of_two(answers.look(look), one.pixels) for look, one in shown.items()
    }
    return looks["given"].with_looks(looks)


def labels_that_it_does_not_read_change_nothing(method: Method) -> None:
    """Its losses are the same to the last bit under other labels, unless it says it reads them."""
    if method.reads_labels():
        return
    student, teacher = pair_for(method)
    mine, theirs = (
        outputs_of(student, batch(), ALL | method.student_needs()),
        outputs_of(teacher, batch(), ALL, method.derived()),
    )
    found: list[Mapping[str, Tensor]] = []
    for seed in (0, 1):
        sample = _labelled(batch(), seed)
        helpers = _seeded(method, student, teacher, _permuted(torch.arange(40) % CLASSES, seed))
        found.append(method.losses(mine, theirs, sample, helpers))
    for spot, loss in found[0].items():
        if not torch.equal(loss, found[1][spot]):
            raise ContractError(
                f"its loss {spot!r} changes with the labels; let `reads_labels` say that it reads "
                "them"
            )


def _permuted(labels: Tensor, seed: int) -> Tensor:
    """The labels, in an order of the seed."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def _labelled(sample: Batch, seed: int) -> Batch:
    """A batch whose labels, in every look, were permuted."""
    looks: dict[Look, Batch] = {key: _labelled(b, seed) for key, b in sample.looks.items()}
    return replace(sample, targets=_permuted(sample.targets, seed), looks=looks)


def gradients_reach_what_is_trained(method: Method) -> None:
    """Every parameter of student and helpers has a finite gradient, and none of the teacher."""
    student, teacher = pair_for(method)
    sample = batch()
    learner = Learner(student, method, helpers_of(method, student, teacher))
    answer = _answer(method, teacher, sample)
    losses, _ = learner(sample, answer, value_at(method.label_weight, 0))
    torch.stack([*losses.values()]).sum().backward()
    for name, parameter in learner.named_parameters():
        if parameter.requires_grad and parameter.grad is None:
            raise ContractError(f"no loss reaches {name}; leave it out of `helpers`, or use it")
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all()):
            raise ContractError(f"the gradient of {name} is not finite")
    if any(parameter.grad is not None for parameter in teacher.parameters()):
        raise ContractError("its losses reach the teacher, which is not trained")


def _answer(method: Method, teacher: Staged, sample: Batch) -> Outputs | None:
    """The outputs of a teacher that a method reads; None for a method without one."""
    needs = method.needs()
    return outputs_of(teacher, sample, needs, method.derived()) if needs else None


def order_does_not_matter(method: Method) -> None:
    """The losses of a batch do not depend on the order of its rows."""
    # What differs in float32 may be rounding, as of a small sum with a large weight.
    spot = _spot_by_order(method, torch.float32)
    if spot is not None:
        with contextlib.suppress(RuntimeError):  # where a method has numbers in float32 of its own
            spot = _spot_by_order(method, torch.float64)
    if spot is not None:
        raise ContractError(f"its loss {spot!r} depends on the order of the batch")


def _spot_by_order(method: Method, dtype: torch.dtype) -> str | None:
    """A spot whose loss depends on the order of the batch in that precision; None for no spot."""
    student, teacher = pair_for(method)
    student.eval()
    networks = [copy.deepcopy(network).to(dtype) for network in (student, teacher)]
    sample, order = _in_precision(batch(), dtype), torch.arange(8).flip(0)

    def losses(sample: Batch) -> Mapping[str, Tensor]:
        helpers = _seeded(method, student, teacher).eval().to(dtype)
        mine = outputs_of(networks[0], sample, ALL)
        theirs = outputs_of(networks[1], sample, ALL, method.derived())
        return method.losses(mine, theirs, sample, helpers)

    others = losses(_reordered(sample, order))
    for spot, loss in losses(sample).items():
        if not torch.allclose(loss, others[spot], rtol=1e-3, atol=1e-5):
            return spot
    return None


def _in_precision(sample: Batch, dtype: torch.dtype) -> Batch:
    looks: dict[Look, Batch] = {key: _in_precision(b, dtype) for key, b in sample.looks.items()}
    return replace(sample, pixels=sample.pixels.to(dtype), looks=looks)


def _reordered(sample: Batch, order: Tensor) -> Batch:
    looks: dict[Look, Batch] = {key: _reordered(b, order) for key, b in sample.looks.items()}
    weights = None if sample.weights is None else sample.weights[order]
    return Batch(
        sample.pixels[order], sample.targets[order], sample.ids[order],
        sample.view, sample.epoch, looks, weights,
    )  # fmt: skip


def scores_keep_the_answer(method: Method) -> None:
    """The most probable class by its scores is that of the student's logits."""
    if method.released:
        return  # parts of the teacher give the answer
    student, teacher = pair_for(method)
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    mine = outputs_of(student, sample, ALL)
    theirs = outputs_of(teacher, sample, ALL, method.derived())
    scores = method.scores(mine, theirs, helpers)
    if not torch.equal(scores.argmax(1), mine.logits.argmax(1)):
        raise ContractError("its scores name other classes than the student's logits")


def losses_stay_float32(method: Method) -> None:
    """Losses are float32 where the networks run in bfloat16."""
    student, teacher = pair_for(method)
    sample = batch()
    learner = Learner(student, method, helpers_of(method, student, teacher), autocast=True)
    answer = _answer(method, teacher, sample)
    losses, _ = learner(sample, answer, 1.0)
    for spot, loss in losses.items():
        if loss.dtype != torch.float32:
            raise ContractError(
                f"its loss {spot!r} is {loss.dtype} under autocast; compute it within "
                "`methods.base.full_precision`, from `precise` tensors"
            )


def teacher_outputs_are_left_alone(method: Method) -> None:
    """The teacher's outputs are not changed in place."""
    student, teacher = pair_for(method)
    sample = batch()
    helpers = helpers_of(method, student, teacher)
    theirs = outputs_of(teacher, sample, ALL, method.derived())
    kept = {"logits": theirs.logits, "embedding": theirs.embedding, **theirs.features}
    kept |= theirs.derived if theirs.has_derived else {}
    before = {name: value.clone() for name, value in kept.items()}
    method.losses(outputs_of(student, sample, ALL), theirs, sample, helpers)
    changed = [name for name, value in kept.items() if not torch.equal(before[name], value)]
    if changed:
        raise ContractError(
            f"it changes the teacher's {', '.join(changed)} in place; copy them first"
        )


def check_columns(function: Derived) -> str:
    """A line about the columns of a function that keeps the laws of such functions."""
    if type(function).read(function.plain()) != function:
        raise ContractError("its fields are not the same after JSON; use numbers, texts and tuples")
    if not function.reads() or function.reads() & ~_STORABLE:
        raise ContractError(
            f"it reads {function.reads() or 'nothing'}; expected some of: {_STORABLE}"
        )
    _, teacher = pair()
    sample = batch()
    outputs = teacher.outputs(sample.pixels, function.reads())
    if Signal.LOGITS not in function.reads():  # which networks with a classifier always have
        outputs = Outputs(None, outputs.features, vars(outputs).get("embedding"))
    before = [value.clone() for value in outputs.features.values()]
    every = [kind(name=name) for name, kind in DERIVED.items()]
    modules = _modules(teacher, sample, [*every, function])
    try:
        columns = _columns(function, outputs, modules)
    except LookupError as error:
        raise ContractError(f"it reads what `reads` does not name ({error})") from error
    _check_form(columns, {"logits", "embedding", *teacher.stages}, len(sample.ids))
    if not all(map(torch.equal, before, outputs.features.values())):
        raise ContractError("it changes the teacher's outputs in place; copy them first")

    # A sample's columns are a function of that sample's outputs alone.
    everything = teacher.outputs(sample.pixels, _STORABLE)
    ways = {
        "a second time": _columns(function, outputs, modules),
        "beside outputs that it does not read": _columns(function, everything, modules),
        "of other samples' rows": {
            name: torch.cat([column, columns[name][4:]])
            for name, column in _columns(function, outputs.rows(dict.fromkeys(
                ("logits", "embedding", *teacher.stages), torch.arange(4))), modules).items()
        },
    }  # fmt: skip
    for way, others in ways.items():
        if others.keys() != columns.keys() or not all(
            torch.allclose(columns[name], others[name], rtol=1e-3, atol=1e-5) for name in columns
        ):
            raise ContractError(f"its columns are others {way}")
    for other in every:
        for name, column in _columns(other, everything, modules).items():
            if name in columns and not torch.equal(column, columns[name]):
                raise ContractError(
                    f"its column {name!r} is another one of {type(other).__name__}; choose another "
                    "name, such as that with a suffix behind a point"
                )
    sizes = shapes_of_columns([function], measure(teacher, (16, 16)), CLASSES)
    if sizes != {name: tuple(column.shape[1:]) for name, column in columns.items()}:
        raise ContractError("the sizes of its columns depend on more than those of the outputs")
    return ", ".join(f"{name} {'x'.join(map(str, size))}" for name, size in sizes.items())


def _columns(function: Derived, outputs: Outputs, modules: nn.ModuleDict) -> Mapping[str, Tensor]:
    return with_columns(outputs, [function], Signal(0), modules).derived


def _check_form(columns: Mapping[str, Tensor], spots: Container[str], rows: int) -> None:
    """Raise `ContractError` for columns that a cache could not hold, or no method find."""
    if not columns:
        raise ContractError("it has no columns; return one or more, by name")
    for name, column in columns.items():
        if name.partition(".")[0] not in spots:
            raise ContractError(
                f"its column {name!r} is of no spot; begin its name with that of a stage, or with "
                "embedding or logits, as in 'stage2.attention'"
            )
        if column.dtype != torch.float32 or column.dim() not in (2, 4) or len(column) != rows:
            raise ContractError(
                f"its column {name!r} is {column.dtype} {[*column.shape]}; expected float32 "
                f"[{rows}, K] or [{rows}, K, H, W]"
            )
        if not bool(column.isfinite().all()):
            raise ContractError(f"its column {name!r} of random outputs is not finite")


LAWS: Sequence[Callable[[Method], None]] = (
    survives_json,
    losses_are_finite,
    needs_are_what_it_reads,
    what_it_does_not_read_changes_nothing,
    labels_that_it_does_not_read_change_nothing,
    gradients_reach_what_is_trained,
    order_does_not_matter,
    scores_keep_the_answer,
    losses_stay_float32,
    teacher_outputs_are_left_alone,
)


def check_network(name: str, side: int) -> str:
    """A line about a network of `side` x `side` images that keeps the laws of networks."""
    torch.manual_seed(0)
    network = build(name, CLASSES)
    shapes = measure(network, (side, side))
    if shapes.classes != CLASSES:
        raise ContractError(f"it was asked for {CLASSES} classes, and has {shapes.classes}")
    pixels = torch.randn(4, 3, side, side)
    with torch.no_grad():
        whole = network.eval().network(pixels)
        if not torch.equal(network(pixels), whole):
            raise ContractError("its stages, one after another, give other logits than it does")
        if not torch.allclose(network(pixels.flip(0)), whole.flip(0), rtol=1e-3, atol=1e-4):
            raise ContractError("in evaluation its logits of an image depend on the others")
    network.train()(pixels).square().mean().backward()
    idle = [key for key, value in network.network.named_parameters() if value.grad is None]
    if idle:
        raise ContractError(f"its output does not depend on {', '.join(idle)}")
    maps = ", ".join(f"{key} {'x'.join(map(str, shape))}" for key, shape in shapes.features.items())
    return f"stages: {maps or 'none'}; embedding {shapes.embedding}"


def check_plugin(plugin: Plugin, side: int = 32) -> Iterator[dict[str, Any]]:
    """A row for each thing of a plugin: its kind, its name, what was found, and if it is sound."""
    for table, name, thing, _ in plugin.entries:
        row: dict[str, Any] = {"kind": table.kind, "name": name}
        if table is METHODS:
            for method in _forms(thing, name):
                if method != thing():
                    row["name"] = f"{name}, source: cache"
                for law in LAWS:
                    title = (law.__doc__ or "").partition("\n")[0].rstrip(".")
                    yield row | {"law": title} | _verdict(functools.partial(law, method))
        elif table is DERIVED:
            title = "Its columns are a function of each sample's outputs, in a form that is stored"
            yield row | {"law": title} | _verdict(functools.partial(check_columns, thing()))
        elif table is NETWORKS:
            title = f"It is built, cut into stages, run and trained on {side} x {side} pixels"
            yield row | {"law": title} | _verdict(functools.partial(check_network, name, side))
        else:
            yield row | {"law": "It is registered", "found": "holds", "sound": True}


def _forms(kind: type[Method], name: str) -> Iterator[Method]:
    """A method with its defaults, and from a cache's columns where it may read some."""
    yield kind(name=name)
    if issubclass(kind, FromColumns):
        yield kind(name=name, source="cache")


def _verdict(law: Callable[[], str | None]) -> dict[str, Any]:
    try:
        return {"found": law() or "holds", "sound": True}
    except RaykdError as error:
        return {"found": str(error), "sound": False}
    except Exception as error:  # a plugin's code may raise anything
        text = (str(error).strip() or "no message").splitlines()[0]
        return {"found": f"{type(error).__name__}: {text}", "sound": False}
