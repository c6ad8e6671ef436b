"""The balanced weight: the law of its gradient, whatever the loss, its scale and the upstream's."""

import copy

import pytest
import torch
from conftest import Pyramid, Student
from torch import nn

from dckd_losses import DCKDLoss, VQGANEncoder
from dckd_losses.balance import enter, leave
from dckd_losses.network import build


@pytest.fixture
def batch(images):
    """student_out, teacher_out, lq."""
    return images(2, 3, 16, 20), images(2, 3, 16, 20), images(2, 3, 8, 10)


def gradient(loss, batch, factor=1.0):
    student_out = batch[0].clone().requires_grad_()
    (factor * loss(student_out, *batch[1:])).backward()
    return student_out.grad


def fraction_of_l1(grad):
    """The norm, relative to that of a mean L1's gradient as autograd finds it."""
    x = torch.zeros_like(grad, dtype=torch.float64).requires_grad_()
    nn.functional.l1_loss(x, torch.ones_like(x)).backward()
    return (grad.double().norm() / x.grad.norm()).item()


@pytest.mark.parametrize("fraction", [0.3, 2])
@pytest.mark.parametrize("weights", [(0.1, 1e-3), (1e-9, 0), (0, 1e5), (3, 3)])
def test_norm_is_the_fraction_of_l1s_for_all_weights(student, encoder, batch, fraction, weights):
    dcr, dmm = weights
    plain = DCKDLoss(student, encoder, dcr_weight=dcr, dmm_weight=dmm)
    balanced = DCKDLoss(student, encoder, dcr_weight=dcr, dmm_weight=dmm, balance=fraction)
    expected, seen = gradient(plain, batch), gradient(balanced, batch)
    assert fraction_of_l1(seen) == pytest.approx(fraction, rel=1e-5)
    assert fraction_of_l1(expected) != pytest.approx(fraction, rel=1e-2)
    torch.testing.assert_close(seen / seen.norm(), expected / expected.norm())
    for name, value in plain.last.items():
        torch.testing.assert_close(balanced.last[name], value)


@pytest.mark.parametrize("mode", ["stream", "twopass"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_norm_is_the_fraction_of_l1s_on_every_path(student, tensors, batch, mode, precision):
    encoder = VQGANEncoder(build(tensors), mode=mode, chunk=1, precision=precision)
    grad = gradient(DCKDLoss(student, encoder, balance=0.5), batch)
    assert fraction_of_l1(grad) == pytest.approx(0.5, rel=1e-5)


def test_norm_is_the_fraction_of_l1s_for_other_encoders(student, batch):
    dckd = DCKDLoss(student, Pyramid(), dmm_weight=0, balance=0.5)
    assert fraction_of_l1(gradient(dckd, batch)) == pytest.approx(0.5, rel=1e-5)


@pytest.mark.parametrize("factor", [2.0**16, 0.25, -3.0])
def test_what_others_put_on_the_loss_stays(student, encoder, batch, factor):
    dckd = DCKDLoss(student, encoder, balance=0.3)
    once = gradient(copy.deepcopy(dckd), batch)
    torch.testing.assert_close(gradient(dckd, batch, factor), factor * once)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_scale_of_the_loss_is_too_small_or_large(images, scale):
    x = images(1, 3, 4, 4).requires_grad_()
    entered, one = enter(x, 0.3)
    leave(scale * entered.square().sum(), one).backward()
    assert fraction_of_l1(x.grad) == pytest.approx(0.3, rel=1e-5)


def test_no_gradient_stays_none(images):
    x = images(1, 3, 4, 4).requires_grad_()
    entered, one = enter(x, 0.3)
    leave((0 * entered).sum(), one).backward()
    assert not x.grad.any()


def test_half_images_get_a_gradient_that_was_rounded_once(student, encoder, batch):
    """Unscaled, DCKD's would be zeros in float16."""
    batch = [x.half().float() for x in batch]
    exact = gradient(DCKDLoss(student, encoder, balance=0.3), batch, 1024)
    dckd = DCKDLoss(student, encoder, balance=0.3)
    student_out = batch[0].half().detach().requires_grad_()
    (1024 * dckd(student_out, *batch[1:])).backward()
    torch.testing.assert_close(student_out.grad, exact.half(), rtol=1e-3, atol=1e-6)


def test_infinite_gradients_are_seen_by_a_gradscaler(images):
    x = images(1, 3, 4, 4).requires_grad_()
    entered, one = enter(x, 0.3)
    (torch.inf * leave(entered.square().sum(), one)).backward()
    assert not x.grad.isfinite().any()


def test_sum_with_other_losses_and_accumulation(student, encoder, batch):
    """The student's pixel loss keeps its gradient; two backward passes add theirs."""
    dckd = DCKDLoss(student, encoder, balance=0.3)
    alone = gradient(copy.deepcopy(dckd), batch)
    x = batch[0].clone().requires_grad_()
    for _ in range(2):
        copied = copy.deepcopy(dckd)
        (x.mean() + copied(x, *batch[1:])).backward()
    torch.testing.assert_close(x.grad, 2 * (alone + 1 / x.numel()))


def test_value_is_unscaled_and_state_is_the_same(student, encoder, batch):
    plain, balanced = DCKDLoss(student, encoder), DCKDLoss(student, encoder, balance=0.3)
    assert torch.equal(plain(*batch), balanced(*batch))
    assert list(plain.state_dict()) == list(balanced.state_dict())
    assert "balance=0.3" in repr(balanced)
    assert plain.balance is None


def test_float64(student, encoder, images):
    batch = [images(1, 3, 16, 16, dtype=torch.float64), images(1, 3, 16, 16, dtype=torch.float64)]
    dckd = DCKDLoss(student, encoder, balance=0.3).double()
    loss = dckd(batch[0].requires_grad_(), batch[1], images(1, 3, 8, 8, dtype=torch.float64))
    loss.backward()
    assert loss.dtype == torch.float64
    assert fraction_of_l1(batch[0].grad) == pytest.approx(0.3, rel=1e-12)


def test_compiles_in_one_graph(student, tensors, batch):
    encoder = VQGANEncoder(build(tensors), impl="plain")
    dckd = DCKDLoss(student, encoder, balance=0.3)
    dckd(*batch)
    expected = gradient(copy.deepcopy(dckd), batch)
    compiled = torch.compile(dckd, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(gradient(compiled, batch), expected)


@pytest.mark.parametrize("balance", [0, -1, float("nan"), float("inf")])
def test_other_fractions_are_refused(balance):
    with pytest.raises(ValueError, match=f"balance must be .* got {balance}"):
        DCKDLoss(Student(), Pyramid(), balance=balance)


def test_level_weights_reach_dcr(student, encoder, batch):
    weights = (1.0, 0.0, 0.0, 0.0, 0.0)
    dckd = DCKDLoss(student, encoder, dcr_weight=1, dmm_weight=0, level_weights=weights)
    value = dckd(*batch)
    torch.testing.assert_close(value, dckd.last["positive"][0] / dckd.last["negative"][0])
