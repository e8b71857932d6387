"""Exported networks: what is in the files, and that they answer as the network does."""

import json
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from raykd.core.errors import ConfigError, ExportFailed
from raykd.core.record import fingerprint
from raykd.data.loading.loader import Views
from raykd.data.recipe import Stream
from raykd.export import FORMATS, export, folder
from raykd.models import build
from raykd.recipes import Optim, StudentRun
from raykd.storage.store import Store
from raykd.training.load_trained import finished
from tests.data.photos import photos, streamed
from tests.export.conftest import TIMM, TORCHVISION
from tests.export.reading import check_program, fresh, here, programs, said
from tests.small import trained

pytest.importorskip("onnxscript")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
timm = pytest.importorskip("timm")


@pytest.fixture(scope="session")
def skd(place, student, tmp_path_factory):
    """A student whose logits are calibrated, as weights and as a graph of torch's."""
    run = student("skd")
    formats = ["safetensors", "torch"]
    return run, export(place, run, tmp_path_factory.mktemp("skd") / "out", formats)


@pytest.fixture(scope="session")
def skd_everywhere(place, student, tmp_path_factory):
    """One student in every format."""
    run = student("skd")
    return run, export(place, run, tmp_path_factory.mktemp("skd") / "out")


@pytest.fixture(scope="session")
def simkd(place, student, tmp_path_factory):
    """A student that answers with its teacher's classifier, in every format that it has."""
    run = student("simkd")
    return run, export(place, run, tmp_path_factory.mktemp("simkd") / "out")


@pytest.fixture(scope="session")
def of_timm(place, student, tmp_path_factory):
    """A network of timm, as weights."""
    run = student("label_only", TIMM)
    return run, export(place, run, tmp_path_factory.mktemp("timm") / "out", ["safetensors"])


def config_of(exported):
    return json.loads((exported.folder / "config.json").read_text())


def check_files(exported, files):
    assert [file.name for file in exported.files] == files
    assert all(file.difference < 1e-4 for file in exported.files)
    assert all(
        file.bytes == (exported.folder / file.name).stat().st_size for file in exported.files
    )
    others = {"README.md", "config.json", "recipe.json"}
    others |= {"model.py"} if "model.safetensors" in files else set()
    names = {path.name for path in exported.folder.iterdir()} - {"image.png", "program.py"}
    assert names == {*files, *others}
    assert not [path for path in exported.folder.parent.iterdir() if path != exported.folder]


@pytest.mark.slow
def test_the_formats_that_are_named_are_written_and_close(skd):
    check_files(skd[1], ["model.safetensors", "model.pt2"])


@pytest.mark.slow
def test_every_format_is_written_and_close(skd_everywhere):
    check_files(skd_everywhere[1], [*FORMATS.values()])


@pytest.mark.slow
@pytest.mark.parametrize("file", ["model.onnx", "model.pt2"])
def test_a_graph_runs_by_the_readme_where_there_is_no_raykd(place, skd_everywhere, file):
    run, exported = skd_everywhere
    check_program(place, run, exported.folder, file)


@pytest.mark.slow
def test_plain_weights_run_by_the_readme_with_their_calibration(place, skd):
    run, exported = skd
    check_program(place, run, exported.folder, "model.safetensors", runs=here)


@pytest.mark.slow
def test_the_weights_have_the_plain_networks_names_and_nothing_else(place, skd):
    run, exported = skd
    state = load_file(exported.folder / "model.safetensors")
    plain = build("resnet8", 10).network.state_dict()
    assert state.keys() == plain.keys()
    made = finished(place, run).network.network.state_dict()
    assert all(torch.equal(state[name], made[name]) for name in made)


@pytest.mark.slow
def test_a_graph_holds_the_network_and_what_it_needs_and_nothing_else(place, skd):
    check_graph(place, *skd, {"radius"})


@pytest.mark.slow
def test_every_graph_holds_the_network_and_what_it_needs_and_nothing_else(
    place, skd_everywhere, simkd
):
    for (run, exported), kept in ((skd_everywhere, {"radius"}), (simkd, SIMKD)):
        parts = check_graph(place, run, exported, kept)
        graph = onnx.load(exported.folder / "model.onnx").graph
        held = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        assert held <= 1.02 * sum(t.numel() for part in parts for t in part.state_dict().values())


SIMKD = {"projector", "classifier"}


def check_graph(place, run, exported, kept):
    """Compare the state of `model.pt2` with the network's and its helpers'; returns these."""
    made = finished(place, run)
    assert set(made.released) == kept
    names = {f"network.{name}" for name in made.network.network.state_dict()}
    names |= {f"helpers.{name}" for name in made.released.state_dict()}
    program = torch.export.load(exported.folder / "model.pt2")
    assert program.state_dict.keys() == names | {"offset", "scale"}
    return made.network, made.released


@pytest.mark.slow
def test_graphs_take_any_number_of_images_and_carry_the_configuration(skd_everywhere):
    import onnxruntime

    run, exported = skd_everywhere
    config = (exported.folder / "config.json").read_text()
    files = {"config.json": ""}
    program = torch.export.load(exported.folder / "model.pt2", extra_files=files).module()
    session = onnxruntime.InferenceSession(exported.folder / "model.onnx")
    assert files["config.json"] == config
    assert session.get_modelmeta().custom_metadata_map == {"config.json": config}
    assert session.get_inputs()[0].shape == ["batch", 3, 8, 8]
    for count in (1, 2, 5):
        pixels = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
        (answer,) = session.run(None, {"pixels": pixels.numpy()})
        assert answer.shape == (count, 10)
        np.testing.assert_allclose(program(pixels).detach().numpy(), answer, rtol=1e-4, atol=1e-4)
    assert run.data.classes == 10


@pytest.mark.slow
def test_the_configuration_says_what_a_user_must_know(place, skd):
    run, exported = skd
    config = config_of(exported)
    assert config["label_names"] == [str(number) for number in range(10)]
    assert config["num_classes"] == 10
    assert config["library"] == "raykd"
    assert config["architecture"] == "resnet8"
    images = config["pretrained_cfg"]
    assert images["input_size"] == [3, 8, 8]
    assert tuple(images["mean"]) == run.data.mean
    assert tuple(images["std"]) == run.data.std
    made = finished(place, run)
    assert config["calibration"] == made.method.rescaling(made.helpers)
    assert config["calibration"]["kind"] == "layer_norm"
    assert config["raykd"]["fingerprint"] == fingerprint(run)
    assert config["raykd"]["top1"] == made.result["last"]["top1"]
    recipe = json.loads((exported.folder / "recipe.json").read_text())
    assert type(run).read(recipe) == run
    card = (exported.folder / "README.md").read_text()
    assert "Distilled from resnet8 by spherical_kd" in card
    assert f"{made.result['last']['top1']:.2f} %" in card


@pytest.mark.slow
def test_a_student_that_answers_with_its_teachers_classifier_is_graphs_alone(
    place, simkd, tmp_path
):
    run, exported = simkd
    assert [file.name for file in exported.files] == ["model.pt2", "model.onnx"]
    assert not exported.plain
    assert config_of(exported)["calibration"] is None
    assert "model.safetensors" not in programs(exported.folder)[2]
    assert "does not answer with its own classifier" in (exported.folder / "README.md").read_text()
    check_program(place, run, exported.folder, "model.onnx")
    with pytest.raises(ConfigError, match="--format torch or --format onnx"):
        export(place, run, tmp_path / "plain", ["safetensors"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_timm_loads_its_network_by_itself(place, of_timm):
    run, exported = of_timm
    expected, pixels = said(place, run, 3)
    Image.fromarray(pixels).save(exported.folder / "image.png")
    program = """
import json, timm, torch
from PIL import Image
network = timm.create_model("local-dir:.", pretrained=True).eval()
made_ready = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
with torch.no_grad():
    logits = network(made_ready(Image.open("image.png"))[None])
print(json.dumps([logits.tolist(), network.pretrained_cfg["label_names"], network.num_classes]))
"""
    logits, names, classes = json.loads(fresh(program, exported.folder))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    assert tuple(names) == finished(place, run).test.names
    assert classes == 10
    state = load_file(exported.folder / "model.safetensors")
    own = timm.create_model("test_resnet", num_classes=10).state_dict()
    assert state.keys() == own.keys()


@pytest.mark.slow
def test_timms_weights_can_begin_a_network_of_other_classes(of_timm):
    _, exported = of_timm
    network = timm.create_model(f"local-dir:{exported.folder}", pretrained=True, num_classes=3)
    state = load_file(exported.folder / "model.safetensors")
    assert network.get_classifier().out_features == 3
    assert torch.equal(network.state_dict()["conv1.0.weight"], state["conv1.0.weight"])


@pytest.mark.slow
def test_the_readme_of_timms_network_runs(place, of_timm):
    run, exported = of_timm
    check_program(place, run, exported.folder, "model.safetensors", runs=here)


@pytest.mark.slow
def test_the_readme_of_torchvisions_network_runs(place, student, tmp_path):
    run = student("label_only", TORCHVISION)
    exported = export(place, run, tmp_path / "out", ["safetensors"])
    check_program(place, run, exported.folder, "model.safetensors", runs=here)
    plain = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=10)
    assert load_file(exported.folder / "model.safetensors").keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_streamed_photographs_are_made_ready_as_in_training(tmp_path):
    store, root = Store(tmp_path / "store"), photos(tmp_path / "photos", side=60)
    data = streamed(store, root, 64, stream=Stream(size=64, resize=73))
    run = StudentRun(model=TIMM, data=data, optim=Optim(epochs=2, batch=8), views=1)
    trained(store, run)
    exported = export(store, run, tmp_path / "out", ["safetensors"])
    assert config_of(exported)["label_names"] == ["class0", "class1", "class2"]
    made = finished(store, run)
    normalised = Views(made.test, data.test()).batch(torch.arange(6), 0).pixels
    with torch.no_grad():
        expected = made.answer(normalised)
    network = timm.create_model(f"local-dir:{exported.folder}", pretrained=True).eval()
    as_timm = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    config = config_of(exported)["pretrained_cfg"]
    mean, std = (np.array(config[key])[:, None, None] for key in ("mean", "std"))
    begin, _, by_file = programs(exported.folder)
    keep = "np.save('out.npy', logits)\nnp.save('pixels.npy', pixels)\n"
    for row, path in enumerate(sorted((root / "test").rglob("*.jpg"))):
        (exported.folder / "image.png").write_bytes(path.read_bytes())
        here(begin + by_file["model.safetensors"] + keep, exported.folder)
        pixels = np.load(exported.folder / "pixels.npy")
        seen = (normalised[row].numpy() * std + mean) * 255
        assert np.abs(pixels[0] - seen).max() < 1.5  # Pillow's and torch's resizing, in grey levels
        theirs = as_timm(Image.open(path)).numpy()
        assert np.abs((theirs * std + mean) * 255 - seen).max() < 1.5
        found = np.load(exported.folder / "out.npy")
        np.testing.assert_allclose(found[0], expected[row], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "model"),
    [
        ("label_only", TIMM),
        ("label_only", TORCHVISION),
        ("kd", "shufflenet_v1"),
        ("sakd", "wrn_16_1"),
        ("jacobian", "vgg8"),
        ("ab", "resnet14"),
    ],
)
def test_networks_of_every_kind_become_graphs(place, student, tmp_path, method, model):
    run = student(method, model)
    exported = export(place, run, tmp_path / "out")
    assert len(exported.files) == 3
    for file in exported.files:
        check_program(place, run, exported.folder, file.name, runs=here)


@pytest.mark.slow
def test_a_teacher_can_be_exported(place, teacher, tmp_path):
    exported = export(place, teacher, tmp_path / "out", ["safetensors"])
    assert config_of(exported)["raykd"]["kind"] == "teachers"
    state = load_file(exported.folder / "model.safetensors")
    last = load_file(place.path(teacher) / "weights-0002.safetensors")
    assert all(torch.equal(state[name], last[name]) for name in last)


@pytest.mark.slow
def test_a_second_export_takes_the_place_of_the_first(place, teacher, tmp_path):
    export(place, teacher, tmp_path / "out", ["safetensors"])
    (tmp_path / "out" / "model.onnx").write_bytes(b"of the first")
    export(place, teacher, tmp_path / "out", ["safetensors"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"model.safetensors", "model.py", "README.md", "config.json", "recipe.json"}


def test_other_files_are_never_overwritten(place, teacher, student, tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match="name a folder that is new or empty"):
        export(place, teacher, tmp_path, ["safetensors"])
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
    export(place, teacher, tmp_path / "out", ["safetensors"])
    with pytest.raises(ConfigError, match=f"an export of {fingerprint(teacher)}"):
        export(place, student(), tmp_path / "out", ["safetensors"])


def test_a_file_that_answers_otherwise_is_refused(place, teacher, tmp_path):
    exported = export(place, teacher, tmp_path / "out", ["safetensors"])
    path = exported.folder / "model.safetensors"
    state = load_file(path)
    state["classifier.bias"] = state["classifier.bias"] + 0.5
    save_file(state, path)
    made = finished(place, teacher)
    with pytest.raises(ExportFailed, match=r"differ by up to 0\.5, expected") as caught:
        folder._checked(made, path, *folder._real(made))
    assert caught.value.code == 8


@pytest.mark.slow
def test_a_network_that_torch_cannot_trace_is_a_sentence(place, teacher, tmp_path):
    made = finished(place, teacher)
    forward = made.network.network.stem.forward
    made.network.network.stem.forward = lambda x: forward(x * (1 if x.sum() > 0 else 2))
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ExportFailed, match=r"resnet8: torch\.export cannot express this network"):
        folder.graph.traced(made, pixels)


def test_what_onnx_needs_is_named(place, teacher, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as where it is not installed
    with pytest.raises(ConfigError, match=r"onnxscript: .*pip install '\.\[export\]'"):
        export(place, teacher, tmp_path / "out")
    export(place, teacher, tmp_path / "out", ["safetensors"])
