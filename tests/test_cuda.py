"""What only a CUDA device can show (`-m cuda`)."""

import pytest
import torch
from conftest import Student

from dckd_losses import DCKDLoss, VQGANEncoder
from dckd_losses.negatives.draws import Draws
from dckd_losses.network import build

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is at hand"),
]


def test_draws_the_same_bits_as_the_cpu():
    one, two = (Draws(3, 1, torch.tensor(9, device=device)) for device in ("cpu", "cuda"))
    assert torch.equal(one.uniform(1000), two.uniform(1000).cpu())


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_fused_equals_plain(tensors, images, mode):
    negatives = images(5, 2, 3, 35, 50, dtype=torch.float64).cuda()
    student_out, teacher_out = images(2, 2, 3, 35, 50, dtype=torch.float64).cuda()
    results = []
    for settings in ({"impl": "plain"}, {"mode": mode, "chunk": 1}):
        encoder = VQGANEncoder(build({k: v.clone() for k, v in tensors.items()}), **settings)
        dckd = DCKDLoss(Student(), encoder, negatives=lambda lq: negatives).double().cuda()
        x = student_out.clone().requires_grad_()
        loss = dckd(x, teacher_out, teacher_out)
        loss.backward()
        results.append((loss.detach(), x.grad))
    for seen, expected in zip(*results, strict=True):
        assert (seen - expected).norm() < 1e-12 * expected.norm()


@pytest.mark.parametrize("mode", ["stream", "twopass"])
def test_never_waits_for_the_device(tensors, images, mode):
    student = Student().cuda()
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    dckd = DCKDLoss(student, VQGANEncoder(build(tensors), mode=mode)).attach(optimizer).cuda()
    lq, teacher_out = images(2, 3, 16, 16).cuda(), images(2, 3, 32, 32).cuda()

    def step():
        optimizer.zero_grad()
        dckd(student(lq), teacher_out, lq).backward()
        optimizer.step()

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
