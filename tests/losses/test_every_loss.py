"""What holds for each of the three losses as a function of the student's and teacher's images."""

import pytest
import torch
from torch import nn

from dckd_losses import DCKDLoss, DCRLoss, DMMLoss


class OfTwo(nn.Module):
    """A loss of the student's and the teacher's images; negatives, where it has any, are given."""

    def __init__(self, name, encoder):
        super().__init__()
        if name == "dcr":
            self.loss = DCRLoss(encoder)
        elif name == "dckd":
            self.loss = DCKDLoss(nn.Identity(), encoder, negatives=self.negatives)
        else:
            self.loss = DMMLoss(encoder, form=name)
        self.name = name

    def negatives(self, images):
        steps = torch.linspace(0, 1, 2 * images.numel(), dtype=images.dtype)
        return (7.3 * steps).frac().view(2, *images.shape)

    def forward(self, student, teacher):
        if self.name == "dcr":
            return self.loss(student, teacher, self.negatives(teacher.detach()))
        if self.name == "dckd":
            return self.loss(student, teacher, teacher.detach())
        return self.loss(student, teacher)


@pytest.fixture(params=["dcr", "cross_entropy", "released", "dckd"])
def loss(request, encoder):
    return OfTwo(request.param, encoder)


@pytest.fixture
def batch(images):
    """The student's images, which need a gradient, and the teacher's."""
    student, teacher = images(2, 2, 3, 32, 48)
    return student.requires_grad_(), teacher


def test_result_is_a_float32_scalar_unless_all_is_float64(loss, batch):
    double = [x.double() for x in batch]
    assert loss(*batch).dtype == loss(*double).dtype == torch.float32
    assert loss(*batch).shape == ()
    loss.double()
    assert (loss(*batch).dtype, loss(*double).dtype) == (torch.float32, torch.float64)


def test_gradient_reaches_the_student_only(loss, batch):
    student, teacher = batch
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None
    assert all(p.grad is None for p in loss.loss.encoder.network.parameters())


def test_takes_half_precision_images(loss, batch):
    student = batch[0].detach().bfloat16().requires_grad_()
    value = loss(student, batch[1])
    (gradient,) = torch.autograd.grad(value, student)
    assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(value, loss(student.float(), batch[1]))


def test_takes_a_teacher_made_in_inference_mode(loss, batch):
    student, teacher = batch
    expected = torch.autograd.grad(loss(student, teacher), student)
    with torch.inference_mode():
        teacher = teacher.clone()
    assert torch.equal(*torch.autograd.grad(loss(student, teacher), student), *expected)


def test_never_writes_into_the_callers_tensors(loss, batch):
    before = [x.detach().clone() for x in batch]
    loss(*batch).backward()
    assert all(map(torch.equal, before, batch))


GOOD = (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (GOOD, (1, 3, 16, 17), r"teacher.* \(1, 3, 16, 17\) and student.* \(1, 3, 16, 16\) differ"),
        (GOOD, (2, 3, 16, 16), "teacher.* differ in shape"),
        ((1, 3, 12, 16), (1, 3, 12, 16), "student.* at least 16x16 pixels, got 12x16"),
        ((3, 16, 16), (3, 16, 16), r"student.* must be \(B, 3, H, W\), got \(3, 16, 16\)"),
        ((1, 4, 16, 16), (1, 4, 16, 16), r"student.* must be \(B, 3, H, W\), got \(1, 4, 16, 16\)"),
    ],
)
def test_refuses_shapes_on_every_call(loss, batch, student, teacher, message):
    loss(*batch)
    with pytest.raises(ValueError, match=message):
        loss(torch.rand(student), torch.rand(teacher))


def test_refuses_other_kinds_and_devices(loss, batch):
    student, teacher = batch
    with pytest.raises(ValueError, match=r"teacher.* must be floating point.*uint8"):
        loss(student, teacher.byte())
    with pytest.raises(ValueError, match=r"teacher.* is on meta, student.* on cpu"):
        loss(student, teacher.to("meta"))
    with pytest.raises(ValueError, match=r"is on cpu.* on meta.*\.to\(device\)"):
        loss.to("meta")(student, teacher)
