"""The gradient's norm at the output: the law of `balance`, and `gradient_ratio` that reads it."""

import copy

import pytest
import torch
from conftest import Pyramid, Student
from torch import nn

from dckd_losses import DCKDLoss, gradient_ratio
from dckd_losses.balance import FLOOR, normalize_gradient, restore_scale


def gradient(loss, batch, factor=1.0):
    student_out = batch[0].clone().requires_grad_()
    (factor * loss(student_out, *batch[1:])).backward()
    return student_out.grad


def fraction_of_l1(grad):
    """The norm, relative to that of a mean L1's gradient as autograd finds it."""
    x = torch.zeros_like(grad, dtype=torch.float64).requires_grad_()
    nn.functional.l1_loss(x, torch.ones_like(x)).backward()
    return (grad.double().norm() / x.grad.norm()).item()


# balance


@pytest.mark.parametrize(
    ("fraction", "weights"), [(0.3, (0.1, 1e-3)), (2, (1e-9, 0)), (0.3, (0, 1e5)), (2, (3, 3))]
)
def test_norm_is_the_fraction_of_l1s_for_all_weights(student, encoder, batch, fraction, weights):
    weights = dict(zip(("dcr_weight", "dmm_weight"), weights, strict=True))
    plain = DCKDLoss(student, encoder, balance=None, **weights)
    balanced = DCKDLoss(student, encoder, balance=fraction, **weights)
    expected, seen = gradient(plain, batch), gradient(balanced, batch)
    assert fraction_of_l1(seen) == pytest.approx(fraction, rel=1e-5)
    assert fraction_of_l1(expected) != pytest.approx(fraction, rel=1e-2)
    torch.testing.assert_close(seen / seen.norm(), expected / expected.norm())
    assert torch.equal(plain(*batch), balanced(*batch)), "the value is unscaled"
    assert list(plain.state_dict()) == list(balanced.state_dict())
    assert f"balance={fraction}" in repr(balanced)


@pytest.mark.parametrize(
    ("mode", "precision"), [("stream", "bfloat16"), ("stream", "float16"), ("twopass", "float16")]
)
def test_norm_is_the_fraction_of_l1s_on_every_path(student, make_encoder, batch, mode, precision):
    encoder = make_encoder(mode=mode, chunk=1, precision=precision)
    grad = gradient(DCKDLoss(student, encoder, balance=0.5), batch)
    assert fraction_of_l1(grad) == pytest.approx(0.5, rel=1e-5)


def test_balance_is_the_default_and_the_papers_weights_are_fixed(student, weights_file, batch):
    default, paper, released = (
        make(student, weights_file) for make in (DCKDLoss, DCKDLoss.paper, DCKDLoss.released)
    )
    assert fraction_of_l1(gradient(default, batch)) == pytest.approx(0.3, rel=1e-5)
    assert (paper.dcr_weight, paper.dmm_weight, paper.dmm.form) == (0.1, 1e-3, "cross_entropy")
    for loss in (paper, released):
        once = gradient(copy.deepcopy(loss), batch)
        loss.dcr_weight, loss.dmm_weight = 0.2, 2e-3
        torch.testing.assert_close(gradient(loss, batch), 2 * once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_norm_is_the_fraction_of_a_pixel_loss_that_is_passed(student, encoder, batch, dtype):
    """As NAFNet's, in decibels: its gradient is many times an L1's and grows as the error falls."""
    dckd, grads = DCKDLoss(student, encoder, balance=0.5), []
    student_out = batch[0].to(dtype).requires_grad_()
    decibels = 10 * (student_out.float() - batch[1]).square().mean().log10()
    for loss in (decibels, dckd(student_out, *batch[1:], pixel_loss=decibels)):
        (grad,) = torch.autograd.grad(1024 * loss, student_out, retain_graph=True)
        grads.append(grad.float().norm())
    torch.testing.assert_close(grads[1], 0.5 * grads[0], rtol=1e-3, atol=0)
    with torch.no_grad():  # validation
        dckd(student_out, *batch[1:], pixel_loss=decibels)
    with pytest.raises(ValueError, match="pixel_loss was not computed from this student_out"):
        dckd(student_out, *batch[1:], pixel_loss=student(batch[2]).mean())


@pytest.mark.parametrize("factor", [2.0**16, 0.25, -3.0])
def test_what_others_put_on_the_loss_stays(student, encoder, batch, factor):
    dckd = DCKDLoss(student, encoder, balance=0.3)
    once = gradient(copy.deepcopy(dckd), batch)
    torch.testing.assert_close(gradient(dckd, batch, factor), factor * once)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_scale_of_the_loss_is_too_small_or_large(images, scale):
    x = images(1, 3, 4, 4).requires_grad_()
    entered, unit = normalize_gradient(x, 0.3, torch.zeros_like(x))
    restore_scale(scale * entered.square().sum(), unit).backward()
    assert fraction_of_l1(x.grad) == pytest.approx(0.3, rel=1e-5)


def test_no_gradient_stays_none_and_an_infinite_one_is_seen_by_a_gradscaler(images):
    for factor, left in ((0, lambda grad: grad == 0), (torch.inf, lambda grad: ~grad.isfinite())):
        x = images(1, 3, 4, 4).requires_grad_()
        entered, unit = normalize_gradient(x, 0.3, torch.zeros_like(x))
        value = factor * entered.sum() if factor == 0 else entered.square().sum()
        (restore_scale(value, unit) * (factor or 1)).backward()
        assert left(x.grad).all()


def at_distance(x, roundings, dtype=torch.float32):
    """A teacher's output at a mean distance of so many roundings of 1."""
    change = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (x.double() + roundings * torch.finfo(dtype).eps * change / change.abs().mean()).to(
        dtype
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_norm_falls_to_zero_where_student_equals_teacher_but_for_rounding(images, dtype):
    x = images(1, 3, 32, 32, dtype=dtype).requires_grad_()
    for roundings in (0, 1, 16, FLOOR / 2, 2 * FLOOR):
        entered, unit = normalize_gradient(x, 0.3, at_distance(x.detach(), roundings, dtype))
        (grad,) = torch.autograd.grad(restore_scale(entered.square().sum(), unit), x)
        expected = 0.3 * min(roundings / FLOOR, 1)
        assert fraction_of_l1(grad) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("weights", [(0.1, 0), (0, 1e-3)], ids=["dcr", "dmm"])
def test_the_floor_is_where_rounding_stops_to_make_the_gradient(images, weights):
    """Held against float64: right from the floor on, wrong well below it."""
    image = torch.linspace(0, 6, 32).sin() / 3 + 0.5
    x = (image[:, None] * image + 0.1 * images(1, 3, 32, 32) - 0.05).clamp(0, 1)
    negatives = x + 0.05 * images(5, 1, 3, 32, 32)
    cosines = []
    for roundings in (1, FLOOR):
        teacher_out, grads = at_distance(x, roundings), []
        for dtype in (torch.float32, torch.float64):
            dckd = DCKDLoss(
                Student(),
                "compact",
                dcr_weight=weights[0],
                dmm_weight=weights[1],
                negatives=lambda lq: negatives.to(lq),
                balance=None,
            ).to(dtype)
            batch = [image.to(dtype) for image in (x, teacher_out, x)]
            grads.append(gradient(dckd, batch).double().flatten())
        cosines.append(nn.functional.cosine_similarity(*grads, dim=0))
    assert cosines[0] < 0.9 and cosines[1] > 0.99


def test_equal_outputs_get_no_gradient(student, encoder, batch):
    dckd = DCKDLoss(student, encoder, balance=0.3)
    assert not gradient(dckd, (batch[0], batch[0].clone(), batch[2])).any()
    zero = torch.zeros_like(batch[0])
    assert not gradient(dckd, (zero, zero.clone(), batch[2])).any()


def test_a_diverged_student_is_seen_in_the_gradient(images):
    x = images(1, 3, 16, 16).mul(1e38).requires_grad_()
    entered, unit = normalize_gradient(x, 0.3, images(1, 3, 16, 16))
    restore_scale((entered / 1e38).square().sum(), unit).backward()
    assert fraction_of_l1(x.grad) == pytest.approx(0.3, rel=1e-5)
    with torch.no_grad():
        x[0, 0, 0, 0] = torch.nan
    entered, unit = normalize_gradient(x, 0.3, images(1, 3, 16, 16))
    restore_scale((entered / 1e38).square().sum(), unit).backward()
    assert not x.grad.isfinite().any()


def test_half_images_get_a_gradient_that_was_rounded_once(student, encoder, batch):
    """Unscaled, DCKD's would be zeros in float16."""
    batch = [x.half().float() for x in batch]
    exact = gradient(DCKDLoss(student, encoder, balance=0.3), batch, 1024)
    dckd = DCKDLoss(student, encoder, balance=0.3)
    student_out = batch[0].half().detach().requires_grad_()
    (1024 * dckd(student_out, *batch[1:])).backward()
    torch.testing.assert_close(student_out.grad, exact.half(), rtol=1e-3, atol=1e-6)


def test_sum_with_other_losses_and_accumulation(student, encoder, batch):
    """The student's pixel loss keeps its gradient; two backward passes add theirs."""
    dckd = DCKDLoss(student, encoder, balance=0.3)
    alone = gradient(copy.deepcopy(dckd), batch)
    x = batch[0].clone().requires_grad_()
    for _ in range(2):
        (x.mean() + copy.deepcopy(dckd)(x, *batch[1:])).backward()
    torch.testing.assert_close(x.grad, 2 * (alone + 1 / x.numel()))


@pytest.mark.parametrize("balance", [0, -1, float("nan"), float("inf"), "0.3"])
def test_other_fractions_are_refused(balance):
    expected = f"balance must be .*finite and above 0, or None, got '?{balance}"
    with pytest.raises(ValueError, match=expected):
        DCKDLoss(Student(), Pyramid(), balance=balance)


# gradient_ratio


@pytest.mark.parametrize(
    "path",
    [{"impl": "plain"}, {}, {"mode": "twopass", "chunk": 1}, {"precision": "float16"}],
    ids=str,
)
def test_looking_changes_no_gradient_and_draws_no_number(make_encoder, images, path):
    """Whatever the encoder keeps for backward is still there for the step's own."""
    lq, gt, teacher_out = images(2, 3, 8, 8), images(2, 3, 16, 16), images(2, 3, 16, 16)
    gradients = []
    for look in (False, True):
        torch.manual_seed(0)
        student = Student()
        dckd = DCKDLoss(student, make_encoder(**path))
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


def test_ratio_of_half_precision_outputs_loses_nothing(images):
    """A mean's gradient at 3x64x64 images is 8e-5, its square nothing in float16."""
    target = images(1, 3, 64, 64)
    ratios = []
    for dtype in (torch.float32, torch.float16):
        out = torch.zeros(1, 3, 64, 64, dtype=dtype, requires_grad=True)
        above, below = (out.float() - target).square().mean(), (out.float() - target).abs().mean()
        ratios.append(gradient_ratio(1e-3 * above, below, out))
    assert ratios[1].dtype == torch.float32
    torch.testing.assert_close(ratios[1], ratios[0], rtol=1e-3, atol=0)


def test_ratio_under_autocast_is_the_same(student, encoder, images):
    lq, gt, teacher_out = images(1, 3, 8, 8), images(1, 3, 16, 16), images(1, 3, 16, 16)
    out = student(lq)
    losses = DCKDLoss(student, encoder)(out, teacher_out, lq), (out - gt).abs().mean()
    expected = gradient_ratio(*losses, out)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(gradient_ratio(*losses, out), expected)


def test_ratio_refuses_what_was_not_computed_from_it():
    out, other = torch.ones(3, requires_grad=True), torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match="pixel_loss was not computed from this student_out"):
        gradient_ratio(out.mean(), other.mean(), out)
    with pytest.raises(ValueError, match=r"^loss was not computed"):
        gradient_ratio(other.mean(), out.mean(), out)
    with pytest.raises(ValueError, match=r"^loss and student_out must both be part of a graph"):
        gradient_ratio(out.mean().detach(), out.mean(), out)
    with torch.no_grad(), pytest.raises(ValueError, match="part of a graph"):
        gradient_ratio(out.mean(), out.mean(), out)
