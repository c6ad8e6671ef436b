"""The laws of Eq. 9 on given code logits, for whatever hypothesis thinks of."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dckd_losses.dmm import cross_entropy

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(*(st.integers(1, 5) for _ in range(4)))


def features(seed, number, size, spread):
    generator = torch.Generator().manual_seed(seed)
    return spread * torch.randn(number, *size, generator=generator, dtype=torch.float64)


@given(seeds, sizes, st.floats(0.1, 30), st.floats(0.2, 5))
def test_cross_entropy_is_least_at_the_teacher(seed, size, spread, temperature):
    """At least the teacher's entropy, which it is only where the distributions are equal."""
    batch, codes, height, width = size
    shape = (batch, codes + 1, height, width)
    student, teacher = features(seed, 2, shape, spread)
    p = (teacher / temperature).softmax(1)
    entropy = torch.special.entr(p).sum(1).mean()
    at_teacher = cross_entropy(teacher, teacher, temperature)
    shifted = cross_entropy(teacher + 7.0, teacher, temperature)
    elsewhere = cross_entropy(student, teacher, temperature)
    torch.testing.assert_close(at_teacher, entropy, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shifted, entropy, rtol=1e-9, atol=1e-12)
    q = (student / temperature).softmax(1)
    if (p - q).abs().max() > 1e-3:
        assert elsewhere > entropy
    else:
        assert elsewhere >= entropy - 1e-12


@given(seeds, sizes)
def test_gradient_of_the_cross_entropy_vanishes_at_the_teacher(seed, size):
    batch, codes, height, width = size
    (teacher,) = features(seed, 1, (batch, codes + 1, height, width), 3.0)
    student = teacher.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropy(student, teacher, 1.0), student)
    assert gradient.abs().max() < 1e-14
