"""The encoder in half precision, and float16's gradients at whatever scale they come."""

import copy

import pytest
import torch
from numerics import cosine, relative

from dckd_losses import DCKDLoss, DMMLoss
from dckd_losses.layers import Attention

HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


@pytest.fixture
def batch(images):
    student = images(2, 3, 40, 40)
    return student, (student + 0.05 * images(2, 3, 40, 40)).clamp(0, 1), images(3, 2, 3, 40, 40)


def gradient(encoder, batch, factor=1.0, dtype=torch.float32):
    student, teacher, negatives = (x.to(dtype) for x in batch)
    dckd = DCKDLoss(torch.nn.Identity(), encoder, dmm_weight=0.05, negatives=lambda lq: negatives)
    x = student.clone().requires_grad_()
    (factor * dckd.to(dtype)(x, teacher, teacher)).backward()
    return x.grad / factor


WAYS = [{"impl": "plain"}, {"chunk": 1}, {"mode": "twopass"}]


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize(("precision", "bound"), [("float16", 0.993), ("bfloat16", 0.9)])
def test_gradient_is_nearly_that_of_float64(make_encoder, batch, way, precision, bound):
    truth = gradient(make_encoder(impl="plain"), batch, dtype=torch.float64)
    seen = gradient(make_encoder(precision=precision, **way), batch)
    assert bound < cosine(seen, truth) < 1 - 1e-7, "half precision it is, but not less"


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("factor", [1e-6, 2.0**30])
def test_float16_takes_whatever_factor_stands_before_the_loss(make_encoder, batch, way, factor):
    """Such as a GradScaler's, or a small weight: nothing under- or overflows inside."""
    encoder = make_encoder(precision="float16", **way)
    expected, seen = gradient(encoder, batch), gradient(encoder, batch, factor)
    assert seen.isfinite().all()
    assert (seen - expected).norm() < 1e-2 * expected.norm()


@pytest.mark.parametrize("factor", [float("inf"), float("nan")])
def test_a_gradient_that_is_not_finite_stays_so(make_encoder, batch, factor):
    """A GradScaler must see it, to skip the step."""
    grad = gradient(make_encoder(precision="float16"), batch, factor)
    assert not grad.isfinite().all()


def test_a_zero_gradient_stays_zero(make_encoder, batch):
    student = batch[0].clone().requires_grad_()
    loss = DMMLoss(make_encoder(precision="float16"))(student, batch[1])
    (zero,) = torch.autograd.grad(loss, student, torch.tensor(0.0))
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.slow
def test_compiled_float16_is_scaled_back(make_encoder, batch):
    student, teacher, negatives = batch
    dckd = DCKDLoss(
        torch.nn.Identity(), make_encoder(precision="float16"), negatives=lambda lq: negatives
    )
    dckd(*batch[:2], teacher)
    grads = []
    for loss in (dckd, torch.compile(dckd, backend="eager")):
        x = student.clone().requires_grad_()
        loss(x, teacher, teacher).backward()
        grads.append(x.grad)
    assert cosine(grads[1], grads[0].double()) > 0.98, "on the plain path, with other roundings"
    torch.testing.assert_close(grads[1].norm(), grads[0].norm(), rtol=0.05, atol=0)


@pytest.mark.parametrize("precision", HALVES)
def test_only_convolutions_after_the_first_are_in_half_precision(make_encoder, images, precision):
    network = make_encoder(precision=precision).network
    half = {name for name, p in network.named_parameters() if p.dtype == HALVES[precision]}
    exact = ("norm", "conv_in", "quant")
    assert half == {n for n, _ in network.named_parameters() if not any(x in n for x in exact)}


@pytest.mark.parametrize("precision", HALVES)
@pytest.mark.parametrize("impl", ["plain", "fused"])
def test_casts_change_neither_precision_nor_result(make_encoder, images, precision, impl):
    encoder = make_encoder(precision=precision, impl=impl)
    x = images(1, 3, 32, 32)
    before = encoder(x)
    encoder.double()
    assert encoder.network.encoder.dtype == HALVES[precision]
    assert encoder(x).code_logits.dtype == torch.float64
    after = encoder.float()(x)
    assert torch.equal(after.code_logits, before.code_logits)
    assert after.levels[0].dtype == torch.float32


@pytest.mark.parametrize("fused", [False, True])
def test_float16_attention_holds_products_that_overflow_unscaled(images, fused):
    """Where each q is 12 times each k's direction: 12 * 12 * 512 is more than float16 has."""
    attention = Attention(512)
    exact = copy.deepcopy(attention).double()
    for layer in (attention.q, attention.k, exact.q, exact.k):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.constant_(layer.bias, 12.0)
    for layer in (attention.q, attention.k, attention.v, attention.proj_out):
        layer.half().fused = fused
    x = images(1, 512, 3, 4) - 0.5
    seen = attention(x.half())
    assert seen.isfinite().all()
    assert relative(seen, exact(x.double())) < 2e-3
