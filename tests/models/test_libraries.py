"""Networks of torchvision and timm: their stages, and the weights that they were published with.

Nothing is downloaded. Published weights are files that the test itself puts where the library
looks for its downloads; only timm's loader, which asks the Hub first, is replaced.
"""

import copy
import pickle
import sys
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn

from raykd.core.errors import ConfigError
from raykd.core.types import Signal
from raykd.models import (
    Staged,
    build,
    check_name,
    libraries,
    library_stages,
    measure,
    parameter_count,
)
from tests.each import each
from tests.tiers import sampled, slow_but

try:
    import timm
except ImportError:
    timm = None
needs_timm = pytest.mark.skipif(timm is None, reason="timm is not installed")

# One small network of each family, and the smallest image that it takes.
TORCHVISION = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "googlenet": 64,
    "inception_v3": 80,
    "maxvit_t": 224,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "resnet18": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "swin_t": 64,
    "swin_v2_t": 64,
    "vgg11_bn": 32,
    "vit_b_32": 224,
}
# Each line of the table, then networks that it lacks: with a linear and with no such last layer.
# Those have the intermediate maps that timm computes.
TIMM = {
    "test_convnext": 64,
    "densenet121": 64,
    "test_efficientnet": 64,
    "mobilenetv3_small_050": 64,
    "regnetx_002": 64,
    "test_resnet": 64,
    "resnetv2_18": 64,
    "test_vit": 160,
    "dla46x_c": 64,
    "edgenext_xx_small": 64,
    "mobilevit_xxs": 64,
    "pvt_v2_b0": 64,
    "repvit_m0_9": 64,
    "xcit_nano_12_p16_224": 64,
    "efficientformer_l1": 224,
    "levit_128s": 224,
    "swin_tiny_patch4_window7_224": 224,
    "deit_tiny_distilled_patch16_224": 224,
    "shvit_s1": 224,
}
CASES = {f"torchvision/{name}": size for name, size in TORCHVISION.items()}
CASES |= {f"timm/{name}": size for name, size in TIMM.items() if timm}
# Other kinds of code that torch.export goes through.
EXPORTED = [
    f"torchvision/{name}" for name in ("densenet121", "googlenet", "swin_t", "convnext_tiny")
]
# Stages by the table, no last layer of its own, intermediate maps of the library.
QUICK = ["torchvision/mobilenet_v3_small", "torchvision/squeezenet1_1", "timm/test_vit"]
INTERMEDIATES = ["torchvision/vit_b_32", *(f"timm/{name}" for name in list(TIMM)[7:])]
# Token maps of one resolution: four stages of them.
PLAIN = [
    name
    for name in INTERMEDIATES
    if any(kind in name for kind in ("vit_b", "test_vit", "xci", "deit"))
]


def plain(name: str, classes: int) -> nn.Module:
    """The library's own network; what its parameters hold does not matter."""
    library, _, inner = name.partition("/")
    # torchvision's regnets compute their widths with tensors.
    with torch.device("cpu" if "regnet" in inner else "meta"):
        if library == "timm":
            return timm.create_model(inner, num_classes=classes)
        auxiliary = inner in ("googlenet", "inception_v3")
        options = {"aux_logits": False, "init_weights": False} if auxiliary else {}
        return torchvision.models.get_model(inner, num_classes=classes, **options)


def disturbed(network: Staged) -> Staged:
    """The network away from its start, where a classifier of zeros would hide all before it."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    return network


@pytest.fixture(
    scope="module",
    params=slow_but(CASES, QUICK),
)
def case(request):
    """A network's name, the network with 5 classes, and two images for it."""
    torch.manual_seed(0)
    size = CASES[request.param]
    return request.param, disturbed(build(request.param, 5)), torch.randn(2, 3, size, size)


def run(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)  # for dropout and stochastic depth
    with torch.no_grad():
        return network(pixels)


@each("training", [False, True])
def test_the_parts_in_order_give_what_the_network_gives(case, training):
    _, network, pixels = case
    network.train(training)
    logits = run(network, pixels)
    assert logits.shape == (2, 5)
    torch.testing.assert_close(logits, run(network.network, pixels), rtol=0, atol=0)


def test_the_state_dict_is_the_librarys_own(case):
    name, network, _ = case
    own = plain(name, 5)
    state = network.network.state_dict()
    assert list(state) == list(own.state_dict())
    own.load_state_dict(state, assign=True)
    assert all(torch.equal(state[key], value) for key, value in own.state_dict().items())


def test_features_are_maps_that_shrink(case):
    name, network, pixels = case
    network.eval()
    with torch.no_grad():
        out = network.outputs(pixels, Signal.FEATURES | Signal.EMBEDDING)
    assert [n for n in out.features if n != "stem"] == [
        f"stage{number + 1}" for number in range(len(out.features) - ("stem" in out.features))
    ]
    assert next(iter(out.features)) in ("stem", "stage1")
    areas = [value.shape[2] * value.shape[3] for value in out.features.values()]
    assert all(value.ndim == 4 for value in out.features.values())
    assert areas == sorted(areas, reverse=True)
    assert len(set(areas)) >= (1 if name in PLAIN else 3)
    assert out.embedding.ndim == 2
    size = pixels.shape[2:]
    assert measure(network, size).sequential == (name not in INTERMEDIATES)


@each("training", [False, True])
def test_asking_for_features_changes_nothing_else(case, training):
    _, network, pixels = case
    buffers = {key: value.clone() for key, value in network.named_buffers()}

    def outputs(wanted: Signal) -> tuple[torch.Tensor, ...]:
        for key, value in network.named_buffers():
            value.copy_(buffers[key])
        torch.manual_seed(1)  # for dropout and stochastic depth
        out = network.outputs(pixels, wanted)
        return out.logits, out.embedding, *(value.clone() for value in network.buffers())

    network.train(training)
    with torch.no_grad():
        plain, both = outputs(Signal.EMBEDDING), outputs(Signal.EMBEDDING | Signal.FEATURES)
    assert all(torch.equal(value, other) for value, other in zip(plain, both, strict=True))


@pytest.mark.slow
@needs_timm
@each(
    ("name", "size", "maps"),
    [
        ("vit_tiny_patch16_224", 224, {f"stage{n}": (192, 14, 14) for n in (1, 2, 3, 4)}),
        ("test_vit", 160, {f"stage{n}": (64, 10, 10) for n in (1, 2, 3, 4)}),
        (
            "swin_tiny_patch4_window7_224",
            224,
            {f"stage{n}": (48 * 2**n, 112 // 2**n, 112 // 2**n) for n in (1, 2, 3, 4)},
        ),
        (
            "mobilevit_xxs",
            256,
            {
                "stem": (16, 128, 128),
                "stage1": (24, 64, 64),
                "stage2": (48, 32, 32),
                "stage3": (64, 16, 16),
                "stage4": (320, 8, 8),
            },
        ),
        (
            "levit_128s",
            224,
            {"stage1": (128, 14, 14), "stage2": (256, 7, 7), "stage3": (384, 4, 4)},
        ),
    ],
)
def test_intermediate_maps_are_stages(name, size, maps):
    with torch.device("meta"):
        network = build(f"timm/{name}", 5)
        assert measure(network, (size, size)).features == maps


@pytest.mark.slow
def test_a_vision_transformer_of_torchvision_has_the_maps_of_its_blocks():
    torch.manual_seed(0)
    network = build("torchvision/vit_b_32", 5).eval()
    maps = measure(network, (224, 224)).features
    assert maps == {f"stage{n}": (768, 7, 7) for n in (1, 2, 3, 4)}


@each(
    ("name", "sizes"),
    [
        ("resnet50", [(64, 56), (256, 56), (512, 28), (1024, 14), (2048, 7)]),
        ("vgg16", [(64, 224), (128, 112), (256, 56), (512, 28), (512, 14)]),
        ("densenet121", [(64, 112), (256, 56), (512, 28), (1024, 14), (1024, 7)]),
        ("mobilenet_v2", [(16, 112), (24, 56), (32, 28), (96, 14), (320, 7)]),
        ("efficientnet_b0", [(16, 112), (24, 56), (40, 28), (112, 14), (320, 7)]),
        ("shufflenet_v2_x1_0", [(24, 56), (116, 28), (232, 14), (464, 7)]),
        ("googlenet", [(64, 112), (192, 56), (480, 28), (832, 14), (1024, 7)]),
        ("swin_t", [(96, 56), (96, 56), (192, 28), (384, 14), (768, 7)]),
        ("maxvit_t", [(64, 112), (64, 56), (128, 28), (256, 14), (512, 7)]),
    ],
)
def test_stages_end_before_the_image_shrinks(name, sizes):
    with torch.device("meta"):  # shapes alone
        shapes = measure(build(f"torchvision/{name}", 10), (224, 224))
    assert list(shapes.features.values()) == [(width, side, side) for width, side in sizes]


@pytest.mark.slow
@each(
    ("name", "size", "prefixes"),
    [
        ("timm/vit_small_patch14_dinov2", 518, 1),
        ("timm/vit_small_patch16_dinov3", 64, 5),
        ("timm/vit_base_patch16_siglip_224", 224, 0),
        ("torchvision/vit_b_32", 224, 1),
    ],
)
def test_transformers_have_token_maps_prefixes_and_the_librarys_embedding(name, size, prefixes):
    with torch.device("meta"):
        network = build(name, 0).eval()
        pixels = torch.zeros(2, 3, size, size)
        out = network.outputs(pixels, Signal.FEATURES | Signal.TOKENS | Signal.EMBEDDING)
    depth, width = (384 if "small" in name else 768), out.embedding.shape[1]
    side = {"14": 37, "16": size // 16, "32": 7}[name.partition("patch")[2][:2] or "32"]
    assert width == depth
    stages = [f"stage{n}" for n in (1, 2, 3, 4)]
    assert [tuple(out.features[stage].shape) for stage in stages] == [(2, depth, side, side)] * 4
    tokens = [out.features.get(f"{stage}.prefix") for stage in stages]
    shapes = {None if token is None else tuple(token.shape) for token in tokens}
    assert shapes == {(2, prefixes, depth) if prefixes else None}


def test_a_plain_transformer_takes_other_sizes_and_is_timms_own_at_its_own():
    torch.manual_seed(0)
    network = build("timm/test_vit", 5).eval()
    other = timm.create_model("test_vit", num_classes=5).eval()
    other.load_state_dict(network.network.state_dict())
    pixels = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(network(pixels), other(pixels))
        assert network(pixels[..., :96, :96]).shape == (2, 5)


def test_gradients_reach_every_parameter_and_features_stay_as_they_were(case):
    _, network, pixels = case
    network.train()
    x, maps = pixels, []
    for part in (*network.stages.values(), network.pool):
        x = part(x)
        maps.append((x, x.detach().clone()))
    network.classifier(x).square().sum().backward()
    missing = [name for name, p in network.network.named_parameters() if p.grad is None]
    network.zero_grad()
    assert missing == []
    # A part that begins with an operation in place would have changed the one before it.
    assert all(torch.equal(after, before) for after, before in maps)


def test_a_copy_runs_on_its_own_parameters(case):
    _, network, pixels = case
    logits = run(network.eval(), pixels)
    twin = copy.deepcopy(network).double()
    with torch.no_grad():
        for parameter in twin.network.parameters():
            parameter.mul_(1.1)
    changed = run(twin, pixels.double())
    assert not torch.equal(changed.float(), logits)
    torch.testing.assert_close(changed, run(twin.network, pixels.double()), rtol=0, atol=0)
    torch.testing.assert_close(run(network, pixels), logits, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["timm/test_vit", *EXPORTED])
def test_a_graph_of_it_takes_any_number_of_images(name):
    torch.manual_seed(0)
    network, pixels = disturbed(build(name, 5)), torch.randn(2, 3, CASES[name], CASES[name])
    shapes = {"pixels": {0: torch.export.Dim("batch")}}
    graph = torch.export.export(network.eval(), (pixels,), dynamic_shapes=shapes).module()
    for images in (pixels[:1], torch.cat([pixels, pixels.flip(3)])):
        torch.testing.assert_close(run(graph, images), run(network, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "torchvision/vit_b_32",
        "torchvision/googlenet",
        pytest.param("timm/test_vit", marks=needs_timm),
    ],
)
def test_borrowed_methods_survive_pickling(name):
    with torch.device("meta"):
        network = build(name, 5)
        twin = pickle.loads(pickle.dumps(network))
    owned = {id(module) for module in twin.network.modules()}
    borrowed = [
        module.network
        for part in (*twin.stages.values(), twin.pool)
        for module in part.modules()
        if isinstance(module, library_stages._Borrowed)
    ]
    assert borrowed
    assert all(network is twin.network for network in borrowed)
    assert id(twin.classifier) in owned


def test_torchvisions_classifiers_are_known_and_nothing_else_of_it():
    check_name("torchvision/resnet50")
    for other in ("fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "quantized_resnet50"):
        with pytest.raises(ConfigError, match="torchvision has no classifier called"):
            check_name(f"torchvision/{other}")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("torchvison/resnet18", "no library of networks is called 'torchvison'; did you mean"),
        ("keras/resnet18", "there are: torchvision, timm"),
        ("torchvision/resnet19", r"called 'resnet19'; did you mean 'resnet1\d+'\?"),
        ("torchvision/convnext-tiny", r"did you mean 'convnext_tiny'\?"),
        pytest.param("timm/resnet18.a1_in1k", "; did you mean 'resnet18", marks=needs_timm),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name, answer):
    for call in (check_name, lambda name: build(name, 10)):
        with pytest.raises(ConfigError, match=answer):
            call(name)


def test_without_timm_the_answer_is_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # what an import of a missing package finds
    with pytest.raises(ConfigError, match=r"pip install '\.\[timm\]'"):
        check_name("timm/resnet18")


@needs_timm
def test_an_encoder_of_timm_is_refused():
    with torch.device("meta"), pytest.raises(ConfigError, match="encoder without a classifier"):
        build("timm/qwen3_vit_88m_enc", 10)


@pytest.fixture
def downloads(tmp_path, monkeypatch) -> Path:
    """The folder of torch's downloads: an empty one."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(folder: Path, name: str, weights: str, network: nn.Module) -> None:
    """Put a network's values where torchvision would download `weights` to."""
    url = torchvision.models.get_model_weights(name)[weights].url
    torch.save(network.state_dict(), folder / url.rpartition("/")[2])


@pytest.mark.parametrize("weights", ["IMAGENET1K_V1", "DEFAULT"])
def test_published_weights_are_loaded(downloads, weights):
    torch.manual_seed(0)
    published = torchvision.models.squeezenet1_1()
    publish(downloads, "squeezenet1_1", weights, published)
    state = build("torchvision/squeezenet1_1", 1000, weights).network.state_dict()
    assert all(torch.equal(state[key], value) for key, value in published.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_published_networks_lose_their_auxiliary_outputs(downloads, name):
    with torch.device("meta"):
        whole = torchvision.models.get_model(name, aux_logits=True, init_weights=False)
        publish(downloads, name, "DEFAULT", whole)
        network = build(f"torchvision/{name}", 1000, "DEFAULT")
        logits = network.train()(torch.zeros(2, 3, 80, 80))
        same = network.network(torch.zeros(2, 3, 80, 80))
    assert logits.shape == same.shape == (2, 1000)
    assert list(network.network.state_dict()) == list(plain(f"torchvision/{name}", 1).state_dict())


@pytest.mark.slow
def test_published_weights_of_googlenet_recolour_the_pixels(downloads):
    torch.manual_seed(0)
    publish(downloads, "googlenet", "DEFAULT", torchvision.models.googlenet(init_weights=False))
    network = build("torchvision/googlenet", 1000, "DEFAULT").eval()
    assert network.network.transform_input
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(run(network, pixels), run(network.network, pixels), rtol=0, atol=0)


def test_weights_that_nobody_published_are_refused_with_those_there_are():
    answer = "resnet50 has no weights called 'V3'; there are: IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"
    with pytest.raises(ConfigError, match=answer):
        build("torchvision/resnet50", 1000, "V3")
    with pytest.raises(ConfigError, match=answer):
        libraries.configuration("torchvision", "resnet50", "V3")


@needs_timm
def test_tags_that_nobody_published_are_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="no weights called 'V1'; there are: DEFAULT, c3_in1k"):
        build("timm/resnet10t", 1000, "V1")
    with pytest.raises(ConfigError, match="no weights called 'DEFAULT'; there are: none"):
        build("timm/resnet50t", 1000, "DEFAULT")


@pytest.mark.parametrize(
    "name", ["torchvision/resnet18", pytest.param("timm/resnet18", marks=needs_timm)]
)
def test_weights_for_other_classes_are_refused(name):
    with pytest.raises(ConfigError, match="resnet18 have 1000 classes, and 10 are needed"):
        build(name, 10, "DEFAULT")


@each(
    "error",
    [
        URLError("no route to host"),
        TimeoutError("timed out"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00000000")'),  # torch.hub's own
    ],
)
def test_a_failed_download_says_what_to_do(downloads, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("torch.hub.download_url_to_file", fail)
    answer = r"could not download the weights 'DEFAULT' of torchvision/resnet18 .*TORCH_HOME"
    with pytest.raises(ConfigError, match=answer):
        build("torchvision/resnet18", 1000, "DEFAULT")


def test_a_file_of_another_network_is_no_failed_download(downloads):
    publish(downloads, "squeezenet1_1", "DEFAULT", nn.Linear(1, 1))
    with pytest.raises(RuntimeError, match="Missing key"):
        build("torchvision/squeezenet1_1", 1000, "DEFAULT")


@needs_timm
def test_tags_of_timm_are_weights(monkeypatch):
    torch.manual_seed(0)
    published, asked = timm.create_model("test_resnet").state_dict(), []

    def load(place, **_):
        asked.append(place)
        return dict(published)

    # The Hub's cache cannot be filled by hand without asking the Hub which revision is current.
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    for weights in ("DEFAULT", "r160_in1k"):
        state = build("timm/test_resnet", 1000, weights).network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in published.items())
    assert asked == ["timm/test_resnet.r160_in1k"] * 2


@needs_timm
def test_a_failed_download_from_the_hub_says_what_to_do(monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_, **__):
        raise LocalEntryNotFoundError("check your connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", fail)
    with pytest.raises(ConfigError, match=r"weights 'DEFAULT' of timm/test_resnet .*HF_HOME"):
        build("timm/test_resnet", 1000, "DEFAULT")


def test_weights_name_their_classes_and_their_input():
    said = libraries.configuration("torchvision", "resnet50", "IMAGENET1K_V2")
    assert (said.mean, said.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (said.side, said.resize, said.interpolation) == (224, 232, "bilinear")
    assert (len(said.names), said.names[0], said.names[-1]) == (
        1000,
        ("tench",),
        ("toilet tissue",),
    )


@needs_timm
def test_each_tag_names_its_classes_and_its_input():
    said = libraries.configuration("timm", "resnet50", "a1_in1k")
    assert (said.mean, said.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (said.side, said.resize, said.interpolation) == (224, 235, "bicubic")
    assert (len(said.names), said.names[0]) == (1000, ("tench", "Tinca tinca"))
    assert libraries.configuration("timm", "resnetv2_50", "a1h_in1k").mean == (0.5, 0.5, 0.5)
    said = libraries.configuration("timm", "vit_small_patch14_dinov2", "lvd142m")
    assert (said.names, said.side, said.resize) == ((), 518, 518)


# The larger ones of a family, of 80 million parameters and more: others run the same code.
LARGE = {
    *("convnext_base", "convnext_large", "efficientnet_v2_l", "regnet_x_32gf", "regnet_y_32gf"),
    *("regnet_y_128gf", "resnext101_32x8d", "resnext101_64x4d", "swin_b", "swin_v2_b"),
    *("vgg11", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn", "vit_b_16"),
    *("vit_h_14", "vit_l_16", "vit_l_32", "wide_resnet101_2"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted({*torchvision.models.list_models(module=torchvision.models)} - LARGE)
)
def test_every_classifier_of_torchvision_runs_as_its_parts(name):
    if parameter_count(plain(f"torchvision/{name}", 5)) > 15e6:
        pytest.skip("it is large, and another one of its kind is not")
    torch.manual_seed(0)
    network = disturbed(build(f"torchvision/{name}", 5))
    size = 224 if name.startswith(("vit", "maxvit")) else TORCHVISION.get(name, 96)
    pixels = torch.randn(2, 3, size, size)
    for training in (False, True):
        network.train(training)
        logits = run(network, pixels)
        torch.testing.assert_close(logits, run(network.network, pixels), rtol=0, atol=0)
    assert (len(network.stages) > 2) != name.startswith("vit")
    assert len(measure(network, (size, size)).features) > 2
    assert isinstance(network.classifier, nn.Linear) != name.startswith("squeezenet")
    assert measure(network, (size, size)).classes == 5


@pytest.mark.slow
@pytest.mark.parametrize("file", sampled(timm.list_modules(), 2) if timm else [])
def test_every_file_of_timm_has_a_network_that_runs_as_its_parts(file):
    for name in timm.list_models(module=file):
        with torch.device("meta"):
            count = parameter_count(timm.create_model(name))
        if count < 20e6 and not name.endswith("_enc"):
            break
    else:
        pytest.skip("its networks are large")
    torch.manual_seed(0)
    network = disturbed(build(f"timm/{name}", 5))
    pixels = torch.randn(2, *timm.get_pretrained_cfg(name).input_size)
    for training in (False, True):
        network.train(training)
        logits = run(network, pixels)
        assert logits.shape == (2, 5)
        torch.testing.assert_close(logits, run(network.network, pixels), rtol=0, atol=0)
    out = run(lambda pixels: network.outputs(pixels, Signal.FEATURES), pixels)
    torch.testing.assert_close(logits, out.logits, rtol=0, atol=0)
    assert len(out.features) > 1
