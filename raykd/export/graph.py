"""A finished network as one graph: from the pixels of images to scores, or a backbone's embedding.

Shapes: B batch, C classes, H, W pixels.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.onnx import ONNXProgram

from raykd.core.errors import ExportFailed
from raykd.storage.atomic import write_atomic
from raykd.training.load_trained import Finished

PIXELS = "pixels"  # name of a graph's input
BATCHES = {PIXELS: {0: Dim("batch")}}  # the axis that may have any size
CONFIG = "config.json"
OPSET = 18  # ONNX's: the one that torch's exporter is written in; runtimes read it since 2023


class Answer(nn.Module):
    """The network with its normalisation before it and its method's calibration behind it.

    It owns the plain network and the helpers that the network cannot be used without, and nothing
    else of the method.
    """

    finished: Finished
    offset: Tensor
    scale: Tensor

    def __init__(self, finished: Finished) -> None:
        super().__init__()
        data = finished.run.data.resolved()
        self.network = finished.network.network
        self.helpers = finished.released
        self.register_buffer("offset", _grey_levels(data.mean))
        self.register_buffer("scale", _grey_levels(data.std))
        vars(self)["finished"] = finished  # kept out of nn.Module's registers
        self.eval().requires_grad_(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """The answer for uint8 pixels [B, 3, H, W] in red, green, blue."""
        return self.finished.answer((pixels.to(torch.float32) - self.offset) / self.scale)


def output_name(finished: Finished) -> str:
    """The name of a graph's output."""
    return "embedding" if finished.is_backbone else "logits"


def _grey_levels(values: tuple[float, float, float]) -> Tensor:
    """Constants of pixels in 0 to 1 as grey levels [3, 1, 1]."""
    return torch.tensor(values).mul_(255)[:, None, None]


def traced(finished: Finished, pixels: Tensor) -> ExportedProgram:
    """The graph of a network for any number of images like `pixels` (uint8 [B, 3, H, W]).

    Raises `ExportFailed` where torch cannot trace it.
    """
    two = pixels[:1].repeat(2, 1, 1, 1)  # a batch of 1 would stay 1
    with torch.no_grad(), _explained("torch.export", finished):
        return torch.export.export(Answer(finished), (two,), dynamic_shapes=BATCHES, strict=False)


def write_torch(path: Path, program: ExportedProgram, config: str) -> None:
    """Write a graph as torch.export's archive, with the text of the configuration in it."""
    data = io.BytesIO()
    torch.export.save(program, data, extra_files={CONFIG: config})
    write_atomic(path, data.getvalue())


def translated(program: ExportedProgram, finished: Finished) -> ONNXProgram:
    """A graph in ONNX. Raises `ExportFailed` where torch cannot translate it."""
    with _explained("torch.onnx", finished):
        translation = torch.onnx.export(
            program,
            dynamo=True,
            input_names=[PIXELS],
            output_names=[output_name(finished)],
            dynamic_shapes=BATCHES,  # for the axis's name
            opset_version=OPSET,
            verbose=False,
        )
    assert translation is not None
    return translation


def write_onnx(path: Path, translation: ONNXProgram, config: str) -> None:
    """Write a graph as ONNX, with the text of the configuration among its properties.

    Weights of more than 2 GB lie in a file of their own beside it.
    """
    translation.model.metadata_props[CONFIG] = config
    translation.save(path)


def label_onnx(path: Path, config: str) -> None:
    """Put the text of the configuration among the properties of an ONNX file."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, {CONFIG: config})
    onnx.save(model, path)


def session(path: Path, threads: int | None = None) -> Any:
    """An ONNX file in onnxruntime, on `threads` threads of this processor; None: as it chooses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: it warns of what it optimises away
    if threads is not None:
        options.intra_op_num_threads = options.inter_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answers_of_torch(path: Path, batches: list[Tensor]) -> list[Tensor]:
    """The scores that a written archive computes for batches of pixels."""
    module = torch.export.load(path).module()
    with torch.no_grad():
        return [module(pixels) for pixels in batches]


def answers_of_onnx(path: Path, batches: list[Tensor]) -> list[Tensor]:
    """The scores that onnxruntime computes for batches of pixels."""
    runtime = session(path)
    answers: list[Any] = [runtime.run(None, {PIXELS: p.numpy()})[0] for p in batches]
    return [torch.from_numpy(answer) for answer in answers]


@contextmanager
def _explained(tool: str, finished: Finished) -> Iterator[None]:
    """A region in which whatever torch raises becomes an `ExportFailed`."""
    try:
        yield
    except Exception as error:  # torch has dozens of kinds for an operation that it cannot express
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ExportFailed(
            f"{finished.run.model}: {tool} cannot express this network "
            f"({type(error).__name__}: {reason}); what needs no graph is --format safetensors"
        ) from error
