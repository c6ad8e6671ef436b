"""Eqs. 7-9 against plain loops."""

import math

import oracle
import pytest
import torch
from numerics import relative

from dckd_losses import DMMLoss
from dckd_losses.dmm import cross_entropy, released_cross_entropy


def tokens(encoder, x):
    """The latent vectors of each cell, cell by cell."""
    low, high = encoder.input_range
    *_, last = encoder.network.levels(x * (high - low) + low)
    z = encoder.network.latents(last)
    return z.movedim(1, -1).flatten(0, 2).tolist()


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_equals_oracle(encoder, images, released, temperature):
    encoder.double()
    form = "released" if released else "cross_entropy"
    dmm = DMMLoss(encoder, temperature=temperature, form=form)
    student, teacher = images(2, 2, 3, 33, 50, dtype=torch.float64)
    codes = encoder.network.quantize.embedding.weight.tolist()
    expected = oracle.dmm(
        tokens(encoder, student), tokens(encoder, teacher), codes, temperature, released
    )
    assert relative(dmm(student, teacher), expected) < 1e-10


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gradient_equals_oracle(images, temperature):
    """By the latent vectors, with the codebook head on top."""
    codes = images(7, 4, dtype=torch.float64) - 0.5
    z_s, z_t = images(2, 2, 4, 1, 3, dtype=torch.float64) * 2 - 1
    z_s.requires_grad_()

    def logits(z):
        return 2 * torch.einsum("bdhw,kd->bkhw", z, codes) - codes.square().sum(1)[:, None, None]

    cross_entropy(logits(z_s), logits(z_t), temperature).backward()
    rows = [z.detach().movedim(1, -1).flatten(0, 2).tolist() for z in (z_s, z_t)]
    expected = torch.tensor(
        oracle.dmm_gradient(*rows, codes.tolist(), temperature), dtype=torch.float64
    )
    assert relative(z_s.grad.movedim(1, -1), expected) < 1e-10


@pytest.mark.parametrize("form", ["cross_entropy", "released"])
def test_gradcheck(encoder, images, form):
    dmm = DMMLoss(encoder.double(), form=form)
    student, teacher = images(2, 1, 3, 16, 16, dtype=torch.float64)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dmm(x, teacher), student, fast_mode=True)


def test_released_form_is_nearly_flat_and_not_least_at_equality(images):
    """FACTS of the doubled softmax: range [log(e+M-1)-1, log(e+M-1)] for M codes."""
    logits = 40 * images(1, 1024, 2, 2, dtype=torch.float64)
    top = math.log(math.e + 1023)
    equal = released_cross_entropy(logits, logits, 1.0).item()
    one_hot = 1e6 * torch.nn.functional.one_hot(logits.argmax(1), 1024).movedim(-1, 1).double()
    assert top - 1 <= released_cross_entropy(one_hot, logits, 1.0).item() < equal <= top


@pytest.mark.parametrize("form", ["cross_entropy", "released"])
def test_half_precision_logits_are_compared_in_float32(encoder, images, form):
    dmm = DMMLoss(encoder, form=form)
    student, teacher = (9 * images(2, 1, 300, 2, 2)).half()
    seen = dmm.from_logits(student, teacher)
    assert seen.dtype == torch.float32
    assert torch.equal(seen, dmm.from_logits(student.float(), teacher.float()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"temperature": 0}, "temperature must be finite and above 0, got 0"),
        ({"form": "kl"}, "one of cross_entropy, released, got 'kl'"),
    ],
)
def test_refuses_settings(encoder, arguments, message):
    with pytest.raises(ValueError, match=message):
        DMMLoss(encoder, **arguments)
