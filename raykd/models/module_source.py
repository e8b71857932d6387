"""An `nn.Module` object as source: a plugin whose network computes what the object does.

The object's `forward` is traced by `torch.fx` down to modules of `torch.nn`, and written as Python
with the arguments that make those modules. Neither the object's class nor the file that this is in
is needed to build the network again, and nothing is pickled.

Shapes: B batch, C classes, D embedding width, H, W pixels.
"""

import builtins
import copy
import hashlib
import inspect
import math
import operator
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from raykd.core.errors import ConfigError, text_of

_SIDES = (32, 64, 112, 224)  # pixels of images that a network is tried on; 112 are faces'
_ROOMS = {
    "torch",
    "torchvision",
    "math",
    "operator",
    "_operator",
    "builtins",
}  # modules of functions
_DELETION = re.compile(r";  (?:\w+ = )+None$", re.MULTILINE)  # how torch.fx frees a value
_ADVICE = (
    "write its class to a file as a plugin, with @raykd.register.model above it, and name that "
    "file among the experiment's plugins"
)


@dataclass(frozen=True)
class ModuleSource:
    """A module as a network of raykd: the file that registers it, and its weights."""

    name: str  # network's: the class's, and digits of the text's digest
    text: str  # content of the file
    state: Mapping[str, Tensor]  # on the CPU, by the names that the object has for them
    side: int  # pixels of an image that the object takes
    classes: int  # outputs of its last linear layer; 0 of an encoder


def source_of(module: nn.Module, stages: Sequence[str] | None = None) -> ModuleSource:
    """The source of an object: normalised pixels [B, 3, H, W] -> logits [B, C].

    It ends in a linear layer, its classifier; the output [B, D] of any other is an embedding, for
    which the network has a classifier of its own. `stages` are submodules by name, as
    `raykd.models.traced.staged_module` has them; None: the children that have convolutions.

    Raises `ConfigError`, with what is in the way, where the object cannot be traced or written.
    """
    name = type(module).__name__
    _check(module, stages)
    side, width, maps = _tried(module)
    parts = [*_default_ends(module, maps)] if stages is None else stages
    graphs = {mode: _traced(module, parts, training=mode) for mode in (True, False)}
    ends, classifier = _ends_of(graphs[False]), _classifier(module, graphs[False])
    if ends != _ends_of(graphs[True]) or classifier != _classifier(module, graphs[True]):
        raise ConfigError(f"{name}: its parts in training are not those in evaluation; {_ADVICE}")
    head = classifier
    if classifier is None:
        head = next(word for word in _head_names() if not hasattr(module, word))
    writer = _Writer(module, classifier)
    for graph in graphs.values():
        writer.add(graph)
    body = writer.body(graphs, (str(head), width) if classifier is None else None)
    stem = re.sub(r"\W", "", name) if name.isascii() and name[0].isalpha() else "Module"
    listed = repr(ends) if ends and stages is not None else "None"
    text = _TEXT.format(
        about=f"{stem}: an nn.Module object, as torch.fx traced it. Written by raykd.",
        imports="".join(f"{line}\n" for line in sorted(writer.imports, key=_of_import)),
        body=body,
        name="{name}",
        stages=listed,
        classifier=None if stages is None else repr(head),
    )
    short = f"{stem[:50]}_{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    held = module.state_dict()
    state = {key: held[key].detach().cpu().contiguous().clone() for key in writer.tensors(held)}
    classes = 0
    if classifier is not None:
        linear: Any = module.get_submodule(classifier)
        classes = linear.out_features
    return ModuleSource(short, text.replace("{name}", short), state, side, classes)


def check_same(module: nn.Module, network: nn.Module, side: int) -> None:
    """Raise `ConfigError` where a network answers otherwise than the object that it was made from.

    Both are compared in evaluation and in training, on noise of `side` pixels.
    """
    device = _device(module)
    pair = [copy.deepcopy(one).to(device) for one in (module, network)]
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    for training in (False, True):
        answers = []
        for one in pair:
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(0)
                try:
                    answers.append(one.train(training)(pixels))
                except Exception as error:
                    raise ConfigError(_cannot(module, "run", error)) from error
        if not torch.equal(*answers):
            raise ConfigError(
                f"{type(module).__name__}: what torch.fx sees of its forward answers otherwise "
                f"than the object (hooks, or branches on its pixels); {_ADVICE}"
            )


_TEXT = '''"""{about}"""

{imports}
import raykd
from raykd.models.traced import StageEnd


{body}

@raykd.register.model("{name}", stages={stages}, classifier={classifier})
def network(classes: int) -> nn.Module:
    """The network, with a classifier of `classes` outputs."""
    return Network(classes)
'''


def _head_names() -> Iterator[str]:
    yield "classifier"
    number = 2
    while True:
        yield f"classifier_{number}"
        number += 1


def _check(module: nn.Module, stages: Sequence[str] | None) -> None:
    """Raise `ConfigError` for an object that no source can stand for."""
    name = type(module).__name__
    parts = dict(module.named_modules())
    for stage in stages or ():
        if stage not in parts or not stage:
            children = ", ".join(child for child, _ in module.named_children())
            raise ConfigError(f"{name} has no part {stage!r} for stages; its parts are: {children}")
    kinds = {str(value.dtype) for value in module.parameters()}
    if not kinds:
        raise ConfigError(f"{name} has no parameters; give a network")
    if kinds != {"torch.float32"}:
        raise ConfigError(
            f"{name}: its parameters are {' and '.join(sorted(kinds))}; call .float() on it"
        )
    if any(value.is_meta for value in module.parameters()):
        raise ConfigError(f"{name}: it has no values on the meta device; make it on the CPU")
    owners: dict[int, str] = {}
    for key, value in module.named_parameters(remove_duplicate=False):
        if owners.setdefault(id(value), key) != key:
            raise ConfigError(
                f"{name}: {owners[id(value)]} and {key} are one parameter, which a traced network "
                f"would have twice; {_ADVICE}"
            )


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _cannot(module: nn.Module, what: str, error: Exception) -> str:
    reason = text_of(error).splitlines()[0]
    return f"{type(module).__name__}: torch.fx cannot {what} it ({reason[:200]}); {_ADVICE}"


def _tried(module: nn.Module) -> tuple[int, int, set[str]]:
    """The side of an image that an object takes, the width of its answer, the parts with maps."""
    name, device, reason = type(module).__name__, _device(module), ""
    tried, maps = copy.deepcopy(module).eval(), set[str]()

    def note(key: str, answer: Any) -> None:
        if isinstance(answer, Tensor) and answer.ndim == 4:
            maps.add(key)

    for key, part in tried.named_modules():
        part.register_forward_hook(lambda _, given, answer, key=key: note(key, answer))
    for side in _SIDES:
        try:
            with torch.no_grad():
                answer = tried(torch.zeros(2, 3, side, side, device=device))
        except Exception as error:  # whatever a network's code does with a size
            reason = reason or text_of(error).splitlines()[0]
            continue
        if not isinstance(answer, Tensor):
            raise ConfigError(
                f"{name}: its forward returns a {type(answer).__name__}; wrap it in a module whose "
                "forward returns the logits [B, C] alone"
            )
        if answer.ndim != 2:
            raise ConfigError(
                f"{name}: expected logits or embeddings [B, C], got {[*answer.shape]} for 2 images "
                f"of {side} pixels"
            )
        return side, answer.shape[1], maps
    raise ConfigError(
        f"{name}: expected a network of pixels [B, 3, H, W]; of {', '.join(map(str, _SIDES))} "
        f"pixels a side it takes none ({reason[:200]})"
    )


def _default_ends(module: nn.Module, maps: Container[str], prefix: str = "") -> Iterator[str]:
    """The children with convolutions that answer with a map, and those inside of the others."""
    for child, part in module.named_children():
        if not any(isinstance(inner, nn.Conv2d) for inner in part.modules()):
            continue
        if prefix + child in maps:
            yield prefix + child
        else:
            yield from _default_ends(part, maps, f"{prefix}{child}.")


class _Tracer(fx.Tracer):
    """Tracer down to what can be written, with a mark behind each end of a stage."""

    def __init__(self, module: nn.Module, ends: Sequence[str]) -> None:
        super().__init__()
        # Before the trace: in it, to look at a parameter is to read it.
        self._known = {id(part) for part in module.modules() if _arguments(part) is not None}
        self._ends = ends

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True for a module of torch.nn whose arguments are known."""
        return id(m) in self._known

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """The answer of a module; behind the end of a stage, that of a mark."""
        answer = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        if name not in self._ends:
            return answer
        return self.create_proxy("call_module", _mark(name), (answer,), {})


def _mark(stage: str) -> str:
    return f"after_{stage.replace('.', '_')}"


def _traced(module: nn.Module, ends: Sequence[str], *, training: bool) -> fx.Graph:
    """The graph of an object in one mode, which leaves the object as it was."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        module.train(training)
        graph = _Tracer(module, ends).trace(module)
    except Exception as error:  # whatever a network's code does with what is no tensor
        raise ConfigError(_cannot(module, "trace", error)) from error
    finally:
        for part, mode in modes:
            part.training = mode
    if [node.op for node in graph.nodes].count("placeholder") != 1:
        raise ConfigError(
            f"{type(module).__name__}: its forward takes more than pixels; wrap it in a module "
            "whose forward takes those alone"
        )
    return graph


def _ends_of(graph: fx.Graph) -> list[str]:
    """The marks in a graph, in their order."""
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    return [*dict.fromkeys(name for name in calls if name.startswith("after_"))]


def _classifier(module: nn.Module, graph: fx.Graph) -> str | None:
    """The name of the linear layer that a graph ends in."""
    last: Any = [*graph.nodes][-1].args[0]
    if not isinstance(last, fx.Node) or last.op != "call_module":
        return None
    name = str(last.target)
    is_mark = name.startswith("after_")
    return name if not is_mark and isinstance(module.get_submodule(name), nn.Linear) else None


def _kind(module: nn.Module) -> type[nn.Module]:
    """The class that makes a module again; a linear layer of a library's is torch's."""
    return nn.Linear if isinstance(module, nn.Linear) else type(module)


def _arguments(module: nn.Module) -> str | None:
    """The arguments that make a module of torch.nn, as text; None where they are not known."""
    kind = _kind(module)
    if getattr(nn, kind.__name__, None) is not kind or kind is nn.Module:
        return None
    words: list[str] = []
    parameters = [*inspect.signature(kind.__init__).parameters.values()][1:]
    for parameter in parameters:
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        if name in ("device", "dtype"):
            continue
        if isinstance(module, nn.MultiheadAttention) and name in ("bias", "add_bias_kv"):
            held = module.in_proj_bias if name == "bias" else module.bias_k
            value: Any = held is not None
        elif not hasattr(module, name):
            return None
        else:
            value = getattr(module, name)
            if name == "bias":
                value = value is not None and value is not False
        if not _is_plain(value):
            return None
        if parameter.default is parameter.empty or value != parameter.default:
            words.append(f"{name}={value!r}")
    return ", ".join(words)


def _is_plain(value: Any) -> bool:
    """True for what is written as Python and read as the same."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or (
        type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))
    )


class _Writer:
    """Text of the class `Network`, of one or two graphs of an object."""

    def __init__(self, module: nn.Module, classifier: str | None) -> None:
        self._module, self._classifier = module, classifier
        self._lines: dict[str, str] = {}  # part -> its line in __init__
        self._parts: dict[str, bool] = {}  # modules of the object that are made whole
        self.imports = {"import torch", "from torch import nn"}

    def add(self, graph: fx.Graph) -> None:
        """Collect what a graph uses."""
        nodes = [*graph.nodes]
        for node in nodes:
            if node.op == "call_module":
                self._add_module(str(node.target))
        for node in nodes:
            if node.op == "get_attr":
                self._add_tensor(str(node.target))

    def tensors(self, held: Mapping[str, Tensor]) -> list[str]:
        """The names of an object's state that the network has."""
        parts = [f"{name}." for name in self._parts]
        return [key for key in held if key in self._lines or key.startswith((*parts, "\0"))]

    def body(self, graphs: Mapping[bool, fx.Graph], head: tuple[str, int] | None) -> str:
        """The class; with `head`, a name and a width, it has a classifier behind its answer."""
        codes = {mode: self._code(graph) for mode, graph in graphs.items()}
        lines = ["class Network(nn.Module):", "    def __init__(self, classes):"]
        lines += ["        super().__init__()"]
        lines += [f"        {line}" for line in self._lines.values()]
        if head is not None:
            lines.append(f"        self.{head[0]} = nn.Linear({head[1]}, classes)")
        if codes[True] == codes[False] and head is None:
            return "\n".join([*lines, "", *_method("forward", codes[True])]) + "\n"
        answer = "self._in_training(x) if self.training else self._in_evaluation(x)"
        names = {True: "_in_training", False: "_in_evaluation"}
        if codes[True] == codes[False]:
            names, answer = {True: "_embedding"}, "self._embedding(x)"
        if head is not None:
            answer = f"self.{head[0]}({answer})"
        lines += ["", "    def forward(self, x):", f"        return {answer}"]
        for mode, name in names.items():
            lines += ["", *_method(name, codes[mode])]
        return "\n".join(lines) + "\n"

    def _add_module(self, name: str) -> None:
        if name.startswith("after_") and not hasattr(self._module, name):
            self._lines[name] = f"self.{name} = StageEnd()"
            return
        if name in self._parts:
            return
        part = self._module.get_submodule(name)
        arguments = _arguments(part)
        assert arguments is not None, "the tracer goes into all others"
        if name == self._classifier:
            arguments = re.sub(r"out_features=\d+", "out_features=classes", arguments)
        self._parts[name] = True
        self._set(name, f"nn.{_kind(part).__name__}({arguments})")

    def _add_tensor(self, name: str) -> None:
        """Collect a parameter or a buffer that a forward reads itself."""
        if name.startswith(tuple(f"{part}." for part in self._parts)):
            return
        owner, _, last = name.rpartition(".")
        value = getattr(self._module.get_submodule(owner), last)
        shape = f"torch.zeros({(*value.shape,)!r}, dtype={value.dtype})"
        if isinstance(value, nn.Parameter):
            self._set(name, f"nn.Parameter({shape})", "register_parameter")
        elif name in self._module.state_dict():
            self._set(name, shape, "register_buffer")
        else:
            raise ConfigError(
                f"{type(self._module).__name__}: its forward reads the tensor {name}, which is in "
                "no state_dict; register it as a persistent buffer"
            )

    def _set(self, name: str, value: str, by: str = "add_module") -> None:
        """Write a part, and the modules that hold it."""
        path = name.split(".")
        for depth in range(1, len(path)):
            holder = ".".join(path[:depth])
            if holder not in self._lines and holder not in self._parts:
                self._lines[holder] = _assignment(holder, "nn.Module()")
        self._lines[name] = _assignment(name, value, by)

    def _code(self, graph: fx.Graph) -> str:
        """The text of a forward, of which x are the pixels."""
        for node in graph.nodes:
            if node.op == "placeholder":
                node.type, node.target = None, "x"
            elif node.op == "call_function":
                self._check_function(node.target)
        code = graph.python_code("self")
        _, _, text = _DELETION.sub("", code.src).partition("\ndef forward")
        text = text.partition("\n")[2].rstrip()
        for name, value in code.globals.items():
            if re.search(rf"\b{name}\b", text):
                self._import(name, value)
        return text

    def _check_function(self, function: Any) -> None:
        home = getattr(function, "__module__", None) or "torch"
        if home.partition(".")[0] not in _ROOMS:
            raise ConfigError(
                f"{type(self._module).__name__}: its forward calls {home}.{function.__name__}, "
                f"which a file of its own cannot; {_ADVICE}"
            )

    def _import(self, name: str, value: Any) -> None:
        """Add the import of a name that the code reads."""
        if name in ("torch", "fx_pytree", "pytree") or hasattr(builtins, name):
            return
        if name in ("inf", "nan"):
            self.imports.add(f"from math import {name}")
        elif name == "NoneType":
            self.imports.add("from types import NoneType")
        elif value is torch.device:
            self.imports.add(f"from torch import device as {name}")
        elif inspect.ismodule(value):
            self.imports.add(f"import {value.__name__} as {name}")
        else:
            home = operator.__name__ if value.__module__ == "_operator" else value.__module__
            self.imports.add(f"from {home} import {value.__name__} as {name}")


def _of_import(line: str) -> tuple[bool, bool, str]:
    """The place of an import: Python's own, then torch's; modules before names."""
    return "torch" in line, line.startswith("from"), line


def _assignment(name: str, value: str, by: str = "add_module") -> str:
    """The line of __init__ that makes a part by its dotted name."""
    owner, _, last = name.rpartition(".")
    holder = "self"
    for part in owner.split(".") if owner else ():
        holder += f".{part}" if part.isidentifier() else f"._modules[{part!r}]"
    if by == "register_buffer" or not last.isidentifier():
        return f"{holder}.{by}({last!r}, {value})"
    return f"{holder}.{last} = {value}"


def _method(name: str, code: str) -> list[str]:
    return [f"    def {name}(self, x):", *(f"    {line}" for line in code.splitlines())]
