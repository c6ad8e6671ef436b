"""How hard a loss pulls beside another: the number, and that looking changes nothing."""

import copy

import pytest
import torch
from conftest import Student
from torch import nn

from dckd_losses import DCKDLoss, VQGANEncoder, gradient_ratio
from dckd_losses.network import build


def test_is_the_ratio_of_the_norms(images):
    student_out, target = images(2, 3, 8, 8).double().requires_grad_(), images(2, 3, 8, 8).double()
    above, below = (student_out - target).square().sum(), (student_out - target).abs().mean()
    expected = 2 * (student_out - target).detach().norm() * student_out.numel() ** 0.5
    seen = gradient_ratio(above, below, student_out)
    assert seen.shape == () and not seen.requires_grad and seen.dtype == torch.float64
    torch.testing.assert_close(seen, expected)


def test_grows_in_proportion_to_the_weights(student, encoder, images):
    lq, gt, teacher_out = images(1, 3, 8, 8), images(1, 3, 16, 16), images(1, 3, 16, 16)
    ratios = []
    for factor in (1, 10):
        dckd = DCKDLoss(student, encoder, dcr_weight=0.1 * factor, dmm_weight=1e-3 * factor)
        out = student(lq)
        ratios.append(gradient_ratio(dckd(out, teacher_out, lq), (out - gt).abs().mean(), out))
    torch.testing.assert_close(ratios[1], 10 * ratios[0])


pytestmark = pytest.mark.usefixtures("one_thread")
PATHS = [
    {"impl": "plain"},
    {},
    {"mode": "twopass"},
    {"mode": "twopass", "chunk": 1},
    {"precision": "float16"},
]


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_looking_changes_no_gradient_and_draws_no_number(tensors, images, path):
    """Whatever the encoder keeps for backward is still there for the step's own."""
    lq, gt, teacher_out = images(2, 3, 8, 8), images(2, 3, 16, 16), images(2, 3, 16, 16)
    gradients = []
    for look in (False, True):
        torch.manual_seed(0)
        student = Student()
        dckd = DCKDLoss(student, VQGANEncoder(build(copy.deepcopy(tensors)), **path))
        out = student(lq)
        dckd_loss, pixel_loss = dckd(out, teacher_out, lq), (out - gt).abs().mean()
        if look:
            ratio = gradient_ratio(dckd_loss, pixel_loss, out)
            assert ratio.isfinite() and ratio > 0
            assert all(p.grad is None for p in student.parameters())
        (dckd_loss + pixel_loss).backward()
        assert dckd.negatives.counter == 1
        gradients.append([p.grad for p in student.parameters()])
    assert all(map(torch.equal, *gradients))


def test_half_precision_outputs_lose_nothing(images):
    """A mean's gradient at 3x64x64 images is 8e-5, its square nothing in float16."""
    target = images(1, 3, 64, 64)
    ratios = []
    for dtype in (torch.float32, torch.float16):
        out = torch.zeros(1, 3, 64, 64, dtype=dtype, requires_grad=True)
        above, below = (out.float() - target).square().mean(), (out.float() - target).abs().mean()
        ratios.append(gradient_ratio(1e-3 * above, below, out))
    assert ratios[1].dtype == torch.float32
    torch.testing.assert_close(ratios[1], ratios[0], rtol=1e-3, atol=0)


def test_under_autocast_it_is_the_same(student, encoder, images):
    lq, gt, teacher_out = images(1, 3, 8, 8), images(1, 3, 16, 16), images(1, 3, 16, 16)
    out = student(lq)
    losses = DCKDLoss(student, encoder)(out, teacher_out, lq), (out - gt).abs().mean()
    expected = gradient_ratio(*losses, out)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_ratio(*losses, out), expected)


def test_refuses_what_was_not_computed_from_it():
    out, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="pixel_loss was not computed from this student_out"):
        gradient_ratio(out.mean(), other.mean(), out)
    with pytest.raises(ValueError, match=r"^loss was not computed"):
        gradient_ratio(other.mean(), out.mean(), out)
    with pytest.raises(ValueError, match=r"^loss and student_out must both be part of a graph"):
        gradient_ratio(out.mean().detach(), out.mean(), out)
    with torch.no_grad(), pytest.raises(ValueError, match="part of a graph"):
        gradient_ratio(nn.Identity()(out).mean(), out.mean(), out)
