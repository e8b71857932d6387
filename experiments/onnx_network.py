"""An ONNX graph of convolutions as a torch network with its weights, to teach from.

    network = onnx_network("face.onnx")          # then raykd.Teacher(network, stages=ends(network))

Only what plain convolutional encoders have is read: Conv, PRelu, Relu, Add, and a Reshape or a
Flatten to embeddings [B, D] at the end. Another operator is refused by its name.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from torch import Tensor, fx, nn

import raykd


def onnx_network(path: Path | str) -> fx.GraphModule:
    """The network of a graph with one input [B, 3, H, W] and one output, on the CPU.

    Raises `raykd.ConfigError` for what is no graph of these operators.
    """
    try:
        model = onnx.load(str(path)).graph
    except (OSError, DecodeError) as error:
        raise raykd.ConfigError(f"{path}: expected an ONNX graph, found none ({error})") from error
    weights = {one.name: _tensor(one) for one in model.initializer}
    inputs = [one.name for one in model.input if one.name not in weights]
    if len(inputs) != 1 or len(model.output) != 1:
        raise raykd.ConfigError(
            f"{path}: expected one input and one output, found {len(inputs)} and "
            f"{len(model.output)}"
        )
    root, graph = nn.Module(), fx.Graph()
    values = {inputs[0]: graph.placeholder("x")}
    for number, node in enumerate(model.node):
        read = _OPERATORS.get(node.op_type)
        if read is None:
            known = ", ".join(_OPERATORS)
            raise raykd.ConfigError(f"{path}: operator {node.op_type}; expected {known}")
        made = read(node, [weights.get(name) for name in node.input])
        given = tuple(values[name] for name in node.input if name not in weights)
        if isinstance(made, nn.Module):
            name = f"{node.op_type.lower()}{number}"
            root.add_module(name, made)
            values[node.output[0]] = graph.call_module(name, given)
        else:
            values[node.output[0]] = graph.call_function(made, given)
    graph.output(values[model.output[0].name])
    return fx.GraphModule(root, graph, "OnnxNetwork")


def ends(network: fx.GraphModule) -> list[str]:
    """Names of modules that end stages: the convolution after each that halves the maps.

    Where a network's blocks are MobileNet's, no shortcut goes around these.
    """
    convolutions = [(k, m) for k, m in network.named_children() if isinstance(m, nn.Conv2d)]
    return [name for (_, one), (name, _) in pairwise(convolutions) if one.stride != (1, 1)]


def _tensor(one: Any) -> Tensor:
    return torch.from_numpy(np.array(numpy_helper.to_array(one)))


def _attributes(node: Any) -> Mapping[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _conv(node: Any, given: list[Tensor | None]) -> nn.Module:
    """A convolution, with equal pads on both sides."""
    more, (weight, *bias) = _attributes(node), given[1:]
    assert weight is not None
    height, width, *others = more.get("pads", [0, 0, 0, 0])
    if [height, width] != others or more.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise raykd.ConfigError(f"{node.output[0]}: expected equal pads on both sides")
    groups = more.get("group", 1)
    conv = nn.Conv2d(
        weight.shape[1] * groups,
        weight.shape[0],
        (weight.shape[2], weight.shape[3]),
        tuple(more.get("strides", [1, 1])),
        (height, width),
        tuple(more.get("dilations", [1, 1])),
        groups,
        bias=bool(bias),
    )
    state = {"weight": weight} | ({"bias": bias[0]} if bias else {})
    conv.load_state_dict(state)  # pyright: ignore[reportArgumentType]
    return conv


def _prelu(node: Any, given: list[Tensor | None]) -> nn.Module:
    """A PReLU with a slope for each channel."""
    slopes = given[1]
    assert slopes is not None
    made = nn.PReLU(slopes.numel())
    made.load_state_dict({"weight": slopes.flatten()})
    return made


_OPERATORS: Mapping[str, Callable[[Any, list[Tensor | None]], nn.Module | Callable[..., Tensor]]]
_OPERATORS = {
    "Conv": _conv,
    "PRelu": _prelu,
    "Relu": lambda *_: nn.ReLU(),
    "Add": lambda *_: torch.add,
    "Reshape": lambda *_: nn.Flatten(),
    "Flatten": lambda *_: nn.Flatten(),
}
