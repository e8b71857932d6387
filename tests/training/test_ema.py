"""The average of weights is torch's, without asking the device how many steps there were."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from raykd.training.ema import Average
from tests.small import pair


def test_the_average_is_torch_s_to_the_last_bit_and_goes_on_from_a_checkpoint():
    student, _ = pair()
    ours = Average(student, 0.9)
    theirs = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        student.train()(torch.randn(4, 3, 16, 16, generator=generator))  # moves the batch norms
        with torch.no_grad():
            for weight in student.parameters():
                weight.add_(torch.randn(weight.shape, generator=generator))
        ours.update_parameters(student)
        theirs.update_parameters(student)
        found, expected = ours.state_dict(), theirs.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        if step == 2:
            ours = Average(student, 0.9)
            ours.load_state_dict(expected)
