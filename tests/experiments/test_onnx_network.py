"""Networks of ONNX graphs: the answers of onnxruntime, a teacher of faces, and refusals.

The real network and the faces lie in the folder that RAYKD_TEST_DATA names, or beside the checkout.
Without them their tests are skipped.
"""

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import raykd
from raykd.tasks import rankings

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper  # noqa: E402
from onnx_network import onnx_network  # noqa: E402

from tests.plugin import withdrawing  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("RAYKD_TEST_DATA", ROOT / "../shared/data"))
FACE, ORL = REAL / "teachers" / "face_512.onnx", REAL / "orl_faces" / "faces.parquet"


def graph(path: Path, last: str = "Flatten", pads=(1, 1, 1, 1)) -> Path:
    """A graph with a shortcut: Conv, PRelu, Conv, Add, Conv, and an end."""
    source = np.random.default_rng(0)
    shapes = {"a": (4, 3, 3, 3), "ab": (4,), "s": (4, 1, 1), "b": (4, 1, 3, 3), "c": (5, 4, 8, 8)}
    weights = [
        helper.make_tensor(k, TensorProto.FLOAT, v, source.normal(size=v).astype("f4").flatten())
        for k, v in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["1"], strides=[2, 2], pads=pads),
        helper.make_node("PRelu", ["1", "s"], ["2"]),
        helper.make_node("Conv", ["2", "b"], ["3"], group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["2", "3"], ["4"]),
        helper.make_node("Conv", ["4", "c"], ["5"]),
        helper.make_node(last, ["5"], ["y"]),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 16, 16]), ("y", None))
    ]
    made = helper.make_graph(nodes, "g", ports[:1], ports[1:], weights)
    onnx.save(
        helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path
    )
    return path


def answers(path: Path, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Those of the network, and of onnxruntime, image by image."""
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path))
    (given,) = session.get_inputs()
    others = [session.run(None, {given.name: one[None].numpy()})[0] for one in pixels]
    with torch.no_grad():
        return onnx_network(path).eval()(pixels), torch.from_numpy(np.concatenate(others))


def test_a_network_has_the_answers_of_onnxruntime(tmp_path):
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mine, theirs = answers(graph(tmp_path / "net.onnx"), pixels)
    assert mine.shape == (3, 5)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)  # sums in another order


def test_other_operators_and_pads_are_refused(tmp_path):
    with pytest.raises(raykd.ConfigError, match="operator Softmax; expected Conv, PRelu"):
        onnx_network(graph(tmp_path / "net.onnx", last="Softmax"))
    with pytest.raises(raykd.ConfigError, match="equal pads"):
        onnx_network(graph(tmp_path / "net.onnx", pads=(0, 0, 1, 1)))
    (tmp_path / "no.onnx").write_text("weights: none")
    for name in ("no.onnx", "missing.onnx"):
        with pytest.raises(raykd.ConfigError, match="expected an ONNX graph, found none"):
            onnx_network(tmp_path / name)


@pytest.mark.slow
@pytest.mark.skipif(not (FACE.is_file() and ORL.is_file()), reason=f"{REAL}: no data")
def test_a_published_face_network_teaches_and_knows_people(tmp_path):
    from faces import pictures, published, streamed, write_people

    mine, theirs = answers(FACE, torch.randn(2, 3, 112, 112))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
    people = dict(sorted(pictures(ORL).items())[:12])
    labels = torch.arange(12).repeat_interleave(4)
    pixels = torch.stack([_pixels(one) for images in people.values() for one in images[:4]])
    with torch.no_grad():
        faces = onnx_network(FACE).eval()(pixels)
    nearest = rankings.retrieval(faces, faces, labels, labels, alike=True, ranks=(1,))
    assert nearest.recall[1] >= 0.95  # 99 % of all 400 pictures
    write_people({name: images[:4] for name, images in people.items()}, tmp_path)
    data = {"name": "folder", "stream": streamed(48), "holdout": 0.25}
    with withdrawing():
        student = raykd.Student(
            "resnet8",
            data=data,
            teacher=published(str(FACE)),
            task={"name": "faces", "probe": {"data": data, "folds": 3}},
            method={"name": "mimic_embedding", "normalise": True},
            optim={"epochs": 1, "batch": 8},
        )
        where = {"path": str(tmp_path / "train"), "probe": str(tmp_path / "others")}
        (run,) = raykd.run(raykd.Experiment(student, data=where), tmp_path / "s", workers=0)
        assert run.recipe.teacher.is_given
        assert run.recipe.outputs_at(0).teacher.data.stream.size == 112
        assert "verification" in run.result["last"]


def _pixels(image: bytes) -> torch.Tensor:
    """A picture [3, 112, 112] as the network takes it."""
    square = ImageOps.fit(Image.open(io.BytesIO(image)).convert("RGB"), (112, 112))
    return (torch.from_numpy(np.array(square)).permute(2, 0, 1).float() - 127.5) / 128
