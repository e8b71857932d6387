"""Networks for faces: sizes that are published, and the classifier by angles."""

import pytest
import torch

from raykd.core.errors import ConfigError
from raykd.models import build, measure, parameter_count
from raykd.models.cosine_classifier import with_cosine_classifier
from raykd.models.foreign_checkpoints import Entry
from raykd.models.staged import without_classifier
from raykd.models.state_matching import OtherHead, matched
from tests.each import each
from tests.tiers import slow_but

# Parameters without the classifier, of the reference code; the embedding; image and last map.
FACES = {
    "mobilefacenet": (1_003_136, 128, (112, 112), (128, 7, 7)),
    "mobilefacenet_112x96": (999_552, 128, (112, 96), (128, 7, 6)),
    "mobilefacenet_512": (1_200_512, 512, (112, 112), (128, 7, 7)),
    "mobilefacenet_m": (937_344, 512, (112, 112), (128, 7, 7)),
    # 40 places of the global convolution's kernels fewer, of 512 channels.
    "mobilefacenet_m_48x48": (937_344 - 40 * 512, 512, (48, 48), (128, 3, 3)),
    "mobilefacenet_s": (850_688, 128, (112, 112), (128, 7, 7)),
    "iresnet18": (24_025_600, 512, (112, 112), (512, 7, 7)),
    "iresnet34": (34_139_328, 512, (112, 112), (512, 7, 7)),
    "iresnet50": (43_590_848, 512, (112, 112), (512, 7, 7)),
    "iresnet100": (65_156_160, 512, (112, 112), (512, 7, 7)),
    "iresnet200": (118_833_920, 512, (112, 112), (512, 7, 7)),
}


@each("name", slow_but(FACES, ("mobilefacenet", "mobilefacenet_s", "iresnet18")))
def test_networks_have_the_sizes_of_the_reference_code(name):
    count, embedding, size, last = FACES[name]
    with torch.device("meta"):
        network = build(name, 0)
        shapes = measure(network, size)
    assert (parameter_count(network), shapes.embedding) == (count, embedding)
    assert [*shapes.features.values()][-1] == last


def test_a_network_for_faces_learns_from_a_batch():
    network = build("mobilefacenet_s", 3)
    network(torch.randn(2, 3, 112, 112)).sum().backward()
    assert all(value.grad is not None for value in network.parameters())


def test_the_logits_are_scaled_cosines_also_under_autocast():
    torch.manual_seed(0)
    network = with_cosine_classifier(build("resnet8", 5), 30.0).eval()
    x = torch.randn(4, 64)
    weight = network.classifier.weight
    cosine = torch.nn.functional.cosine_similarity(x[:, None], weight[None], dim=2)
    torch.testing.assert_close(network.classifier(x), 30 * cosine)
    with torch.autocast("cpu", torch.bfloat16):
        assert network.classifier(x.bfloat16()).dtype == torch.float32
    pixels = torch.randn(2, 3, 16, 16)
    assert network(pixels).abs().max() <= 30
    assert without_classifier(network)(pixels).shape == (2, 64)


def test_a_network_without_a_linear_classifier_is_refused():
    with pytest.raises(ConfigError, match="no linear map"):
        with_cosine_classifier(build("resnet8", 0), 64.0)


def test_weights_of_a_network_for_faces_are_those_of_an_encoder_to_another():
    saved = with_cosine_classifier(build("resnet8", 6), 64.0).network.state_dict()
    entries = [Entry("", saved)]
    match = matched(entries, build("resnet8", 0))
    assert match.state.keys() == {name for name in saved if not name.startswith("classifier.")}
    assert match.note == "their classifier is left out"
    with pytest.raises(OtherHead) as caught:
        matched(entries, build("resnet8", 6))
    assert caught.value.classes == 0
    started = matched(entries, build("resnet8", 6), new_head=True)
    assert started.note == "they have no classifier: a new one of 6 classes is trained"
    again = matched(entries, with_cosine_classifier(build("resnet8", 6), 64.0))
    assert again.state.keys() == saved.keys()
