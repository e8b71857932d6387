"""`model-int8.onnx`: the ONNX graph with 8-bit weights and activations.

ONNX Runtime's static quantisation in its QDQ format, per channel. The ranges of activations are
those of some training images, made ready as test images are.
"""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raykd.core.errors import ExportFailed, RaykdError
from raykd.data.loading.loader import Views
from raykd.data.loading.sampler import epoch_order
from raykd.export.graph import PIXELS
from raykd.export.measure import compared, grey_levels
from raykd.training.load_trained import Finished

FILE = "model-int8.onnx"
IMAGES = 512  # training images, in the order of their keys, that give the ranges of activations
_BATCH = 32  # images that the calibration sees at a time


def quantised(model: Finished, exact: Path, path: Path) -> dict[str, Any]:
    """Write the 8-bit graph of `exact`, an ONNX file, to `path`; what it is measured to change.

    Raises `ExportFailed` where ONNX Runtime cannot quantise it.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    data = model.run.data.resolved()
    rows = epoch_order(data.seed, 0, len(model.train))[:IMAGES]
    views = Views(model.train, data.test(), skip_bad=True)

    class Reader(CalibrationDataReader):
        """The calibration images, some at a time."""

        def __init__(self) -> None:
            self._batches = views.runs(rows, _BATCH)

        def get_next(self) -> Any:
            """The next batch; None at the end."""
            batch = next(self._batches, None)
            return None if batch is None else {PIXELS: grey_levels(model, batch.pixels).numpy()}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet(), _explained(model):
        # Batch norms become part of the convolutions before them.
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(exact, prepared)
        quantize_static(
            prepared,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            # The mean of the ranges of batches: one odd image among hundreds widens it little.
            extra_options={"CalibMovingAverage": True, "CalibMovingAverageConstant": 0.1},
        )
    return {"calibration_images": len(rows)} | compared(model, exact, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A region in which ONNX Runtime's advice about preparing a graph is not printed."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def _explained(model: Finished) -> Iterator[None]:
    """A region in which whatever ONNX Runtime raises becomes an `ExportFailed`."""
    try:
        yield
    except RaykdError:
        raise
    except Exception as error:  # many kinds, for graphs that it cannot prepare
        reason = next(iter(str(error).strip().splitlines()), "")
        raise ExportFailed(
            f"{model.run.model}: ONNX Runtime cannot quantise this network "
            f"({type(error).__name__}: {reason}); leave --int8 out"
        ) from error
