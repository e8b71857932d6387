"""Any plain `nn.Module` as a network with stages.

Its `forward` is traced by `torch.fx` down to the children that make the stages, and cut behind each
of them. The children themselves are not traced, so they may branch as they like. What lies between
the cuts stays as it was written: functions (a ReLU, a flatten) included.

Shapes: B batch, C classes, D embedding width.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from raykd.core.errors import ConfigError, text_of
from raykd.models.staged import Staged

# Functions that belong to the stage before them, as modules of torch's activations and norms do.
_ACTIVATIONS = {"relu", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "hardswish"}
_FOLLOWS = ("torch.nn.modules.activation", "torch.nn.modules.batchnorm")


class StageEnd(nn.Identity):
    """A mark in a network's forward: a stage ends here, with the activation that follows."""


class _Tracer(fx.Tracer):
    """Tracer that stops at what contains none of the modules that are looked for."""

    def __init__(self, wanted: Sequence[str]) -> None:
        super().__init__()
        self._wanted = wanted

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True where no wanted module lies inside."""
        return not any(name.startswith(f"{module_qualified_name}.") for name in self._wanted)


class _TrainEvalPair(nn.Module):
    """A part of a network in two versions, one for training and one for evaluation."""

    def __init__(self, training: nn.Module, evaluation: nn.Module) -> None:
        super().__init__()
        self.in_training, self.in_evaluation = training, evaluation

    def forward(self, x: Tensor) -> Any:
        return (self.in_training if self.training else self.in_evaluation)(x)


def staged_module(
    name: str,
    network: nn.Module,
    classes: int,
    stages: Sequence[str] | None = None,
    classifier: str | None = None,
) -> Staged:
    """A plain network [B, 3, H, W] -> [B, `classes`] with stages and classifier.

    `stages` are submodules by name, such as "layer1", each the end of a stage, with the batch norm
    and the activation behind it. What comes before the first of them belongs to it. They become
    "stage1", "stage2" and so on. None: the children that have convolutions, whose output alone goes
    on; the first of several is the "stem". `classifier` is a linear layer by name; None: the last.

    A network that cannot be traced, or that ends in something else than its classifier, has no
    stages and its scores as the embedding. Raises `ConfigError` where stages or a classifier were
    named all the same, and where the classifier has another number of classes.
    """
    if isinstance(network, Staged):
        return network
    if not isinstance(network, nn.Module):
        raise ConfigError(
            f"the network {name!r}: expected its function to return an nn.Module, got "
            f"{type(network).__name__}"
        )
    modules = dict(network.named_modules())
    linear = [key for key, module in modules.items() if isinstance(module, nn.Linear)]
    for key in (*(stages or ()), *([classifier] if classifier is not None else ())):
        if key not in modules or not key:
            children = ", ".join(child for child, _ in network.named_children())
            raise ConfigError(
                f"the network {name!r} has no part {key!r}; its parts are: {children}"
            )
    last = classifier or (linear[-1] if linear else None)
    head = modules.get(last or "")
    if isinstance(head, nn.Linear) and head.out_features != classes:
        raise ConfigError(
            f"the network {name!r} was asked for {classes} classes, and its classifier {last!r} "
            f"has {head.out_features}; use the number that its function is given"
        )
    try:
        if head is None:
            raise _NoParts("it has no linear classifier")
        parts = _cut(network, _ends(network, str(last), stages), str(last), stages is not None)
    except Exception as error:  # a network's own code may raise anything while it is traced
        if stages is None and classifier is None:
            return Staged(network, {}, network, nn.Identity())
        reason = text_of(error).splitlines()[0]
        raise ConfigError(
            f"the network {name!r} cannot be split into stages ({reason}); name other parts, leave "
            "stages and classifier out, or return a raykd.models.Staged"
        ) from error
    *blocks, pool = parts
    first = 0 if stages is None and len(blocks) > 1 else 1
    named = {f"stage{n}" if n else "stem": block for n, block in enumerate(blocks, first)}
    return Staged(network, named, pool, head)


class _NoParts(Exception):
    """A network that has no parts of the form that is asked for."""


def _ends(network: nn.Module, classifier: str, stages: Sequence[str] | None) -> Sequence[str]:
    """The modules that may end a stage."""
    if stages is not None:
        return stages
    marks = [child for child, module in network.named_children() if isinstance(module, StageEnd)]
    return marks or [
        child
        for child, module in network.named_children()
        if any(isinstance(part, nn.Conv2d) for part in module.modules())
        and not f"{classifier}.".startswith(f"{child}.")
    ]


def _cut(
    network: nn.Module, ends: Sequence[str], classifier: str, is_named: bool
) -> list[nn.Module]:
    """The parts of a network up to the end of each stage, and from there to the classifier."""
    modes = [(module, module.training) for module in network.modules()]
    parts: list[list[nn.Module]] = []
    try:
        for training in (True, False):
            network.train(training)
            parts.append(_traced_parts(network, ends, classifier, is_named))
    finally:
        for module, training in modes:
            module.training = training
    if len(parts[0]) != len(parts[1]):
        raise _NoParts("its stages in training are not those in evaluation")
    return [
        a if a.code == b.code else _TrainEvalPair(a, b)  # pyright: ignore[reportAttributeAccessIssue]
        for a, b in zip(*parts, strict=True)
    ]


def _traced_parts(
    network: nn.Module, ends: Sequence[str], classifier: str, is_named: bool
) -> list[nn.Module]:
    """The parts of `_cut` in the network's present mode."""
    graph = _Tracer([*ends, classifier]).trace(network)
    nodes = [*graph.nodes]
    pixels, output = nodes[0], nodes[-1]
    calls = {str(node.target): node for node in nodes if node.op == "call_module"}
    head = calls.get(classifier)
    if [node.op for node in nodes].count("placeholder") != 1:
        raise _NoParts("its forward takes more than pixels")
    if head is None or output.args[0] is not head:
        raise _NoParts(f"its output is not that of {classifier!r}")
    if any(node.op == "get_attr" for node in nodes):
        # A copy of such a reference would go stale where weights are shared out to workers.
        raise _NoParts("its own forward reads parameters or buffers; put them in a child")
    cuts = [nodes.index(head.args[0])]  # pyright: ignore[reportArgumentType]
    for name in reversed(ends):
        place = nodes.index(calls[name]) if name in calls else -1
        while 0 < place < cuts[0] and _follows(network, nodes[place + 1]):
            place += 1
        if 0 < place < cuts[0] and _is_narrow(nodes, place):
            cuts.insert(0, place)
        elif is_named:
            raise _NoParts(f"{name!r} is not the only way on, or not in the order of its forward")
    if len({*cuts}) < len(cuts) or not _is_narrow(nodes, cuts[-1]):
        raise _NoParts(f"{classifier!r} is not the only reader of its input")
    return [
        _part(network, nodes, start, stop)
        for start, stop in zip([nodes.index(pixels), *cuts], cuts, strict=False)
    ]


def _follows(network: nn.Module, node: fx.Node) -> bool:
    """True for a norm or an activation."""
    if node.op == "call_module":
        return type(network.get_submodule(str(node.target))).__module__ in _FOLLOWS
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name.rstrip("_") in _ACTIVATIONS


def _is_narrow(nodes: Sequence[fx.Node], place: int) -> bool:
    """True where all that comes after a node reads nothing before it but its own output."""
    before = {*nodes[:place]}
    return not any(before & {*node.all_input_nodes} for node in nodes[place + 1 :])


def _part(network: nn.Module, nodes: Sequence[fx.Node], start: int, stop: int) -> fx.GraphModule:
    """The part of a network after one node, up to another."""
    graph = fx.Graph()
    copies = {nodes[start]: graph.placeholder("x")}
    for node in nodes[start + 1 : stop + 1]:
        copies[node] = graph.node_copy(node, lambda other: copies[other])
    graph.output(copies[nodes[stop]])
    return fx.GraphModule(network, graph)
