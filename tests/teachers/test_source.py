"""The live teacher: frozen, and looking at pixels in its own normalisation."""

import torch

from raykd.core.types import Batch, Signal
from raykd.models import build
from raykd.teachers.source import LiveTeacher
from tests.small import batch


def test_the_network_is_in_evaluation_mode_and_records_no_gradients():
    network = build("resnet8", 10).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    outputs = LiveTeacher(network, Signal.LOGITS)(batch())
    assert not outputs.logits.requires_grad
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_its_outputs_can_be_saved_for_a_students_backward():
    outputs = LiveTeacher(build("resnet8", 10), Signal.LOGITS)(batch())
    assert not outputs.logits.is_inference()


def test_a_sample_gets_the_same_logits_in_any_batch():
    teacher, sample = LiveTeacher(build("resnet8", 10), Signal.LOGITS), batch(16)
    alone = Batch(sample.pixels[3:5], sample.targets[3:5], sample.ids[3:5], view=0, epoch=0)
    whole = teacher(sample).logits[3:5]
    # Convolutions round differently for other batch sizes.
    torch.testing.assert_close(teacher(alone).logits, whole, rtol=1e-5, atol=1e-5)


def test_the_teacher_sees_pixels_in_its_own_normalisation():
    network = build("resnet8", 10)
    student = ((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    own = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    raw = torch.rand(4, 3, 16, 16)

    def normalised(mean, std):
        return (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)

    ids = torch.arange(4)
    theirs = LiveTeacher(network, Signal.LOGITS)(Batch(normalised(*own), ids, ids, 0, 0)).logits
    seen = LiveTeacher(network, Signal.LOGITS, student=student, own=own)
    mine = seen(Batch(normalised(*student), ids, ids, 0, 0)).logits
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_a_bfloat16_forward_still_answers_in_float32():
    teacher = LiveTeacher(build("resnet8", 10), Signal.LOGITS, bfloat16=True)
    assert teacher(batch()).logits.dtype == torch.float32
